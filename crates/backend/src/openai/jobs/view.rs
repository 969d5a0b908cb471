//! A job as OpenAI's clients see it.

use super::{
    method::{Hyperparameters, Method},
    rows::{self, Record},
};
use crate::{
    db::Conn,
    error::{Error, Result},
    openai::ids,
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use uuid::Uuid;
use wire::{
    JobState, JobView,
    ids::UserId,
    job::{Failure, FailureCode},
};

/// Where a job stands, in OpenAI's words and `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FineTuningStatus)]
pub enum Status {
    ValidatingFiles,
    Queued,
    Running,
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

impl From<JobState> for Status {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Validating => Self::ValidatingFiles,
            JobState::Queued | JobState::Starting | JobState::RetryWait => Self::Queued,
            JobState::Running | JobState::Finalizing | JobState::Pausing => Self::Running,
            JobState::Paused => Self::Paused,
            JobState::Succeeded => Self::Succeeded,
            JobState::Failed => Self::Failed,
            // Nothing but `cancelled` can follow, and clients take the answer to a cancellation for the end.
            JobState::Cancelling | JobState::Cancelled => Self::Cancelled,
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = FineTuningError)]
pub struct JobError {
    pub code: String,
    pub message: String,
    #[schema(required)]
    pub param: Option<&'static str>,
}

/// A fine-tuning job. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct FineTuningJob {
    pub id: String,
    #[schema(example = "fine_tuning.job")]
    pub object: &'static str,
    pub created_at: i64,
    #[schema(required)]
    pub finished_at: Option<i64>,
    #[schema(required)]
    pub estimated_finish: Option<i64>,
    pub model: String,
    /// Once the job has succeeded.
    #[schema(required)]
    pub fine_tuned_model: Option<String>,
    pub organization_id: String,
    pub status: Status,
    pub hyperparameters: Hyperparameters,
    pub method: Method,
    pub training_file: String,
    #[schema(required)]
    pub validation_file: Option<String>,
    pub result_files: Vec<String>,
    /// Once the job is over.
    #[schema(required)]
    pub trained_tokens: Option<u64>,
    pub seed: i64,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub integrations: Vec<Value>,
    #[schema(required)]
    pub metadata: Option<BTreeMap<String, String>>,
    #[schema(required)]
    pub error: Option<JobError>,
}

/// Views of `records` in their order.
pub async fn many(conn: &mut Conn, user: UserId, records: Vec<Record>) -> Result<Vec<FineTuningJob>> {
    let ids: Vec<Uuid> = records.iter().map(|r| r.job.id).collect();
    let results = rows::with_results(conn, &ids).await?;
    let tokens = rows::trained_tokens(conn, &ids).await?;
    let view = |record: Record| {
        let id = record.job.id;
        let mut view = view(user, record)?;
        view.result_files.extend(results.contains(&id).then(|| ids::show(ids::FILE, id)));
        let over = matches!(view.status, Status::Succeeded | Status::Failed | Status::Cancelled);
        view.trained_tokens = tokens.get(&id).filter(|_| over).map(|n| whole(*n));
        Ok(view)
    };
    records.into_iter().map(view).collect()
}

pub async fn one(conn: &mut Conn, user: UserId, record: Record) -> Result<FineTuningJob> {
    let view = many(conn, user, vec![record]).await?.into_iter().next();
    view.ok_or_else(|| Error::defect("a job has no view"))
}

fn view(user: UserId, record: Record) -> Result<FineTuningJob> {
    let Record { job, extra, validation } = record;
    let view = JobView::try_from(job)?;
    let status = Status::from(view.state);
    let method = extra.method.0;
    let hyperparameters =
        method.hyperparameters().ok_or_else(|| Error::defect("a stored method has no hyperparameters"))?;
    let seconds = |at: DateTime<Utc>| at.timestamp();
    let remaining = view.progress.eta_seconds.filter(|_| status == Status::Running).map(seconds_of);
    let kept = status == Status::Succeeded && extra.model_deleted_at.is_none();
    Ok(FineTuningJob {
        id: ids::show(ids::JOB, view.id.0),
        object: "fine_tuning.job",
        created_at: seconds(view.created_at),
        finished_at: view.finished_at.map(seconds),
        estimated_finish: remaining.map(|left| seconds(view.last_contact_at.unwrap_or_else(Utc::now) + left)),
        model: extra.model,
        fine_tuned_model: Some(extra.fine_tuned_model).filter(|_| kept),
        organization_id: ids::show(ids::ORGANIZATION, user.0),
        status,
        hyperparameters,
        method,
        training_file: ids::show(ids::FILE, view.dataset_id.0),
        validation_file: validation.map(|id| ids::show(ids::FILE, id)),
        result_files: Vec::new(),
        trained_tokens: None,
        seed: extra.seed,
        integrations: Vec::new(),
        metadata: extra.metadata.map(|m| m.0),
        error: view.failure.filter(|_| status == Status::Failed).map(JobError::from),
    })
}

impl From<Failure> for JobError {
    fn from(failure: Failure) -> Self {
        let (code, param) = match failure.code {
            FailureCode::DatasetInvalid => ("invalid_training_file".to_owned(), Some("training_file")),
            FailureCode::ModelCorrupt => ("model_corrupt".to_owned(), Some("model")),
            FailureCode::ConfigInvalid => ("invalid_hyperparameters".to_owned(), Some("hyperparameters")),
            other => {
                let name = serde_json::to_value(other).ok();
                (name.and_then(|n| n.as_str().map(str::to_lowercase)).unwrap_or_default(), None)
            }
        };
        Self { code, message: failure.message, param }
    }
}

/// A time from now; a year stands for more than that.
fn seconds_of(seconds: f64) -> TimeDelta {
    const YEAR: f64 = 365.0 * 86_400.0;
    let bounded = std::time::Duration::try_from_secs_f64(seconds.clamp(0.0, YEAR)).unwrap_or_default();
    TimeDelta::from_std(bounded).unwrap_or_default()
}

#[expect(clippy::as_conversions, reason = "a count of tokens, far below 2^53")]
fn whole(count: f64) -> u64 {
    count.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_status_and_only_the_end_looks_like_the_end() {
        for state in JobState::ALL {
            let status = Status::from(state);
            let over = matches!(status, Status::Succeeded | Status::Failed | Status::Cancelled);
            assert_eq!(over, state.is_terminal() || state == JobState::Cancelling, "{state}");
        }
        assert_eq!(serde_json::to_value(Status::ValidatingFiles).unwrap(), "validating_files");
    }

    #[test]
    fn failures_name_the_field_at_fault() {
        let error = |code| JobError::from(Failure { code, message: "why".into() });
        assert_eq!(error(FailureCode::DatasetInvalid).param, Some("training_file"));
        assert_eq!(error(FailureCode::TrainerOom).code, "trainer_oom");
    }
}
