//! The audit log.

use crate::{
    audit::{self, Filter, Row},
    auth::AuthUser,
    db::Conn,
    error::{Error, Result},
    state::AppState,
    store::page::{PageQuery, page},
};
use actix_web::{get, web};
use serde::Deserialize;
use wire::{
    Page, UserId,
    account::{AuditEntry, Outcome},
    problem::Code,
};

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only what concerns this user; for administrators.
    user_id: Option<UserId>,
    /// Only this operation, such as `publish_version`.
    action: Option<String>,
    /// Only what was done to this thing.
    resource_id: Option<String>,
    /// Only `done` or only `refused`.
    outcome: Option<Outcome>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Who did what, newest first: one's own entries, for administrators everyone's.
#[utoipa::path(tag = "account", params(AuditQuery), responses((status = 200, body = Page<AuditEntry>)))]
#[get("/api/audit")]
pub async fn list_audit(
    state: web::Data<AppState>,
    user: AuthUser,
    query: web::Query<AuditQuery>,
) -> Result<web::Json<Page<AuditEntry>>> {
    let AuditQuery { user_id, action, resource_id, outcome, cursor, limit } = query.into_inner();
    let everyone = user.administers();
    if !everyone && user_id.is_some_and(|id| id != user.user_id) {
        return Err(Error::refused(Code::Forbidden, "user_id: the log of others is for administrators"));
    }
    let query = PageQuery { cursor, limit };
    let limit = query.limit()?;
    let filter = Filter { user: user_id, action, resource: resource_id, outcome };
    let list = async move |conn: &mut Conn| audit::list(conn, &query, filter).await;
    let rows = if everyone { state.db.system(list).await? } else { state.db.tenant(user.user_id, list).await? };
    Ok(web::Json(page(rows, limit, |row: &Row| (row.created_at, row.id), Into::into)))
}
