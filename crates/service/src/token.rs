//! Tokens between services: HS256 JWTs under a key that backend and gateway share (`TOKEN_SIGNING_KEY`).
//!
//! A *service token* lives a minute and may do everything. A *job token* names job, attempt and epoch and
//! lists the storage prefixes it may read and write; the backend additionally compares its epoch with the
//! row, so a fenced attempt's token is dead for callbacks at once. Tokens are opaque to the trainer.

use chrono::Utc;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wire::ids::{JobId, UserId};

const ISSUER: &str = "hone";

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token is malformed, expired or signed with another key")]
    Rejected(#[source] jsonwebtoken::errors::Error),
    #[error("cannot sign a token")]
    Sign(#[source] jsonwebtoken::errors::Error),
    #[error("TOKEN_SIGNING_KEY must have at least 32 characters")]
    WeakKey,
}

/// What a job token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobGrant {
    pub user: UserId,
    pub job: JobId,
    pub attempt: u32,
    pub epoch: i64,
    /// Storage prefixes.
    pub read: Vec<String>,
    pub write: Vec<String>,
}

/// A verified token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Grant {
    Service { name: String },
    Job(JobGrant),
}

impl Grant {
    #[must_use]
    pub fn can_read(&self, key: &str) -> bool {
        match self {
            Self::Service { .. } => true,
            Self::Job(g) => g.read.iter().chain(&g.write).any(|p| key.starts_with(p.as_str())),
        }
    }

    #[must_use]
    pub fn can_write(&self, key: &str) -> bool {
        match self {
            Self::Service { .. } => true,
            Self::Job(g) => g.write.iter().any(|p| key.starts_with(p.as_str())),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    exp: i64,
    grant: Grant,
}

/// The shared signing key.
#[derive(Clone)]
pub struct TokenKey(SecretString);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey([redacted])")
    }
}

impl TokenKey {
    pub fn new(key: SecretString) -> Result<Self, TokenError> {
        if key.expose_secret().len() < 32 {
            return Err(TokenError::WeakKey);
        }
        Ok(Self(key))
    }

    pub fn mint(&self, grant: Grant, ttl: Duration) -> Result<SecretString, TokenError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims { iss: ISSUER.into(), exp: Utc::now().timestamp().saturating_add(ttl), grant };
        let key = EncodingKey::from_secret(self.0.expose_secret().as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).map(Into::into).map_err(TokenError::Sign)
    }

    pub fn verify(&self, token: &str) -> Result<Grant, TokenError> {
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_issuer(&[ISSUER]);
        rules.set_required_spec_claims(&["exp", "iss"]);
        rules.leeway = 5;
        let key = DecodingKey::from_secret(self.0.expose_secret().as_bytes());
        jsonwebtoken::decode::<Claims>(token, &key, &rules).map(|t| t.claims.grant).map_err(TokenError::Rejected)
    }
}

/// The token of an `Authorization: Bearer …` header.
#[must_use]
pub fn bearer(req: &actix_web::HttpRequest) -> Option<&str> {
    req.headers().get("authorization")?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(c: char) -> TokenKey {
        TokenKey::new(c.to_string().repeat(32).into()).unwrap()
    }

    fn job() -> Grant {
        Grant::Job(JobGrant {
            user: UserId::random(),
            job: JobId::random(),
            attempt: 1,
            epoch: 1,
            read: vec!["models/a/".into()],
            write: vec!["jobs/u/j/attempt-1/".into()],
        })
    }

    #[test]
    fn a_token_survives_the_round_trip_and_nothing_else_does() {
        let token = key('a').mint(job(), Duration::from_secs(60)).unwrap();
        assert!(matches!(key('a').verify(token.expose_secret()), Ok(Grant::Job(_))));
        assert!(key('b').verify(token.expose_secret()).is_err());
        let mut forged = token.expose_secret().to_owned();
        forged.pop();
        assert!(key('a').verify(&forged).is_err());
    }

    #[test]
    fn a_job_token_is_bound_to_its_prefixes() {
        let grant = job();
        assert!(grant.can_read("models/a/x") && grant.can_read("jobs/u/j/attempt-1/x"));
        assert!(!grant.can_read("models/b/x"));
        assert!(grant.can_write("jobs/u/j/attempt-1/x"));
        assert!(!grant.can_write("models/a/x") && !grant.can_write("jobs/u/j/attempt-2/x"));
    }

    #[test]
    fn short_keys_are_refused() {
        assert!(TokenKey::new("short".into()).is_err());
    }
}
