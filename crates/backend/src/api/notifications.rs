//! What users are told.

use crate::{
    audit,
    auth::AuthUser,
    error::Result,
    state::AppState,
    store::{
        notification::Notification,
        page::{PageQuery, page},
    },
};
use actix_web::{HttpResponse, delete, get, post, web};
use serde::Deserialize;
use wire::{
    Page,
    ids::NotificationId,
    notification::{Kind, NotificationView, UnreadCount},
};

type State = web::Data<AppState>;

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct NotificationsQuery {
    /// Only those that nobody has read.
    unread: Option<bool>,
    /// Only of this kind.
    kind: Option<Kind>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Notifications, newest first.
#[utoipa::path(tag = "notifications", params(NotificationsQuery),
    responses((status = 200, body = Page<NotificationView>)))]
#[get("/api/notifications")]
pub async fn list_notifications(
    state: State,
    user: AuthUser,
    query: web::Query<NotificationsQuery>,
) -> Result<web::Json<Page<NotificationView>>> {
    let NotificationsQuery { unread, kind, cursor, limit } = query.into_inner();
    let (query, filter) = (PageQuery { cursor, limit }, (unread.unwrap_or(false), kind));
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Notification::list(conn, &query, filter).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// How many notifications are unread.
#[utoipa::path(tag = "notifications", responses((status = 200, body = UnreadCount)))]
#[get("/api/notifications/unread")]
pub async fn count_unread_notifications(state: State, user: AuthUser) -> Result<web::Json<UnreadCount>> {
    let unread = state.db.tenant(user.user_id, async |conn| Notification::unread(conn).await).await?;
    Ok(web::Json(UnreadCount { unread }))
}

/// Mark all notifications as read.
#[utoipa::path(tag = "notifications", responses((status = 200, body = UnreadCount)))]
#[post("/api/notifications/read")]
pub async fn read_notifications(state: State, user: AuthUser) -> Result<web::Json<UnreadCount>> {
    let work = async |conn: &mut crate::db::Conn| {
        audit::about("all");
        Notification::read_all(conn).await?;
        Notification::unread(conn).await
    };
    Ok(web::Json(UnreadCount { unread: state.db.tenant(user.user_id, work).await? }))
}

/// Mark a notification as read.
#[utoipa::path(tag = "notifications", params(("id" = NotificationId, Path)),
    responses((status = 200, body = NotificationView)))]
#[post("/api/notifications/{id}/read")]
pub async fn read_notification(
    state: State,
    user: AuthUser,
    id: web::Path<NotificationId>,
) -> Result<web::Json<NotificationView>> {
    let row = state.db.tenant(user.user_id, async move |conn| Notification::read(conn, *id).await).await?;
    Ok(web::Json(row.into()))
}

/// Delete a notification.
#[utoipa::path(tag = "notifications", params(("id" = NotificationId, Path)), responses((status = 204)))]
#[delete("/api/notifications/{id}")]
pub async fn delete_notification(state: State, user: AuthUser, id: web::Path<NotificationId>) -> Result<HttpResponse> {
    state.db.tenant(user.user_id, async move |conn| Notification::delete(conn, *id).await).await?;
    Ok(HttpResponse::NoContent().finish())
}
