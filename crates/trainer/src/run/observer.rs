//! The engine's ear and the log's mouth.

use crate::{
    control::Switch,
    engine::{Control, Observer},
    spool::Spool,
    upload::Submitter,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use wire::{
    EventKind,
    event::{Level, metric},
};

/// At most one training step per this time is logged; the events carry them all.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Passes on what the engine says; nothing here waits.
#[derive(Debug)]
pub struct EngineObserver {
    pub spool: Spool,
    pub uploads: Submitter,
    pub switch: Switch,
    pub logged: Option<Instant>,
}

impl Observer for EngineObserver {
    fn event(&mut self, kind: EventKind) {
        let step_only = matches!(&kind, EventKind::Metrics { values, .. } if !values.contains_key(metric::EVAL_LOSS));
        if !step_only || self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            if step_only {
                self.logged = Some(Instant::now());
            }
            log(&kind);
        }
        self.spool.push(kind);
    }

    fn checkpoint(&mut self, step: u64, dir: &Path) {
        self.uploads.submit(step, dir);
    }

    fn control(&self) -> Control {
        self.switch.control()
    }
}

/// Writes an event as a sentence to the log.
pub fn log(kind: &EventKind) {
    match kind {
        EventKind::Log { level: Level::Error, message } => tracing::error!("{message}"),
        EventKind::Log { level: Level::Warn, message } => tracing::warn!("{message}"),
        other => tracing::info!("{}", describe(other)),
    }
}

/// One readable line.
#[must_use]
pub fn describe(kind: &EventKind) -> String {
    match kind {
        EventKind::Started { trainer_version, device, threads, resumed_from_step } => {
            let resumed = resumed_from_step.map(|s| format!(", resuming from step {s}")).unwrap_or_default();
            format!("hone-trainer {trainer_version} on {device} with {threads} threads{resumed}")
        }
        EventKind::Plan {
            total_steps, epochs, train_rows, eval_rows, trainable_parameters, total_parameters, ..
        } => {
            format!(
                "{total_steps} steps, {epochs} epochs over {train_rows} rows ({eval_rows} held out); \
                 {trainable_parameters} of {total_parameters} parameters are trained"
            )
        }
        EventKind::Phase { phase, message } if message.is_empty() => phase.as_str().replace('_', " "),
        EventKind::Phase { phase, message } => format!("{}: {message}", phase.as_str().replace('_', " ")),
        EventKind::Progress { step, .. } => format!("at step {step}"),
        EventKind::Metrics { step, epoch, values } => {
            let values: Vec<String> = values.iter().map(|(k, v)| format!("{k} {}", number(*v))).collect();
            format!("step {step} (epoch {epoch:.2}): {}", values.join(", "))
        }
        EventKind::Checkpoint { step, prefix, .. } => format!("checkpoint of step {step} stored in {prefix}"),
        EventKind::Log { message, .. } => message.clone(),
        EventKind::Finished { manifest, summary, .. } => {
            format!("finished after {} steps, {} artifacts", summary.steps, manifest.len())
        }
        EventKind::Failed { failure } => format!("failed: {}", failure.message),
        EventKind::Stopped { reason, step, .. } => format!("stopped at step {step}: {reason:?}").to_lowercase(),
    }
}

fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-2 {
        format!("{value:.2e}")
    } else if value.abs() >= 1e4 {
        format!("{value:.0}")
    } else {
        format!("{value:.4}")
    }
}
