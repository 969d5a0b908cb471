//! The log of a job as OpenAI's clients read it: messages and metrics, newest first.

use crate::{db::Conn, error::Result, openai::ids, schema::job_events as log};
use chrono::{DateTime, Utc};
use diesel::{dsl::sql, prelude::*, sql_types::Bool};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use wire::{
    EventKind, JobId, JobState,
    event::{
        Level, StreamBody,
        metric::{EVAL_LOSS, TRAIN_LOSS},
    },
    job::Failure,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = FineTuningEventType)]
pub enum EventType {
    Message,
    Metrics,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = FineTuningEvent)]
pub struct JobEvent {
    pub id: String,
    #[schema(example = "fine_tuning.job.event")]
    pub object: &'static str,
    pub created_at: i64,
    pub level: Level,
    pub message: String,
    #[serde(rename = "type")]
    pub kind: EventType,
    /// `step`, `total_steps` and the step's metrics.
    #[schema(value_type = Object)]
    pub data: Value,
}

/// What of the log is told: the other entries are for the trainer's own book-keeping.
const TOLD: &str = "(body ->> 'stream' = 'state'
    OR body -> 'event' ->> 'type' IN ('plan', 'checkpoint', 'log')
    OR body -> 'event' ->> 'type' = 'metrics' AND (body -> 'event' -> 'values' -> 'train_loss' IS NOT NULL
        OR body -> 'event' -> 'values' -> 'eval_loss' IS NOT NULL))";

/// Entries before the position `before`, newest first; one more than `limit` when there are more.
pub async fn list(
    conn: &mut Conn,
    job: JobId,
    total_steps: Option<u64>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<JobEvent>> {
    let rows = log::table.filter(log::job_id.eq(job.0)).filter(log::id.lt(before.unwrap_or(i64::MAX)));
    let rows = rows.filter(sql::<Bool>(TOLD)).order(log::id.desc()).limit(limit + 1);
    let rows: Vec<(i64, i32, Value, DateTime<Utc>)> =
        rows.select((log::id, log::attempt, log::body, log::created_at)).load(conn).await?;
    let event = |(position, attempt, body, at): (i64, i32, Value, DateTime<Utc>)| {
        let told = match serde_json::from_value(body)? {
            StreamBody::State { state, failure, .. } => of_state(job, state, attempt, failure),
            StreamBody::Event { event } => of_trainer(event.kind, total_steps),
        };
        let Told { level, message, kind, data } = told;
        let id = ids::show_position(ids::EVENT, position);
        Ok(JobEvent { id, object: "fine_tuning.job.event", created_at: at.timestamp(), level, message, kind, data })
    };
    rows.into_iter().map(event).collect()
}

struct Told {
    level: Level,
    message: String,
    kind: EventType,
    data: Value,
}

fn message(level: Level, message: impl Into<String>) -> Told {
    Told { level, message: message.into(), kind: EventType::Message, data: json!({}) }
}

fn of_state(job: JobId, state: JobState, attempt: i32, failure: Option<Failure>) -> Told {
    let why = failure.map(|f| f.message).unwrap_or_default();
    let info = |text: &str| message(Level::Info, text);
    match state {
        JobState::Validating => info("Validating files"),
        JobState::Queued if attempt == 0 => {
            let id = ids::show(ids::JOB, job.0);
            message(Level::Info, format!("Created fine-tuning job: {id}. Files validated, moving job to queued state"))
        }
        JobState::Queued => info("Job is queued again"),
        JobState::Starting => message(Level::Info, format!("Starting attempt {attempt}")),
        JobState::Running => info("Fine-tuning job started"),
        JobState::Finalizing => info("Training finished, verifying the new model"),
        JobState::RetryWait => message(Level::Warn, format!("Attempt {attempt} ended and is tried again: {why}")),
        JobState::Pausing => info("Fine-tuning job is pausing at its next checkpoint"),
        JobState::Paused if why.is_empty() => info("Fine-tuning job paused"),
        JobState::Paused => message(Level::Warn, format!("Fine-tuning job paused: {why}")),
        JobState::Cancelling => info("Fine-tuning job is being cancelled"),
        JobState::Succeeded => info("The job has successfully completed"),
        JobState::Failed => message(Level::Error, why),
        JobState::Cancelled => info("Fine-tuning job cancelled"),
    }
}

fn of_trainer(kind: EventKind, total_steps: Option<u64>) -> Told {
    match kind {
        EventKind::Plan { total_steps, train_rows, eval_rows, .. } => {
            message(Level::Info, format!("{total_steps} steps over {train_rows} rows; {eval_rows} rows are held out"))
        }
        EventKind::Checkpoint { step, .. } => {
            Told { data: json!({"step": step}), ..message(Level::Info, format!("Checkpoint created at step {step}")) }
        }
        EventKind::Log { level, message: text } => message(level, text),
        EventKind::Metrics { step, values, .. } => {
            let total = total_steps.map(|n| format!("/{n}")).unwrap_or_default();
            let loss = |name: &str, told: &str| values.get(name).map(|v| format!("{told} loss={v:.2}"));
            let losses = [loss(TRAIN_LOSS, "training"), loss(EVAL_LOSS, "full validation")];
            let losses: Vec<String> = losses.into_iter().flatten().collect();
            let message = format!("Step {step}{total}: {}", losses.join(", "));
            Told { level: Level::Info, message, kind: EventType::Metrics, data: data(step, total_steps, &values) }
        }
        other => message(Level::Info, other.name()),
    }
}

fn data(step: u64, total_steps: Option<u64>, values: &BTreeMap<String, f64>) -> Value {
    let mut data: Map<String, Value> = values.iter().map(|(name, v)| (name.clone(), json!(v))).collect();
    if let Some(loss) = data.remove(EVAL_LOSS) {
        data.insert("full_valid_loss".into(), loss);
    }
    data.insert("step".into(), step.into());
    data.extend(total_steps.map(|n| ("total_steps".to_owned(), n.into())));
    data.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_as_openai_tells_it() {
        let values = [(TRAIN_LOSS.to_owned(), 1.234), (EVAL_LOSS.to_owned(), 2.0)].into();
        let told = of_trainer(EventKind::Metrics { step: 3, epoch: 0.1, values }, Some(10));
        assert_eq!(told.message, "Step 3/10: training loss=1.23, full validation loss=2.00");
        assert_eq!(told.kind, EventType::Metrics);
        let wanted = json!({"step": 3, "total_steps": 10, "train_loss": 1.234, "full_valid_loss": 2.0});
        assert_eq!(told.data, wanted);
    }
}
