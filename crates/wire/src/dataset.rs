//! Datasets: views and validation reports.

use crate::{
    ids::{DatasetId, JobId, VersionId},
    problem::FieldError,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest number of located errors a report carries.
pub const MAX_ERRORS: usize = 20;

/// On-disk formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatasetFormat {
    /// One `{"messages": [{"role", "content"}…]}` per line (OpenAI's shape).
    ChatJsonl,
    /// One `{"instruction", "input"?, "output"}` per line (Alpaca's shape; `prompt`/`completion` accepted).
    InstructionJsonl,
    /// Preference pairs, one per line: `{"prompt", "chosen", "rejected"}` as texts or messages (TRL's shape), or
    /// `{"input": {"messages"}, "preferred_output", "non_preferred_output"}` (OpenAI's).
    PreferenceJsonl,
    /// One `{"text", "label"}` per line; the label is a class's name or number.
    LabelledJsonl,
    /// Plain UTF-8 text; documents are separated by blank lines.
    Text,
}

/// Part of a dataset a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Validation,
}

/// Life of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DatasetStatus {
    Uploading,
    Validating,
    Ready,
    Invalid,
}

/// An error in a dataset file, located. `line` and `column` count from 1; column counts bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LocatedError {
    pub line: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    pub reason: String,
}

impl From<LocatedError> for FieldError {
    fn from(e: LocatedError) -> Self {
        let path = match e.column {
            Some(c) => format!("line {}, column {c}", e.line),
            None => format!("line {}", e.line),
        };
        FieldError::new(path, e.reason)
    }
}

/// Token counts of a split under one tokenizer (rendered through the chat template where there is one).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenStats {
    /// `name@revision` of the model whose tokenizer was used.
    pub tokenizer: String,
    pub total: u64,
    /// Tokens that carry loss.
    pub trained: u64,
    pub min: u64,
    pub mean: f64,
    pub p95: u64,
    pub max: u64,
}

/// What the rows of a file look like on the whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RowStatistics {
    /// Characters of a row's texts, all turns together.
    pub characters: LengthStats,
    /// Texts by who says them: `system`, `user`, `assistant`, `tool`; of preferences `prompt`, `chosen`, `rejected`.
    pub roles: BTreeMap<String, u64>,
    /// Of labelled texts: rows by class, at most 1000 classes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, u64>,
}

/// Lengths above 65536 are rounded up to a multiple of 1024.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LengthStats {
    pub total: u64,
    pub min: u64,
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
    /// Ascending, without empty bins.
    pub histogram: Vec<Bin>,
}

/// Rows longer than the bin before and at most this long: powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Bin {
    pub up_to: u64,
    pub rows: u64,
}

/// What validation found in one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ValidationReport {
    pub format: DatasetFormat,
    pub bytes: u64,
    /// Rows (or documents), good ones only.
    pub rows: u64,
    /// Rows that are byte-equal to an earlier one.
    pub duplicates: u64,
    /// All errors found; `errors` holds the first [`MAX_ERRORS`].
    pub error_count: u64,
    pub errors: Vec<LocatedError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenStats>,
    /// Absent for files that were validated before it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<RowStatistics>,
}

impl ValidationReport {
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.error_count == 0 && self.rows > 0
    }
}

/// One stored file of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetFile {
    pub split: Split,
    pub key: String,
    pub size: u64,
    pub sha256: String,
    pub report: ValidationReport,
}

/// A dataset as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetView {
    pub id: DatasetId,
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub status: DatasetStatus,
    pub format: Option<DatasetFormat>,
    pub files: Vec<DatasetFile>,
    pub rows: u64,
    /// Bytes in storage; none of an invalid dataset.
    pub size: u64,
    /// Of a dataset that was made of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<DatasetOrigin>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Where the rows of a dataset come from: a part of a file of another one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetOrigin {
    /// It may be deleted.
    pub dataset_id: DatasetId,
    pub file: Split,
    /// `train` has the share `ratio` of its rows, `validation` the others.
    pub part: Split,
    pub ratio: f64,
    pub seed: u64,
}

/// Body of `POST /datasets/{id}/split`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitDataset {
    /// Share of the rows that goes to the first of the two datasets, to the nearest row.
    #[serde(default = "usual_ratio")]
    #[schema(exclusive_minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
    pub ratio: f64,
    /// The same seed and ratio divide the same rows in the same way.
    #[serde(default = "usual_seed")]
    #[schema(default = 42)]
    pub seed: u64,
    /// Which file is divided; `train` when absent.
    #[serde(default = "usual_file")]
    pub file: Split,
    /// Name of the dataset with the share `ratio`; the dataset's with `-train` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_name: Option<String>,
    /// Name of the dataset with the other rows; the dataset's with `-validation` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_name: Option<String>,
}

const fn usual_ratio() -> f64 {
    0.9
}

const fn usual_seed() -> u64 {
    42
}

const fn usual_file() -> Split {
    Split::Train
}

/// Reply of `POST /datasets/{id}/split`: two new datasets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SplitDatasets {
    pub train: DatasetView,
    pub validation: DatasetView,
}

/// Reply of `GET /datasets/{id}/statistics`, computed when the dataset was validated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetStatistics {
    pub rows: u64,
    pub size: u64,
    pub duplicates: u64,
    pub files: Vec<FileStatistics>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileStatistics {
    pub split: Split,
    pub rows: u64,
    pub size: u64,
    /// Rows that are equal to an earlier one.
    pub duplicates: u64,
    pub statistics: Option<RowStatistics>,
    pub tokens: Option<TokenStats>,
}

/// Body of `PATCH /datasets/{id}`; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateDataset {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// At most 2000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What refers to a dataset: what holds it first, then the newest; at most 200 of each kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetUsage {
    pub jobs: Vec<JobUse>,
    pub versions: Vec<VersionUse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobUse {
    pub id: JobId,
    pub name: String,
    pub state: String,
    /// The job is not over.
    pub blocks_deletion: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VersionUse {
    pub id: VersionId,
    pub name: String,
    pub status: String,
    /// The version is a draft, which could not be published without the dataset.
    pub blocks_deletion: bool,
}

/// First rows of a dataset: JSON objects, or strings for plain text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetPreview {
    pub format: DatasetFormat,
    #[schema(value_type = Vec<serde_json::Value>)]
    pub rows: Vec<serde_json::Value>,
}

/// Body of `POST /datasets`: opens an upload straight to storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(example = json!({"name": "support-chats", "files": [{"filename": "chats.jsonl", "size": 1_048_576, "split": "train"}]}))]
#[serde(deny_unknown_fields)]
pub struct CreateDataset {
    #[schema(min_length = 1, max_length = 96, pattern = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$")]
    pub name: String,
    pub files: Vec<CreateDatasetFile>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDatasetFile {
    pub split: Split,
    pub filename: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Reply to `POST /datasets`: put the parts, then `POST /datasets/{id}/complete`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreatedDataset {
    pub dataset: DatasetView,
    pub uploads: Vec<crate::storage::UploadSession>,
}
