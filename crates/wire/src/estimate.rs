//! What a run will need, known before it runs.

use serde::{Deserialize, Serialize};

/// Result of a pre-flight: sizes counted, memory and time measured on the run's own largest and first batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Estimate {
    pub total_steps: u64,
    /// Tokens through the model in the whole run, padding excluded.
    pub total_tokens: u64,
    /// Tokens of the largest batch that is in memory at once.
    pub largest_batch_tokens: u64,
    pub trainable_parameters: u64,
    pub total_parameters: u64,
    /// Most resident memory of the trainer process, with a margin.
    pub peak_memory_bytes: u64,
    /// What this machine (or its control group) has left for the trainer.
    pub available_memory_bytes: Option<u64>,
    /// Optimizer steps only.
    pub train_seconds: f64,
    /// From start to end: loading, steps, evaluations, checkpoints.
    pub total_seconds: f64,
    /// How long the rehearsal took.
    pub rehearsal_seconds: f64,
}

impl Estimate {
    /// Whether the run fits into the memory there is.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.available_memory_bytes.is_none_or(|available| self.peak_memory_bytes <= available)
    }
}

/// Reply of `POST /training/estimate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobEstimate {
    /// Whether the run fits into the memory there is, as far as that is known.
    pub fits: bool,
    pub basis: Basis,
    /// Most memory of the trainer: with a margin from a rehearsal, the least it can be from shapes.
    pub peak_memory_bytes: Option<u64>,
    /// Memory that a trainer has.
    pub memory_limit_bytes: Option<u64>,
    pub trainable_parameters: Option<u64>,
    pub total_parameters: Option<u64>,
    pub total_steps: Option<u64>,
    pub total_tokens: Option<u64>,
    /// Optimizer steps only.
    pub train_seconds: Option<f64>,
    /// From start to end: loading, steps, evaluations, checkpoints.
    pub total_seconds: Option<f64>,
    /// `total_seconds` at the price of the GPU configuration, and of what currency.
    pub cost: Option<f64>,
    pub currency: String,
    /// Why there was no rehearsal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Reply of `GET /api/training/versions/{id}/estimate`: what the version would need, made when it was published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VersionEstimate {
    pub status: EstimateStatus,
    /// Without a rehearsal while that is still to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<JobEstimate>,
    /// Why it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EstimateStatus {
    Pending,
    Done,
    Failed,
}

/// What a [`JobEstimate`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// A trainer ran a part of the job.
    Rehearsal,
    /// The shapes of the model's weights: memory only.
    Shapes,
}
