//! Sends what is due: claims rows, posts them, notes the outcome.
//!
//! A claim is a lease: it moves the time of the next attempt behind the longest a request may take. A backend that dies
//! with a claim in hand leaves a row that is due again, and several backends share the work by skipping locked rows.

use super::{schedule, signing};
use crate::{
    db::Conn,
    error::Result,
    notifications::{Kind, News, Severity},
    state::AppState,
    store::webhook::{Delivery, Webhook, WebhookChange},
};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Binary, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use service::outgoing::read_at_most;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wire::{UserId, ids::WebhookId};

/// Messages on their way at the same time.
const CONCURRENCY: usize = 16;
/// Longer than a request may take.
const LEASE_SECONDS: f64 = 60.0;
const POLL: Duration = Duration::from_millis(500);
/// Of a reply that is not success, to be shown.
const KEPT_BYTES: usize = 1024;

/// A claimed message.
#[derive(Clone, QueryableByName)]
struct Claimed {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    user_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    endpoint_id: Uuid,
    #[diesel(sql_type = Jsonb)]
    payload: Value,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Timestamptz)]
    created_at: chrono::DateTime<chrono::Utc>,
    #[diesel(sql_type = Text)]
    url: String,
    #[diesel(sql_type = Binary)]
    secret: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    previous: Option<Vec<u8>>,
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Delivered(u16),
    /// 410: the receiver wants nothing more.
    Gone,
    Failed {
        status: Option<u16>,
        why: String,
    },
}

/// Sends until `stop`.
pub async fn run(state: AppState, stop: CancellationToken) {
    let mut sending = JoinSet::new();
    loop {
        while sending.try_join_next().is_some() {}
        let room = CONCURRENCY.saturating_sub(sending.len());
        let claimed = match claim(&state, room).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(error = %service::error::chain(&error), "cannot look for webhook deliveries, trying again");
                Vec::new()
            }
        };
        let full = room > 0 && claimed.len() == room;
        for message in claimed {
            let state = state.clone();
            sending.spawn(async move { deliver(&state, message).await });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(POLL), if !full => {}
            _ = sending.join_next(), if full => {}
        }
    }
    // What is on its way may arrive; what does not is sent again after its lease.
    let _ = tokio::time::timeout(Duration::from_secs(2), async { while sending.join_next().await.is_some() {} }).await;
}

async fn claim(state: &AppState, room: usize) -> Result<Vec<Claimed>> {
    if room == 0 {
        return Ok(Vec::new());
    }
    let query = "
        UPDATE webhook_deliveries d SET
            attempts = d.attempts + 1,
            next_attempt_at = clock_timestamp() + make_interval(secs => $1)
        FROM webhook_endpoints e
        WHERE e.id = d.endpoint_id AND d.id IN (
            SELECT due.id FROM webhook_deliveries due JOIN webhook_endpoints at ON at.id = due.endpoint_id
            WHERE due.status = 'pending' AND due.next_attempt_at <= clock_timestamp()
                AND at.enabled AND at.deleted_at IS NULL
            ORDER BY due.next_attempt_at LIMIT $2 FOR UPDATE OF due SKIP LOCKED)
        RETURNING d.id, d.user_id, d.endpoint_id, d.payload, d.attempts, d.created_at, e.url, e.secret,
            CASE WHEN e.previous_secret_until > clock_timestamp() THEN e.previous_secret END AS previous";
    let limit = i64::try_from(room).unwrap_or(i64::MAX);
    let work = async move |conn: &mut Conn| {
        let query = diesel::sql_query(query).bind::<Double, _>(LEASE_SECONDS).bind::<BigInt, _>(limit);
        Ok(query.load(conn).await?)
    };
    state.db.system(work).await
}

async fn deliver(state: &AppState, message: Claimed) {
    let outcome = post(state, &message).await;
    let label = match &outcome {
        Outcome::Delivered(_) => "delivered",
        Outcome::Gone => "gone",
        Outcome::Failed { .. } => "failed",
    };
    metrics::counter!("webhook_attempts_total", "outcome" => label).increment(1);
    let (id, endpoint) = (message.id, message.endpoint_id);
    if let Err(error) = state.db.system(async move |conn| note(conn, &message, outcome).await).await {
        // It is sent again after its lease.
        let error = service::error::chain(&error);
        tracing::warn!(delivery.id = %id, webhook.id = %endpoint, error, "cannot note what came of a webhook delivery");
    }
}

async fn post(state: &AppState, message: &Claimed) -> Outcome {
    let failed = |status: Option<StatusCode>, why: String| Outcome::Failed { status: status.map(|s| s.as_u16()), why };
    let id = format!("msg_{}", message.id);
    let (timestamp, body) = (chrono::Utc::now().timestamp(), message.payload.to_string());
    let secrets = [Some(message.secret.as_slice()), message.previous.as_deref()].into_iter().flatten();
    let request = match state.outgoing.request(Method::POST, &message.url) {
        Ok(request) => request,
        Err(refused) => return failed(None, refused.to_string()),
    };
    let request = request
        .header("content-type", "application/json")
        .header("webhook-signature", signing::sign(secrets, &id, timestamp, &body))
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .body(body);
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return failed(None, service::error::chain(&error.without_url())),
    };
    let status = response.status();
    match status {
        StatusCode::GONE => Outcome::Gone,
        _ if status.is_success() => Outcome::Delivered(status.as_u16()),
        _ if status.is_redirection() => failed(Some(status), format!("answered {status}; redirects are not followed")),
        _ => {
            let body = read_at_most(response, KEPT_BYTES).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&body).replace('\0', "\u{fffd}");
            failed(Some(status), format!("answered {status}: {}", text.trim()))
        }
    }
}

/// Writes down the outcome, unless the lease was lost to another attempt.
async fn note(conn: &mut Conn, message: &Claimed, outcome: Outcome) -> Result<()> {
    let attempt = u32::try_from(message.attempts).unwrap_or(u32::MAX);
    let (status, code, why, wait) = match &outcome {
        Outcome::Delivered(code) => ("delivered", Some(*code), None, None),
        Outcome::Gone => ("failed", Some(StatusCode::GONE.as_u16()), Some("answered 410 Gone".to_owned()), None),
        Outcome::Failed { status, why } => {
            let wait = schedule::wait(attempt, rand::random());
            (if wait.is_some() { "pending" } else { "failed" }, *status, Some(why.clone()), wait)
        }
    };
    let query = "UPDATE webhook_deliveries SET status = $3, response_status = $4, last_error = $5,
            next_attempt_at = clock_timestamp() + make_interval(secs => coalesce($6, 0)),
            delivered_at = CASE WHEN $3 = 'delivered' THEN clock_timestamp() END
        WHERE id = $1 AND attempts = $2 AND status = 'pending'";
    let noted = diesel::sql_query(query)
        .bind::<SqlUuid, _>(message.id)
        .bind::<Integer, _>(message.attempts)
        .bind::<Text, _>(status)
        .bind::<Nullable<Integer>, _>(code.map(i32::from))
        .bind::<Nullable<Text>, _>(why)
        .bind::<Nullable<Double>, _>(wait.map(|w| w.as_secs_f64()))
        .execute(conn)
        .await?;
    if noted == 0 {
        return Ok(());
    }
    let query = "UPDATE webhook_endpoints SET
            failures = CASE WHEN $2 THEN 0 ELSE failures + 1 END,
            last_delivery_at = CASE WHEN $2 THEN clock_timestamp() ELSE last_delivery_at END
        WHERE id = $1";
    diesel::sql_query(query)
        .bind::<SqlUuid, _>(message.endpoint_id)
        .bind::<diesel::sql_types::Bool, _>(matches!(outcome, Outcome::Delivered(_)))
        .execute(conn)
        .await?;
    match outcome {
        Outcome::Gone => disable(conn, message, "it answered 410 Gone").await,
        Outcome::Failed { .. } if status == "failed" => {
            // Others may have arrived meanwhile; then only this message was the problem.
            let webhook = Webhook::find(conn, WebhookId(message.endpoint_id)).await?;
            if webhook.last_delivery_at.is_some_and(|at| at > message.created_at) {
                return Ok(());
            }
            disable(conn, message, "nothing has arrived there for three days").await
        }
        Outcome::Delivered(_) | Outcome::Failed { .. } => Ok(()),
    }
}

async fn disable(conn: &mut Conn, message: &Claimed, why: &str) -> Result<()> {
    let id = WebhookId(message.endpoint_id);
    let change =
        WebhookChange { enabled: Some(false), disabled_reason: Some(Some(why.to_owned())), ..WebhookChange::default() };
    let webhook = Webhook::change(conn, id, change).await?;
    Delivery::give_up(conn, id, &format!("the webhook was disabled: {why}")).await?;
    tracing::info!(webhook.id = %id, "disabled a webhook: {why}");
    let news = News {
        user: UserId(message.user_id),
        kind: Kind::WebhookDisabled,
        severity: Severity::Warning,
        title: "a webhook was disabled".into(),
        body: format!("Nothing is sent to {} any more: {why}. Enable it again when that is mended.", webhook.url),
        data: json!({"webhook_id": id, "url": webhook.url, "reason": why}),
        job: None,
        key: format!("webhook:{id}:disabled:{}", message.id),
    };
    news.raise(conn).await?;
    Ok(())
}
