//! The log of a job as text: the trainer's own when it is in storage, else what its launcher can show of it now, else what
//! its events say.

use super::page;
use crate::{AppState, db::Conn, error::Result, jobs::rows::AttemptRow};
use actix_web::HttpResponse;
use bytes::Bytes;
use futures::{StreamExt, stream};
use wire::{
    EventKind, JobId, UserId,
    event::{Level, StreamBody, StreamMessage},
    layout,
};

const PAGE: i64 = 500;
const TEXT: &str = "text/plain; charset=utf-8";

/// The log of `attempt`, the job's latest one.
pub async fn response(state: AppState, user: UserId, job: JobId, attempt: u32) -> Result<HttpResponse> {
    let prefix = layout::attempt_prefix(user, job, attempt);
    let key = format!("{prefix}{}{}", layout::LOGS, layout::TRAINER_LOG);
    match state.gateway.get(&key, None).await {
        Ok(log) => Ok(HttpResponse::Ok().content_type(TEXT).streaming(log.bytes_stream())),
        Err(error) => {
            if error.status() != Some(404) {
                tracing::warn!(job.id = %job, error = %service::error::chain(&error), "cannot read the trainer's log; showing the events");
            }
            match live(&state, user, job, attempt).await? {
                Some(log) => Ok(HttpResponse::Ok().content_type(TEXT).body(log)),
                None => Ok(HttpResponse::Ok().content_type(TEXT).streaming(rendered(state, user, job).boxed_local())),
            }
        }
    }
}

async fn live(state: &AppState, user: UserId, job: JobId, attempt: u32) -> Result<Option<Vec<u8>>> {
    let number = i32::try_from(attempt).unwrap_or_default();
    let find = async move |conn: &mut Conn| AttemptRow::find(conn, job, number).await;
    match state.db.tenant(user, find).await? {
        Some(attempt) => Ok(state.launcher.live_log(&attempt.handle()).await),
        None => Ok(None),
    }
}

/// The events as lines, page by page.
fn rendered(state: AppState, user: UserId, job: JobId) -> impl futures::Stream<Item = Result<Bytes>> {
    stream::unfold(Some(0), move |after| {
        let state = state.clone();
        async move {
            let after = after?;
            let read = async move |conn: &mut Conn| page(conn, job, after, PAGE).await;
            match state.db.tenant(user, read).await {
                Ok(messages) => {
                    let last = messages.last()?.id;
                    let text: String = messages.iter().map(|m| line(m) + "\n").collect();
                    Some((Ok(Bytes::from(text)), Some(last)))
                }
                Err(error) => Some((Err(error), None)),
            }
        }
    })
}

/// `2026-01-01 12:00:00 step 3 (epoch 0.50): train_loss 1.2345`.
#[must_use]
pub fn line(message: &StreamMessage) -> String {
    match &message.body {
        StreamBody::State { state, at, failure, pause } => {
            let why = failure.as_ref().map(|f| &f.message).or(pause.as_ref().map(|p| &p.message));
            let why = why.map(|text| format!(": {text}")).unwrap_or_default();
            format!("{} attempt {}: the job is {state}{why}", at.format(TIME), message.attempt)
        }
        StreamBody::Event { event } => format!("{} {}", event.at.format(TIME), describe(&event.kind)),
    }
}

const TIME: &str = "%Y-%m-%d %H:%M:%S";

fn describe(kind: &EventKind) -> String {
    match kind {
        EventKind::Started { trainer_version, device, threads, resumed_from_step } => {
            let from = resumed_from_step.map(|s| format!(", resumed from step {s}")).unwrap_or_default();
            format!("trainer {trainer_version} started on {device} with {threads} threads{from}")
        }
        EventKind::Plan {
            total_steps, epochs, train_rows, eval_rows, trainable_parameters, total_parameters, ..
        } => {
            format!(
                "plan: {total_steps} steps, {epochs} epochs of {train_rows} rows ({eval_rows} held out), {trainable_parameters} of {total_parameters} parameters trained"
            )
        }
        EventKind::Phase { phase, message } => format!("{}: {message}", phase.as_str().replace('_', " ")),
        EventKind::Progress { step, total_steps: Some(total), .. } => format!("at step {step} of {total}"),
        EventKind::Progress { step, .. } => format!("at step {step}"),
        EventKind::Metrics { step, epoch, values } => {
            let values: Vec<String> = values.iter().map(|(name, value)| format!("{name} {value:.6}")).collect();
            format!("step {step} (epoch {epoch:.2}): {}", values.join(", "))
        }
        EventKind::Checkpoint { step, size, .. } => format!("checkpoint of step {step} stored ({size} bytes)"),
        EventKind::Log { level, message } => match level {
            Level::Info => message.clone(),
            Level::Warn => format!("warning: {message}"),
            Level::Error => format!("error: {message}"),
        },
        EventKind::Finished { manifest, summary, .. } => {
            format!("finished after {} steps; {} artifacts stored", summary.steps, manifest.len())
        }
        EventKind::Failed { failure } => format!("failed: {}", failure.message),
        EventKind::Stopped { reason, step, .. } => {
            format!("stopped at step {step} ({})", super::super::verdict::Outcome::from(*reason).as_str())
        }
    }
}
