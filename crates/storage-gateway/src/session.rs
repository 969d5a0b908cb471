//! Upload sessions without state: the id is a signed token that says everything, so any replica can serve it.

use chrono::{TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use service::{ApiError, ApiResult};
use uuid::Uuid;
use wire::problem::Code;

/// Differs from the issuer of access tokens, which share the key: neither passes for the other.
const ISSUER: &str = "hone-upload";

/// How long a session may be used; the sweeper removes what is older.
pub const LIFETIME: TimeDelta = TimeDelta::hours(24);

/// What a session id carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: Uuid,
    pub key: String,
    pub size: u64,
    pub part_size: u64,
    /// S3's upload id; absent for empty objects, which have no parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A part of a session: number from 1, offset, size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedPart {
    pub number: u32,
    pub offset: u64,
    pub size: u64,
}

impl Session {
    /// The parts the object is cut into: all of `part_size` but the last.
    pub fn parts(&self) -> impl Iterator<Item = PlannedPart> {
        let (size, part_size) = (self.size, self.part_size.max(1));
        (1_u32..).map_while(move |number| {
            let offset = u64::from(number - 1).checked_mul(part_size).filter(|offset| *offset < size)?;
            Some(PlannedPart { number, offset, size: part_size.min(size - offset) })
        })
    }
}

/// Parts are 8 MiB, larger when there would be more than 1000.
#[must_use]
pub fn part_size(size: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    size.div_ceil(1000).div_ceil(MIB).saturating_mul(MIB).max(8 * MIB)
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    exp: i64,
    session: Session,
}

/// Signs and reads session ids.
#[derive(Clone)]
pub struct SessionKey(SecretString);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey([redacted])")
    }
}

impl SessionKey {
    #[must_use]
    pub fn new(key: &SecretString) -> Self {
        Self(key.clone())
    }

    pub fn seal(&self, session: Session) -> ApiResult<String> {
        let exp = (Utc::now() + LIFETIME).timestamp();
        let claims = Claims { iss: ISSUER.into(), exp, session };
        let key = EncodingKey::from_secret(self.0.expose_secret().as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).map_err(ApiError::internal)
    }

    pub fn open(&self, id: &str) -> ApiResult<Session> {
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_issuer(&[ISSUER]);
        rules.set_required_spec_claims(&["exp", "iss"]);
        let key = DecodingKey::from_secret(self.0.expose_secret().as_bytes());
        match jsonwebtoken::decode::<Claims>(id, &key, &rules) {
            Ok(token) => Ok(token.claims.session),
            Err(e) => Err(gone().caused_by(e)),
        }
    }
}

/// The answer for sessions that expired, were aborted, failed verification or never existed.
#[must_use]
pub fn gone() -> ApiError {
    ApiError::new(
        Code::NotFound,
        "there is no such upload session: it was aborted, failed verification or is older than 24 h; open a new one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::token::TokenKey;

    fn session(size: u64) -> Session {
        Session {
            id: Uuid::nil(),
            key: "jobs/a".into(),
            size,
            part_size: part_size(size),
            upload: Some("u".into()),
            sha256: None,
        }
    }

    #[test]
    fn parts_cover_the_object_and_stay_under_s3_limits() {
        for size in [1, 8 << 20, (8 << 20) + 1, 20_000_000_000, 5_000_000_000_000] {
            let session = session(size);
            let parts: Vec<_> = session.parts().collect();
            assert!(parts.len() <= 1000, "{size}: {} parts", parts.len());
            assert_eq!(parts.iter().map(|p| p.size).sum::<u64>(), size);
            let mut next = 0;
            for part in &parts {
                assert_eq!(part.offset, next);
                next += part.size;
                assert!(part.size >= 5 << 20 || next == size);
            }
        }
        assert_eq!(session(0).parts().count(), 0);
    }

    #[test]
    fn a_session_id_is_no_access_token_and_the_other_way_round() {
        let secret = SecretString::from("s".repeat(32));
        let sessions = SessionKey::new(&secret);
        let tokens = TokenKey::new(secret).unwrap();
        let id = sessions.seal(session(7)).unwrap();
        assert_eq!(sessions.open(&id).unwrap(), session(7));
        assert!(tokens.verify(&id).is_err());
        let grant = service::token::Grant::Service { name: "x".into() };
        let token = tokens.mint(grant, std::time::Duration::from_secs(60)).unwrap();
        assert!(sessions.open(token.expose_secret()).is_err());
        assert!(sessions.open(&format!("{id}x")).is_err());
    }
}
