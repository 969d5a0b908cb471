//! The rows the job machinery works on. Whoever writes `job_events` of a job holds the lock on its row
//! ([`JobRow::lock`] or an UPDATE of it), so that ids of one job become visible in order.

use super::{
    decide::{AttemptSnapshot, JobSnapshot},
    launcher::Handle,
    verdict::Outcome,
};
use crate::{
    costs::ledger,
    db::Conn,
    error::{Error, Result},
    schema::{job_attempts, training_jobs},
    store::columns::to_float,
};
use chrono::{DateTime, Utc};
use diesel::{pg::Pg, prelude::*, sql_types::Timestamptz};
use diesel_async::RunQueryDsl;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;
use wire::{
    JobId, JobState, UserId,
    cost::Pause,
    job::{Failure, Progress, TrainerKind},
    storage::FileRef,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = training_jobs, check_for_backend(Pg))]
pub struct JobRow {
    pub id: Uuid,
    pub user_id: Uuid,
    pub state: String,
    pub framework: String,
    pub gpu_config: Option<String>,
    pub config: Value,
    pub spec: Value,
    pub attempt: i32,
    pub max_attempts: i32,
    pub epoch: i64,
    pub progress: Value,
    pub retry_at: Option<DateTime<Utc>>,
    pub lease_expires_at: Option<DateTime<Utc>>,
    #[diesel(select_expression = to_float(training_jobs::actual_cost))]
    pub actual_cost: Option<f64>,
    #[diesel(select_expression = to_float(training_jobs::budget_limit))]
    pub budget_limit: Option<f64>,
    pub currency: String,
    pub pause: Option<Value>,
}

impl JobRow {
    pub async fn find(conn: &mut Conn, job: JobId) -> Result<Option<Self>> {
        Ok(training_jobs::table.find(job.0).select(Self::as_select()).first(conn).await.optional()?)
    }

    /// Holds the row until the transaction ends.
    pub async fn lock(conn: &mut Conn, job: JobId) -> Result<Option<Self>> {
        let row = training_jobs::table.find(job.0).select(Self::as_select()).for_no_key_update();
        Ok(row.first(conn).await.optional()?)
    }

    #[must_use]
    pub const fn id(&self) -> JobId {
        JobId(self.id)
    }

    #[must_use]
    pub const fn user(&self) -> UserId {
        UserId(self.user_id)
    }

    pub fn state(&self) -> Result<JobState> {
        self.state.parse().map_err(Error::defect)
    }

    #[must_use]
    pub fn attempt(&self) -> u32 {
        count(self.attempt)
    }

    /// Whether a trainer outside Hone does the work.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.framework == TrainerKind::External.as_str()
    }

    /// Why it is paused or about to be.
    pub fn pause(&self) -> Result<Option<Pause>> {
        decode(self.pause.as_ref())
    }

    /// Why it must not run: its budget is used up.
    pub fn used_up(&self) -> Result<Option<Pause>> {
        let stopped_at = self.pause()?.and_then(|p| p.limit);
        Ok(ledger::refusal(self.actual_cost, self.budget_limit, &self.currency, stopped_at))
    }

    /// `{}` until a trainer reports.
    #[must_use]
    pub fn progress(&self) -> Progress {
        serde_json::from_value(self.progress.clone()).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = job_attempts, check_for_backend(Pg))]
pub struct AttemptRow {
    pub job_id: Uuid,
    pub attempt: i32,
    pub user_id: Uuid,
    pub epoch: i64,
    pub instance_id: Option<Uuid>,
    pub runtime: Option<Value>,
    pub last_seq: i64,
    pub outcome: Option<String>,
    pub failure: Option<Value>,
    pub checkpoint_prefix: Option<String>,
    pub checkpoint_step: Option<i64>,
    pub manifest: Option<Value>,
}

impl AttemptRow {
    pub async fn find(conn: &mut Conn, job: JobId, attempt: i32) -> Result<Option<Self>> {
        Ok(job_attempts::table.find((job.0, attempt)).select(Self::as_select()).first(conn).await.optional()?)
    }

    /// The newest durable checkpoint of any attempt: where the next one continues.
    pub async fn last_checkpoint(conn: &mut Conn, job: JobId) -> Result<Option<String>> {
        let rows = job_attempts::table
            .filter(job_attempts::job_id.eq(job.0))
            .filter(job_attempts::checkpoint_prefix.is_not_null())
            .order((job_attempts::checkpoint_step.desc(), job_attempts::attempt.desc()))
            .select(job_attempts::checkpoint_prefix);
        Ok(rows.first::<Option<String>>(conn).await.optional()?.flatten())
    }

    pub fn manifest(&self) -> Result<Vec<FileRef>> {
        decode(self.manifest.as_ref()).map(Option::unwrap_or_default)
    }

    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            job: JobId(self.job_id),
            attempt: count(self.attempt),
            runtime: self.runtime.clone().unwrap_or_default(),
        }
    }
}

/// A job, its current attempt, and the database's clock, at one moment.
#[derive(Debug, Clone)]
pub struct Situation {
    pub job: JobRow,
    pub attempt: Option<AttemptRow>,
    pub snapshot: JobSnapshot,
    pub now: DateTime<Utc>,
}

impl Situation {
    pub async fn load(conn: &mut Conn, job: JobId) -> Result<Option<Self>> {
        let Some(job) = JobRow::find(conn, job).await? else { return Ok(None) };
        let attempt = AttemptRow::find(conn, job.id(), job.attempt).await?;
        let now = diesel::select(diesel::dsl::now.into_sql::<Timestamptz>()).get_result(conn).await?;
        let current = attempt.as_ref().map(attempt_snapshot).transpose()?;
        let snapshot = JobSnapshot {
            state: job.state()?,
            attempt: job.attempt(),
            max_attempts: count(job.max_attempts),
            epoch: job.epoch,
            retry_at: job.retry_at,
            lease_expires_at: job.lease_expires_at,
            step: job.progress().step,
            current,
        };
        Ok(Some(Self { job, attempt, snapshot, now }))
    }
}

fn attempt_snapshot(row: &AttemptRow) -> Result<AttemptSnapshot> {
    Ok(AttemptSnapshot {
        epoch: row.epoch,
        claimed: row.instance_id.is_some(),
        outcome: row.outcome.as_deref().and_then(Outcome::parse),
        failure: decode::<Failure>(row.failure.as_ref())?,
        checkpoint_step: row.checkpoint_step.and_then(|s| u64::try_from(s).ok()),
    })
}

fn decode<T: DeserializeOwned>(value: Option<&Value>) -> Result<Option<T>> {
    Ok(value.cloned().map(serde_json::from_value).transpose()?)
}

fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or_default()
}
