//! One training attempt: `hone-trainer run` under a launcher.
//!
//! Environment of [`wire::job_env`] in, exit code of [`wire::job_env::exit`] out. Stages the inputs, trains on a
//! thread of its own, uploads, and tells the backend how it ended. Invariants: the outcome event is the last one
//! and comes after everything it promises is durable; reporting never fails training; after SIGTERM the process is
//! gone within the grace time, whatever hangs.

pub mod config;
pub mod observer;
mod scratch;
mod training;

pub use config::RunConfig;

use crate::{
    control::{Deadline, Signal, Switch},
    engine::{self, Place, TrainError},
    gateway::Gateway,
    logfile::LogFile,
    report::{ReportConfig, Reporter},
    spool::{Spool, SpoolConfig, SpoolError},
    upload::{UploadConfig, Uploader},
};
use actix_web::http::header::{HeaderMap, HeaderName};
use service::{ClientError, Env, error::chain};
use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Instrument;
use training::{Attempt, End};
use wire::{EventKind, estimate::Estimate, event::StopReason, job::Failure, job_env::exit, layout};

/// How long the last reports may take when nobody is waiting for the process to leave.
const REPORT_BUDGET: Duration = Duration::from_secs(600);
/// For the log's last upload.
const LOG_BUDGET: Duration = Duration::from_secs(30);

/// Runs the attempt the environment describes.
///
/// # Errors
/// The environment is unusable, so that nobody can be told.
pub async fn run(env: &Env) -> anyhow::Result<ExitCode> {
    let config = RunConfig::from_env(env)?;
    let log = LogFile::create(&config.attempt_dir().join(layout::TRAINER_LOG));
    let telemetry = service::telemetry::init_tee("hone-trainer", env, Some(log.sink()))?;
    let span = tracing::info_span!("attempt", job.id = %config.spec.job_id, n = config.spec.attempt);
    adopt_trace(&span, env);
    std::panic::set_hook(Box::new(|info| tracing::error!("{info}")));
    let code = attempt(config, log).instrument(span).await?;
    tracing::info!(code, "exit");
    drop(telemetry);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Stages the inputs of the attempt that the environment describes, and rehearses it. Nothing is reported or uploaded.
/// Returns the estimate and the model's name.
///
/// # Errors
/// An unusable environment, inputs that cannot be had, or what the run itself would fail with before its first step.
pub async fn estimate(env: &Env, at_least: Duration) -> anyhow::Result<(Estimate, String)> {
    let mut config = RunConfig::from_env(env)?;
    // Attempts count from 1, so this directory is no attempt's.
    config.spec.attempt = 0;
    config.spec.resume_from = None;
    let config = Arc::new(config);
    let gateway = open_gateway(&config)?;
    let (spool, _writer) = Spool::open(SpoolConfig::new(config.attempt_dir().join("spool")))?;
    let (switch, deadline) = (Switch::default(), Deadline::default());
    let attempt = Attempt { config: Arc::clone(&config), gateway, spool, switch, deadline, resumed: OnceLock::new() };
    let staged = attempt.stage().await;
    let result = match staged {
        Ok(setup) => tokio::task::spawn_blocking(move || engine::estimate(&setup, at_least)).await?,
        Err(error) => Err(error),
    };
    // What stays is swept like the remains of any attempt.
    let _ = std::fs::remove_dir_all(config.attempt_dir());
    Ok((result?, config.spec.model.name.clone()))
}

fn open_gateway(config: &RunConfig) -> Result<Gateway, ClientError> {
    let RunConfig { gateway_url, token, storage_retry, storage_patience, .. } = config;
    Gateway::with_patience(gateway_url, token.clone(), *storage_retry, *storage_patience)
}

/// Continues the launcher's trace, given as `TRACEPARENT`.
fn adopt_trace(span: &tracing::Span, env: &Env) {
    let Some(parent) = env.get("TRACEPARENT").and_then(|p| p.parse().ok()) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("traceparent"), parent);
    service::telemetry::adopt_parent(span, &headers);
}

async fn attempt(config: RunConfig, log: LogFile) -> anyhow::Result<i32> {
    let config = Arc::new(config);
    let (switch, deadline) = (Switch::default(), Deadline::default());
    listen_for_sigterm(switch.clone(), deadline.clone(), config.grace)?;
    let gateway = open_gateway(&config)?;
    let spool_config =
        SpoolConfig { max_bytes: config.spool_bytes, ..SpoolConfig::new(config.attempt_dir().join("spool")) };
    let (spool, writer) = match Spool::open(spool_config) {
        Ok(opened) => opened,
        Err(e @ SpoolError::Locked(_)) => {
            tracing::error!(error = %e, "this attempt runs already");
            return Ok(exit::FENCED);
        }
        Err(e) => return Err(e.into()),
    };
    scratch::sweep(&config);
    let started = started(&config, config.resume_step());
    observer::log(&started);
    spool.push(started);
    let reporter = Reporter::start(
        report_config(&config),
        (spool.clone(), writer),
        gateway.clone(),
        switch.clone(),
        deadline.clone(),
    )?;
    let upload = UploadConfig {
        prefix: config.folder(layout::CHECKPOINTS),
        keep: config.spec.config.training.save_total_limit,
        waiting_dir: config.attempt_dir().join("uploading"),
    };
    let (uploader, submitter) = Uploader::start(upload, gateway.clone(), spool.clone(), reporter.checkpoint_acked());
    let logs = tokio::spawn(keep_log_stored(log.clone(), gateway.clone(), Arc::clone(&config)));

    let attempt = Attempt {
        config: Arc::clone(&config),
        gateway: gateway.clone(),
        spool,
        switch: switch.clone(),
        deadline: deadline.clone(),
        resumed: OnceLock::new(),
    };
    let result = tokio::select! {
        result = attempt.run(&uploader, submitter) => result,
        // Nothing this process does counts any more.
        _ = switch.raised(Signal::Fenced) => Ok(End::Fenced),
    };
    let Some((last, code)) = conclude(result) else {
        tracing::warn!("another instance owns this job, or it is over; leaving");
        reporter.abandon();
        return Ok(exit::FENCED);
    };
    observer::log(&last);
    logs.abort();
    let log_budget = if deadline.is_set() { config.grace / 12 } else { LOG_BUDGET };
    if tokio::time::timeout(log_budget, store_log(&log, &gateway, &config, 0)).await.is_err() {
        tracing::warn!("the log could not be stored in time");
    }
    let delivered = tokio::select! {
        delivered = reporter.finish(last, REPORT_BUDGET) => delivered,
        () = deadline.near(config.grace / 25) => false,
    };
    if delivered {
        scratch::remove(&config);
        return Ok(code);
    }
    if switch.signal() == Signal::Fenced {
        return Ok(exit::FENCED);
    }
    tracing::error!(dir = %config.attempt_dir().display(), "the last progress reports could not be delivered; they are kept here");
    Ok(if code == exit::SUCCEEDED { exit::RETRYABLE } else { code })
}

fn started(config: &RunConfig, resumed_from_step: Option<u64>) -> EventKind {
    EventKind::Started {
        trainer_version: env!("CARGO_PKG_VERSION").to_owned(),
        // A device that cannot be had fails the attempt, where inputs are staged.
        device: config.device.place().map_or_else(|_| config.device.to_string(), Place::describe),
        threads: config.threads,
        resumed_from_step,
    }
}

fn report_config(config: &RunConfig) -> ReportConfig {
    ReportConfig {
        job_id: config.spec.job_id,
        attempt: config.spec.attempt,
        callback_url: config.callback_url.clone(),
        token: config.token.clone(),
        heartbeat: Duration::from_secs(config.spec.heartbeat_seconds.max(1)),
        linger: config.report_interval,
        retry: config.callback_retry,
        events_prefix: config.folder(layout::EVENTS),
    }
}

/// The last event and the exit code for how the attempt ended; `None` when it must leave without a word.
fn conclude(result: Result<End, TrainError>) -> Option<(EventKind, i32)> {
    match result {
        // The spool fills `last_seq` in when it numbers the event.
        Ok(End::Finished { manifest, summary }) => {
            Some((EventKind::Finished { last_seq: 0, manifest, summary }, exit::SUCCEEDED))
        }
        Ok(End::Stopped { reason, step, checkpoint }) => {
            let code = match reason {
                StopReason::Cancelled => exit::CANCELLED,
                StopReason::Paused => exit::PAUSED,
                StopReason::Preempted => exit::PREEMPTED,
            };
            Some((EventKind::Stopped { reason, step, checkpoint }, code))
        }
        Ok(End::Fenced) => None,
        Err(error) => {
            tracing::error!(error = %chain(&error), "the attempt failed");
            let code = if error.code.is_retryable() { exit::RETRYABLE } else { exit::FATAL };
            Some((EventKind::Failed { failure: Failure::from(&error) }, code))
        }
    }
}

fn listen_for_sigterm(switch: Switch, deadline: Deadline, grace: Duration) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        deadline.set(grace);
        switch.raise(Signal::Preempt);
    });
    Ok(())
}

/// Stores the log whenever it has grown.
async fn keep_log_stored(log: LogFile, gateway: Gateway, config: Arc<RunConfig>) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(config.log_interval).await;
        seen = store_log(&log, &gateway, &config, seen).await;
    }
}

/// Stores the log if it changed since `seen`; returns what is stored now. A failure only costs freshness.
async fn store_log(log: &LogFile, gateway: &Gateway, config: &RunConfig, seen: u64) -> u64 {
    let Some((version, bytes)) = log.changed_since(seen) else { return seen };
    let key = format!("{}{}", config.folder(layout::LOGS), layout::TRAINER_LOG);
    match gateway.put_bytes(&key, bytes.into()).await {
        Ok(_) => version,
        Err(e) => {
            tracing::debug!(error = %chain(&e), "the log was not stored");
            seen
        }
    }
}
