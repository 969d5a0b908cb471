//! Training jobs: create and read. What changes a running job is in `crate::jobs`.

use super::{body::Json, precondition::idempotency_key};
use crate::{
    auth::AuthUser,
    creation,
    error::{Error, Result},
    estimation,
    jobs::external,
    state::AppState,
    store::{
        Artifact, Job, metric,
        page::{PageQuery, page},
    },
};
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use wire::{
    JobState, JobView, Page,
    estimate::JobEstimate,
    ids::JobId,
    job::{ArtifactView, CheckpointView, CreateJob, CreatedJob, MetricPoint},
    layout,
    problem::Code,
    storage::FileRef,
};

type State = web::Data<AppState>;

/// Create a training job. With an `Idempotency-Key` header, repeating the request gives the first reply.
#[utoipa::path(tag = "jobs", params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[!-~]([ -~]*[!-~])?$")),
    responses((status = 201, body = CreatedJob)))]
#[post("/training/jobs")]
pub async fn create_job(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    Json(body): Json<CreateJob>,
) -> Result<HttpResponse> {
    let key = idempotency_key(&req, "create_job", &body)?;
    let view = creation::create(&state, user.user_id, body, key).await?;
    let external = external::access(&state, user.user_id, &view)?;
    Ok(HttpResponse::Created().json(CreatedJob { job: view, external }))
}

/// What a job would need: memory, tokens, steps, and duration. A trainer sets it up and runs a part of it, which takes
/// seconds; nothing is created. Without a trainer only the memory is told, from the shapes of the model.
#[utoipa::path(tag = "jobs", responses((status = 200, body = JobEstimate)))]
#[post("/training/estimate")]
pub async fn estimate_job(state: State, user: AuthUser, Json(body): Json<CreateJob>) -> Result<web::Json<JobEstimate>> {
    Ok(web::Json(estimation::estimate(&state, user.user_id, body).await?))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct JobsQuery {
    /// Only jobs in this state.
    state: Option<JobState>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Jobs, newest first.
#[utoipa::path(tag = "jobs", params(JobsQuery), responses((status = 200, body = Page<JobView>)))]
#[get("/training/jobs")]
pub async fn list_jobs(state: State, user: AuthUser, query: web::Query<JobsQuery>) -> Result<web::Json<Page<JobView>>> {
    let JobsQuery { state: wanted, cursor, limit } = query.into_inner();
    let query = PageQuery { cursor, limit };
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Job::list(conn, &query, wanted).await).await?;
    let Page { items, next_cursor } = page(rows, limit, |row| (row.created_at, row.id), JobView::try_from);
    Ok(web::Json(Page { items: items.into_iter().collect::<Result<_>>()?, next_cursor }))
}

/// A job.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = JobView)))]
#[get("/training/jobs/{id}")]
pub async fn get_job(state: State, user: AuthUser, id: web::Path<JobId>) -> Result<web::Json<JobView>> {
    let row = state.db.tenant(user.user_id, async move |conn| Job::find(conn, *id).await).await?;
    Ok(web::Json(row.try_into()?))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MetricsQuery {
    /// Only steps after this one; from the first step when absent. `next_cursor` of a page is such a step.
    #[serde(alias = "cursor")]
    after_step: Option<u64>,
    /// Steps per page, 1 to 10000; 1000 when absent.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
    /// Only this attempt; the newest value of each step when absent.
    attempt: Option<u32>,
    /// The whole curve in at most so many points, 1 to 10000, each the mean over a stretch of steps, at its last step.
    /// Without `after_step` and `limit`.
    #[param(minimum = 1, maximum = 10000)]
    points: Option<u32>,
}

/// The curves of a job: one point per step.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path), MetricsQuery),
    responses((status = 200, body = Page<MetricPoint>)))]
#[get("/training/jobs/{id}/metrics")]
pub async fn list_metrics(
    state: State,
    user: AuthUser,
    id: web::Path<JobId>,
    query: web::Query<MetricsQuery>,
) -> Result<web::Json<Page<MetricPoint>>> {
    let MetricsQuery { after_step, limit, attempt, points } = query.into_inner();
    for (name, value) in [("limit", limit), ("points", points)] {
        if let Some(value) = value.filter(|n| !(1..=10_000).contains(n)) {
            return Err(Error::refused(Code::Invalid, format!("{name}: must be between 1 and 10000, not {value}")));
        }
    }
    if points.is_some() && (limit.is_some() || after_step.is_some()) {
        return Err(Error::refused(Code::Invalid, "points: is the whole curve; leave out `limit` and `after_step`"));
    }
    let limit = limit.unwrap_or(1000);
    let read = async move |conn: &mut crate::db::Conn| {
        Job::find(conn, *id).await?;
        match points {
            Some(count) => metric::buckets(conn, *id, attempt, count).await,
            None => metric::points(conn, *id, after_step, attempt, limit).await,
        }
    };
    let items = state.db.tenant(user.user_id, read).await?;
    let full = points.is_none() && u32::try_from(items.len()).is_ok_and(|n| n == limit);
    let next_cursor = items.last().filter(|_| full).map(|p| p.step.to_string());
    Ok(web::Json(Page { items, next_cursor }))
}

/// Checkpoints that are in storage.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = Vec<CheckpointView>)))]
#[get("/training/jobs/{id}/checkpoints")]
pub async fn list_checkpoints(
    state: State,
    user: AuthUser,
    id: web::Path<JobId>,
) -> Result<web::Json<Vec<CheckpointView>>> {
    let read = async move |conn: &mut crate::db::Conn| {
        Job::find(conn, *id).await?;
        Job::checkpoints(conn, *id).await
    };
    Ok(web::Json(state.db.tenant(user.user_id, read).await?))
}

/// The files a job made, with download URLs. Empty until it has finished.
#[utoipa::path(tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = Vec<ArtifactView>)))]
#[get("/training/jobs/{id}/artifacts")]
pub async fn list_artifacts(
    state: State,
    user: AuthUser,
    id: web::Path<JobId>,
) -> Result<web::Json<Vec<ArtifactView>>> {
    let job = *id;
    let read = async move |conn: &mut crate::db::Conn| {
        Job::find(conn, job).await?;
        if Artifact::is_deleted(conn, job).await? {
            return Ok(None);
        }
        Job::manifest(conn, job).await
    };
    let Some((attempt, files)) = state.db.tenant(user.user_id, read).await? else {
        return Ok(web::Json(Vec::new()));
    };
    let prefix = format!("{}{}", layout::attempt_prefix(user.user_id, job, attempt), layout::ARTIFACTS);
    Ok(web::Json(signed(&state, &prefix, files).await?))
}

/// Download URLs for stored files; paths are shown below `prefix`.
pub(super) async fn signed(state: &AppState, prefix: &str, files: Vec<FileRef>) -> Result<Vec<ArtifactView>> {
    let sign = |file: FileRef| async move {
        let url = state.gateway.sign_get(&file.key).await?.url;
        let path = file.key.strip_prefix(prefix).unwrap_or(&file.key).to_owned();
        Ok(ArtifactView { path, size: file.size, sha256: file.sha256, url })
    };
    stream::iter(files).map(sign).buffered(8).try_collect().await
}
