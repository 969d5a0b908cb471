//! What jobs cost: estimates, limits, and what was spent.

use crate::ids::{JobId, PackageId, VersionId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};

/// What a job costs. Amounts are in `currency`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobCost {
    /// What it would cost, known some seconds after the job was created.
    pub estimated: Option<f64>,
    /// What its attempts have cost until the trainer's last report; absent before the first one.
    pub actual: Option<f64>,
    /// The job is paused at a checkpoint before it costs more.
    pub budget_limit: Option<f64>,
    pub price_per_hour: f64,
    /// ISO 4217.
    pub currency: String,
}

/// Why a job is paused, or about to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Pause {
    pub reason: PauseReason,
    /// What happened and what to do.
    pub message: String,
    /// The limit that was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// Somebody asked for it.
    Requested,
    /// It reached its `budget_limit`.
    Budget,
}

/// Body of `PATCH /training/jobs/{id}`; what is left out stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateJob {
    /// Most the job may cost; `null` lifts the limit.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub budget_limit: Option<Option<f64>>,
}

/// Tells `null` from what is absent.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// What one attempt of a job used. `amount` is `seconds / 3600 * price_per_hour`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CostRecord {
    pub job_id: JobId,
    pub job_name: String,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    /// Absent: this machine's processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_config: Option<String>,
    pub seconds: f64,
    pub price_per_hour: f64,
    pub amount: f64,
    pub currency: String,
    /// The trainer's first report.
    pub started_at: DateTime<Utc>,
    /// Absent while the attempt runs.
    pub finished_at: Option<DateTime<Utc>>,
}

/// What costs are added up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CostGroup {
    /// Days of UTC in which attempts started.
    #[default]
    Day,
    Package,
    User,
    GpuConfig,
}

/// Costs of one day, package, user or GPU configuration, in one currency.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CostSum {
    /// `2026-11-21`, the package's id, the user's id, the configuration's id; absent for jobs without a package or
    /// configuration.
    pub key: Option<String>,
    /// Name of the package or user.
    pub label: Option<String>,
    pub currency: String,
    pub amount: f64,
    pub seconds: f64,
    pub jobs: u64,
}

/// Reply of `GET /api/costs/summary`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CostSummary {
    pub group_by: CostGroup,
    pub groups: Vec<CostSum>,
    /// One sum for each currency.
    pub total: Vec<CostTotal>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CostTotal {
    pub currency: String,
    pub amount: f64,
    pub seconds: f64,
    pub jobs: u64,
}

/// Which costs a list or summary has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CostFilter {
    pub job: Option<JobId>,
    pub version: Option<VersionId>,
    pub package: Option<PackageId>,
    /// Attempts that started then or later, …
    pub from: Option<DateTime<Utc>>,
    /// … and before this.
    pub to: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_not_the_same_as_nothing_said() {
        let read = |text: &str| serde_json::from_str::<UpdateJob>(text).unwrap().budget_limit;
        assert_eq!(read("{}"), None);
        assert_eq!(read(r#"{"budget_limit": null}"#), Some(None));
        assert_eq!(read(r#"{"budget_limit": 2.5}"#), Some(Some(2.5)));
        assert!(serde_json::from_str::<UpdateJob>(r#"{"budget": 1}"#).is_err());
    }
}
