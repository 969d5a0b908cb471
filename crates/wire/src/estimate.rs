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
