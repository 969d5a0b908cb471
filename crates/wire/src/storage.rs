//! The storage gateway's HTTP contract.
//!
//! ```text
//! POST   /uploads                 OpenUpload      → 201 UploadSession
//! GET    /uploads/{id}                            → UploadSession (missing parts only, fresh URLs)
//! POST   /uploads/{id}/complete   CompleteUpload  → ObjectInfo
//! DELETE /uploads/{id}                            → 204
//! PUT    /objects/{key}           bytes           → ObjectInfo   (streaming; `x-content-sha256` checked)
//! GET    /objects/{key}                           → bytes        (streaming; honours Range)
//! HEAD   /objects/{key}                           → 200 with content-length | 404
//! DELETE /objects/{key}                           → 204
//! DELETE /objects?prefix=                         → Deleted
//! GET    /objects?prefix=&after=&limit=           → ObjectList
//! POST   /sign                    SignRequest     → SignedUrl
//! POST   /verify                  VerifyRequest   → 200 | CHECKSUM_MISMATCH | NOT_FOUND
//! POST   /datasets/validate       ValidateRequest → dataset::ValidationReport
//! POST   /datasets/preview        PreviewRequest  → dataset::DatasetPreview
//! POST   /models/inspect          InspectRequest  → model::ModelInfo | MODEL_CORRUPT
//! ```
//!
//! Every call carries a bearer token (see `service::token`): a service token may do everything, a job
//! token only what its `read` and `write` prefixes allow.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Header with the hex SHA-256 of a body.
pub const SHA256_HEADER: &str = "x-content-sha256";

/// What is uploaded; each kind has its own size limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UploadKind {
    Dataset,
    Model,
    /// Checkpoints, adapters, logs and events of a job.
    Job,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenUpload {
    pub key: String,
    pub size: u64,
    pub kind: UploadKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// One part of a multipart upload, to be sent by `PUT url` with exactly `size` bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UploadPart {
    /// From 1.
    pub number: u32,
    pub offset: u64,
    pub size: u64,
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UploadSession {
    /// Opaque; names the upload in later calls.
    pub id: String,
    pub key: String,
    pub size: u64,
    pub part_size: u64,
    /// Parts still missing.
    pub parts: Vec<UploadPart>,
    /// When the part URLs stop working; `GET /uploads/{id}` gives fresh ones.
    pub urls_expire_at: DateTime<Utc>,
}

/// The gateway asks storage which parts it has, so nothing else is needed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteUpload {
    /// Digest of the whole object, when it was not known at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ObjectInfo {
    pub key: String,
    pub size: u64,
    /// Hex; absent in listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ObjectList {
    /// In key order.
    pub objects: Vec<ObjectInfo>,
    /// Pass as `after` to get the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_after: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Deleted {
    pub deleted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum SignMethod {
    Get,
    Put,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    pub method: SignMethod,
    pub key: String,
    /// Seconds, at most 900; 900 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignedUrl {
    pub url: String,
    pub expires_at: DateTime<Utc>,
}

/// An object with the size and digest it must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileRef {
    pub key: String,
    pub size: u64,
    pub sha256: String,
}

/// Content of `manifest.json` ([`crate::layout::MANIFEST`]): every other object below the prefix. It is written last,
/// so its presence proves that the set is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Manifest {
    /// In key order.
    pub files: Vec<FileRef>,
    /// Optimizer step of a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
}

/// Body of `POST /verify`: every object must exist with this size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    pub files: Vec<FileRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateRequest {
    pub key: String,
    /// Detected from the content when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<crate::dataset::DatasetFormat>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    pub key: String,
    pub format: crate::dataset::DatasetFormat,
    /// Rows, at most 100.
    pub limit: usize,
    /// Rows to skip.
    #[serde(default)]
    pub offset: usize,
}

/// One of the two parts that a seed divides the rows of a file into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RowSample {
    /// All rows of the file.
    pub rows: u64,
    /// How many of them are chosen.
    pub chosen: u64,
    pub seed: u64,
    pub part: RowPart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RowPart {
    Chosen,
    Rest,
}

/// Body of `POST /datasets/select`: copies some rows of the file `from` to the new object `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelectRequest {
    pub from: String,
    pub to: String,
    pub format: crate::dataset::DatasetFormat,
    pub sample: RowSample,
}

/// Body of `POST /models/inspect`: the prefix must hold a complete HF model directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InspectRequest {
    pub prefix: String,
}
