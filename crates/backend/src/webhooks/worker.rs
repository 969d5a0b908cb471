//! Sends what is due: claims rows, posts them, notes the outcome.
//!
//! Addresses take turns, and one that is slow, or one user's many, only hold the places they may have at a time: the others
//! go on.
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
    sql_types::{Array, BigInt, Binary, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use service::outgoing::read_at_most;
use std::{collections::HashMap, time::Duration};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wire::{UserId, ids::WebhookId};

/// Messages on their way at the same time.
const CONCURRENCY: usize = 32;
/// Of them, to one address, …
const PER_ENDPOINT: usize = 4;
/// … and of one user.
const PER_USER: usize = 16;
/// Due messages among which turns are taken.
const CANDIDATES: i64 = 256;
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
    let mut places = Places::default();
    while !stop.is_cancelled() {
        while let Some(ended) = sending.try_join_next_with_id() {
            places.free(&ended);
        }
        let claimed = match claim(&state, &places).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(error = %service::error::chain(&error), "cannot look for webhook deliveries, trying again");
                Vec::new()
            }
        };
        let found = !claimed.is_empty();
        for message in claimed {
            let (state, place) = (state.clone(), (message.endpoint_id, message.user_id));
            let task = sending.spawn(async move { deliver(&state, message).await });
            places.0.insert(task.id(), place);
        }
        if found && places.room() > 0 {
            // Behind the addresses that have all their places now, others may be due.
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = sending.join_next_with_id() => places.free(&ended),
            () = tokio::time::sleep(POLL) => {}
        }
    }
    // What is on its way may arrive; what does not is sent again after its lease.
    let _ = tokio::time::timeout(Duration::from_secs(2), async { while sending.join_next().await.is_some() {} }).await;
}

/// Endpoint and user of each message on its way.
#[derive(Debug, Default)]
struct Places(HashMap<task::Id, (Uuid, Uuid)>);

impl Places {
    fn room(&self) -> usize {
        CONCURRENCY.saturating_sub(self.0.len())
    }

    fn free(&mut self, ended: &std::result::Result<(task::Id, ()), task::JoinError>) {
        self.0.remove(&ended.as_ref().map_or_else(task::JoinError::id, |(id, ())| *id));
    }

    /// The things that have so many places already.
    fn full(&self, of: impl Fn(&(Uuid, Uuid)) -> Uuid, most: usize) -> Vec<Uuid> {
        let mut counts: HashMap<Uuid, usize> = HashMap::new();
        for place in self.0.values() {
            let count = counts.entry(of(place)).or_default();
            *count = count.saturating_add(1);
        }
        counts.into_iter().filter(|(_, count)| *count >= most).map(|(id, _)| id).collect()
    }
}

async fn claim(state: &AppState, places: &Places) -> Result<Vec<Claimed>> {
    let room = places.room();
    if room == 0 {
        return Ok(Vec::new());
    }
    // A message's turn is its place among those of its address, on their way or due; likewise among those of its user.
    let query = "
        WITH busy AS (
            SELECT * FROM unnest($3::uuid[], $4::uuid[]) AS b (endpoint_id, user_id)
        ), due AS (
            SELECT d.id, d.endpoint_id, d.user_id, d.next_attempt_at
            FROM webhook_deliveries d JOIN webhook_endpoints at ON at.id = d.endpoint_id
            WHERE d.status = 'pending' AND d.next_attempt_at <= clock_timestamp()
                AND at.enabled AND at.deleted_at IS NULL
                AND d.endpoint_id <> ALL ($5::uuid[]) AND d.user_id <> ALL ($6::uuid[])
            ORDER BY d.next_attempt_at LIMIT $7
        ), of_endpoint AS (
            SELECT due.*, row_number() OVER (PARTITION BY endpoint_id ORDER BY next_attempt_at, id)
                + (SELECT count(*) FROM busy b WHERE b.endpoint_id = due.endpoint_id) AS turn
            FROM due
        ), of_user AS (
            SELECT e.*, row_number() OVER (PARTITION BY user_id ORDER BY turn, next_attempt_at, id)
                + (SELECT count(*) FROM busy b WHERE b.user_id = e.user_id) AS user_turn
            FROM of_endpoint e WHERE turn <= $8
        )
        UPDATE webhook_deliveries d SET
            attempts = d.attempts + 1,
            next_attempt_at = clock_timestamp() + make_interval(secs => $1)
        FROM webhook_endpoints e
        WHERE e.id = d.endpoint_id AND d.id IN (
            SELECT mine.id FROM webhook_deliveries mine JOIN of_user u ON u.id = mine.id
            WHERE u.user_turn <= $9
                -- Another backend may have claimed it since this statement began.
                AND mine.status = 'pending' AND mine.next_attempt_at <= clock_timestamp()
            ORDER BY u.user_turn, u.turn, u.next_attempt_at LIMIT $2 FOR UPDATE OF mine SKIP LOCKED)
        RETURNING d.id, d.user_id, d.endpoint_id, d.payload, d.attempts, d.created_at, e.url, e.secret,
            CASE WHEN e.previous_secret_until > clock_timestamp() THEN e.previous_secret END AS previous";
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (endpoints, users): (Vec<Uuid>, Vec<Uuid>) = places.0.values().copied().unzip();
    let full = (places.full(|place| place.0, PER_ENDPOINT), places.full(|place| place.1, PER_USER));
    let work = async move |conn: &mut Conn| {
        let query = diesel::sql_query(query)
            .bind::<Double, _>(LEASE_SECONDS)
            .bind::<BigInt, _>(count(room))
            .bind::<Array<SqlUuid>, _>(endpoints)
            .bind::<Array<SqlUuid>, _>(users)
            .bind::<Array<SqlUuid>, _>(full.0)
            .bind::<Array<SqlUuid>, _>(full.1)
            .bind::<BigInt, _>(CANDIDATES)
            .bind::<BigInt, _>(count(PER_ENDPOINT))
            .bind::<BigInt, _>(count(PER_USER));
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
