//! Base models: registry views and import.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelFile {
    /// Path below the model's prefix, as in the HF layout: `config.json`, `model.safetensors`.
    pub path: String,
    pub size: u64,
    pub sha256: String,
}

/// What `config.json` and the safetensors headers say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelInfo {
    /// First entry of `architectures`, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    pub parameters: u64,
    /// safetensors name, e.g. `F32`, `BF16`.
    pub dtype: String,
    pub vocab_size: u64,
    pub context_length: u64,
    pub has_chat_template: bool,
    /// Absent for models that were imported before it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<crate::memory::ModelShape>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelStatus {
    Uploading,
    Ready,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelView {
    pub name: String,
    /// First 16 hex digits of the SHA-256 over the sorted lines `{sha256}  {path}\n` of its files.
    pub revision: String,
    pub status: ModelStatus,
    pub size: u64,
    pub files: Vec<ModelFile>,
    pub info: Option<ModelInfo>,
    pub created_at: DateTime<Utc>,
}

/// Body of `POST /api/models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateModel {
    #[schema(min_length = 1, max_length = 96, pattern = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$")]
    pub name: String,
    pub files: Vec<ModelFile>,
}

/// Reply: put the parts of each upload, then `POST /api/models/{name}/{revision}/complete`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreatedModel {
    pub model: ModelView,
    /// Empty when this revision is in the registry already.
    pub uploads: Vec<crate::storage::UploadSession>,
}

/// Revision of a set of files; see [`ModelView::revision`].
#[must_use]
pub fn revision(files: &[ModelFile]) -> String {
    use sha2::{Digest, Sha256};
    let mut lines: Vec<String> = files.iter().map(|f| format!("{}  {}\n", f.sha256, f.path)).collect();
    lines.sort_unstable();
    let digest = Sha256::digest(lines.concat().as_bytes());
    hex::encode(digest).chars().take(16).collect()
}

/// Whether `name` can be part of a storage key and a URL path: `[a-z0-9A-Z._-]`, 1 to 96 characters,
/// no leading dot or dash.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=96).contains(&name.len()) && name.chars().all(ok) && !name.starts_with(['.', '-'])
}
