//! Kubeflow Trainer's status report, as trainers with its reporting on send it (Hugging Face Transformers 5.23,
//! `integrations/integration_utils.py`; `TrainJobTrainerStatus` of `trainer.kubeflow.org/v1alpha1`).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Body of `POST …/namespaces/{namespace}/trainjobs/{name}/status`, and its reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    pub trainer_status: TrainerStatus,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainerStatus {
    /// 0 to 100. 100 is the end of a training that went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_percentage: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_remaining_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<TrainerMetric>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_time: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrainerMetric {
    pub name: String,
    /// A number as text.
    pub value: String,
}
