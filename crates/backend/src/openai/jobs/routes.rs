//! Handlers of fine-tuning jobs.

use super::{
    checkpoints::Checkpoint,
    create::{self, Identity},
    events::JobEvent,
    view::FineTuningJob,
};
use crate::{
    auth::AuthUser,
    jobs::control::Wish,
    openai::{
        auth::Delivery,
        error::{Error, Result},
        list::{List, Query},
    },
    state::AppState,
};
use actix_web::{HttpRequest, get, post, web};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

type State = web::Data<AppState>;
type Job = Result<web::Json<FineTuningJob>>;

/// Body of `POST /v1/fine_tuning/jobs`.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"model": "hone-tiny", "training_file": "file-01a1fff2b9eb75fe959949c036aff37c", "suffix": "support",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}}))]
#[expect(dead_code, reason = "describes the body in the OpenAPI document; it is read with a better error")]
pub struct CreateFineTuningJob {
    /// A base model, optionally `name@revision`.
    model: String,
    training_file: String,
    validation_file: Option<String>,
    /// `{"type": "supervised" | "dpo", "<type>": {"hyperparameters": {…}}}`
    #[schema(value_type = Option<super::method::MethodWish>)]
    method: Option<Value>,
    /// The older place of the hyperparameters.
    #[schema(value_type = Option<super::method::HyperparametersWish>)]
    hyperparameters: Option<Value>,
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    suffix: Option<String>,
    seed: Option<u32>,
    metadata: Option<BTreeMap<String, String>>,
}

/// Create a fine-tuning job. The client's own retry, and a repeated `Idempotency-Key`, give the first reply.
#[utoipa::path(tag = "openai", context_path = "/v1", request_body = CreateFineTuningJob,
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[!-~]([ -~]*[!-~])?$")), responses((status = 200, body = FineTuningJob)))]
#[post("/fine_tuning/jobs")]
pub async fn create_fine_tuning_job(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    body: web::Bytes,
) -> Result<web::Json<Value>> {
    let ascii = |v: &actix_web::http::header::HeaderValue| match v.to_str() {
        Ok(key) => Ok(key.to_owned()),
        Err(_) => Err(Error::invalid("Idempotency-Key", "invalid_value", "Idempotency-Key: must be ASCII")),
    };
    let key = req.headers().get("idempotency-key").map(ascii).transpose()?;
    let identity = Identity { key, delivery: Delivery::of(&req) };
    create::create(&state, &user, identity, &body).await.map(web::Json)
}

/// Fine-tuning jobs, newest first.
#[utoipa::path(tag = "openai", context_path = "/v1",
    params(("after" = Option<String>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 100),
        ("metadata[key]" = Option<String>, Query, description = "Only jobs with this pair in their metadata")),
    responses((status = 200, body = List<FineTuningJob>)))]
#[get("/fine_tuning/jobs")]
pub async fn list_fine_tuning_jobs(
    state: State,
    user: AuthUser,
    req: HttpRequest,
) -> Result<web::Json<List<FineTuningJob>>> {
    super::list(&state, user.user_id, &Query::of(req.query_string())).await.map(web::Json)
}

/// A fine-tuning job.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = FineTuningJob)))]
#[get("/fine_tuning/jobs/{id}")]
pub async fn get_fine_tuning_job(state: State, user: AuthUser, id: web::Path<String>) -> Job {
    super::find(&state, user.user_id, &id).await.map(web::Json)
}

/// Cancel a job.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = FineTuningJob)))]
#[post("/fine_tuning/jobs/{id}/cancel")]
pub async fn cancel_fine_tuning_job(state: State, user: AuthUser, id: web::Path<String>) -> Job {
    super::ask(&state, user.user_id, &id, Wish::Cancel).await.map(web::Json)
}

/// Pause a job at a durable checkpoint.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = FineTuningJob)))]
#[post("/fine_tuning/jobs/{id}/pause")]
pub async fn pause_fine_tuning_job(state: State, user: AuthUser, id: web::Path<String>) -> Job {
    super::ask(&state, user.user_id, &id, Wish::Pause).await.map(web::Json)
}

/// Continue a paused job.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = FineTuningJob)))]
#[post("/fine_tuning/jobs/{id}/resume")]
pub async fn resume_fine_tuning_job(state: State, user: AuthUser, id: web::Path<String>) -> Job {
    super::ask(&state, user.user_id, &id, Wish::Resume).await.map(web::Json)
}

/// The log of a job, newest first.
#[utoipa::path(tag = "openai", context_path = "/v1",
    params(("id" = String, Path), ("after" = Option<String>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000)),
    responses((status = 200, body = List<JobEvent>)))]
#[get("/fine_tuning/jobs/{id}/events")]
pub async fn list_fine_tuning_events(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<String>,
) -> Result<web::Json<List<JobEvent>>> {
    super::list_events(&state, user.user_id, &id, &Query::of(req.query_string())).await.map(web::Json)
}

/// Checkpoints that are kept, newest first.
#[utoipa::path(tag = "openai", context_path = "/v1",
    params(("id" = String, Path), ("after" = Option<String>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 100)),
    responses((status = 200, body = List<Checkpoint>)))]
#[get("/fine_tuning/jobs/{id}/checkpoints")]
pub async fn list_fine_tuning_checkpoints(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<String>,
) -> Result<web::Json<List<Checkpoint>>> {
    super::list_checkpoints(&state, user.user_id, &id, &Query::of(req.query_string())).await.map(web::Json)
}
