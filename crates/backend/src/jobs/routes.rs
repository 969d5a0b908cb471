//! HTTP handlers of the job machinery.

use super::{
    control::{self, Wish},
    dead_letters,
    ingest::commit::Committer,
    policy::Policy,
    stream::{self, hub::Hub, job_state, logs, sse, ws},
};
use crate::api::body::Json;
use crate::{
    AppState,
    auth::AuthUser,
    costs,
    db::Conn,
    error::{Error, Result},
    store::Job,
};
use actix_web::{HttpRequest, HttpResponse, delete, get, http::header, patch, post, web};
use serde::Deserialize;
use wire::{
    CallbackBatch, CallbackReply, JobId, JobView, Page, UserId, cost::UpdateJob, event::StreamMessage,
    kubeflow::StatusReport, problem::Code,
};

type State = web::Data<AppState>;
type Rules = web::Data<Policy>;
type View = Result<web::Json<JobView>>;

/// Everything below shares a [`Hub`], a [`Policy`] and a [`Committer`].
pub fn configure(config: &mut web::ServiceConfig) {
    config
        .service(start_job)
        .service(cancel_job)
        .service(delete_job)
        .service(update_job)
        .service(pause_job)
        .service(resume_job)
        .service(report_events)
        .service(report_trainer_status)
        .service(list_events)
        .service(dead_letters::list_dead_letters)
        .service(dead_letters::replay_dead_letters)
        .service(get_logs)
        .service(watch_job);
}

async fn fulfil(state: &AppState, policy: &Policy, user: UserId, job: JobId, wish: Wish) -> View {
    let policy = *policy;
    let done = state.db.tenant(user, async move |conn| {
        let moved = control::request(conn, job, wish, &policy).await?;
        Ok((moved, Job::find(conn, job).await?))
    });
    let (moved, row) = done.await?;
    if let Some(moved) = moved {
        moved.count();
    }
    Ok(web::Json(row.try_into()?))
}

/// Start a job that waits: a paused one goes on, one that waits for a retry is tried at once.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = JobView)))]
#[post("/training/jobs/{id}/start")]
pub async fn start_job(state: State, policy: Rules, user: AuthUser, id: web::Path<JobId>) -> View {
    fulfil(&state, &policy, user.user_id, *id, Wish::Start).await
}

/// Cancel a job. Its trainer is gone when the state is `cancelled`.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = JobView)))]
#[post("/training/jobs/{id}/cancel")]
pub async fn cancel_job(state: State, policy: Rules, user: AuthUser, id: web::Path<JobId>) -> View {
    fulfil(&state, &policy, user.user_id, *id, Wish::Cancel).await
}

/// The same as cancelling.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = JobView)))]
#[delete("/training/jobs/{id}")]
pub async fn delete_job(state: State, policy: Rules, user: AuthUser, id: web::Path<JobId>) -> View {
    fulfil(&state, &policy, user.user_id, *id, Wish::Cancel).await
}

/// Change what a job may cost. A job that its budget has paused goes on after `resume`.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = JobView)))]
#[patch("/training/jobs/{id}")]
pub async fn update_job(state: State, user: AuthUser, id: web::Path<JobId>, Json(body): Json<UpdateJob>) -> View {
    let limit = body.budget_limit;
    costs::check_limit(limit.flatten())?;
    let work = async move |conn: &mut Conn| {
        if let Some(limit) = limit {
            Job::set_budget(conn, *id, limit).await?;
        }
        Job::find(conn, *id).await
    };
    Ok(web::Json(state.db.tenant(user.user_id, work).await?.try_into()?))
}

/// Pause a job at a durable checkpoint.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = JobView)))]
#[post("/training/jobs/{id}/pause")]
pub async fn pause_job(state: State, policy: Rules, user: AuthUser, id: web::Path<JobId>) -> View {
    fulfil(&state, &policy, user.user_id, *id, Wish::Pause).await
}

/// Continue a paused job from its last checkpoint.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = JobView)))]
#[post("/training/jobs/{id}/resume")]
pub async fn resume_job(state: State, policy: Rules, user: AuthUser, id: web::Path<JobId>) -> View {
    fulfil(&state, &policy, user.user_id, *id, Wish::Resume).await
}

/// Events from a trainer. 410: this attempt is over, exit. 422: kept as a dead letter, do not send again.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), request_body = CallbackBatch,
    responses((status = 200, body = CallbackReply)))]
#[post("/training/jobs/{id}/callback")]
pub async fn report_events(
    req: HttpRequest,
    id: web::Path<JobId>,
    payload: web::Payload,
    state: State,
    committer: web::Data<Committer>,
) -> Result<HttpResponse> {
    let reply = super::ingest::callback(&req, *id, payload, &state, &committer).await?;
    Ok(HttpResponse::Ok().json(reply))
}

/// Where a trainer outside Hone stands, as Kubeflow Trainer takes it; its namespace does not
/// matter. 100 % is success.
#[utoipa::path(tag = "jobs", params(("name" = String, Path, description = "any"), ("id" = JobId, Path)), request_body = StatusReport,
    responses((status = 200, body = StatusReport)))]
#[post("/apis/trainer.kubeflow.org/v1alpha1/namespaces/{name}/trainjobs/{id}/status")]
pub async fn report_trainer_status(
    req: HttpRequest,
    path: web::Path<(String, JobId)>,
    body: web::Bytes,
    state: State,
    policy: Rules,
) -> Result<web::Json<StatusReport>> {
    Ok(web::Json(super::kubeflow::report(&req, path.1, &body, &state, &policy).await?))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only messages after this id. `next_cursor` of a page is such an id.
    #[serde(alias = "cursor")]
    after: Option<i64>,
    /// Messages per page, 1 to 1000; 200 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u16>,
}

/// The event log of a job: a page of it, or with `Accept: text/event-stream` all of it, live.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path), EventsQuery, ("Last-Event-ID" = Option<i64>, Header)),
    responses((status = 200, content((Page<StreamMessage> = "application/json"), (String = "text/event-stream")))))]
#[get("/training/jobs/{id}/events")]
pub async fn list_events(
    req: HttpRequest,
    state: State,
    hub: web::Data<Hub>,
    user: AuthUser,
    id: web::Path<JobId>,
    query: web::Query<EventsQuery>,
) -> Result<HttpResponse> {
    let header = |name: &str| req.headers().get(name).and_then(|v| v.to_str().ok());
    if header(header::ACCEPT.as_str()).is_some_and(|accept| accept.contains("text/event-stream")) {
        let after = header("last-event-id").and_then(|id| id.trim().parse().ok()).or(query.after).unwrap_or(0);
        let items = stream::open(&state.db, hub.into_inner(), user.user_id, *id, after).await?;
        return Ok(sse::response(items));
    }
    let limit = match query.limit.unwrap_or(200) {
        limit @ 1..=1000 => i64::from(limit),
        other => return Err(Error::refused(Code::Invalid, format!("limit: must be between 1 and 1000, not {other}"))),
    };
    let after = query.after.unwrap_or(0);
    let read = async move |conn: &mut Conn| {
        job_state(conn, *id).await?;
        stream::page(conn, *id, after, limit).await
    };
    let items = state.db.tenant(user.user_id, read).await?;
    let full = i64::try_from(items.len()).is_ok_and(|n| n == limit);
    let next_cursor = items.last().filter(|_| full).map(|m| m.id.to_string());
    Ok(HttpResponse::Ok().json(Page { items, next_cursor }))
}

/// The log of the latest attempt as text.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)),
    responses((status = 200, body = String, content_type = "text/plain")))]
#[get("/training/jobs/{id}/logs")]
pub async fn get_logs(state: State, user: AuthUser, id: web::Path<JobId>) -> Result<HttpResponse> {
    let job = *id;
    let row = state.db.tenant(user.user_id, async move |conn| Job::find(conn, job).await).await?;
    let attempt = u32::try_from(row.attempt).unwrap_or_default();
    logs::response(AppState::clone(&state), user.user_id, job, attempt).await
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Only messages after this id.
    after: Option<i64>,
}

/// The event log of a job as WebSocket text frames (`StreamMessage`), stored ones first, then live. The API
/// key may come as `?token=`.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path), WatchQuery, ("token" = Option<String>, Query)),
    responses((status = 101, body = StreamMessage)))]
#[get("/ws/training/{id}")]
pub async fn watch_job(
    req: HttpRequest,
    body: web::Payload,
    state: State,
    hub: web::Data<Hub>,
    user: AuthUser,
    id: web::Path<JobId>,
    query: web::Query<WatchQuery>,
) -> actix_web::Result<HttpResponse> {
    let after = query.after.unwrap_or(0);
    let slow = hub.slow_client();
    let items = stream::open(&state.db, hub.into_inner(), user.user_id, *id, after).await?;
    ws::response(&req, body, items, after, slow)
}
