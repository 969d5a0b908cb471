//! Models of the Hugging Face Hub: what is there, and fetching it into the registry.

use crate::ids::PullId;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// A model on the Hub, by the Hub's own words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HubModel {
    /// `owner/name`.
    pub id: String,
    pub author: Option<String>,
    /// Newest commit.
    pub sha: Option<String>,
    pub last_modified: Option<DateTime<Utc>>,
    pub created_at: Option<DateTime<Utc>>,
    pub private: bool,
    /// Whether a licence must be accepted there before it can be fetched.
    pub gated: bool,
    pub downloads: u64,
    pub likes: u64,
    pub library_name: Option<String>,
    pub pipeline_tag: Option<String>,
    pub tags: Vec<String>,
}

/// Body of `POST /api/models/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullModel {
    /// `owner/name` on the Hub.
    pub id: String,
    /// Branch, tag or commit; `main` when absent. What it is now is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Name in the registry; `owner--name` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullStatus {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl PullStatus {
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A model on its way into the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PullView {
    pub id: PullId,
    pub repo: String,
    pub revision: String,
    /// What the revision was when the pull began; the model's revision in the registry.
    pub commit: Option<String>,
    /// Name in the registry.
    pub name: String,
    pub status: PullStatus,
    pub files_total: u32,
    pub files_done: u32,
    pub bytes_total: u64,
    pub bytes_done: u64,
    /// Why it failed, or why it is being tried again.
    pub error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}
