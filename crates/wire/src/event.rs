//! The callback protocol between trainer and backend.
//!
//! `POST {CALLBACK_URL}` with `Authorization: Bearer {JOB_TOKEN}` carries a [`CallbackBatch`] and returns a
//! [`CallbackReply`]. Identity of an event is (job, attempt, seq); seq counts from 1 without gaps. The
//! trainer keeps an event in its spool until a 2xx reply acknowledged it; the backend acknowledges only
//! after COMMIT. A batch without events is a heartbeat.
//!
//! Replies: 200 accepted (or seen before) · 401 bad token · 410 stale attempt or second instance: stop ·
//! 422 malformed, or the same identity with other content (kept as a dead letter; do not send again) ·
//! 429/5xx try again.

use crate::{
    ids::{InstanceId, JobId},
    job::Failure,
    storage::FileRef,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most events in one batch.
pub const MAX_BATCH: usize = 500;
/// Largest callback body in bytes.
pub const MAX_BATCH_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CallbackBatch {
    pub job_id: JobId,
    pub attempt: u32,
    /// The process that sends; the first one to send claims the attempt.
    pub instance_id: InstanceId,
    /// Ascending by `seq`.
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    pub seq: u64,
    /// The trainer's clock; only for display.
    pub at: DateTime<Utc>,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What the trainer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    StagingModel,
    StagingData,
    Tokenizing,
    Training,
    Evaluating,
    Checkpointing,
    Uploading,
}

impl Phase {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StagingModel => "staging_model",
            Self::StagingData => "staging_data",
            Self::Tokenizing => "tokenizing",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
            Self::Checkpointing => "checkpointing",
            Self::Uploading => "uploading",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// Names of the metrics in [`EventKind::Metrics`].
pub mod metric {
    /// Mean loss per trained token of the step's global batch (nats).
    pub const TRAIN_LOSS: &str = "train_loss";
    /// Mean loss per trained token of the held-out split (nats).
    pub const EVAL_LOSS: &str = "eval_loss";
    /// Classification: share of the held-out texts whose class was found …
    pub const EVAL_ACCURACY: &str = "eval_accuracy";
    /// … and F1, of class 1 where there are two, else the mean over the classes.
    pub const EVAL_F1: &str = "eval_f1";
    pub const LEARNING_RATE: &str = "learning_rate";
    /// Global gradient norm before clipping.
    pub const GRAD_NORM: &str = "grad_norm";
    /// Tokens through the model per second of the step, padding excluded.
    pub const TOKENS_PER_SECOND: &str = "tokens_per_second";
    pub const STEP_SECONDS: &str = "step_seconds";
    /// Parts of `step_seconds`: choosing and laying out rows, …
    pub const DATA_SECONDS: &str = "data_seconds";
    /// … activations and loss, …
    pub const FORWARD_SECONDS: &str = "forward_seconds";
    /// … gradients (with `gradient_checkpointing` also the activations again), …
    pub const BACKWARD_SECONDS: &str = "backward_seconds";
    /// … norm, clipping and update.
    pub const OPTIMIZER_SECONDS: &str = "optimizer_seconds";
    /// Between the step before and this one: evaluation, checkpoints, reporting. Not in `step_seconds`.
    pub const STALL_SECONDS: &str = "stall_seconds";
    /// Resident memory of the trainer in bytes.
    pub const MEMORY_BYTES: &str = "memory_bytes";
    /// Of the GPU that trains, where there is one: share of the last second in which it worked, in percent, …
    pub const GPU_UTILIZATION: &str = "gpu_utilization";
    /// … its memory in use by all processes, in bytes, …
    pub const GPU_MEMORY_BYTES: &str = "gpu_memory_bytes";
    /// … its temperature in degrees Celsius, …
    pub const GPU_TEMPERATURE: &str = "gpu_temperature";
    /// … and the power it draws.
    pub const GPU_POWER_WATTS: &str = "gpu_power_watts";
    /// Tokens trained on since the job began.
    pub const TOKENS_SEEN: &str = "tokens_seen";
    /// DPO, means over pairs, by TRL's names: `β (log π − log π_ref)` of the preferred answer …
    pub const REWARDS_CHOSEN: &str = "rewards/chosen";
    /// … and of the other one.
    pub const REWARDS_REJECTED: &str = "rewards/rejected";
    /// Share of the pairs whose preferred answer has the higher reward.
    pub const REWARDS_ACCURACIES: &str = "rewards/accuracies";
    /// Difference of the two rewards.
    pub const REWARDS_MARGINS: &str = "rewards/margins";
    /// Log-probability of the whole preferred answer …
    pub const LOGPS_CHOSEN: &str = "logps/chosen";
    /// … and of the other one.
    pub const LOGPS_REJECTED: &str = "logps/rejected";
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// First event of an attempt; once more when the checkpoint to resume from cannot be used and another one is.
    Started {
        trainer_version: String,
        device: String,
        threads: usize,
        resumed_from_step: Option<u64>,
    },
    /// What will happen, known once data and model are loaded.
    Plan {
        total_steps: u64,
        epochs: f64,
        train_rows: u64,
        eval_rows: u64,
        /// Tokens of one epoch, padding excluded.
        train_tokens: u64,
        /// Rows cut to `max_seq_length`.
        truncated_rows: u64,
        trainable_parameters: u64,
        total_parameters: u64,
    },
    Phase {
        phase: Phase,
        message: String,
    },
    /// Values of one optimizer step; names in [`metric`]. A step may be reported by several events with different names.
    Metrics {
        step: u64,
        epoch: f64,
        values: BTreeMap<String, f64>,
    },
    /// Where a trainer stands that says so by itself.
    Progress {
        step: u64,
        total_steps: Option<u64>,
        eta_seconds: Option<f64>,
    },
    Checkpoint {
        step: u64,
        prefix: String,
        size: u64,
    },
    Log {
        level: Level,
        message: String,
    },
    /// Last event of a successful attempt. Every artifact was uploaded before.
    Finished {
        last_seq: u64,
        manifest: Vec<FileRef>,
        summary: Summary,
    },
    /// Last event of a failed attempt.
    Failed {
        failure: Failure,
    },
    /// Last event of an attempt that stopped on request (`cancel`, `pause`) or on SIGTERM (`preempted`).
    Stopped {
        reason: StopReason,
        step: u64,
        checkpoint: Option<String>,
    },
}

impl EventKind {
    /// Whether applying this event depends on all earlier ones (state), or not (metrics and logs).
    #[must_use]
    pub const fn is_ordered(&self) -> bool {
        !matches!(self, Self::Metrics { .. } | Self::Log { .. })
    }

    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Plan { .. } => "plan",
            Self::Phase { .. } => "phase",
            Self::Metrics { .. } => "metrics",
            Self::Progress { .. } => "progress",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Log { .. } => "log",
            Self::Finished { .. } => "finished",
            Self::Failed { .. } => "failed",
            Self::Stopped { .. } => "stopped",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    Cancelled,
    Paused,
    Preempted,
}

/// Results of a finished run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Summary {
    pub steps: u64,
    pub tokens: u64,
    pub train_seconds: f64,
    pub train_loss: Option<f64>,
    pub initial_eval_loss: Option<f64>,
    pub eval_loss: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    #[default]
    Continue,
    /// Stop now; nothing more is wanted.
    Cancel,
    /// Finish the step, write a durable checkpoint, stop.
    Pause,
    /// The job is over or this attempt is fenced; exit.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CallbackReply {
    pub directive: Directive,
    /// Every event up to this seq is durable.
    pub acked_seq: u64,
    /// A gap: send again from this seq.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resend_from: Option<u64>,
    /// The job's budget ends: pause by yourself after this many milliseconds. Every reply replaces what the one
    /// before said; absent: no limit is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_in_ms: Option<u64>,
}

/// One message of the live stream (WebSocket text frame, SSE `data`).
///
/// `id` is the position in the job's event log over all attempts; a client resumes with
/// `?after={id}` (or SSE's `Last-Event-ID`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StreamMessage {
    pub id: i64,
    pub job_id: JobId,
    pub attempt: u32,
    #[serde(flatten)]
    pub body: StreamBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "stream", rename_all = "snake_case")]
pub enum StreamBody {
    /// A trainer's event.
    Event { event: Event },
    /// The job changed its state (recorded in the same log).
    State {
        state: crate::job::JobState,
        at: DateTime<Utc>,
        failure: Option<Failure>,
        /// Why the job is paused or pausing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pause: Option<crate::cost::Pause>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_flat_json() {
        let event = Event {
            seq: 3,
            at: DateTime::from_timestamp(0, 0).unwrap_or_default(),
            kind: EventKind::Metrics { step: 7, epoch: 0.5, values: [("train_loss".to_owned(), 1.5)].into() },
        };
        let json = serde_json::to_string(&event).unwrap_or_default();
        assert_eq!(
            json,
            r#"{"seq":3,"at":"1970-01-01T00:00:00Z","type":"metrics","step":7,"epoch":0.5,"values":{"train_loss":1.5}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).ok(), Some(event));
    }
}
