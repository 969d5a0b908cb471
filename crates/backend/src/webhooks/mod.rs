//! Outgoing webhooks, as Standard Webhooks (<https://www.standardwebhooks.com>): messages are signed, and sent until
//! they are taken or a schedule of three days has passed.
//!
//! Invariant: a message is sent at least once after its transaction has committed, always under the same `webhook-id`;
//! the table of deliveries is the outbox, and nothing about a message is in memory only.

pub mod schedule;
pub mod signing;
pub mod worker;

use crate::{
    db::Conn,
    error::{Error, Result},
    state::AppState,
    store::webhook::{Delivery, Webhook, WebhookChange},
};
use anyhow::Context;
use serde_json::json;
use service::outgoing::{Allowed, Outgoing};
use std::time::Duration;
use wire::{
    UserId,
    ids::{DeliveryId, WebhookId},
    notification::Kind,
    problem::{Code, FieldError, Problem},
    webhook::{ALL_EVENTS, CreateWebhook, UpdateWebhook, WebhookSecret},
};

/// For a whole request with its reply; shorter than a lease.
const TIMEOUT: Duration = Duration::from_secs(15);
const MAX_DESCRIPTION: usize = 500;
/// The secret before a rotation goes on to sign for a day.
const OVERLAP_SECONDS: f64 = 24.0 * 3600.0;

/// What requests to webhooks leave through.
pub fn client(allowed: Allowed) -> anyhow::Result<Outgoing> {
    Outgoing::new(allowed, TIMEOUT).context("cannot build the HTTP client for webhooks")
}

fn invalid(path: &str, message: String) -> Error {
    let problem = Problem::new(Code::Invalid, format!("{path}: {message}"));
    problem.with_errors(vec![FieldError::new(path, message)]).into()
}

fn check_url(state: &AppState, url: &str) -> Result<()> {
    state.outgoing.check(url).map(drop).map_err(|refused| invalid("url", refused.to_string()))
}

fn check_events(events: &[String]) -> Result<()> {
    if events.is_empty() {
        return Err(invalid("events", "name at least one kind, or `*`".into()));
    }
    let known = |event: &str| event == ALL_EVENTS || Kind::ALL.iter().any(|kind| kind.as_str() == event);
    match events.iter().find(|event| !known(event)) {
        Some(event) => {
            let kinds = Kind::ALL.map(Kind::as_str).join(", ");
            Err(invalid("events", format!("`{event}` is not a kind of notification; there are `*`, {kinds}")))
        }
        None => Ok(()),
    }
}

fn check_description(text: &str) -> Result<()> {
    if text.chars().count() > MAX_DESCRIPTION || text.contains('\0') {
        return Err(invalid("description", format!("must have at most {MAX_DESCRIPTION} characters")));
    }
    Ok(())
}

/// Adds a webhook; its secret is told only now.
pub async fn create(state: &AppState, user: UserId, request: CreateWebhook) -> Result<WebhookSecret> {
    let CreateWebhook { url, description, events } = request;
    let events = events.unwrap_or_else(|| vec![ALL_EVENTS.to_owned()]);
    check_url(state, &url)?;
    check_events(&events)?;
    check_description(&description)?;
    let secret = signing::new_secret();
    let change = WebhookChange {
        url: Some(url),
        description: Some(description),
        events: Some(events),
        ..WebhookChange::default()
    };
    let insert = async move |conn: &mut Conn| Webhook::insert(conn, user, &secret, change).await;
    let row = state.db.tenant(user, insert).await?;
    Ok(WebhookSecret { webhook: row.into(), secret: signing::show(&secret) })
}

pub async fn update(state: &AppState, user: UserId, id: WebhookId, request: UpdateWebhook) -> Result<Webhook> {
    let UpdateWebhook { url, description, events, enabled } = request;
    url.as_deref().map_or(Ok(()), |url| check_url(state, url))?;
    events.as_deref().map_or(Ok(()), check_events)?;
    description.as_deref().map_or(Ok(()), check_description)?;
    let on = enabled == Some(true);
    let change = WebhookChange {
        url,
        description,
        events,
        enabled,
        disabled_reason: on.then_some(None),
        failures: on.then_some(0),
        deleted_at: None,
    };
    let work = async move |conn: &mut Conn| {
        let before = Webhook::find(conn, id).await?;
        let nothing =
            change.url.is_none() && change.description.is_none() && change.events.is_none() && change.enabled.is_none();
        if nothing {
            return Ok(before);
        }
        if before.enabled && enabled == Some(false) {
            Delivery::give_up(conn, id, "the webhook was disabled").await?;
        }
        Webhook::change(conn, id, change).await
    };
    state.db.tenant(user, work).await
}

pub async fn delete(conn: &mut Conn, id: WebhookId) -> Result<()> {
    let gone = WebhookChange { deleted_at: Some(chrono::Utc::now()), ..WebhookChange::default() };
    Webhook::change(conn, id, gone).await?;
    Delivery::give_up(conn, id, "the webhook was deleted").await
}

/// A new secret; the one before signs too for a day.
pub async fn rotate(conn: &mut Conn, id: WebhookId) -> Result<WebhookSecret> {
    let secret = signing::new_secret();
    let row = Webhook::rotate(conn, id, &secret, OVERLAP_SECONDS).await?;
    Ok(WebhookSecret { webhook: row.into(), secret: signing::show(&secret) })
}

/// Refuses what would never be sent.
async fn enabled(conn: &mut Conn, id: WebhookId) -> Result<()> {
    if Webhook::find(conn, id).await?.enabled {
        return Ok(());
    }
    Err(Error::refused(Code::Conflict, format!("the webhook {id} is disabled; enable it first")))
}

/// A message without news.
pub async fn test(conn: &mut Conn, user: UserId, id: WebhookId) -> Result<Delivery> {
    enabled(conn, id).await?;
    let kind = Kind::WebhookTest.as_str();
    let payload = json!({"type": kind, "timestamp": chrono::Utc::now(), "data": {"webhook_id": id}});
    Delivery::insert(conn, user, id, (kind, payload)).await
}

pub async fn redeliver(conn: &mut Conn, id: WebhookId, delivery: DeliveryId) -> Result<Delivery> {
    enabled(conn, id).await?;
    Delivery::again(conn, id, delivery).await
}
