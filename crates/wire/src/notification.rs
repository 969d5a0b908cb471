//! What users are told, in the application and at their webhooks.

use crate::ids::{JobId, NotificationId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What happened; also the `type` of webhook payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Kind {
    #[serde(rename = "training.job.succeeded")]
    JobSucceeded,
    #[serde(rename = "training.job.failed")]
    JobFailed,
    #[serde(rename = "training.job.cancelled")]
    JobCancelled,
    /// It reached its budget.
    #[serde(rename = "training.job.paused")]
    JobPaused,
    #[serde(rename = "training.job.budget_alert")]
    BudgetAlert,
    /// A report of its trainer could not be understood.
    #[serde(rename = "training.job.dead_letter")]
    DeadLetter,
    #[serde(rename = "dataset.invalid")]
    DatasetInvalid,
    #[serde(rename = "package.version.published")]
    VersionPublished,
    #[serde(rename = "webhook.disabled")]
    WebhookDisabled,
    /// Only sent to a webhook, when its owner asks for it.
    #[serde(rename = "webhook.test")]
    WebhookTest,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::JobSucceeded,
        Self::JobFailed,
        Self::JobCancelled,
        Self::JobPaused,
        Self::BudgetAlert,
        Self::DeadLetter,
        Self::DatasetInvalid,
        Self::VersionPublished,
        Self::WebhookDisabled,
        Self::WebhookTest,
    ];

    /// The wire name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobSucceeded => "training.job.succeeded",
            Self::JobFailed => "training.job.failed",
            Self::JobCancelled => "training.job.cancelled",
            Self::JobPaused => "training.job.paused",
            Self::BudgetAlert => "training.job.budget_alert",
            Self::DeadLetter => "training.job.dead_letter",
            Self::DatasetInvalid => "dataset.invalid",
            Self::VersionPublished => "package.version.published",
            Self::WebhookDisabled => "webhook.disabled",
            Self::WebhookTest => "webhook.test",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

impl Severity {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One notification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NotificationView {
    pub id: NotificationId,
    pub kind: Kind,
    pub severity: Severity,
    pub title: String,
    pub body: String,
    /// For programs: ids, amounts, states.
    #[schema(value_type = Object)]
    pub data: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    pub created_at: DateTime<Utc>,
    /// Absent: unread.
    pub read_at: Option<DateTime<Utc>>,
}

/// A notification in the stream of its user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StreamedNotification {
    /// Counts up; the id of the message.
    pub position: i64,
    pub notification: NotificationView,
}

/// How many notifications are unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UnreadCount {
    pub unread: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_json_and_sql() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
