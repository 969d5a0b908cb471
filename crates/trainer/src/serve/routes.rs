//! HTTP routes of the trainer service.

use super::children::{Children, Started};
use crate::engine;
use actix_web::{HttpRequest, HttpResponse, web};
use service::{ApiError, ApiResult, ExposeSecret, token::bearer};
use sha2::{Digest, Sha256};
use wire::{
    JobId,
    config::Method,
    estimate::Estimate,
    job::{StartTraining, TrainerCapabilities},
    problem::{Code, PROBLEM_JSON, Problem},
};

/// What a caller at capacity should wait before trying again, in seconds.
const RETRY_AFTER: &str = "10";

pub fn configure(app: &mut web::ServiceConfig) {
    app.route("/training/start", web::post().to(start_training))
        .route("/training/{job}/{attempt}", web::get().to(get_training))
        .route("/training/{job}/{attempt}/stop", web::post().to(stop_training))
        .route("/estimate", web::post().to(create_estimate))
        .route("/models", web::get().to(list_models));
}

async fn start_training(
    req: HttpRequest,
    children: web::Data<Children>,
    body: web::Json<StartTraining>,
) -> ApiResult<HttpResponse> {
    authorise(&req, &children)?;
    if body.spec.job_id != body.job_id || body.spec.attempt != body.attempt {
        return Err(ApiError::new(Code::Invalid, "job_id and attempt must be the specification's"));
    }
    match children.start(&body) {
        Ok(Started::New(run)) => Ok(HttpResponse::Created().json(run)),
        Ok(Started::Known(run)) => Ok(HttpResponse::Ok().json(run)),
        Ok(Started::Full) => Ok(at_capacity(children.config.capacity)),
        Err(e) => Err(ApiError::new(Code::Unavailable, format!("cannot start the trainer process: {e}")).caused_by(e)),
    }
}

/// Stages the attempt's inputs and rehearses it. A run that cannot fit into memory is answered too: its estimate says so.
async fn create_estimate(
    req: HttpRequest,
    children: web::Data<Children>,
    body: web::Json<StartTraining>,
) -> ApiResult<HttpResponse> {
    authorise(&req, &children)?;
    let failed = |e: std::io::Error| {
        ApiError::new(Code::Unavailable, format!("cannot start the trainer process: {e}")).caused_by(e)
    };
    let Some(output) = children.estimate(&body).await.map_err(failed)? else { return Ok(at_capacity(1)) };
    if let Ok(estimate) = serde_json::from_slice::<Estimate>(&output.stdout) {
        return Ok(HttpResponse::Ok().json(estimate));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.trim().trim_start_matches("hone-trainer: ");
    Err(ApiError::new(Code::Invalid, format!("the run cannot be estimated: {reason}")))
}

async fn get_training(
    req: HttpRequest,
    children: web::Data<Children>,
    path: web::Path<(JobId, u32)>,
) -> ApiResult<HttpResponse> {
    authorise(&req, &children)?;
    let (job, attempt) = path.into_inner();
    children.get(job, attempt).map(|run| HttpResponse::Ok().json(run)).ok_or_else(|| unknown(job, attempt))
}

async fn stop_training(
    req: HttpRequest,
    children: web::Data<Children>,
    path: web::Path<(JobId, u32)>,
) -> ApiResult<HttpResponse> {
    authorise(&req, &children)?;
    let (job, attempt) = path.into_inner();
    children.stop(job, attempt).map(|run| HttpResponse::Accepted().json(run)).ok_or_else(|| unknown(job, attempt))
}

async fn list_models(req: HttpRequest, children: web::Data<Children>) -> ApiResult<HttpResponse> {
    authorise(&req, &children)?;
    Ok(HttpResponse::Ok().json(TrainerCapabilities {
        architectures: engine::model::architectures().map(str::to_owned).collect(),
        methods: vec![Method::Sft, Method::Full, Method::Pretrain, Method::Dpo, Method::Classification],
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity: children.config.capacity,
        running: children.running(),
        memory_bytes: service::memory::of_trainers(),
    }))
}

/// Compares digests, so that the time taken says nothing about the token.
fn authorise(req: &HttpRequest, children: &Children) -> ApiResult<()> {
    let Some(expected) = &children.config.token else { return Ok(()) };
    let given = bearer(req).unwrap_or_default();
    if Sha256::digest(given) == Sha256::digest(expected.expose_secret()) {
        return Ok(());
    }
    Err(ApiError::new(Code::Unauthorized, "give the trainer's TRAINER_SERVICE_TOKEN as a bearer token"))
}

fn unknown(job: JobId, attempt: u32) -> ApiError {
    ApiError::new(Code::NotFound, format!("attempt {attempt} of job {job} was not started here"))
}

fn at_capacity(capacity: usize) -> HttpResponse {
    let detail = format!("this trainer runs {capacity} of at most {capacity} jobs; try again when one has ended");
    HttpResponse::Conflict()
        .insert_header(("retry-after", RETRY_AFTER))
        .content_type(PROBLEM_JSON)
        .json(Problem::new(Code::Conflict, detail))
}
