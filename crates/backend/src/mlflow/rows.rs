//! What the exporter reads, and the table that says how far it came. All of it as system: it exports every tenant's jobs.

use super::run::key;
use crate::{
    db::Conn,
    error::{Error, Result},
};
use chrono::{DateTime, Utc};
use diesel::{
    prelude::*,
    sql_types::{BigInt, Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use wire::{JobId, JobState};

/// Jobs looked at in one pass.
const JOBS: i64 = 100;
/// Events read at a time; one has at most 64 points.
const EVENTS: i64 = 200;

#[derive(QueryableByName)]
struct JobKey {
    #[diesel(sql_type = SqlUuid)]
    job_id: Uuid,
}

/// Notes jobs that have started and were not noted before: those that are not over, or all of them.
pub async fn discover(conn: &mut Conn, everything: bool) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO mlflow_runs (job_id, user_id)
         SELECT j.id, j.user_id FROM training_jobs j
         WHERE j.attempt > 0 AND j.deleted_at IS NULL AND ($1 OR j.state NOT IN ('succeeded', 'failed', 'cancelled'))
             AND NOT EXISTS (SELECT FROM mlflow_runs r WHERE r.job_id = j.id)
         ON CONFLICT DO NOTHING",
    )
    .bind::<Bool, _>(everything)
    .execute(conn)
    .await?;
    Ok(())
}

/// Jobs with something to send, those that waited longest first.
pub async fn due(conn: &mut Conn) -> Result<Vec<JobId>> {
    let rows: Vec<JobKey> = diesel::sql_query(
        "SELECT r.job_id FROM mlflow_runs r
         WHERE r.closed_at IS NULL AND (r.claimed_until IS NULL OR r.claimed_until < clock_timestamp())
             AND (r.run_id IS NULL
                 OR EXISTS (SELECT FROM job_events e WHERE e.job_id = r.job_id AND e.id > r.last_event_id)
                 OR EXISTS (SELECT FROM training_jobs j
                     WHERE j.id = r.job_id AND j.state IN ('succeeded', 'failed', 'cancelled')))
         ORDER BY r.updated_at LIMIT $1",
    )
    .bind::<BigInt, _>(JOBS)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| JobId(row.job_id)).collect())
}

#[derive(Debug, QueryableByName)]
pub struct Claimed {
    #[diesel(sql_type = Nullable<Text>)]
    pub run_id: Option<String>,
    #[diesel(sql_type = BigInt)]
    pub last_event_id: i64,
}

/// Makes this process the one that works on a run; none when another one does. Ends with [`release`], or by itself
/// when the process dies.
pub async fn claim(conn: &mut Conn, job: JobId, me: Uuid) -> Result<Option<Claimed>> {
    let row = diesel::sql_query(
        "UPDATE mlflow_runs SET claimed_by = $2, claimed_until = clock_timestamp() + interval '30 seconds'
         WHERE job_id = $1 AND closed_at IS NULL AND (claimed_until IS NULL OR claimed_until < clock_timestamp())
         RETURNING run_id, last_event_id",
    )
    .bind::<SqlUuid, _>(job.0)
    .bind::<SqlUuid, _>(me);
    Ok(row.get_result(conn).await.optional()?)
}

/// Ends a claim; with a reason also the export of this job.
pub async fn release(conn: &mut Conn, job: JobId, me: Uuid, reason: Option<String>) -> Result<()> {
    diesel::sql_query(
        "UPDATE mlflow_runs SET claimed_by = NULL, claimed_until = NULL, error = coalesce($3, error),
             closed_at = CASE WHEN $3 IS NULL THEN closed_at ELSE clock_timestamp() END
         WHERE job_id = $1 AND claimed_by = $2",
    )
    .bind::<SqlUuid, _>(job.0)
    .bind::<SqlUuid, _>(me)
    .bind::<Nullable<Text>, _>(reason)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn begun(conn: &mut Conn, job: JobId, run_id: &str) -> Result<()> {
    let update = diesel::sql_query("UPDATE mlflow_runs SET run_id = $2 WHERE job_id = $1");
    update.bind::<SqlUuid, _>(job.0).bind::<Text, _>(run_id).execute(conn).await?;
    Ok(())
}

/// Everything up to `event` was sent.
pub async fn advance(conn: &mut Conn, job: JobId, event: i64) -> Result<()> {
    let update = diesel::sql_query(
        "UPDATE mlflow_runs SET last_event_id = greatest(last_event_id, $2),
             claimed_until = clock_timestamp() + interval '30 seconds'
         WHERE job_id = $1",
    );
    update.bind::<SqlUuid, _>(job.0).bind::<BigInt, _>(event).execute(conn).await?;
    Ok(())
}

pub async fn close(conn: &mut Conn, job: JobId) -> Result<()> {
    let update = diesel::sql_query("UPDATE mlflow_runs SET closed_at = clock_timestamp() WHERE job_id = $1");
    update.bind::<SqlUuid, _>(job.0).execute(conn).await?;
    Ok(())
}

/// What there is to say about a job besides its points.
#[derive(Debug)]
pub struct Facts {
    pub job_id: JobId,
    pub name: String,
    pub state: JobState,
    pub framework: String,
    pub config: Value,
    pub spec: Value,
    pub model_name: String,
    pub model_revision: String,
    pub dataset_name: String,
    pub attempt: i32,
    pub failure: Option<Value>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub user_name: String,
    pub package_name: Option<String>,
    pub version_name: Option<String>,
    pub artifact_id: Option<Uuid>,
    /// Bucket and key prefix.
    pub artifact_path: Option<String>,
}

#[derive(QueryableByName)]
struct FactsRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Text)]
    framework: String,
    #[diesel(sql_type = Jsonb)]
    config: Value,
    #[diesel(sql_type = Jsonb)]
    spec: Value,
    #[diesel(sql_type = Text)]
    model_name: String,
    #[diesel(sql_type = Text)]
    model_revision: String,
    #[diesel(sql_type = Text)]
    dataset_name: String,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Nullable<Jsonb>)]
    failure: Option<Value>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    started_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    finished_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Text)]
    user_name: String,
    #[diesel(sql_type = Nullable<Text>)]
    package_name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    version_name: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    artifact_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Text>)]
    artifact_path: Option<String>,
}

impl Facts {
    pub async fn load(conn: &mut Conn, job: JobId) -> Result<Option<Self>> {
        let row: Option<FactsRow> = diesel::sql_query(
            "SELECT j.name, j.state, j.framework, j.config, j.spec, j.model_name, j.model_revision, j.dataset_name,
                 j.attempt, j.failure, j.created_at, j.started_at, j.finished_at, u.name AS user_name,
                 p.name AS package_name, v.name AS version_name, a.id AS artifact_id, a.path AS artifact_path
             FROM training_jobs j
             JOIN users u ON u.id = j.user_id
             LEFT JOIN training_package_versions v ON v.id = j.version_id
             LEFT JOIN training_configs p ON p.id = v.package_id
             LEFT JOIN LATERAL (SELECT m.id, m.storage_bucket || '/' || m.storage_path AS path FROM model_artifacts m
                 WHERE m.job_id = j.id AND m.deleted_at IS NULL ORDER BY m.attempt DESC LIMIT 1) a ON true
             WHERE j.id = $1",
        )
        .bind::<SqlUuid, _>(job.0)
        .get_result(conn)
        .await
        .optional()?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Self {
            job_id: job,
            name: row.name,
            state: row.state.parse().map_err(Error::defect)?,
            framework: row.framework,
            config: row.config,
            spec: row.spec,
            model_name: row.model_name,
            model_revision: row.model_revision,
            dataset_name: row.dataset_name,
            attempt: row.attempt,
            failure: row.failure,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            user_name: row.user_name,
            package_name: row.package_name,
            version_name: row.version_name,
            artifact_id: row.artifact_id,
            artifact_path: row.artifact_path,
        }))
    }

    pub const fn is_over(&self) -> bool {
        self.state.is_terminal()
    }
}

/// A point as MLflow takes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    pub key: String,
    pub value: f64,
    /// Milliseconds; the trainer's clock.
    pub timestamp: i64,
    pub step: i64,
}

#[derive(QueryableByName)]
struct PointRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Double)]
    value: f64,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    step: i64,
}

/// The next events of a job's log, with the points they brought.
#[derive(Debug)]
pub struct Window {
    pub points: Vec<Point>,
    pub last_event_id: i64,
}

impl Window {
    /// None when there is no event after `event`. Ids of one job become visible in order, so none is skipped.
    pub async fn after(conn: &mut Conn, job: JobId, event: i64) -> Result<Option<Self>> {
        #[derive(QueryableByName)]
        struct Last {
            #[diesel(sql_type = Nullable<BigInt>)]
            last: Option<i64>,
        }
        let last: Last = diesel::sql_query(
            "SELECT max(id) AS last FROM
                 (SELECT id FROM job_events WHERE job_id = $1 AND id > $2 ORDER BY id LIMIT $3) next",
        )
        .bind::<SqlUuid, _>(job.0)
        .bind::<BigInt, _>(event)
        .bind::<BigInt, _>(EVENTS)
        .get_result(conn)
        .await?;
        let Some(last_event_id) = last.last else { return Ok(None) };
        // What an attempt says twice of a step was stored once; that is what counts here too.
        let points: Vec<PointRow> = diesel::sql_query(
            "SELECT m.name, m.value, m.at, m.step FROM job_events e
             JOIN metrics_points m ON m.job_id = e.job_id AND m.attempt = e.attempt
                 AND m.step = (e.body #>> '{event,step}')::bigint AND m.seq = e.seq
             WHERE e.job_id = $1 AND e.id > $2 AND e.id <= $3 AND e.body #>> '{event,type}' = 'metrics'
             ORDER BY e.id, m.name",
        )
        .bind::<SqlUuid, _>(job.0)
        .bind::<BigInt, _>(event)
        .bind::<BigInt, _>(last_event_id)
        .load(conn)
        .await?;
        let point = |row: PointRow| Point {
            key: key(&row.name),
            value: row.value,
            timestamp: row.at.timestamp_millis(),
            step: row.step,
        };
        Ok(Some(Self { points: points.into_iter().map(point).collect(), last_event_id }))
    }
}
