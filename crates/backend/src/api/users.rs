//! Users, for administrators.

use super::body::Json;
use crate::{
    audit,
    auth::AuthUser,
    db::Conn,
    error::{Error, Result},
    state::AppState,
    store::{
        User,
        page::{PageQuery, page},
        user::UserChange,
    },
};
use actix_web::{HttpResponse, delete, get, patch, post, web};
use wire::{
    Page, UserId,
    account::{CreateUser, Role, UpdateUser, UserView},
    problem::Code,
};

type State = web::Data<AppState>;

const MAX_NAME_CHARS: usize = 100;
const MAX_EMAIL_CHARS: usize = 320;

/// A name as it is stored, of a user or a key.
pub(super) fn name(text: &str) -> Result<String> {
    let name = text.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        let detail = format!("name: must have 1 to {MAX_NAME_CHARS} characters and no control characters");
        return Err(Error::refused(Code::Invalid, detail));
    }
    Ok(name.to_owned())
}

/// An address as it is stored; empty is none.
fn email(text: &str) -> Result<Option<String>> {
    let email = text.trim();
    if email.is_empty() {
        return Ok(None);
    }
    let good = email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
    if !good || email.chars().count() > MAX_EMAIL_CHARS || email.chars().any(|c| c.is_control() || c == ' ') {
        return Err(Error::refused(Code::Invalid, "email: must be an address such as name@example.org"));
    }
    Ok(Some(email.to_owned()))
}

/// Users, newest first.
#[utoipa::path(tag = "users", params(PageQuery), responses((status = 200, body = Page<UserView>)))]
#[get("/api/users")]
pub async fn list_users(state: State, _: AuthUser, query: web::Query<PageQuery>) -> Result<web::Json<Page<UserView>>> {
    let limit = query.limit()?;
    let rows = state.db.system(async move |conn: &mut Conn| User::list(conn, &query).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// Add a user, who can do nothing before there is a key: `POST /api/keys` with `user_id`.
#[utoipa::path(tag = "users", responses((status = 201, body = UserView)))]
#[post("/api/users")]
pub async fn create_user(state: State, _: AuthUser, Json(body): Json<CreateUser>) -> Result<HttpResponse> {
    let (name, role) = (name(&body.name)?, body.role.unwrap_or(Role::User));
    let email = email(body.email.as_deref().unwrap_or_default())?;
    let work = async move |conn: &mut Conn| {
        let row = User::insert(conn, &name, email.as_deref(), role).await?;
        audit::about(row.id);
        audit::concerns(UserId(row.id));
        Ok(row)
    };
    Ok(HttpResponse::Created().json(UserView::from(state.db.system(work).await?)))
}

/// Change a user's name, address or role. One's own role stays, so that there is always an administrator.
#[utoipa::path(tag = "users", params(("id" = UserId, Path)), responses((status = 200, body = UserView)))]
#[patch("/api/users/{id}")]
pub async fn update_user(
    state: State,
    user: AuthUser,
    id: web::Path<UserId>,
    Json(body): Json<UpdateUser>,
) -> Result<web::Json<UserView>> {
    let (id, request) = (id.into_inner(), body);
    if id == user.user_id && request.role.is_some_and(|role| role != user.role) {
        return Err(Error::refused(Code::Conflict, "role: another administrator has to change yours"));
    }
    let change = UserChange {
        name: request.name.as_deref().map(name).transpose()?,
        email: request.email.as_deref().map(email).transpose()?,
        role: request.role.map(Role::as_str),
    };
    audit::concerns(id);
    let row = state.db.system(async move |conn: &mut Conn| User::change(conn, id, change).await).await?;
    Ok(web::Json(row.into()))
}

/// Delete a user: the keys stop at once. What the user owns stays, and jobs run to their end.
#[utoipa::path(tag = "users", params(("id" = UserId, Path)), responses((status = 204)))]
#[delete("/api/users/{id}")]
pub async fn delete_user(state: State, user: AuthUser, id: web::Path<UserId>) -> Result<HttpResponse> {
    let id = id.into_inner();
    if id == user.user_id {
        return Err(Error::refused(Code::Conflict, "another administrator has to delete you"));
    }
    audit::concerns(id);
    state.db.system(async move |conn: &mut Conn| User::soft_delete(conn, id).await).await?;
    Ok(HttpResponse::NoContent().finish())
}
