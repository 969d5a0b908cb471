//! Tokens of an identity provider (OpenID Connect): JWTs beside our own keys.
//!
//! Invariants: the algorithm is one of [`ALGORITHMS`] and the key's own, whatever the token says, so neither `none` nor a
//! public key used as an HMAC secret gets anywhere; issuer, audience and times are always checked; keys come from the
//! provider's key set only. A provider that is away stops nobody whose key is known.

use crate::error::{Error, Result};
use jsonwebtoken::{
    Algorithm, DecodingKey, TokenData, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use service::{Env, EnvError};
use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};
use tokio::sync::Mutex;
use wire::{account::Scope, problem::Code};

/// What tokens may be signed with.
const ALGORITHMS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA];
/// How far clocks may differ, in seconds.
const LEEWAY: u64 = 30;
/// After this long the key set is fetched again, so that keys the provider has withdrawn stop working.
const MAX_AGE: Duration = Duration::from_secs(3600);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Cap on the provider's documents in bytes.
const MAX_DOCUMENT: usize = 1 << 20;
const MAX_SUBJECT_CHARS: usize = 255;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcConfig {
    /// `iss` of the tokens.
    pub issuer: String,
    /// Must be among `aud` of the tokens.
    pub audience: String,
    /// Where the keys are; by discovery when absent.
    pub jwks_url: Option<String>,
    /// Claim (a path with dots) and value that make an administrator.
    pub admin: Option<(String, String)>,
    /// An unknown key makes us ask the provider at most this often.
    pub refresh: Duration,
}

impl OidcConfig {
    /// Reads `OIDC_ISSUER`, `OIDC_AUDIENCE`, `OIDC_JWKS_URL`, `OIDC_ADMIN_CLAIM` and `OIDC_REFRESH_SECONDS`; None without
    /// an issuer.
    pub fn from_env(env: &Env) -> Result<Option<Self>, EnvError> {
        let Some(issuer) = env.get("OIDC_ISSUER") else { return Ok(None) };
        let invalid = |name: &str, value: &str, reason: &str| {
            Err(EnvError::Invalid { name: name.to_owned(), value: value.to_owned(), reason: reason.to_owned() })
        };
        for (name, value) in [("OIDC_ISSUER", Some(issuer)), ("OIDC_JWKS_URL", env.get("OIDC_JWKS_URL"))] {
            if value.is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
                return invalid(name, value.unwrap_or_default(), "must be an http(s) URL");
            }
        }
        let admin = match env.get("OIDC_ADMIN_CLAIM").map(|text| (text, text.split_once('='))) {
            None => None,
            Some((_, Some((claim, value)))) if !claim.is_empty() && !value.is_empty() => {
                Some((claim.to_owned(), value.to_owned()))
            }
            Some((text, _)) => return invalid("OIDC_ADMIN_CLAIM", text, "must be CLAIM=VALUE, such as groups=admins"),
        };
        Ok(Some(Self {
            issuer: issuer.to_owned(),
            audience: env.required("OIDC_AUDIENCE", "give the audience that tokens for Hone have")?.to_owned(),
            jwks_url: env.get("OIDC_JWKS_URL").map(str::to_owned),
            admin,
            refresh: Duration::from_secs(env.parse_or("OIDC_REFRESH_SECONDS", 30)?),
        }))
    }
}

/// Who a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub issuer: String,
    pub subject: String,
    /// What to call the user.
    pub name: String,
    pub email: Option<String>,
    /// Whether the token makes its user an administrator; None when tokens do not decide that.
    pub admin: Option<bool>,
    pub scopes: Vec<Scope>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    preferred_username: Option<String>,
    name: Option<String>,
    email: Option<String>,
    /// Scopes, separated by spaces.
    scope: Option<String>,
    /// The same as Azure and Okta have it: a text or a list.
    scp: Option<Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Claims {
    /// Our scopes that the token names; everything when it names none.
    fn scopes(&self) -> Vec<Scope> {
        let list = self.scp.as_ref().and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let texts = [self.scope.as_deref(), self.scp.as_ref().and_then(Value::as_str)];
        let words = texts.into_iter().flatten().flat_map(str::split_whitespace).chain(list);
        let mut scopes: Vec<Scope> = words.filter_map(|word| word.parse().ok()).collect();
        scopes.sort_unstable();
        scopes.dedup();
        if scopes.is_empty() { vec![Scope::All] } else { scopes }
    }

    fn has(&self, path: &str, wanted: &str) -> bool {
        let mut parts = path.split('.');
        let first = parts.next().and_then(|name| self.rest.get(name));
        match parts.try_fold(first, |value, name| value.map(|v| v.get(name))) {
            Some(Some(Value::String(text))) => text == wanted,
            Some(Some(Value::Array(list))) => list.iter().any(|v| v == wanted),
            _ => false,
        }
    }
}

/// A key of the provider, with what it may have signed.
#[derive(Clone)]
struct Key {
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

#[derive(Default)]
struct Keys {
    by_id: HashMap<String, Key>,
    fetched: Option<Instant>,
    /// The last attempt to fetch them, and whether it went well.
    tried: Option<(Instant, bool)>,
}

/// Verifies tokens of one provider.
pub struct Oidc {
    config: OidcConfig,
    http: reqwest::Client,
    keys: RwLock<Keys>,
    /// Held while the keys are fetched: many requests with an unknown key ask once.
    fetching: Mutex<()>,
}

impl std::fmt::Debug for Oidc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oidc").field("config", &self.config).finish_non_exhaustive()
    }
}

fn refused(why: &str) -> Error {
    Error::refused(Code::Unauthorized, format!("no valid token: {why}"))
}

impl Oidc {
    pub fn new(config: OidcConfig) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { config, http, keys: RwLock::default(), fetching: Mutex::default() })
    }

    /// Whether a credential looks like a token, and not like a key of ours.
    #[must_use]
    pub fn is_token(credential: &str) -> bool {
        credential.split('.').count() == 3
    }

    /// The user a token speaks for.
    pub async fn verify(&self, token: &str) -> Result<Identity> {
        let header =
            decode_header(token).map_err(|_| refused("it is no JWT, or signed in a way that is not accepted"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(refused("it is signed in a way that is not accepted; use RS256, PS256, ES256 or EdDSA"));
        }
        let id = header.kid.ok_or_else(|| refused("it does not name its key (`kid`)"))?;
        let key = self.key(&id).await?;
        if !key.algorithms.contains(&header.alg) {
            return Err(refused("its algorithm is not the one of its key"));
        }
        let mut rules = Validation::new(header.alg);
        rules.set_issuer(&[&self.config.issuer]);
        rules.set_audience(&[&self.config.audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.validate_nbf = true;
        rules.leeway = LEEWAY;
        let claims: TokenData<Claims> = decode(token, &key.key, &rules).map_err(|e| refused(reason(e.kind())))?;
        self.identity(claims.claims)
    }

    fn identity(&self, claims: Claims) -> Result<Identity> {
        if claims.sub.is_empty() || claims.sub.chars().count() > MAX_SUBJECT_CHARS {
            return Err(refused("its subject is empty or too long"));
        }
        let (scopes, admin) =
            (claims.scopes(), self.config.admin.as_ref().map(|(claim, value)| claims.has(claim, value)));
        let named = [claims.preferred_username, claims.email.clone(), claims.name];
        let name = named.into_iter().flatten().find(|name| !name.trim().is_empty());
        Ok(Identity {
            issuer: self.config.issuer.clone(),
            name: name.unwrap_or_else(|| claims.sub.clone()),
            subject: claims.sub,
            email: claims.email,
            admin,
            scopes,
        })
    }

    fn known(&self, id: &str) -> (Option<Key>, bool, Option<(Instant, bool)>) {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = keys.fetched.is_some_and(|at| at.elapsed() < MAX_AGE);
        (keys.by_id.get(id).cloned(), fresh, keys.tried)
    }

    /// The key of this id, asked for when it is not known or old.
    async fn key(&self, id: &str) -> Result<Key> {
        if let (Some(key), true, _) = self.known(id) {
            return Ok(key);
        }
        let _fetching = self.fetching.lock().await;
        // Someone else may have fetched it meanwhile.
        let (known, fresh, tried) = self.known(id);
        if let (Some(key), true) = (&known, fresh) {
            return Ok(key.clone());
        }
        let away = || {
            Error::refused(
                Code::Unavailable,
                "the identity provider cannot be asked for its keys; try again in a moment",
            )
        };
        let unknown = || refused("its key is not one of the identity provider's");
        if let Some((_, good)) = tried.filter(|(at, _)| at.elapsed() < self.config.refresh) {
            return known.ok_or_else(if good { unknown } else { away });
        }
        let fetched = self.fetch().await;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.tried = Some((Instant::now(), fetched.is_ok()));
        match fetched {
            Ok(by_id) => {
                keys.by_id = by_id;
                keys.fetched = Some(Instant::now());
                keys.by_id.get(id).cloned().ok_or_else(unknown)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot fetch the keys of the identity provider; known keys go on working");
                known.ok_or_else(away)
            }
        }
    }

    async fn fetch(&self) -> Result<HashMap<String, Key>, String> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        #[derive(Deserialize)]
        struct KeySet {
            keys: Vec<Value>,
        }
        let url = match &self.config.jwks_url {
            Some(url) => url.clone(),
            None => {
                let base = self.config.issuer.trim_end_matches('/');
                let found: Discovery = self.document(&format!("{base}/.well-known/openid-configuration")).await?;
                if found.issuer != self.config.issuer {
                    return Err(format!("the provider calls itself `{}`, which is not OIDC_ISSUER", found.issuer));
                }
                found.jwks_uri
            }
        };
        let set: KeySet = self.document(&url).await?;
        // A key of a kind we do not know must not hide the others.
        let keys = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        Ok(keys.filter_map(|jwk| usable(&jwk)).collect())
    }

    /// A JSON document of the provider, of bounded size.
    async fn document<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let error = |e: reqwest::Error| service::error::chain(&e);
        let mut reply = self.http.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(error)?;
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await.map_err(error)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_DOCUMENT {
                return Err(format!("{url} is larger than {MAX_DOCUMENT} bytes"));
            }
        }
        serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}"))
    }
}

/// A key for signatures of [`ALGORITHMS`], by its id.
fn usable(jwk: &Jwk) -> Option<(String, Key)> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let family: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[Algorithm::RS256, Algorithm::PS256],
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => &[Algorithm::ES256],
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        _ => return None,
    };
    let declared = jwk.common.key_algorithm.map(|a| a.to_string());
    let fits = |a: &Algorithm| declared.as_ref().is_none_or(|name| *name == format!("{a:?}"));
    let algorithms: Vec<Algorithm> = family.iter().copied().filter(fits).collect();
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| !algorithms.is_empty())?;
    Some((jwk.common.key_id.clone()?, Key { key, algorithms }))
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidIssuer => "it is of another issuer",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::MissingRequiredClaim(_) => "it lacks one of exp, iss, aud, sub",
        _ => "it cannot be read",
    }
}
