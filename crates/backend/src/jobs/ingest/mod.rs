//! `POST /training/jobs/{id}/callback`: what trainers report.
//!
//! Invariants: nothing is acknowledged before COMMIT; an event is stored at most once; an attempt that is
//! over changes nothing; what cannot be applied is kept as a dead letter and does not hold up the rest.

pub mod apply;
pub mod commit;
pub mod parse;
mod rows;

use super::{news, policy::Policy};
use crate::{
    AppState,
    db::{Conn, Db},
    error::{Error, Result},
};
use actix_web::{HttpRequest, web};
use apply::Applied;
use bytes::BytesMut;
use commit::Committer;
use diesel::sql_types::{BigInt, Integer, Jsonb, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use futures::StreamExt;
use parse::Rejected;
use serde_json::{Value, json};
use service::token::{Grant, JobGrant, bearer};
use std::time::{Duration, Instant};
use wire::{
    CallbackReply, JobId,
    event::MAX_BATCH_BYTES,
    layout,
    problem::{Code, FieldError, Problem},
};

/// Dead letters kept per job; a trainer gone mad does not fill the disk.
const MAX_DEAD_LETTERS: i64 = 1000;
/// Bytes of a body that cannot be parsed which are kept.
const KEPT_BYTES: usize = 8 << 10;
/// A trainer sends its body at once.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// Takes a batch of events from a trainer.
pub async fn callback(
    req: &HttpRequest,
    job: JobId,
    payload: web::Payload,
    state: &AppState,
    committer: &Committer,
) -> Result<CallbackReply> {
    let started = Instant::now();
    let grant = authorise(req, job, state)?;
    let result = match read(payload).await {
        Ok(body) => receive(&state.db, &grant, &body, committer).await,
        Err(Unread { seen, reason }) => Err(refuse_body(&state.db, &grant, &seen, reason).await?),
    };
    let outcome = if result.is_ok() { "accepted" } else { "refused" };
    metrics::histogram!("callback_duration_seconds", "outcome" => outcome).record(started.elapsed().as_secs_f64());
    result
}

/// The token must name this job; whether its attempt is still the current one, the row says.
pub(super) fn authorise(req: &HttpRequest, job: JobId, state: &AppState) -> Result<JobGrant> {
    let unauthorised = || Error::refused(Code::Unauthorized, "send the job's token as `Authorization: Bearer …`");
    let token = bearer(req).ok_or_else(unauthorised)?;
    match state.config.token_key.verify(token) {
        Ok(Grant::Job(grant)) if grant.job == job => Ok(grant),
        Ok(Grant::Job(_)) => Err(Error::refused(Code::Forbidden, "this token belongs to another job")),
        Ok(Grant::Service { .. }) => Err(Error::refused(Code::Forbidden, "only a job token may report events")),
        Err(_) => Err(unauthorised()),
    }
}

struct Unread {
    seen: Vec<u8>,
    reason: String,
}

async fn read(mut payload: web::Payload) -> Result<Vec<u8>, Unread> {
    let mut body = BytesMut::new();
    let mut all = async || {
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|e| format!("the body broke off: {e}"))?;
            if body.len().saturating_add(chunk.len()) > MAX_BATCH_BYTES {
                return Err(format!("a body of more than {MAX_BATCH_BYTES} bytes; send smaller batches"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(())
    };
    let result = tokio::time::timeout(BODY_TIMEOUT, all()).await;
    let result = result.unwrap_or_else(|_| Err("the body did not arrive in time".into()));
    let seen = body.to_vec();
    result.map(|()| seen.clone()).map_err(|reason| Unread { seen, reason })
}

async fn receive(db: &Db, grant: &JobGrant, body: &[u8], committer: &Committer) -> Result<CallbackReply> {
    let prefix = layout::attempt_prefix(grant.user, grant.job, grant.attempt);
    let batch = match parse::batch(body, &prefix) {
        Ok(batch) => batch,
        Err(reason) => return Err(refuse_body(db, grant, body, reason).await?),
    };
    if batch.job != grant.job || batch.attempt != grant.attempt {
        return Err(Error::refused(Code::Forbidden, "the batch names another job or attempt than its token"));
    }
    let applied = committer.submit(Submission { whose: Identity::of(grant), batch }).await?;
    if applied.rejected.is_empty() { Ok(applied.reply) } else { Err(refusal(&applied.rejected)) }
}

/// Applies a submission in a transaction of its own. Returns after COMMIT.
pub async fn ingest(db: &Db, submission: &Submission, policy: &Policy) -> Result<Applied> {
    let applied = db.system(async move |conn| apply::apply(conn, submission, policy).await).await?;
    count(&applied);
    Ok(applied)
}

/// What was committed becomes visible in the metrics.
fn count(applied: &Applied) {
    metrics::counter!("job_events_ingested_total").increment(u64::try_from(applied.stored).unwrap_or(0));
    applied.moved.iter().for_each(super::transition::Moved::count);
}

/// A batch of events and who sent it.
#[derive(Debug)]
pub struct Submission {
    pub whose: Identity,
    pub batch: parse::Batch,
}

/// Whose events.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub job: JobId,
    pub user: wire::UserId,
    pub attempt: i32,
    pub epoch: i64,
}

impl Identity {
    #[must_use]
    pub fn of(grant: &JobGrant) -> Self {
        let attempt = i32::try_from(grant.attempt).unwrap_or(i32::MAX);
        Self { job: grant.job, user: grant.user, attempt, epoch: grant.epoch }
    }
}

fn refusal(rejected: &[Rejected]) -> Error {
    let error = |r: &Rejected| {
        let place = r.seq.map_or_else(|| "an event without seq".to_owned(), |seq| format!("seq {seq}"));
        FieldError::new(place, r.reason.clone())
    };
    let detail = "some events cannot be applied and were kept as dead letters; the others are stored; do not send this batch again";
    Problem::new(Code::Invalid, detail).with_errors(rejected.iter().map(error).take(20).collect()).into()
}

/// Keeps a body that is no batch, and says what is wrong with it.
async fn refuse_body(db: &Db, grant: &JobGrant, body: &[u8], reason: String) -> Result<Error> {
    let kept = body.get(..KEPT_BYTES).unwrap_or(body);
    let mut letter = json!({"bytes": body.len(), "body": String::from_utf8_lossy(kept)});
    super::transition::storable(&mut letter);
    let rejected = Rejected { seq: None, reason: reason.clone(), body: letter };
    let identity = Identity::of(grant);
    db.system(async move |conn| bury(conn, identity, &[rejected]).await).await?;
    Ok(Error::refused(Code::Invalid, format!("{reason}; kept as a dead letter, do not send it again")))
}

/// Stores dead letters, each once. One of a job that no longer exists is dropped.
pub async fn bury(conn: &mut Conn, whose: Identity, rejected: &[Rejected]) -> Result<()> {
    for letter in rejected {
        let buried = diesel::sql_query(
            "INSERT INTO dead_letters (job_id, user_id, attempt, seq, reason, body)
             SELECT id, user_id, $3, $4, $5, $6 FROM training_jobs
             WHERE id = $1 AND user_id = $2
                 AND (SELECT count(*) FROM dead_letters WHERE job_id = $1) < $7
                 AND NOT EXISTS (SELECT FROM dead_letters
                     WHERE job_id = $1 AND attempt = $3 AND seq = $4 AND reason = $5)",
        )
        .bind::<SqlUuid, _>(whose.job.0)
        .bind::<SqlUuid, _>(whose.user.0)
        .bind::<Integer, _>(whose.attempt)
        .bind::<Nullable<BigInt>, _>(letter.seq)
        .bind::<Text, _>(&letter.reason)
        .bind::<Jsonb, &Value>(&letter.body)
        .bind::<BigInt, _>(MAX_DEAD_LETTERS)
        .execute(conn)
        .await?;
        if buried > 0 {
            news::tell_of_dead_letter(conn, (whose.user, whose.job, whose.attempt), &letter.reason).await?;
        }
        metrics::counter!("dead_letters_total").increment(u64::try_from(buried).unwrap_or(0));
        tracing::warn!(job.id = %whose.job, attempt = whose.attempt, seq = letter.seq, "kept a dead letter: {}", letter.reason);
    }
    Ok(())
}
