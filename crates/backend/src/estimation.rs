//! What a job would need, before it is created.

use crate::{
    costs::{self, Price},
    creation::{self, Inputs},
    db::Conn,
    error::{Error, Result},
    jobs::launcher::{LaunchSpec, RehearsalError},
    state::AppState,
};
use service::token::{Grant, JobGrant};
use std::time::Duration;
use wire::{
    JobId, JobSpec, TrainingConfig, UserId,
    estimate::{Basis, Estimate, JobEstimate},
    job::{CreateJob, TrainerKind},
    layout,
    memory::Need,
    problem::{Code, Problem},
};

const TOKEN_TTL: Duration = Duration::from_secs(900);

/// Refuses what creation would refuse, except for memory, and lets a trainer rehearse the rest. Without a trainer the
/// shapes of the model tell the least memory.
pub async fn estimate(state: &AppState, user: UserId, request: CreateJob) -> Result<JobEstimate> {
    let config = TrainingConfig::from_value(&request.config)?;
    let price = Price::of(&state.config.catalog, request.gpu_config.as_deref())?;
    let limit = state.launcher.memory().await;
    let priced = |told: JobEstimate| JobEstimate {
        cost: told.total_seconds.map(|seconds| costs::estimate::cost(seconds, &price)),
        currency: price.currency.clone(),
        ..told
    };
    let asked = config.clone();
    let find = async move |conn: &mut Conn| creation::find(conn, &asked, TrainerKind::Candle).await;
    let inputs = state.db.tenant(user, find).await?;
    let need = creation::need(&inputs.model, &inputs.dataset, &config);
    if let (Some(need), Some(limit)) = (need, limit)
        && need.total() > limit
    {
        let told = from_shapes(&inputs, &config, Some(need), Some(limit), "it cannot fit into memory".into());
        return Ok(priced(told));
    }
    let spec = launch_spec(state, user, &inputs, config.clone())?;
    match state.launcher.rehearse(&spec).await {
        Ok(estimate) => Ok(priced(from_rehearsal(&estimate, limit))),
        Err(RehearsalError::Refused(reason)) => {
            Err(Problem::new(Code::Invalid, format!("the run cannot be estimated: {reason}")).into())
        }
        Err(e @ RehearsalError::Busy) => Err(Error::refused(Code::Overloaded, e.to_string())),
        Err(RehearsalError::Unavailable(reason)) => {
            tracing::warn!(reason, "a job could not be rehearsed");
            Ok(priced(from_shapes(&inputs, &config, need, limit, reason)))
        }
    }
}

fn from_rehearsal(e: &Estimate, limit: Option<u64>) -> JobEstimate {
    JobEstimate {
        fits: e.fits() && limit.is_none_or(|limit| e.peak_memory_bytes <= limit),
        basis: Basis::Rehearsal,
        peak_memory_bytes: Some(e.peak_memory_bytes),
        memory_limit_bytes: limit.or(e.available_memory_bytes),
        trainable_parameters: Some(e.trainable_parameters),
        total_parameters: Some(e.total_parameters),
        total_steps: Some(e.total_steps),
        total_tokens: Some(e.total_tokens),
        train_seconds: Some(e.train_seconds),
        total_seconds: Some(e.total_seconds),
        cost: None,
        currency: String::new(),
        note: None,
    }
}

fn from_shapes(
    inputs: &Inputs,
    config: &TrainingConfig,
    need: Option<Need>,
    limit: Option<u64>,
    why: String,
) -> JobEstimate {
    let shape = inputs.model.info.as_ref().and_then(|info| info.0.shape.as_ref());
    let peak = need.map(|need| need.total());
    let trained = shape.map(|shape| shape.trainable(config));
    let added = trained.filter(|_| config.trains_adapter()).unwrap_or(0);
    JobEstimate {
        fits: peak.zip(limit).is_none_or(|(peak, limit)| peak <= limit),
        basis: Basis::Shapes,
        peak_memory_bytes: peak,
        memory_limit_bytes: limit,
        trainable_parameters: trained,
        total_parameters: shape.map(|shape| shape.parameters.saturating_add(added)),
        total_steps: None,
        total_tokens: None,
        train_seconds: None,
        total_seconds: None,
        cost: None,
        currency: String::new(),
        note: Some(format!("not rehearsed: {why}")),
    }
}

/// A job that does not exist, and a token that can only read what it would.
fn launch_spec(state: &AppState, user: UserId, inputs: &Inputs, config: TrainingConfig) -> Result<LaunchSpec> {
    let (model, dataset) = (creation::model_spec(inputs.model.clone()), creation::dataset_spec(&inputs.dataset)?);
    let (job, attempt) = (JobId::random(), 1);
    let adapter = inputs.adapter.clone();
    let mut read = vec![model.prefix.clone(), layout::dataset_prefix(user, dataset.id)];
    read.extend(adapter.as_ref().map(|a| a.prefix.clone()));
    let grant = JobGrant { user, job, attempt, epoch: 0, read, write: Vec::new() };
    Ok(LaunchSpec {
        callback_url: format!("{}/training/jobs/{job}/callback", state.base_url),
        storage_gateway_url: state.config.gateway_url.clone(),
        token: state.config.token_key.mint(Grant::Job(grant), TOKEN_TTL).map_err(Error::defect)?,
        traceparent: service::telemetry::current_traceparent(),
        gpu: None,
        spec: JobSpec {
            job_id: job,
            user_id: user,
            attempt,
            config,
            model,
            dataset,
            adapter,
            output_prefix: layout::attempt_prefix(user, job, attempt),
            resume_from: None,
            heartbeat_seconds: 30,
        },
    })
}
