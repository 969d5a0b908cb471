//! The trainer as a service: `hone-trainer serve`, for `TRAINING_MODE=http`.
//!
//! ```text
//! POST /training/start               StartTraining → 201 TrainerRun | 200 started before | 409 at capacity
//! GET  /training/{job}/{attempt}                   → TrainerRun | 404
//! POST /training/{job}/{attempt}/stop              → TrainerRun (SIGTERM now, SIGKILL later; idempotent)
//! POST /estimate                     StartTraining → wire::estimate::Estimate | 422 why it cannot run | 409 another one runs
//! GET  /models                                     → TrainerCapabilities
//! GET  /health /ready /metrics
//! ```
//!
//! With `TRAINER_SERVICE_TOKEN` every route but the last line needs it as a bearer token. Each attempt is a child
//! process of the same binary (`run`), so a crash or an exhausted memory takes one attempt, never the service.
//! The service keeps nothing on disk that matters: after a restart it does not know its old attempts, the backend
//! starts new ones, and the old processes are fenced by 410.

mod children;
mod routes;

use actix_web::web;
use children::Children;
use service::{Env, SecretString, server::ServerConfig};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Settings of the service.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// The binary whose `run` trains.
    pub program: PathBuf,
    pub scratch: PathBuf,
    pub capacity: usize,
    pub token: Option<SecretString>,
    /// From SIGTERM to SIGKILL of an attempt.
    pub kill_after: Duration,
}

impl ServeConfig {
    fn from_env(env: &Env) -> anyhow::Result<Self> {
        let scratch = env.get(wire::job_env::SCRATCH_DIR).map(PathBuf::from);
        Ok(Self {
            program: std::env::current_exe()?,
            scratch: scratch.unwrap_or_else(|| std::env::temp_dir().join("hone-trainer")),
            capacity: env.parse_or("MAX_CONCURRENT_JOBS", 1)?,
            token: env.secret("TRAINER_SERVICE_TOKEN")?,
            kill_after: Duration::from_millis(env.parse_or("KILL_AFTER_MS", 30_000)?),
        })
    }
}

/// Serves until SIGTERM, then stops the attempts that run and waits for them.
///
/// # Errors
/// Invalid settings, or the address cannot be listened on.
pub async fn run(env: &Env) -> anyhow::Result<()> {
    let telemetry = service::telemetry::init("hone-trainer", env)?;
    let config = ServeConfig::from_env(env)?;
    let server = ServerConfig::from_env("hone-trainer", env, 8702)?;
    if config.token.is_none() && !server.listen.ip().is_loopback() {
        tracing::warn!("anyone who reaches this port can start trainings; set TRAINER_SERVICE_TOKEN");
    }
    let listener = service::server::bind(&server)?;
    let children = Arc::new(Children::new(config));
    let data = web::Data::from(Arc::clone(&children));
    let readiness: service::server::Readiness = Arc::new(|| Box::pin(async { Ok(()) }));
    let metrics = telemetry.metrics.clone();
    service::server::serve(server, listener, metrics, readiness, move |app| {
        app.app_data(data.clone()).configure(routes::configure);
    })
    .await?;
    children.stop_all().await;
    Ok(())
}
