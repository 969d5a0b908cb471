//! The only UPDATE that changes a job's state. It is guarded by the states the transition table allows, and
//! it writes the new state into the job's event log, and what its owner is to be told, in the same transaction.

use super::{news, state::sources};
use crate::{
    db::Conn,
    error::{Error, Result},
    schema::job_events,
};
use chrono::{DateTime, Utc};
use diesel::{
    prelude::*,
    sql_types::{Array, BigInt, Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz},
};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use std::time::Duration;
use uuid::Uuid;
use wire::{JobId, JobState, cost::Pause, event::StreamBody, job::Failure, problem::Code};

/// What becomes of a column.
#[derive(Debug, Clone, PartialEq)]
enum Column<T> {
    Keep,
    Set(T),
    Clear,
}

/// A change of state with what goes along with it.
#[derive(Debug, Clone)]
pub struct Change {
    to: JobState,
    /// Attempt and epoch the decision was made for.
    guard: Option<(i32, i64)>,
    failure: Column<Failure>,
    timer: Option<Duration>,
    lease: Column<Duration>,
    next_attempt: bool,
    one_more_attempt: bool,
    /// Why it pauses; states other than `pausing` and `paused` have none.
    pause: Option<Pause>,
}

impl Change {
    /// Clears the timer; keeps lease and failure, except that the end of a job ends its lease.
    #[must_use]
    pub const fn to(to: JobState) -> Self {
        Self {
            to,
            guard: None,
            failure: Column::Keep,
            timer: None,
            lease: Column::Keep,
            next_attempt: false,
            one_more_attempt: false,
            pause: None,
        }
    }

    #[must_use]
    pub const fn target(&self) -> JobState {
        self.to
    }

    /// Only if the job still is at this attempt and epoch.
    #[must_use]
    pub const fn guarded(mut self, attempt: i32, epoch: i64) -> Self {
        self.guard = Some((attempt, epoch));
        self
    }

    #[must_use]
    pub fn failure(mut self, failure: Option<Failure>) -> Self {
        self.failure = failure.map_or(Column::Clear, Column::Set);
        self
    }

    /// Says why the job pauses.
    #[must_use]
    pub fn pause(mut self, pause: Pause) -> Self {
        self.pause = Some(pause);
        self
    }

    /// Sets `retry_at`.
    #[must_use]
    pub const fn timer(mut self, wait: Option<Duration>) -> Self {
        self.timer = wait;
        self
    }

    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Column::Set(lease);
        self
    }

    #[must_use]
    pub fn no_lease(mut self) -> Self {
        self.lease = Column::Clear;
        self
    }

    /// attempt + 1, epoch + 1.
    #[must_use]
    pub const fn next_attempt(mut self) -> Self {
        self.next_attempt = true;
        self
    }

    /// The last attempt does not count: max_attempts + 1.
    #[must_use]
    pub const fn one_more_attempt(mut self, yes: OneMore) -> Self {
        self.one_more_attempt = matches!(yes, OneMore::Yes);
        self
    }

    /// Performs the change. None: the job was not in a state (or attempt, or epoch) that allows it.
    pub async fn apply(&self, conn: &mut Conn, job: JobId) -> Result<Option<Moved>> {
        let states: Vec<&str> = sources(self.to).into_iter().map(JobState::as_str).collect();
        let failure = match &self.failure {
            Column::Set(failure) => Some(serde_json::to_value(failure)?),
            Column::Keep | Column::Clear => None,
        };
        let lease = match self.lease {
            Column::Set(lease) => Some(lease.as_secs_f64()),
            Column::Keep | Column::Clear => None,
        };
        let keep_lease = self.lease == Column::Keep && !self.to.is_terminal();
        let moved: Option<MovedRow> = diesel::sql_query(UPDATE)
            .bind::<diesel::sql_types::Uuid, _>(job.0)
            .bind::<Text, _>(self.to.as_str())
            .bind::<Bool, _>(self.failure == Column::Keep)
            .bind::<Nullable<Jsonb>, _>(failure.as_ref())
            .bind::<Nullable<Double>, _>(self.timer.map(|t| t.as_secs_f64()))
            .bind::<Bool, _>(keep_lease)
            .bind::<Nullable<Double>, _>(lease)
            .bind::<Integer, _>(i32::from(self.next_attempt))
            .bind::<Integer, _>(i32::from(self.one_more_attempt))
            .bind::<Bool, _>(self.to.is_terminal())
            .bind::<Array<Text>, _>(states)
            .bind::<Nullable<Integer>, _>(self.guard.map(|g| g.0))
            .bind::<Nullable<BigInt>, _>(self.guard.map(|g| g.1))
            .bind::<Nullable<Jsonb>, _>(self.pause.as_ref().map(serde_json::to_value).transpose()?)
            .get_result(conn)
            .await
            .optional()?;
        let Some(row) = moved else { return Ok(None) };
        let failure = match &self.failure {
            Column::Set(failure) if matches!(self.to, JobState::Failed | JobState::RetryWait | JobState::Paused) => {
                Some(failure.clone())
            }
            _ => None,
        };
        let pause = row.pause.clone().map(serde_json::from_value::<Pause>).transpose()?;
        news::tell(conn, &row, self.to, failure.as_ref(), pause.as_ref()).await?;
        let body = StreamBody::State { state: self.to, at: row.at, failure, pause };
        diesel::insert_into(job_events::table)
            .values((
                job_events::job_id.eq(row.id),
                job_events::user_id.eq(row.user_id),
                job_events::attempt.eq(row.attempt),
                job_events::body.eq(serde_json::to_value(&body)?),
            ))
            .execute(conn)
            .await?;
        Ok(Some(Moved {
            to: self.to,
            attempt: row.attempt,
            epoch: row.epoch,
            framework: row.framework,
            seconds: row.seconds,
        }))
    }

    /// As [`Self::apply`], for users: a refusal says in which state the job is.
    pub async fn apply_or_refuse(&self, conn: &mut Conn, job: JobId, from: JobState) -> Result<Moved> {
        let moved = self.apply(conn, job).await?;
        moved
            .ok_or_else(|| Error::refused(Code::Conflict, format!("job {job} is {from} and cannot become {}", self.to)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneMore {
    Yes,
    No,
}

impl From<bool> for OneMore {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// A change that was made. Call [`Moved::count`] after COMMIT.
#[derive(Debug, Clone)]
#[must_use = "count it after COMMIT"]
pub struct Moved {
    pub to: JobState,
    pub attempt: i32,
    pub epoch: i64,
    framework: String,
    seconds: Option<f64>,
}

impl Moved {
    pub fn count(&self) {
        if !self.to.is_terminal() {
            return;
        }
        let framework = self.framework.clone();
        metrics::counter!("training_jobs_total", "framework" => framework.clone(), "status" => self.to.as_str())
            .increment(1);
        if let Some(seconds) = self.seconds {
            metrics::histogram!("training_duration_seconds", "framework" => framework).record(seconds);
        }
    }
}

#[derive(Debug, QueryableByName)]
pub(super) struct MovedRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    pub id: Uuid,
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    pub user_id: Uuid,
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = Nullable<diesel::sql_types::Uuid>)]
    pub version_id: Option<Uuid>,
    #[diesel(sql_type = Jsonb)]
    pub progress: Value,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pause: Option<Value>,
    #[diesel(sql_type = Integer)]
    pub attempt: i32,
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = Text)]
    framework: String,
    #[diesel(sql_type = Nullable<Double>)]
    seconds: Option<f64>,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

// `now()` is the start of the transaction, which may have waited for a lock since.
const UPDATE: &str = "
UPDATE training_jobs SET
    state = $2,
    failure = CASE WHEN $3 THEN failure ELSE $4 END,
    retry_at = clock_timestamp() + make_interval(secs => $5),
    lease_expires_at = CASE WHEN $6 THEN lease_expires_at ELSE clock_timestamp() + make_interval(secs => $7) END,
    attempt = attempt + $8,
    epoch = epoch + $8,
    max_attempts = max_attempts + $9,
    started_at = CASE WHEN $2 = 'running' THEN coalesce(started_at, clock_timestamp()) ELSE started_at END,
    finished_at = CASE WHEN $10 THEN clock_timestamp() END,
    pause = CASE WHEN $2 IN ('pausing', 'paused') THEN coalesce($14, pause) END
WHERE id = $1 AND state = ANY($11) AND ($12 IS NULL OR (attempt = $12 AND epoch = $13))
RETURNING id, user_id, name, version_id, progress, pause, attempt, epoch, framework,
    extract(epoch FROM finished_at - started_at)::float8 AS seconds, clock_timestamp() AS at";

/// Makes sure that what `value` holds can be stored: Postgres has no NUL in text.
pub fn storable(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(items) => items.iter_mut().for_each(storable),
        Value::Object(fields) => {
            let spoiled: Vec<String> = fields.keys().filter(|k| k.contains('\0')).cloned().collect();
            for key in spoiled {
                if let Some(value) = fields.remove(&key) {
                    fields.insert(key.replace('\0', "\u{fffd}"), value);
                }
            }
            fields.values_mut().for_each(storable);
        }
        _ => {}
    }
}
