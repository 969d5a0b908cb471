//! Outgoing webhooks.

use super::body::Json;
use crate::{
    auth::AuthUser,
    error::Result,
    state::AppState,
    store::{
        page::{PageQuery, page},
        webhook::{Delivery, Webhook},
    },
    webhooks,
};
use actix_web::{HttpResponse, delete, get, patch, post, web};
use serde::Deserialize;
use wire::{
    Page,
    ids::{DeliveryId, WebhookId},
    webhook::{CreateWebhook, DeliveryStatus, DeliveryView, UpdateWebhook, WebhookSecret, WebhookView},
};

type State = web::Data<AppState>;

/// Add a webhook. The reply has its secret, which is not shown again.
#[utoipa::path(tag = "webhooks", responses((status = 201, body = WebhookSecret)))]
#[post("/api/webhooks")]
pub async fn create_webhook(state: State, user: AuthUser, Json(body): Json<CreateWebhook>) -> Result<HttpResponse> {
    let created = webhooks::create(&state, user.user_id, body).await?;
    Ok(HttpResponse::Created().json(created))
}

/// Webhooks, newest first.
#[utoipa::path(tag = "webhooks", params(PageQuery), responses((status = 200, body = Page<WebhookView>)))]
#[get("/api/webhooks")]
pub async fn list_webhooks(
    state: State,
    user: AuthUser,
    query: web::Query<PageQuery>,
) -> Result<web::Json<Page<WebhookView>>> {
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Webhook::list(conn, &query).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// A webhook.
#[utoipa::path(tag = "webhooks", params(("id" = WebhookId, Path)), responses((status = 200, body = WebhookView)))]
#[get("/api/webhooks/{id}")]
pub async fn get_webhook(state: State, user: AuthUser, id: web::Path<WebhookId>) -> Result<web::Json<WebhookView>> {
    let row = state.db.tenant(user.user_id, async move |conn| Webhook::find(conn, *id).await).await?;
    Ok(web::Json(row.into()))
}

/// Change a webhook. Disabling it gives up what waits for it.
#[utoipa::path(tag = "webhooks", params(("id" = WebhookId, Path)), responses((status = 200, body = WebhookView)))]
#[patch("/api/webhooks/{id}")]
pub async fn update_webhook(
    state: State,
    user: AuthUser,
    id: web::Path<WebhookId>,
    Json(body): Json<UpdateWebhook>,
) -> Result<web::Json<WebhookView>> {
    Ok(web::Json(webhooks::update(&state, user.user_id, *id, body).await?.into()))
}

/// Delete a webhook.
#[utoipa::path(tag = "webhooks", params(("id" = WebhookId, Path)), responses((status = 204)))]
#[delete("/api/webhooks/{id}")]
pub async fn delete_webhook(state: State, user: AuthUser, id: web::Path<WebhookId>) -> Result<HttpResponse> {
    state.db.tenant(user.user_id, async move |conn| webhooks::delete(conn, *id).await).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// A new secret for a webhook; the one before signs too for 24 hours.
#[utoipa::path(tag = "webhooks", params(("id" = WebhookId, Path)), responses((status = 200, body = WebhookSecret)))]
#[post("/api/webhooks/{id}/rotate")]
pub async fn rotate_webhook(
    state: State,
    user: AuthUser,
    id: web::Path<WebhookId>,
) -> Result<web::Json<WebhookSecret>> {
    let work = async move |conn: &mut crate::db::Conn| webhooks::rotate(conn, *id).await;
    Ok(web::Json(state.db.tenant(user.user_id, work).await?))
}

/// Send a message without news.
#[utoipa::path(tag = "webhooks", params(("id" = WebhookId, Path)), responses((status = 202, body = DeliveryView)))]
#[post("/api/webhooks/{id}/test")]
pub async fn test_webhook(state: State, user: AuthUser, id: web::Path<WebhookId>) -> Result<HttpResponse> {
    let owner = user.user_id;
    let row = state.db.tenant(owner, async move |conn| webhooks::test(conn, owner, *id).await).await?;
    Ok(HttpResponse::Accepted().json(DeliveryView::from(row)))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveriesQuery {
    /// Only those of this status.
    status: Option<DeliveryStatus>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Messages for a webhook of the last 30 days, newest first.
#[utoipa::path(tag = "webhooks", params(("id" = WebhookId, Path), DeliveriesQuery),
    responses((status = 200, body = Page<DeliveryView>)))]
#[get("/api/webhooks/{id}/deliveries")]
pub async fn list_webhook_deliveries(
    state: State,
    user: AuthUser,
    id: web::Path<WebhookId>,
    query: web::Query<DeliveriesQuery>,
) -> Result<web::Json<Page<DeliveryView>>> {
    let DeliveriesQuery { status, cursor, limit } = query.into_inner();
    let query = PageQuery { cursor, limit };
    let limit = query.limit()?;
    let read = async move |conn: &mut crate::db::Conn| {
        Webhook::find(conn, *id).await?;
        Delivery::list(conn, *id, &query, status).await
    };
    let rows = state.db.tenant(user.user_id, read).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// Send a message again, under the same `webhook-id`.
#[utoipa::path(tag = "webhooks", params(("id" = WebhookId, Path), ("delivery_id" = DeliveryId, Path)),
    responses((status = 202, body = DeliveryView)))]
#[post("/api/webhooks/{id}/deliveries/{delivery_id}/redeliver")]
pub async fn redeliver_webhook(
    state: State,
    user: AuthUser,
    path: web::Path<(WebhookId, DeliveryId)>,
) -> Result<HttpResponse> {
    let (id, delivery) = path.into_inner();
    let work = async move |conn: &mut crate::db::Conn| webhooks::redeliver(conn, id, delivery).await;
    let row = state.db.tenant(user.user_id, work).await?;
    Ok(HttpResponse::Accepted().json(DeliveryView::from(row)))
}
