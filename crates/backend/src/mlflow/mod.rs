//! Export to the MLflow server of `MLFLOW_TRACKING_URI`: each job is a run there.
//!
//! The exporter reads what is committed and remembers per job how far it came, so nothing else waits for it, and a
//! restart of either side neither loses nor doubles a point: a batch whose reply was lost is sent again, and MLflow's
//! database stores have one row per (key, step, timestamp, value) of a run. A server that cannot be reached costs one
//! warning.

mod client;
mod config;
mod rows;
mod run;

pub use config::MlflowConfig;

use crate::{AppState, error::Error};
use backon::BackoffBuilder;
use client::Tracking;
use rows::{Claimed, Facts, Window};
use service::retry::RetryPolicy;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wire::JobId;

/// Between two looks for something new.
const TICK: Duration = Duration::from_secs(2);
/// Between two looks for jobs that began and ended unseen.
const SEARCH_EVERY: Duration = Duration::from_secs(60);
/// Windows of events sent for one job before the others get their turn.
const WINDOWS: usize = 20;

#[derive(Debug, thiserror::Error)]
enum ExportError {
    /// Nothing can be sent now.
    #[error("{0}")]
    Outage(String),
    /// The server does not want this run any more; sending it again would change nothing.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Ours(#[from] Error),
}

/// Exports until `stop`.
pub async fn run(state: AppState, config: MlflowConfig, stop: CancellationToken) {
    match Tracking::new(config) {
        Ok(tracking) => {
            let exporter = Exporter { state, tracking, me: Uuid::new_v4(), searched: None };
            let () = stop.run_until_cancelled(exporter.run()).await.unwrap_or_default();
        }
        Err(error) => tracing::error!(error = %service::error::chain(&error), "jobs are not exported to MLflow"),
    }
}

struct Exporter {
    state: AppState,
    tracking: Tracking,
    /// Names this process in claims.
    me: Uuid,
    searched: Option<Instant>,
}

impl Exporter {
    async fn run(mut self) {
        let backoff = RetryPolicy::EXPORT.backoff();
        let mut outage = None;
        loop {
            let wait = match self.pass().await {
                Ok(busy) => {
                    if outage.take().is_some() {
                        tracing::info!("MLflow takes points again");
                    }
                    metrics::gauge!("mlflow_reachable").set(1.0);
                    if busy { Duration::ZERO } else { TICK }
                }
                Err(error) => {
                    metrics::gauge!("mlflow_reachable").set(0.0);
                    let waits = outage.get_or_insert_with(|| {
                        let error = service::error::chain(&error);
                        tracing::warn!(
                            error,
                            "cannot export to MLflow; training goes on, and the points are sent later"
                        );
                        backoff.build()
                    });
                    waits.next().unwrap_or(TICK)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One look at every open run; whether there is more to send at once.
    async fn pass(&mut self) -> Result<bool, ExportError> {
        let everything = self.searched.is_none_or(|at| at.elapsed() >= SEARCH_EVERY);
        self.state.db.system(async move |conn| rows::discover(conn, everything).await).await?;
        if everything {
            self.searched = Some(Instant::now());
        }
        let mut busy = false;
        for job in self.state.db.system(async |conn| rows::due(conn).await).await? {
            busy |= self.attend(job).await?;
        }
        Ok(busy)
    }

    async fn attend(&mut self, job: JobId) -> Result<bool, ExportError> {
        let me = self.me;
        let Some(claimed) = self.state.db.system(async move |conn| rows::claim(conn, job, me).await).await? else {
            return Ok(false);
        };
        let result = self.export(job, claimed).await;
        let (released, busy) = match result {
            Ok(busy) => (None, Ok(busy)),
            Err(ExportError::Refused(reason)) => {
                tracing::warn!(job.id = %job, "MLflow refuses this run, it is not exported further: {reason}");
                (Some(reason), Ok(false))
            }
            Err(error) => (None, Err(error)),
        };
        self.state.db.system(async move |conn| rows::release(conn, job, me, released).await).await?;
        busy
    }

    /// Sends what is new about a job; whether there is more.
    async fn export(&mut self, job: JobId, claimed: Claimed) -> Result<bool, ExportError> {
        let Some(facts) = self.state.db.system(async move |conn| Facts::load(conn, job).await).await? else {
            return Ok(false);
        };
        let run_id = match claimed.run_id {
            Some(run_id) => run_id,
            None => self.begin(job, &facts).await?,
        };
        let mut after = claimed.last_event_id;
        for _ in 0..WINDOWS {
            let Some(window) = self.state.db.system(async move |conn| Window::after(conn, job, after).await).await?
            else {
                // The state was read before the events, so nothing can follow a terminal one.
                if facts.is_over() {
                    self.end(job, &run_id, &facts).await?;
                }
                return Ok(false);
            };
            self.tracking.log_metrics(&run_id, &window.points).await?;
            let sent = u64::try_from(window.points.len()).unwrap_or_default();
            metrics::counter!("mlflow_points_exported_total").increment(sent);
            after = window.last_event_id;
            self.state.db.system(async move |conn| rows::advance(conn, job, after).await).await?;
        }
        Ok(true)
    }

    /// The run of a job, made with its parameters unless an earlier try got that far.
    async fn begin(&mut self, job: JobId, facts: &Facts) -> Result<String, ExportError> {
        let experiment = self.tracking.experiment().await?;
        let run_id = match self.tracking.find_run(&experiment, job).await? {
            Some(run_id) => run_id,
            None => self.tracking.create_run(&experiment, facts, run::tags(facts)).await?,
        };
        self.tracking.log_params(&run_id, run::params(facts)).await?;
        let stored = run_id.clone();
        self.state.db.system(async move |conn| rows::begun(conn, job, &stored).await).await?;
        Ok(run_id)
    }

    async fn end(&mut self, job: JobId, run_id: &str, facts: &Facts) -> Result<(), ExportError> {
        self.tracking.log_tags(run_id, run::last_tags(facts)).await?;
        self.tracking.end_run(run_id, facts).await?;
        Ok(self.state.db.system(async move |conn| rows::close(conn, job).await).await?)
    }
}
