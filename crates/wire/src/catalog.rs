//! What the installation offers to choose from: hyperparameter presets and GPU configurations.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Hyperparameters under a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// `balanced`
    pub id: String,
    pub name: String,
    pub description: String,
    /// Part of a training configuration, without model and dataset.
    #[schema(value_type = Object)]
    pub config: Value,
}

/// Hardware to run on, with its price.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuConfig {
    /// `a10g-small`
    pub id: String,
    pub name: String,
    /// Model of the GPU; absent for a machine without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    pub gpu_count: u32,
    /// Memory of one GPU, or of the machine without any.
    pub memory_gb: u32,
    pub price_per_hour: f64,
    /// ISO 4217.
    pub currency: String,
}
