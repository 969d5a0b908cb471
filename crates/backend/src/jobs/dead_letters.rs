//! Dead letters: reports that could not be applied, shown to their owner and tried again when he asks.
//!
//! A letter takes the way its report would have taken ([`ingest`]), each in a transaction of its own: it is applied and
//! gone, or it stays with the reason of this try. An event that was not understood has left its place in the sequence to
//! a warning ([`parse`]); when it is understood now (a newer backend), it takes that place. What its place being passed
//! would leave undone, such as a change of state, is not done late: such a letter stays.

use super::{
    effect::{Effect, effect},
    ingest::{Identity, Submission, apply, parse},
    policy::Policy,
    rows::{AttemptRow, JobRow},
};
use crate::{
    AppState,
    api::body::Json,
    auth::AuthUser,
    db::Conn,
    error::{Error, Result},
    schema::{dead_letters as letters, job_events},
    store::{
        Job,
        page::{PageQuery, page},
    },
};
use actix_web::{get, post, web};
use chrono::{DateTime, Utc};
use diesel::{pg::Pg, prelude::*};
use diesel_async::RunQueryDsl;
use serde_json::{Value, json};
use uuid::Uuid;
use wire::{
    JobId, Page,
    dead_letter::{DeadLetter, MAX_REPLAY, ReplayDeadLetters, ReplayedDeadLetters},
    layout,
    problem::Code,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = letters, check_for_backend(Pg))]
struct Row {
    id: i64,
    job_id: Uuid,
    attempt: i32,
    seq: Option<i64>,
    reason: String,
    body: Value,
    created_at: DateTime<Utc>,
}

impl From<Row> for DeadLetter {
    fn from(row: Row) -> Self {
        let attempt = u32::try_from(row.attempt).unwrap_or_default();
        Self { id: row.id, attempt, seq: row.seq, reason: row.reason, body: row.body, created_at: row.created_at }
    }
}

/// Reports of a job's trainers that could not be applied, newest first.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path), PageQuery), responses((status = 200, body = Page<DeadLetter>)))]
#[get("/training/jobs/{id}/dead-letters")]
pub async fn list_dead_letters(
    state: web::Data<AppState>,
    user: AuthUser,
    id: web::Path<JobId>,
    query: web::Query<PageQuery>,
) -> Result<web::Json<Page<DeadLetter>>> {
    let (job, limit, after) = (*id, query.limit()?, query.after::<i64>()?);
    let list = async move |conn: &mut Conn| {
        Job::find(conn, job).await?;
        // Ids ascend with time, and the index is by id.
        let mut rows = letters::table.filter(letters::job_id.eq(job.0)).into_boxed();
        if let Some((_, id)) = after {
            rows = rows.filter(letters::id.lt(id));
        }
        let rows = rows.order(letters::id.desc()).limit(limit.saturating_add(1)).select(Row::as_select());
        Ok(rows.load::<Row>(conn).await?)
    };
    let rows = state.db.tenant(user.user_id, list).await?;
    Ok(web::Json(page(rows, limit, |row: &Row| (row.created_at, row.id), Into::into)))
}

/// Try dead letters of a job again. What can be applied now is, and is gone; the others stay with their reason.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), request_body = ReplayDeadLetters,
    responses((status = 200, body = ReplayedDeadLetters)))]
#[post("/training/jobs/{id}/dead-letters/replay")]
pub async fn replay_dead_letters(
    state: web::Data<AppState>,
    policy: web::Data<Policy>,
    user: AuthUser,
    id: web::Path<JobId>,
    Json(body): Json<ReplayDeadLetters>,
) -> Result<web::Json<ReplayedDeadLetters>> {
    let (job, wanted) = (*id, body.ids);
    if wanted.as_ref().is_some_and(|ids| ids.len() > MAX_REPLAY) {
        return Err(Error::refused(Code::Invalid, format!("ids: at most {MAX_REPLAY} at a time")));
    }
    let find = async move |conn: &mut Conn| {
        Job::find(conn, job).await?;
        let mut rows = letters::table.filter(letters::job_id.eq(job.0)).into_boxed();
        if let Some(ids) = wanted {
            rows = rows.filter(letters::id.eq_any(ids));
        }
        Ok(rows.order(letters::id).select(Row::as_select()).load::<Row>(conn).await?)
    };
    let rows = state.db.tenant(user.user_id, find).await?;
    let mut replayed = ReplayedDeadLetters { applied: Vec::new(), kept: Vec::new() };
    for row in rows {
        let (tried, policy) = (row.clone(), *policy.as_ref());
        let applied = state.db.system(async move |conn| replay(conn, &tried, &policy).await).await;
        match applied {
            Ok(()) => replayed.applied.push(row.id),
            Err(Error::Refused(problem)) => {
                let (id, reason) = (row.id, problem.detail.clone());
                let keep = async move |conn: &mut Conn| {
                    let this = letters::table.find(id);
                    Ok(diesel::update(this).set(letters::reason.eq(reason)).execute(conn).await?)
                };
                state.db.system(keep).await?;
                replayed.kept.push(DeadLetter { reason: problem.detail, ..row.into() });
            }
            Err(other) => return Err(other),
        }
    }
    tracing::info!(job.id = %job, "replayed dead letters: {} applied, {} kept", replayed.applied.len(), replayed.kept.len());
    Ok(web::Json(replayed))
}

fn stays(reason: impl Into<String>) -> Error {
    Error::refused(Code::Invalid, reason)
}

/// Applies a letter and removes it, or refuses with the reason why it stays.
async fn replay(conn: &mut Conn, letter: &Row, policy: &Policy) -> Result<()> {
    let gone = || stays("its job or attempt no longer exists");
    let job = JobRow::lock(conn, JobId(letter.job_id)).await?.ok_or_else(gone)?;
    let attempt = AttemptRow::find(conn, job.id(), letter.attempt).await?.ok_or_else(gone)?;
    let batch = batch(letter, &job, &attempt)?;
    for event in &batch.events {
        take_place(conn, &attempt, event).await?;
    }
    let whose = Identity { job: job.id(), user: job.user(), attempt: attempt.attempt, epoch: attempt.epoch };
    let applied = apply::apply(conn, &Submission { whose, batch }, policy).await?;
    if let [rejected, ..] = applied.rejected.as_slice() {
        return Err(stays(rejected.reason.clone()));
    }
    diesel::delete(letters::table.find(letter.id)).execute(conn).await?;
    Ok(())
}

/// What a trainer would send to report the letter's content.
fn batch(letter: &Row, job: &JobRow, attempt: &AttemptRow) -> Result<parse::Batch> {
    let whole = |text: &Value| text.as_str().map(str::to_owned);
    let (sent, bytes) = (letter.body.get("body").and_then(whole), letter.body.get("bytes").and_then(Value::as_u64));
    let body = match (sent, bytes) {
        (Some(text), Some(bytes)) if u64::try_from(text.len()).is_ok_and(|kept| kept < bytes) => {
            return Err(stays(format!("only the beginning of its {bytes} bytes was kept")));
        }
        (Some(text), Some(_)) => text,
        // An object from storage holds a batch.
        _ if letter.body.get("events").is_some() => letter.body.to_string(),
        _ => {
            let instance = attempt.instance_id.unwrap_or_else(Uuid::new_v4);
            let events = [&letter.body];
            json!({"job_id": job.id, "attempt": letter.attempt, "instance_id": instance, "events": events}).to_string()
        }
    };
    let prefix = layout::attempt_prefix(job.user(), job.id(), job.attempt());
    let batch = parse::batch(body.as_bytes(), &prefix).map_err(stays)?;
    if batch.job != job.id() || i64::from(batch.attempt) != i64::from(letter.attempt) {
        return Err(stays("it names another job or attempt than the one it was sent for"));
    }
    match batch.rejected.as_slice() {
        [rejected, ..] => Err(stays(rejected.reason.clone())),
        [] => Ok(batch),
    }
}

/// Removes the warning that stands in the event's place, if one does.
async fn take_place(conn: &mut Conn, attempt: &AttemptRow, event: &parse::Received) -> Result<()> {
    let place = job_events::table
        .filter(job_events::job_id.eq(attempt.job_id))
        .filter(job_events::attempt.eq(attempt.attempt))
        .filter(job_events::seq.eq(event.seq));
    let stored = place.select((job_events::id, job_events::body_hash, job_events::body));
    let stored: Option<(i64, Option<Vec<u8>>, Value)> = stored.first(conn).await.optional()?;
    let Some((id, hash, body)) = stored else { return Ok(()) };
    if hash.as_ref() != Some(&event.hash) || body == event.body {
        return Ok(());
    }
    if event.seq <= attempt.last_seq && effect(&event.event.kind) != Effect::None {
        let why = format!("it would have changed the job in its place, {}, and the job is past that", event.seq);
        return Err(stays(why));
    }
    diesel::delete(job_events::table.find(id)).execute(conn).await?;
    Ok(())
}
