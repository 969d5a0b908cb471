//! The caller.

use crate::auth::AuthUser;
use actix_web::{get, web};
use wire::account::Me;

/// The user the API key belongs to.
#[utoipa::path(tag = "account", responses((status = 200, body = Me)))]
#[get("/api/me")]
pub async fn get_me(user: AuthUser) -> web::Json<Me> {
    web::Json(Me { id: user.user_id, name: user.name, key_prefix: user.key_prefix })
}
