//! Trainers outside Hone: their users start them, and they report. Nothing here starts, watches or ends one, so a lease
//! is all that is known of it: when it is over, or the job is cancelled, its token is dead and it counts as gone.

use super::{
    decide::Runtime,
    rows::AttemptRow,
    verdict::{Ending, Exit},
};
use crate::{
    AppState,
    error::{Error, Result},
};
use chrono::{TimeDelta, Utc};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use service::token::{Grant, JobGrant};
use wire::{
    JobState, JobView, UserId,
    job::{ExternalTrainer, TrainerKind},
    layout,
};

/// How long a trainer outside Hone may take, claim included.
const TOKEN_TTL: TimeDelta = TimeDelta::days(30);
/// Its only attempt, and the epoch of that.
const ATTEMPT: u32 = 1;
const EPOCH: i64 = 1;

/// Where its attempt runs, as [`super::launcher::Launcher::describe`] says for others.
#[must_use]
pub fn place() -> Value {
    json!({"kind": "external"})
}

/// A trainer that said its last word is of no more interest; of another one nothing is known.
#[must_use]
pub fn runtime(state: JobState, attempt: &AttemptRow) -> Runtime {
    if state == JobState::Finalizing || attempt.outcome.is_some() { dismiss() } else { Runtime::Unknown }
}

/// What is left after it was told to stop: it has no way in any more.
#[must_use]
pub fn dismiss() -> Runtime {
    Runtime::Gone(Exit::new(Ending::Withdrawn))
}

/// What the trainer of `job` needs; none for a job that Hone trains.
pub fn access(state: &AppState, user: UserId, job: &JobView) -> Result<Option<ExternalTrainer>> {
    if job.trainer != TrainerKind::External {
        return Ok(None);
    }
    let (id, base) = (job.id, &state.base_url);
    let output_prefix = layout::attempt_prefix(user, id, ATTEMPT);
    let read = vec![
        layout::model_prefix(&job.model, &job.model_revision),
        layout::dataset_prefix(user, job.dataset_id),
        layout::job_prefix(user, id),
    ];
    let grant = JobGrant { user, job: id, attempt: ATTEMPT, epoch: EPOCH, read, write: vec![output_prefix.clone()] };
    let ttl = TOKEN_TTL.to_std().map_err(Error::defect)?;
    let token = state.config.token_key.mint(Grant::Job(grant), ttl).map_err(Error::defect)?;
    Ok(Some(ExternalTrainer {
        status_url: format!("{base}/apis/trainer.kubeflow.org/v1alpha1/namespaces/hone/trainjobs/{id}/status"),
        callback_url: format!("{base}/training/jobs/{id}/callback"),
        storage_gateway_url: state.config.gateway_url.clone(),
        output_prefix,
        token: token.expose_secret().to_owned(),
        expires_at: Utc::now() + TOKEN_TTL,
    }))
}
