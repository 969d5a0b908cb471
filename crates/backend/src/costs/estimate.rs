//! Estimates in the background: what a new job costs, and what a published version needs, by a rehearsal of a trainer.
//!
//! The table of estimates is the queue. A claim is a lease, so a rehearsal that is lost with its backend is made again, and
//! several backends share the work by skipping locked rows.

use super::Price;
use crate::{
    db::Conn,
    error::{Error, Result},
    estimation,
    packages::check::training_config,
    schema::training_jobs as jobs,
    state::AppState,
    store::{Job, Json, Version, columns::to_numeric},
};
use diesel::{
    QueryableByName,
    prelude::*,
    sql_types::{Double, Integer, Jsonb, Nullable, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wire::{
    JobView, UserId,
    estimate::{Basis, EstimateStatus, JobEstimate, VersionEstimate},
    ids::{JobId, VersionId},
    job::{CreateJob, TrainerKind},
    problem::Code,
};

/// A rehearsal that finds no room or no trainer is tried again this often, this far apart.
const TRIES: i32 = 5;
const BETWEEN_SECONDS: f64 = 20.0;
/// Longer than a rehearsal may take.
const LEASE_SECONDS: f64 = 600.0;
/// Rehearsals that this backend waits for at a time; trainers have their own limits.
const CONCURRENCY: usize = 4;
const POLL: Duration = Duration::from_millis(500);

/// What `seconds` cost.
#[must_use]
pub fn cost(seconds: f64, price: &Price) -> f64 {
    seconds / 3600.0 * price.per_hour
}

/// Queues the estimate of a new job. What costs nothing needs none; one that cannot be made stays absent.
pub async fn of_job(conn: &mut Conn, user: UserId, job: &JobView) -> Result<()> {
    if job.cost.estimated.is_some() || job.state.is_terminal() || job.trainer != TrainerKind::Candle {
        return Ok(());
    }
    queue(conn, user, (Some(job.id), None)).await
}

/// Queues the estimate of a version that is published.
pub async fn of_version(conn: &mut Conn, user: UserId, version: VersionId) -> Result<()> {
    queue(conn, user, (None, Some(version))).await
}

async fn queue(conn: &mut Conn, user: UserId, (job, version): (Option<JobId>, Option<VersionId>)) -> Result<()> {
    diesel::sql_query("INSERT INTO estimates (id, user_id, job_id, version_id) VALUES ($1, $2, $3, $4)")
        .bind::<SqlUuid, _>(Uuid::now_v7())
        .bind::<SqlUuid, _>(user.0)
        .bind::<Nullable<SqlUuid>, _>(job.map(|id| id.0))
        .bind::<Nullable<SqlUuid>, _>(version.map(|id| id.0))
        .execute(conn)
        .await?;
    Ok(())
}

/// What is known of a version; a draft and what was published before there were estimates have none.
pub async fn find(conn: &mut Conn, version: VersionId) -> Result<VersionEstimate> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        waits: bool,
        #[diesel(sql_type = Nullable<Jsonb>)]
        result: Option<Json<JobEstimate>>,
        #[diesel(sql_type = Nullable<Text>)]
        error: Option<String>,
    }
    let name = Version::find(conn, version).await?.name;
    let query = "SELECT next_try_at IS NOT NULL AS waits, result, error FROM estimates WHERE version_id = $1";
    let row: Option<Row> = diesel::sql_query(query).bind::<SqlUuid, _>(version.0).get_result(conn).await.optional()?;
    let missing = || format!("`{name}` has no estimate: one is made when a version is published");
    let row = row.ok_or_else(|| Error::refused(Code::NotFound, missing()))?;
    let status = match (row.waits, &row.result) {
        (true, _) => EstimateStatus::Pending,
        (false, Some(_)) => EstimateStatus::Done,
        (false, None) => EstimateStatus::Failed,
    };
    Ok(VersionEstimate { status, estimate: row.result.map(|r| r.0), error: row.error })
}

/// A claimed estimate.
#[derive(Debug, Clone, QueryableByName)]
struct Claimed {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    user_id: Uuid,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    job_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    version_id: Option<Uuid>,
    #[diesel(sql_type = Integer)]
    tries: i32,
}

/// Estimates until `stop`. What is under way then is made again after its lease.
pub async fn run(state: AppState, stop: CancellationToken) {
    let mut working = JoinSet::new();
    while !stop.is_cancelled() {
        while working.try_join_next().is_some() {}
        let claimed = if working.len() < CONCURRENCY { claim(&state).await } else { Ok(None) };
        match claimed {
            Ok(Some(claimed)) => {
                let state = state.clone();
                working.spawn(async move { work(&state, claimed).await });
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = %service::error::chain(&error), "cannot look for estimates to make, trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

async fn claim(state: &AppState) -> Result<Option<Claimed>> {
    let query = "UPDATE estimates SET tries = tries + 1, next_try_at = clock_timestamp() + make_interval(secs => $1)
        WHERE id = (SELECT id FROM estimates WHERE next_try_at <= clock_timestamp()
            ORDER BY next_try_at LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING id, user_id, job_id, version_id, tries";
    let claim = async move |conn: &mut Conn| {
        let query = diesel::sql_query(query).bind::<Double, _>(LEASE_SECONDS);
        Ok(query.get_result(conn).await.optional()?)
    };
    state.db.system(claim).await
}

async fn work(state: &AppState, claimed: Claimed) {
    let id = claimed.id;
    let outcome = match make(state, &claimed).await {
        // The next one may find a trainer.
        Ok(Some(told)) if told.basis == Basis::Shapes && told.fits && claimed.tries < TRIES => {
            Outcome::Again(Some(told))
        }
        Ok(told) => Outcome::Over(told, None),
        Err(error) if retry(&error) && claimed.tries < TRIES => Outcome::Again(None),
        Err(error) => {
            tracing::warn!(estimate.id = %id, error = %service::error::chain(&error), "an estimate cannot be made");
            let told = match &error {
                Error::Refused(problem) => problem.detail.clone(),
                _ => "it could not be made".to_owned(),
            };
            Outcome::Over(None, Some(told))
        }
    };
    if let Err(error) = state.db.system(async move |conn| note(conn, &claimed, outcome).await).await {
        // It is made again after its lease.
        tracing::warn!(estimate.id = %id, error = %service::error::chain(&error), "cannot store an estimate");
    }
}

fn retry(error: &Error) -> bool {
    matches!(error.code(), Some(Code::Overloaded | Code::Unavailable))
}

enum Outcome {
    Again(Option<JobEstimate>),
    Over(Option<JobEstimate>, Option<String>),
}

/// The estimate, unless it is not needed any more.
async fn make(state: &AppState, claimed: &Claimed) -> Result<Option<JobEstimate>> {
    let user = UserId(claimed.user_id);
    let (job, version) = (claimed.job_id.map(JobId), claimed.version_id.map(VersionId));
    let read = async move |conn: &mut Conn| request(conn, job, version).await;
    let Some(request) = state.db.tenant(user, read).await? else { return Ok(None) };
    estimation::estimate(state, user, request).await.map(Some)
}

/// The job to rehearse.
async fn request(conn: &mut Conn, job: Option<JobId>, version: Option<VersionId>) -> Result<Option<CreateJob>> {
    let (config, gpu_config) = if let Some(job) = job {
        let view = JobView::try_from(Job::find(conn, job).await?)?;
        if view.state.is_terminal() {
            return Ok(None);
        }
        (serde_json::to_value(&view.config)?, None)
    } else if let Some(version) = version {
        let steps = Version::find(conn, version).await?.steps()?;
        let lacks = || Error::defect("a published version lacks a step");
        (training_config(&steps).ok_or_else(lacks)?, steps.deploy.unwrap_or_default().gpu_config)
    } else {
        return Ok(None);
    };
    let trainer = TrainerKind::Candle;
    Ok(Some(CreateJob { config, max_attempts: None, trainer, gpu_config, budget_limit: None }))
}

/// Writes down what came of it, unless the lease was lost to another try.
async fn note(conn: &mut Conn, claimed: &Claimed, outcome: Outcome) -> Result<()> {
    let (told, error, wait) = match outcome {
        Outcome::Again(told) => (told, None, Some(BETWEEN_SECONDS)),
        Outcome::Over(told, error) => (told, error, None),
    };
    if let Some(job) = claimed.job_id {
        let seconds = told.as_ref().and_then(|told| told.total_seconds);
        if let Some(seconds) = seconds {
            let view = JobView::try_from(Job::find(conn, JobId(job)).await?)?;
            let price = Price { per_hour: view.cost.price_per_hour, currency: view.cost.currency };
            let set = jobs::estimated_cost.eq(to_numeric(Some(cost(seconds, &price))));
            diesel::update(jobs::table.find(job)).set(set).execute(conn).await?;
        }
        if wait.is_none() {
            // The job has it.
            let gone = "DELETE FROM estimates WHERE id = $1 AND tries = $2";
            let gone = diesel::sql_query(gone).bind::<SqlUuid, _>(claimed.id).bind::<Integer, _>(claimed.tries);
            gone.execute(conn).await?;
            return Ok(());
        }
    }
    let query = "UPDATE estimates SET result = coalesce($3, result), error = $4,
            next_try_at = clock_timestamp() + make_interval(secs => $5)
        WHERE id = $1 AND tries = $2";
    diesel::sql_query(query)
        .bind::<SqlUuid, _>(claimed.id)
        .bind::<Integer, _>(claimed.tries)
        .bind::<Nullable<Jsonb>, _>(told.map(Json))
        .bind::<Nullable<Text>, _>(error)
        .bind::<Nullable<Double>, _>(wait)
        .execute(conn)
        .await?;
    Ok(())
}
