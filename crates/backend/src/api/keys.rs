//! API keys: make, list, rename, revoke.

use super::body::Json;
use crate::{
    audit,
    auth::{self, AuthUser},
    db::Conn,
    error::{Error, Result},
    state::AppState,
    store::{
        Key, User,
        key::NewKey,
        page::{PageQuery, page},
    },
};
use actix_web::{HttpResponse, delete, get, patch, post, web};
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::ExposeSecret;
use wire::{
    KeyId, Page,
    account::{CreateKey, CreatedKey, KeyView, UpdateKey},
    problem::Code,
};

type State = web::Data<AppState>;

/// Make a key. The reply is the only place where it is ever shown. It can do at most what the key of the request can.
#[utoipa::path(tag = "account", responses((status = 201, body = CreatedKey)))]
#[post("/api/keys")]
pub async fn create_key(state: State, user: AuthUser, Json(body): Json<CreateKey>) -> Result<HttpResponse> {
    let request = body;
    let owner = request.user_id.unwrap_or(user.user_id);
    if owner != user.user_id && !user.administers() {
        return Err(Error::refused(Code::Forbidden, "user_id: only administrators make keys for others"));
    }
    let (key, new) = prepare(&user, request)?;
    let most = state.config.keys_per_user;
    let work = async move |conn: &mut Conn| {
        User::find(conn, owner).await?;
        check_room(conn, most).await?;
        let row = Key::insert(conn, owner, new).await?;
        audit::about(row.id);
        Ok(row)
    };
    let view = KeyView::from(state.db.tenant(owner, work).await?);
    Ok(HttpResponse::Created().json(CreatedKey { view, key: key.expose_secret().to_owned() }))
}

/// Refuses a user who has too many keys that work.
async fn check_room(conn: &mut Conn, most: u64) -> Result<()> {
    let live = Key::live(conn).await?;
    if live < most {
        return Ok(());
    }
    let detail = format!("there are {live} keys, and {most} are allowed; revoke one that is not needed any more first");
    Err(Error::refused(Code::Conflict, detail))
}

fn prepare(user: &AuthUser, request: CreateKey) -> Result<(secrecy::SecretString, NewKey)> {
    let name = super::users::name(&request.name)?;
    let mut scopes = request.scopes.unwrap_or_else(|| user.scopes.clone());
    scopes.sort_unstable();
    scopes.dedup();
    if let Some(scope) = scopes.iter().find(|scope| !scope.is_in(&user.scopes)) {
        let detail = format!("scopes: `{scope}` is not among those of the key this request was made with");
        return Err(Error::refused(Code::Forbidden, detail));
    }
    let expires_at = expiry(request.expires_at, request.expires_in, Utc::now())?;
    let key = auth::generate();
    let (prefix, hash) = (auth::shown(&key), auth::hash(&key));
    Ok((key, NewKey { name, prefix, hash, scopes, expires_at }))
}

fn expiry(at: Option<DateTime<Utc>>, seconds: Option<u32>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
    let invalid = |detail: &str| Err(Error::refused(Code::Invalid, detail));
    match (at, seconds) {
        (Some(_), Some(_)) => invalid("expires_in: give either this or expires_at"),
        (Some(at), None) if at <= now => invalid("expires_at: is in the past"),
        (None, Some(0)) => invalid("expires_in: must be at least 1 second"),
        (at, seconds) => Ok(at.or_else(|| seconds.map(|s| now + TimeDelta::seconds(s.into())))),
    }
}

/// Keys, newest first, revoked and expired ones too.
#[utoipa::path(tag = "account", params(PageQuery), responses((status = 200, body = Page<KeyView>)))]
#[get("/api/keys")]
pub async fn list_keys(state: State, user: AuthUser, query: web::Query<PageQuery>) -> Result<web::Json<Page<KeyView>>> {
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn: &mut Conn| Key::list(conn, &query).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// A key.
#[utoipa::path(tag = "account", params(("id" = KeyId, Path)), responses((status = 200, body = KeyView)))]
#[get("/api/keys/{id}")]
pub async fn get_key(state: State, user: AuthUser, id: web::Path<KeyId>) -> Result<web::Json<KeyView>> {
    let row = state.db.tenant(user.user_id, async move |conn: &mut Conn| Key::find(conn, *id).await).await?;
    Ok(web::Json(row.into()))
}

/// Rename a key. What it may do never changes.
#[utoipa::path(tag = "account", params(("id" = KeyId, Path)), responses((status = 200, body = KeyView)))]
#[patch("/api/keys/{id}")]
pub async fn update_key(
    state: State,
    user: AuthUser,
    id: web::Path<KeyId>,
    Json(body): Json<UpdateKey>,
) -> Result<web::Json<KeyView>> {
    let name = super::users::name(&body.name)?;
    let row = state.db.tenant(user.user_id, async move |conn: &mut Conn| Key::rename(conn, *id, &name).await).await?;
    Ok(web::Json(row.into()))
}

/// Revoke a key: the next request with it is refused. Repeating it is harmless.
#[utoipa::path(tag = "account", params(("id" = KeyId, Path)), responses((status = 204)))]
#[delete("/api/keys/{id}")]
pub async fn delete_key(state: State, user: AuthUser, id: web::Path<KeyId>) -> Result<HttpResponse> {
    state.db.tenant(user.user_id, async move |conn: &mut Conn| Key::revoke(conn, *id).await).await?;
    Ok(HttpResponse::NoContent().finish())
}
