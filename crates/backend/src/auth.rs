//! Who is calling. A key is looked up by its SHA-256; refusals do not tell a missing key from an unknown,
//! revoked or expired one.

use crate::{
    db::Conn,
    error::{Error, Result},
    schema::{api_keys, users},
    state::AppState,
};
use actix_web::{FromRequest, HttpRequest, dev::Payload, web};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use futures::{FutureExt, future::LocalBoxFuture};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use wire::{
    ids::{KeyId, UserId},
    problem::Code,
};

/// Characters of a key that lists may show.
const SHOWN: usize = 12;

/// An authenticated user: every handler that touches tenant data takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthUser {
    pub user_id: UserId,
    pub key_id: KeyId,
    pub name: String,
    /// First characters of the key that was used.
    pub key_prefix: String,
}

/// As [`AuthUser`], but the key may also come as `?token=`, because browsers cannot set headers on a
/// WebSocket. For that route only: URLs end up in logs of proxies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WsUser(pub AuthUser);

impl FromRequest for AuthUser {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let key = service::token::bearer(req).map(SecretString::from);
        authenticate(req, key)
    }
}

#[derive(serde::Deserialize)]
struct TokenQuery {
    token: Option<SecretString>,
}

impl FromRequest for WsUser {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let query = web::Query::<TokenQuery>::from_query(req.query_string()).ok().and_then(|q| q.into_inner().token);
        let key = service::token::bearer(req).map(SecretString::from).or(query);
        authenticate(req, key).map(|user| user.map(WsUser)).boxed_local()
    }
}

/// The user `key` belongs to.
pub(crate) fn authenticate(req: &HttpRequest, key: Option<SecretString>) -> LocalBoxFuture<'static, Result<AuthUser>> {
    let state = req.app_data::<web::Data<AppState>>().cloned();
    async move {
        let state = state.ok_or_else(|| Error::defect("the application has no state"))?;
        let key = key.ok_or_else(refused)?;
        let hash = hash(&key);
        state.db.system(async move |conn| find(conn, &hash).await).await?.ok_or_else(refused)
    }
    .boxed_local()
}

fn refused() -> Error {
    Error::refused(Code::Unauthorized, "no valid API key; send `Authorization: Bearer hone_sk_…`")
}

fn hash(key: &SecretString) -> Vec<u8> {
    Sha256::digest(key.expose_secret().as_bytes()).to_vec()
}

/// Key, user, user's name, key prefix, last use, expiry.
type KeyRow = (Uuid, Uuid, String, String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);

/// The user a live key belongs to. Notes the use of the key at most once a minute.
async fn find(conn: &mut Conn, hash: &[u8]) -> Result<Option<AuthUser>> {
    let live = api_keys::revoked_at.is_null().and(users::deleted_at.is_null());
    let row: Option<KeyRow> = api_keys::table
        .inner_join(users::table.on(users::id.eq(api_keys::user_id)))
        .filter(api_keys::key_hash.eq(hash))
        .filter(live)
        .select((api_keys::id, users::id, users::name, api_keys::prefix, api_keys::last_used_at, api_keys::expires_at))
        .first(conn)
        .await
        .optional()?;
    let Some((key, user, name, key_prefix, last_used, expires)) = row else { return Ok(None) };
    let now = Utc::now();
    if expires.is_some_and(|at| at <= now) {
        return Ok(None);
    }
    if last_used.is_none_or(|at| at + TimeDelta::minutes(1) < now) {
        let this = api_keys::table.find(key);
        diesel::update(this).set(api_keys::last_used_at.eq(now)).execute(conn).await?;
    }
    Ok(Some(AuthUser { user_id: UserId(user), key_id: KeyId(key), name, key_prefix }))
}

/// Makes `key` the only bootstrap key of the user `name`, who is created when missing.
pub async fn bootstrap(conn: &mut Conn, name: &str, key: &SecretString) -> Result<UserId> {
    let user = ensure_user(conn, name).await?;
    let hash = hash(key);
    let others = api_keys::table
        .filter(api_keys::user_id.eq(user.0))
        .filter(api_keys::name.eq("bootstrap"))
        .filter(api_keys::key_hash.ne(hash.clone()))
        .filter(api_keys::revoked_at.is_null());
    diesel::update(others).set(api_keys::revoked_at.eq(Utc::now())).execute(conn).await?;
    let prefix: String = key.expose_secret().chars().take(SHOWN).collect();
    diesel::insert_into(api_keys::table)
        .values((
            api_keys::id.eq(KeyId::random().0),
            api_keys::user_id.eq(user.0),
            api_keys::name.eq("bootstrap"),
            api_keys::prefix.eq(prefix),
            api_keys::key_hash.eq(hash),
        ))
        .on_conflict(api_keys::key_hash)
        .do_update()
        .set(api_keys::revoked_at.eq(None::<DateTime<Utc>>))
        .execute(conn)
        .await?;
    Ok(user)
}

async fn ensure_user(conn: &mut Conn, name: &str) -> Result<UserId> {
    diesel::insert_into(users::table)
        .values((users::id.eq(UserId::random().0), users::name.eq(name)))
        .on_conflict(users::name)
        .do_nothing()
        .execute(conn)
        .await?;
    let id = users::table.filter(users::name.eq(name)).select(users::id).first(conn).await?;
    Ok(UserId(id))
}
