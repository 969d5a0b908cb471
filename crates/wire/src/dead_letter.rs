//! Reports of trainers that could not be applied, and what their owner can do about them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most letters that are replayed at once; also all that a job keeps.
pub const MAX_REPLAY: usize = 1000;

/// A report that could not be applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadLetter {
    pub id: i64,
    pub attempt: u32,
    /// The event's place in its attempt, where it is about one event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
    /// Why it could not be applied the last time it was tried.
    pub reason: String,
    /// What was sent: an event, a batch of them, or the beginning of what is neither.
    pub body: Value,
    pub created_at: DateTime<Utc>,
}

/// Which letters to try again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayDeadLetters {
    /// Only these, at most 1000; all of the job when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 1000)]
    pub ids: Option<Vec<i64>>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplayedDeadLetters {
    /// Letters that were applied, and are gone.
    pub applied: Vec<i64>,
    /// Letters that still cannot be applied, each with its reason now.
    pub kept: Vec<DeadLetter>,
}
