//! What jobs made.

use crate::{
    config::TrainingConfig,
    dataset::Split,
    ids::{ArtifactId, JobId, PackageId, VersionId},
    job::ArtifactView,
    model::ModelFile,
    storage::FileRef,
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

/// Reply of `POST /api/artifacts/{id}/download`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArtifactDownload {
    pub files: Vec<ArtifactView>,
    /// When the URLs stop working.
    pub expires_at: DateTime<Utc>,
}

/// Where an artifact comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Lineage {
    pub artifact_id: ArtifactId,
    pub kind: ArtifactKind,
    /// What it is, by the digests of its files.
    pub files: Vec<ModelFile>,
    pub job: LineageJob,
    /// The package version the job was launched from.
    pub version: Option<LineageVersion>,
    /// What it was trained on, …
    pub datasets: Vec<LineageDataset>,
    /// … from which base model, …
    pub base_model: LineageModel,
    /// … and, with `lora.init_from`, which adapter.
    pub continued_from: Option<LineageAdapter>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LineageJob {
    pub id: JobId,
    pub name: String,
    pub attempt: u32,
    pub config: TrainingConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LineageVersion {
    pub id: VersionId,
    pub name: String,
    pub package_id: PackageId,
    pub package: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LineageDataset {
    pub split: Split,
    /// Digest of the file.
    pub sha256: String,
    pub size: u64,
    /// The dataset it was read from; a held-out file may be another dataset's.
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LineageModel {
    pub name: String,
    pub revision: String,
    pub files: Vec<ModelFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LineageAdapter {
    pub job_id: JobId,
    pub files: Vec<FileRef>,
}
