//! Training packages and their versions: a package is a line of versions, a version is what the four steps of the
//! workflow chose. Drafts change; published versions never do.

use crate::{
    ids::{DatasetId, PackageId, UserId, VersionId},
    problem::FieldError,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// An object, or nothing.
fn object<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Ok(Option::<Map<String, Value>>::deserialize(value)?.map(Value::Object))
}

/// A package as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PackageView {
    pub id: PackageId,
    pub name: String,
    pub description: String,
    /// Kind of training, such as `lora_finetuning`.
    pub template_type: String,
    /// What a new draft's configuration starts from.
    #[schema(value_type = Object)]
    pub config: Value,
    /// The version worked on last.
    pub current_version_id: Option<VersionId>,
    /// Versions of all kinds.
    pub version_count: u32,
    /// Highest number that is published now; 0 when none is.
    pub latest_published_version: u32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Body of `POST /api/training/packages`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(example = json!({"name": "support-bot", "description": "Answers like our support team"}))]
#[serde(deny_unknown_fields)]
pub struct CreatePackage {
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,198}[^\s\x00-\x1f\x7f-\x9f])?$"
    )]
    pub name: String,
    #[serde(default)]
    pub description: String,
    /// `lora_finetuning` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_type: Option<String>,
    /// Part of a training configuration, without model and dataset.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Value>,
}

/// Body of `PATCH /api/training/packages/{id}`; what is absent stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdatePackage {
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,198}[^\s\x00-\x1f\x7f-\x9f])?$"
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VersionStatus {
    Draft,
    Published,
    Archived,
}

impl VersionStatus {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Published => "published",
            Self::Archived => "archived",
        }
    }
}

/// How the newest job that was launched from a version goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrainingStatus {
    Pending,
    Running,
    Completed,
    Failed,
    Cancelled,
}

/// Where a trained version is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeployTarget {
    /// This installation.
    Local,
    /// A Space of the Hugging Face Hub.
    HfSpace,
}

impl DeployTarget {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::HfSpace => "hf_space",
        }
    }
}

/// Step 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelStep {
    /// Registry name of the base model.
    pub name: String,
    /// The newest when absent; publishing pins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Bytes; filled in when the version is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Step 3.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetStep {
    pub datasets: Vec<DatasetChoice>,
    /// Per cent of the rows to train on; the rest is for evaluation. The configuration decides when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_split: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetChoice {
    /// Id of the dataset.
    pub id: DatasetId,
    /// Filled in when the version is published, like what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Step 4.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployStep {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<DeployTarget>,
    /// Id of a GPU configuration (`GET /api/gpu-configs`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_config: Option<String>,
    /// `owner/name` of the Space, for `hf_space`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space_name: Option<String>,
    /// Most that training may cost, in the currency of the GPU configurations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_limit: Option<f64>,
}

/// What the four steps chose. A draft may lack any of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Steps {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStep>,
    /// Step 2: a training configuration without model and dataset; absent keys take their defaults.
    #[serde(deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetStep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deploy: Option<DeployStep>,
}

/// What keeps a version from being published, and what its author should know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Validation {
    /// Paths below the steps: `model`, `config.training.learning_rate`, `dataset.datasets.0`, `deploy.space_name`.
    pub errors: Vec<FieldError>,
    pub warnings: Vec<FieldError>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeploymentState {
    pub is_deployed: bool,
    pub target: Option<DeployTarget>,
    pub url: Option<String>,
    pub id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrainingState {
    /// Absent until a job was launched.
    pub status: Option<TrainingStatus>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    /// The job's progress.
    #[schema(value_type = Option<Object>)]
    pub metrics: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CostState {
    pub estimated: Option<f64>,
    pub actual: Option<f64>,
    pub budget_limit: Option<f64>,
}

/// A version as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VersionView {
    pub id: VersionId,
    pub package_id: PackageId,
    /// From 1 without gaps; drafts have none.
    pub version_number: Option<u32>,
    pub name: String,
    pub status: VersionStatus,
    /// Counts changes; the `ETag`.
    pub revision: u32,
    pub steps: Steps,
    pub change_summary: Option<String>,
    /// What it was forked or restored from.
    pub parent_version_id: Option<VersionId>,
    pub deployment: DeploymentState,
    pub training: TrainingState,
    pub cost: CostState,
    pub created_at: DateTime<Utc>,
    pub created_by: UserId,
    pub published_at: Option<DateTime<Utc>>,
    pub archived_at: Option<DateTime<Utc>>,
    pub updated_at: DateTime<Utc>,
    /// Of a single draft; lists leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
}

/// Body of `POST /api/training/versions`: a new draft.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVersion {
    pub package_id: PackageId,
    #[serde(default)]
    pub draft: Draft,
}

/// What a user writes into a draft. Saving replaces all of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(example = json!({"change_summary": "more epochs", "steps": {"model": {"name": "hone-tiny"}, "config": {"training": {"num_train_epochs": 3}},
    "deploy": {"target": "local"}}}))]
#[serde(default, deny_unknown_fields)]
pub struct Draft {
    /// `PACKAGE-vN-draft-YYYYMMDD` when absent; publishing drops the suffix.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,198}[^\s\x00-\x1f\x7f-\x9f])?$"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_summary: Option<String>,
    pub steps: Steps,
}

/// Body of `POST /api/training/versions/auto-save`. With `version_id` it saves that draft, and `If-Match` says which
/// revision was edited. Without, it makes a draft: in `package_id`, or in the package `package_name`, which is made
/// when it is missing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoSave {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_id: Option<PackageId>,
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,198}[^\s\x00-\x1f\x7f-\x9f])?$"
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_name: Option<String>,
    #[serde(default)]
    pub draft: Draft,
}

/// Body of `POST /api/training/versions/{id}/{restore,publish}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ChangeSummary)]
#[serde(default, deny_unknown_fields)]
pub struct Summary {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_summary: Option<String>,
}

/// Body of `POST /api/training/versions/{id}/fork`: into the same package, another one, or a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ForkVersion {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package_id: Option<PackageId>,
    /// Name of a package to make.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,198}[^\s\x00-\x1f\x7f-\x9f])?$"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_summary: Option<String>,
}

/// Body of `POST /api/training/versions/{id}/launch`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LaunchVersion {
    /// Name of the job; the version's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Most attempts before the job fails; 3 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
}

/// Body of `POST /api/training/versions/{id}/deploy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeployVersion {
    /// The version's deploy step decides when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<DeployTarget>,
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VersionRef {
    pub id: VersionId,
    pub name: String,
    pub status: VersionStatus,
    pub version_number: Option<u32>,
}

/// A field that two versions have different values for, or that only one has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldChange {
    /// Below the steps: `config.lora.r`.
    pub path: String,
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub after: Option<Value>,
}

/// Reply of `GET /api/training/versions/{a}/compare/{b}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Comparison {
    pub a: VersionRef,
    pub b: VersionRef,
    /// Sorted by path; empty when both say the same.
    pub changes: Vec<FieldChange>,
}
