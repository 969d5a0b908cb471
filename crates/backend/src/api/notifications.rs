//! What users are told.

use crate::{
    audit,
    auth::AuthUser,
    error::{Error, Result},
    jobs::stream::{hub::Hub, sse},
    notifications::stream,
    state::AppState,
    store::{
        notification::Notification,
        page::{PageQuery, page},
    },
};
use actix_web::{HttpRequest, HttpResponse, delete, get, http::header, post, web};
use serde::Deserialize;
use wire::{
    Page,
    ids::NotificationId,
    notification::{Kind, NotificationView, StreamedNotification, UnreadCount},
    problem::Code,
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

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Only those behind this position. `next_cursor` of a page is such a position. A live stream without one begins with
    /// what comes from now on, a page with the oldest.
    #[serde(alias = "cursor")]
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Notifications per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Notifications in the order in which they came, oldest first: a page of them, or with `Accept: text/event-stream` live,
/// as they come.
#[utoipa::path(tag = "notifications", params(StreamQuery, ("Last-Event-ID" = Option<i64>, Header)), responses((status = 200,
    content((Page<StreamedNotification> = "application/json"), (StreamedNotification = "text/event-stream")))))]
#[get("/api/notifications/stream")]
pub async fn stream_notifications(
    req: HttpRequest,
    state: State,
    hub: web::Data<Hub>,
    user: AuthUser,
    query: web::Query<StreamQuery>,
) -> Result<HttpResponse> {
    let after = query.after;
    if after.is_some_and(|after| after < 0) {
        return Err(Error::refused(Code::Invalid, "after: must not be negative"));
    }
    let header = |name: &str| req.headers().get(name).and_then(|v| v.to_str().ok());
    let last = header("last-event-id").map(|id| id.trim().parse::<i64>()).transpose();
    let last = last.map_err(|_| Error::refused(Code::Invalid, "Last-Event-ID: must be an id that this stream gave"))?;
    if header(header::ACCEPT.as_str()).is_some_and(|accept| accept.contains("text/event-stream")) {
        let items = stream::open(&state.db, hub.into_inner(), user.user_id, last.or(after)).await?;
        return Ok(sse::response(items));
    }
    let limit = PageQuery { cursor: None, limit: query.limit }.limit()?;
    let items = stream::list(&state.db, user.user_id, after.unwrap_or(0), limit).await?;
    let full = i64::try_from(items.len()).is_ok_and(|n| n == limit);
    let next_cursor = items.last().filter(|_| full).map(|item| item.position.to_string());
    Ok(HttpResponse::Ok().json(Page { items, next_cursor }))
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
