//! Checkpoints with the metrics of their steps.

use crate::{
    db::Conn,
    error::Result,
    openai::ids,
    schema::{job_events as log, metrics_points as points},
    store::{Json, unsigned},
};
use chrono::{DateTime, Utc};
use diesel::{dsl::sql, prelude::*, sql_types::Bool};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use wire::{
    EventKind, JobId,
    event::{
        StreamBody,
        metric::{EVAL_LOSS, TRAIN_LOSS},
    },
};

/// Metrics of a step. What is not measured here is absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, utoipa::ToSchema)]
#[schema(as = FineTuningCheckpointMetrics)]
pub struct CheckpointMetrics {
    pub step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
}

/// A stored checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = FineTuningCheckpoint)]
pub struct Checkpoint {
    pub id: String,
    #[schema(example = "fine_tuning.job.checkpoint")]
    pub object: &'static str,
    pub created_at: i64,
    pub fine_tuning_job_id: String,
    pub fine_tuned_model_checkpoint: String,
    pub step_number: u64,
    pub metrics: CheckpointMetrics,
}

/// The newest checkpoint of each of the last `keep` steps that have one, newest first. Older ones are not kept.
pub async fn list(conn: &mut Conn, job: JobId, model: &str, keep: usize) -> Result<Vec<Checkpoint>> {
    let is_checkpoint = sql::<Bool>("body -> 'event' ->> 'type' = 'checkpoint'");
    let rows: Vec<(i64, Json<StreamBody>, DateTime<Utc>)> = log::table
        .filter(log::job_id.eq(job.0))
        .filter(is_checkpoint)
        .order(log::id.desc())
        .select((log::id, log::body, log::created_at))
        .load(conn)
        .await?;
    let mut steps = BTreeSet::new();
    let mut found = Vec::new();
    for (position, Json(body), at) in rows {
        let StreamBody::Event { event } = body else { continue };
        let EventKind::Checkpoint { step, .. } = event.kind else { continue };
        if found.len() < keep && steps.insert(step) {
            found.push((position, step, at));
        }
    }
    let metrics = metrics(conn, job, &steps).await?;
    let view = |(position, step, at): (i64, u64, DateTime<Utc>)| {
        let value = |name: &str| metrics.get(&(step, name.to_owned())).copied();
        let (train_loss, full_valid_loss) = (value(TRAIN_LOSS), value(EVAL_LOSS));
        Checkpoint {
            id: ids::show_position(ids::CHECKPOINT, position),
            object: "fine_tuning.job.checkpoint",
            created_at: at.timestamp(),
            fine_tuning_job_id: ids::show(ids::JOB, job.0),
            fine_tuned_model_checkpoint: format!("{model}:ckpt-step-{step}"),
            step_number: step,
            metrics: CheckpointMetrics { step, train_loss, full_valid_loss },
        }
    };
    Ok(found.into_iter().map(view).collect())
}

/// Newest value by step and name.
async fn metrics(conn: &mut Conn, job: JobId, steps: &BTreeSet<u64>) -> Result<BTreeMap<(u64, String), f64>> {
    let steps: Vec<i64> = steps.iter().map(|s| crate::store::signed(*s)).collect();
    let rows = points::table
        .filter(points::job_id.eq(job.0))
        .filter(points::step.eq_any(steps))
        .filter(points::name.eq_any([TRAIN_LOSS, EVAL_LOSS]))
        .order(points::attempt)
        .select((points::step, points::name, points::value));
    let rows: Vec<(i64, String, f64)> = rows.load(conn).await?;
    Ok(rows.into_iter().map(|(step, name, value)| ((unsigned(step), name), value)).collect())
}
