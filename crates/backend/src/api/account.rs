//! The caller.

use crate::auth::AuthUser;
use actix_web::{get, web};
use wire::account::Me;

/// The user the API key belongs to.
#[utoipa::path(tag = "account", responses((status = 200, body = Me)))]
#[get("/api/me")]
pub async fn get_me(user: AuthUser) -> web::Json<Me> {
    let AuthUser { user_id: id, name, key_prefix, role, email, scopes, .. } = user;
    web::Json(Me { id, name, key_prefix, role, email, scopes })
}
