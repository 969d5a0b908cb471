//! What jobs made.

use crate::{
    ids::{ArtifactId, JobId},
    job::ArtifactView,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactKind {
    /// To be loaded on top of the base model.
    Adapter,
    /// All weights.
    Model,
    Gguf,
}

/// The result of a job as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelArtifactView {
    pub id: ArtifactId,
    pub job_id: JobId,
    pub attempt: u32,
    pub name: String,
    pub kind: ArtifactKind,
    pub base_model: String,
    pub base_revision: String,
    /// Bytes of all files.
    pub size: u64,
    /// Progress of the job when it ended.
    #[schema(value_type = Object)]
    pub metrics: serde_json::Value,
    pub created_at: DateTime<Utc>,
    /// Of a single artifact; lists leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<ArtifactView>>,
}
