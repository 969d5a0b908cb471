//! Who is calling. A key is looked up by its SHA-256; refusals do not tell a missing key from an unknown,
//! revoked or expired one.

use crate::{
    api::guard::Admitted,
    config::KEY_PREFIX,
    db::Conn,
    error::{Error, Result},
    oidc::{Identity, Oidc},
    schema::{api_keys, users},
    state::AppState,
    store::{Key, User, key::scopes},
};
use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use rand::RngCore;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::future::{Ready, ready};
use uuid::Uuid;
use wire::{
    account::{Role, Scope},
    ids::{KeyId, UserId},
    problem::Code,
};

/// The user of the bootstrap key.
pub const BOOTSTRAP_USER: &str = "local";
/// Characters of a key that lists may show.
const SHOWN: usize = 12;

/// An authenticated user: every handler that touches tenant data takes one. The guard has put it into the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthUser {
    pub user_id: UserId,
    /// The key that was used, when it was one.
    pub key_id: Option<KeyId>,
    pub name: String,
    pub email: Option<String>,
    pub role: Role,
    /// What the key may do.
    pub scopes: Vec<Scope>,
    /// First characters of the key that was used.
    pub key_prefix: Option<String>,
}

impl AuthUser {
    /// Whether the request may do what administrators may.
    #[must_use]
    pub fn administers(&self) -> bool {
        self.role == Role::Admin && Scope::Admin.is_in(&self.scopes)
    }

    /// What tells requests of one sender from those of another: the key, or the user without one.
    #[must_use]
    pub fn sender(&self) -> Uuid {
        self.key_id.map_or(self.user_id.0, |key| key.0)
    }
}

impl FromRequest for AuthUser {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let extensions = req.extensions();
        let admitted = extensions.get::<Admitted>().filter(|a| a.operation.takes(req.match_info().iter().map(|p| p.0)));
        let user = admitted.map(|a| a.user.clone());
        ready(user.ok_or_else(|| Error::defect("a handler of users was reached as another operation")))
    }
}

/// The user a key belongs to, or a token of the identity provider speaks for.
pub(crate) async fn authenticate(state: &AppState, credential: Option<SecretString>) -> Result<AuthUser> {
    let key = credential.ok_or_else(refused)?;
    if let Some(oidc) = state.oidc.as_ref().filter(|_| Oidc::is_token(key.expose_secret())) {
        let identity = oidc.verify(key.expose_secret()).await?;
        return sign_in(state, identity).await;
    }
    let hash = hash(&key);
    state.db.system(async move |conn| find(conn, &hash).await).await?.ok_or_else(refused)
}

/// The user of an identity, who is made at first sight.
async fn sign_in(state: &AppState, identity: Identity) -> Result<AuthUser> {
    let scopes = identity.scopes.clone();
    let user = state.db.system(async move |conn| User::sign_in(conn, &identity).await).await?;
    if user.deleted_at.is_some() {
        return Err(Error::refused(Code::Unauthorized, "no valid token: its user was deleted here"));
    }
    let (user_id, role) = (UserId(user.id), user.role());
    Ok(AuthUser { user_id, key_id: None, name: user.name, email: user.email, role, scopes, key_prefix: None })
}

fn refused() -> Error {
    Error::refused(Code::Unauthorized, "no valid API key; send `Authorization: Bearer hone_sk_…`")
}

/// A new key: 256 random bits.
pub(crate) fn generate() -> SecretString {
    let mut bits = [0; 32];
    rand::rng().fill_bytes(&mut bits);
    SecretString::from(format!("{KEY_PREFIX}{}", hex::encode(bits)))
}

/// What lists show of a key.
pub(crate) fn shown(key: &SecretString) -> String {
    key.expose_secret().chars().take(SHOWN).collect()
}

pub(crate) fn hash(key: &SecretString) -> Vec<u8> {
    Sha256::digest(key.expose_secret().as_bytes()).to_vec()
}

/// The user a live key belongs to. Notes the use of the key at most once a minute.
async fn find(conn: &mut Conn, hash: &[u8]) -> Result<Option<AuthUser>> {
    let live = api_keys::revoked_at.is_null().and(users::deleted_at.is_null());
    let row: Option<(Key, User)> = api_keys::table
        .inner_join(users::table.on(users::id.eq(api_keys::user_id)))
        .filter(api_keys::key_hash.eq(hash))
        .filter(live)
        .select((Key::as_select(), User::as_select()))
        .first(conn)
        .await
        .optional()?;
    let Some((key, user)) = row else { return Ok(None) };
    let now = Utc::now();
    if key.expires_at.is_some_and(|at| at <= now) {
        return Ok(None);
    }
    if key.last_used_at.is_none_or(|at| at + TimeDelta::minutes(1) < now) {
        let this = api_keys::table.find(key.id);
        diesel::update(this).set(api_keys::last_used_at.eq(now)).execute(conn).await?;
    }
    Ok(Some(AuthUser {
        user_id: UserId(user.id),
        key_id: Some(KeyId(key.id)),
        role: user.role(),
        name: user.name,
        email: user.email,
        scopes: scopes(&key.scopes),
        key_prefix: Some(key.prefix),
    }))
}

/// Makes `key` the only bootstrap key of the user `name`, who is created when missing and gets the role.
pub async fn bootstrap(conn: &mut Conn, name: &str, role: Role, key: &SecretString) -> Result<UserId> {
    let user = ensure_user(conn, name, role).await?;
    let hash = hash(key);
    let others = api_keys::table
        .filter(api_keys::user_id.eq(user.0))
        .filter(api_keys::name.eq("bootstrap"))
        .filter(api_keys::key_hash.ne(hash.clone()))
        .filter(api_keys::revoked_at.is_null());
    diesel::update(others).set(api_keys::revoked_at.eq(Utc::now())).execute(conn).await?;
    diesel::insert_into(api_keys::table)
        .values((
            api_keys::id.eq(KeyId::random().0),
            api_keys::user_id.eq(user.0),
            api_keys::name.eq("bootstrap"),
            api_keys::prefix.eq(shown(key)),
            api_keys::key_hash.eq(hash),
        ))
        .on_conflict(api_keys::key_hash)
        .do_update()
        .set(api_keys::revoked_at.eq(None::<DateTime<Utc>>))
        .execute(conn)
        .await?;
    Ok(user)
}

async fn ensure_user(conn: &mut Conn, name: &str, role: Role) -> Result<UserId> {
    let id = diesel::insert_into(users::table)
        .values((users::id.eq(UserId::random().0), users::name.eq(name), users::role.eq(role.as_str())))
        .on_conflict(users::name)
        .do_update()
        .set(users::role.eq(role.as_str()))
        .returning(users::id)
        .get_result(conn)
        .await?;
    Ok(UserId(id))
}
