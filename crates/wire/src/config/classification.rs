//! Settings of sequence classification.

use serde::{Deserialize, Serialize};

/// What is trained beside the classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tuning {
    /// A LoRA adapter.
    #[default]
    Lora,
    /// All weights.
    Full,
}

/// How a classifier is trained.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ClassificationConfig {
    pub tuning: Tuning,
}
