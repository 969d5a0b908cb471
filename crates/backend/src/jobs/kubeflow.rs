//! Kubeflow's `trainerStatus` as events of the job's log. A report says where training stands and has no number, so the
//! backend words and numbers the events itself, under the lock on the job's row.

use super::{
    ingest::{
        Identity, Submission, apply, authorise,
        parse::{Batch, Received},
    },
    policy::Policy,
    rows::{AttemptRow, JobRow},
    transition::Moved,
};
use crate::{
    AppState,
    db::Conn,
    error::{Error, Result},
    schema::job_events,
    store::Json,
};
use actix_web::HttpRequest;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::{
    prelude::*,
    sql_types::{Double, Integer, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use service::token::JobGrant;
use std::collections::BTreeMap;
use wire::{
    Event, EventKind, InstanceId, JobId, JobState,
    event::{Level, StreamBody, Summary, metric},
    job::Progress,
    kubeflow::{StatusReport, TrainerStatus},
    problem::{Code, Problem},
};

/// As in callbacks: most values of one report, and the longest name of one in bytes.
const MAX_METRICS: usize = 64;
const MAX_NAME: usize = 64;
const MAX_BODY: usize = 64 << 10;
/// Names that say where training stands.
const STEP: &str = "current_step";
const TOTAL: &str = "total_steps";
const EPOCH: &str = "current_epoch";

/// Takes a report.
pub async fn report(
    req: &HttpRequest,
    job: JobId,
    body: &[u8],
    state: &AppState,
    policy: &Policy,
) -> Result<StatusReport> {
    let grant = authorise(req, job, state)?;
    if body.len() > MAX_BODY {
        return Err(Error::refused(Code::TooLarge, format!("a report may have at most {MAX_BODY} bytes")));
    }
    let report: StatusReport = serde_json::from_slice(body)
        .map_err(|e| Problem::new(Code::Invalid, format!("not a report of a trainer's status: {e}")))?;
    let (status, policy) = (report.trainer_status.clone(), policy.external());
    let moved = state.db.system(async move |conn| receive(conn, grant, status, &policy).await).await?;
    moved.iter().for_each(Moved::count);
    Ok(report)
}

async fn receive(conn: &mut Conn, grant: JobGrant, status: TrainerStatus, policy: &Policy) -> Result<Vec<Moved>> {
    let gone = || Error::refused(Code::StaleAttempt, "this job no longer exists; stop");
    let job = JobRow::lock(conn, grant.job).await?.ok_or_else(gone)?;
    if !job.is_external() {
        let detail = "this job is trained by Hone; create one with `trainer: external` for a trainer of your own";
        return Err(Error::refused(Code::Conflict, detail));
    }
    if job.attempt() == 0 {
        return Err(Error::refused(Code::Unavailable, "the job is being set up; report again in a moment"));
    }
    let attempt = AttemptRow::find(conn, grant.job, job.attempt).await?.ok_or_else(gone)?;
    let current = job.attempt() == grant.attempt && job.epoch == grant.epoch;
    let open = matches!(job.state()?, JobState::Starting | JobState::Running) && attempt.outcome.is_none();
    let at = storable(status.last_updated_time);
    let repeated = at.is_some() && at == last_report(conn, &job, &attempt).await?;
    if current && (!open || repeated) {
        return Ok(Vec::new());
    }
    let seen = Seen { progress: job.progress(), values: last_values(conn, &job).await?, first: attempt.last_seq == 0 };
    let mut events = Vec::new();
    for (seq, kind) in (attempt.last_seq.saturating_add(1)..).zip(translate(&status, &seen)) {
        let seq = u64::try_from(seq).unwrap_or_default();
        let kind = match kind {
            EventKind::Finished { manifest, summary, .. } => EventKind::Finished { last_seq: seq, manifest, summary },
            other => other,
        };
        events.push(Received::new(Event { seq, at: at.unwrap_or_else(Utc::now), kind })?);
    }
    // There is one trainer per token, and its reports do not name it.
    let instance = InstanceId(grant.job.0);
    let batch = Batch { job: grant.job, attempt: grant.attempt, instance, events, rejected: Vec::new() };
    let submission = Submission { whose: Identity::of(&grant), batch };
    Ok(apply::apply(conn, &submission, policy).await?.moved)
}

/// Within a day of now: the time is the trainer's, and the database has limits.
fn storable(at: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    at.filter(|at| (*at - Utc::now()).abs() < TimeDelta::days(1))
}

/// The time of the last report that was applied.
async fn last_report(conn: &mut Conn, job: &JobRow, attempt: &AttemptRow) -> Result<Option<DateTime<Utc>>> {
    let row = job_events::table
        .filter(job_events::job_id.eq(job.id))
        .filter(job_events::attempt.eq(job.attempt))
        .filter(job_events::seq.eq(attempt.last_seq));
    let body: Option<Json<StreamBody>> = row.select(job_events::body).first(conn).await.optional()?;
    Ok(body.and_then(|Json(body)| match body {
        StreamBody::Event { event } => Some(event.at),
        StreamBody::State { .. } => None,
    }))
}

/// The newest value of each metric.
async fn last_values(conn: &mut Conn, job: &JobRow) -> Result<BTreeMap<String, f64>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Double)]
        value: f64,
    }
    let rows: Vec<Row> = diesel::sql_query(
        "SELECT DISTINCT ON (name) name, value FROM metrics_points WHERE job_id = $1 AND attempt = $2
         ORDER BY name, step DESC",
    )
    .bind::<SqlUuid, _>(job.id)
    .bind::<Integer, _>(job.attempt)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.value)).collect())
}

/// What is known of the trainer before a report.
struct Seen {
    progress: Progress,
    /// The newest value of each metric.
    values: BTreeMap<String, f64>,
    /// It has not reported before.
    first: bool,
}

/// The events that a report amounts to.
fn translate(status: &TrainerStatus, seen: &Seen) -> Vec<EventKind> {
    let said = |name: &str| status.metrics.iter().find(|m| m.name == name).map(|m| m.value.trim());
    let number = |name: &str| said(name).and_then(|v| v.parse::<u64>().ok()).filter(|n| i64::try_from(*n).is_ok());
    let done = status.progress_percentage.is_some_and(|p| p >= 100);
    // Who tells no steps has a hundred of them.
    let total = number(TOTAL).or(seen.progress.total_steps).or(status.progress_percentage.map(|_| 100));
    let counted = number(STEP).or_else(|| {
        let percent = status.progress_percentage?;
        (total == Some(100)).then(|| u64::from(percent))
    });
    let step = match total {
        Some(total) if done => total,
        _ => counted.unwrap_or(seen.progress.step),
    };
    let epoch = said(EPOCH).and_then(|v| v.parse().ok()).filter(|e: &f64| e.is_finite()).unwrap_or(seen.progress.epoch);
    // A report repeats what was logged last, however long ago that was; only what changed is a new value.
    let values: BTreeMap<String, f64> = status
        .metrics
        .iter()
        .filter(|m| ![STEP, TOTAL, EPOCH].contains(&m.name.as_str()))
        .filter_map(|m| Some((name(&m.name)?, m.value.trim().parse::<f64>().ok().filter(|v| v.is_finite())?)))
        .filter(|(name, value)| seen.values.get(name) != Some(value))
        .take(MAX_METRICS)
        .collect();
    let mut events = Vec::new();
    if seen.first {
        let message = "a trainer outside Hone reports by trainerStatus".to_owned();
        events.push(EventKind::Log { level: Level::Info, message });
    }
    let seconds = |s: u64| f64::from(u32::try_from(s).unwrap_or(u32::MAX));
    let eta_seconds = status.estimated_remaining_seconds.map(seconds);
    events.push(EventKind::Progress { step, total_steps: total, eta_seconds });
    let newest = |name: &str| values.get(name).or_else(|| seen.values.get(name)).copied();
    let (train_loss, eval_loss) = (newest(metric::TRAIN_LOSS), newest(metric::EVAL_LOSS));
    let train_seconds = newest("train_runtime").unwrap_or_default();
    if !values.is_empty() {
        events.push(EventKind::Metrics { step, epoch, values });
    }
    if done {
        let initial_eval_loss = seen.progress.initial_eval_loss;
        let summary =
            Summary { steps: step, train_seconds, train_loss, initial_eval_loss, eval_loss, ..Summary::default() };
        events.push(EventKind::Finished { last_seq: 0, manifest: Vec::new(), summary });
    }
    events
}

/// Our name for a metric of Transformers' trainer. Its `train_loss` is the mean over the whole training.
fn name(theirs: &str) -> Option<String> {
    let ours = match theirs {
        "loss" => metric::TRAIN_LOSS,
        "train_loss" => "mean_train_loss",
        other => other,
    };
    let clean = ours.replace('\0', "\u{fffd}");
    (1..=MAX_NAME).contains(&clean.len()).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn events(status: serde_json::Value, seen: &Seen) -> Vec<EventKind> {
        translate(&serde_json::from_value(status).unwrap(), seen)
    }

    fn seen(step: u64, total: Option<u64>, values: &[(&str, f64)]) -> Seen {
        let progress = Progress { step, total_steps: total, ..Progress::default() };
        Seen { progress, values: values.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(), first: false }
    }

    #[test]
    fn a_report_becomes_a_place_and_what_changed() {
        let metrics = json!([{"name": "loss", "value": "2.5"}, {"name": "learning_rate", "value": "5e-05"},
            {"name": "note", "value": "high"}, {"name": "current_step", "value": "7"},
            {"name": "total_steps", "value": "20"}, {"name": "current_epoch", "value": "0.35"}]);
        let status = json!({"progressPercentage": 35, "estimatedRemainingSeconds": 4, "metrics": metrics});
        let said = events(status, &seen(3, None, &[("learning_rate", 5e-5)]));
        assert_eq!(said.len(), 2);
        assert_eq!(said[0], EventKind::Progress { step: 7, total_steps: Some(20), eta_seconds: Some(4.0) });
        assert_eq!(said[1], EventKind::Metrics { step: 7, epoch: 0.35, values: [("train_loss".into(), 2.5)].into() });
    }

    #[test]
    fn who_tells_only_a_percentage_has_a_hundred_steps() {
        let said = events(json!({"progressPercentage": 35}), &seen(0, None, &[]));
        assert_eq!(said, [EventKind::Progress { step: 35, total_steps: Some(100), eta_seconds: None }]);
    }

    #[test]
    fn a_hundred_percent_is_the_end_at_the_last_step() {
        let metrics = json!([{"name": "loss", "value": "1.5"}, {"name": "train_loss", "value": "2.0"}]);
        let status = json!({"progressPercentage": 100, "estimatedRemainingSeconds": 0, "metrics": metrics});
        let said = events(status, &seen(19, Some(20), &[("train_loss", 1.5)]));
        assert!(matches!(&said[1], EventKind::Metrics { step: 20, values, .. }
            if *values == [("mean_train_loss".to_owned(), 2.0)].into()));
        assert!(matches!(&said[2], EventKind::Finished { summary, manifest, .. }
            if summary.steps == 20 && summary.train_loss == Some(1.5) && manifest.is_empty()));
    }
}
