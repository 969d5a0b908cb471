//! Versions of training packages. The `ETag` of a version is its revision; saving a draft needs it in `If-Match`, and
//! 412 answers with the newer draft.

use super::{
    body::{Json, Optional},
    precondition::{fresh, idempotency_key, if_match, required_if_match, tagged},
};
use crate::{
    auth::AuthUser,
    costs,
    creation::Limits,
    db::Conn,
    error::Result,
    packages,
    state::AppState,
    store::{
        Version,
        page::{PageQuery, Sort, page},
        version::Filter,
    },
};
use actix_web::{HttpRequest, HttpResponse, delete, get, post, put, web};
use serde::Deserialize;
use wire::{
    JobView, Page,
    estimate::VersionEstimate,
    ids::{PackageId, VersionId},
    package::{
        AutoSave, Comparison, CreateVersion, DeployVersion, Draft, ForkVersion, LaunchVersion, Summary, TrainingStatus,
        VersionStatus, VersionView,
    },
};

type State = web::Data<AppState>;

/// Create a draft. With an `Idempotency-Key` header, repeating the request gives the first reply.
#[utoipa::path(tag = "versions", params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[!-~]([ -~]*[!-~])?$")),
    responses((status = 201, body = VersionView)))]
#[post("/api/training/versions")]
pub async fn create_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    Json(body): Json<CreateVersion>,
) -> Result<HttpResponse> {
    let key = idempotency_key(&req, "create_version", &body)?;
    let app = state.clone();
    let work =
        async move |conn: &mut Conn| packages::create_version(conn, &app, user.user_id, body, key.as_ref()).await;
    Ok(tagged(HttpResponse::Created(), &state.db.tenant(user.user_id, work).await?))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VersionsQuery {
    /// Only versions of this package.
    package_id: Option<PackageId>,
    status: Option<VersionStatus>,
    training_status: Option<TrainingStatus>,
    /// Only those that serve now, or that do not.
    deployed: Option<bool>,
    /// Only versions with this base model.
    model: Option<String>,
    /// Only forks and restored copies of this version.
    parent_version_id: Option<VersionId>,
    /// `-created_at` (newest first) when absent.
    sort: Option<Sort>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Versions, newest first.
#[utoipa::path(tag = "versions", params(VersionsQuery), responses((status = 200, body = Page<VersionView>)))]
#[get("/api/training/versions")]
pub async fn list_versions(
    state: State,
    user: AuthUser,
    query: web::Query<VersionsQuery>,
) -> Result<web::Json<Page<VersionView>>> {
    let q = query.into_inner();
    let (query, sort) = (PageQuery { cursor: q.cursor, limit: q.limit }, q.sort.unwrap_or_default());
    let limit = query.limit()?;
    let filter = Filter {
        package: q.package_id,
        status: q.status,
        training_status: q.training_status,
        deployed: q.deployed,
        model: q.model,
        parent: q.parent_version_id,
    };
    let list = async move |conn: &mut Conn| Version::list(conn, &query, sort, filter).await;
    let rows = state.db.tenant(user.user_id, list).await?;
    let position = |row: &Version| (if sort.by_change() { row.updated_at } else { row.created_at }, row.id);
    let Page { items, next_cursor } = page(rows, limit, position, VersionView::try_from);
    Ok(web::Json(Page { items: items.into_iter().collect::<Result<_>>()?, next_cursor }))
}

/// A version. `validation` of a draft says what keeps it from being published.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path), ("If-None-Match" = Option<String>, Header)),
    responses((status = 200, body = VersionView), (status = 304, description = "not changed")))]
#[get("/api/training/versions/{id}")]
pub async fn get_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<VersionId>,
) -> Result<HttpResponse> {
    let app = state.clone();
    let work = async move |conn: &mut Conn| {
        let row = Version::find(conn, *id).await?;
        packages::view(conn, &app, row).await
    };
    Ok(fresh(&req, &state.db.tenant(user.user_id, work).await?))
}

/// Save a draft, all of it.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path), ("If-Match" = String, Header)),
    responses((status = 200, body = VersionView), (status = 412, description = "`current` has the newer draft")))]
#[put("/api/training/versions/{id}")]
pub async fn update_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<VersionId>,
    Json(body): Json<Draft>,
) -> Result<HttpResponse> {
    let expected = required_if_match(&req)?;
    let app = state.clone();
    let work = async move |conn: &mut Conn| packages::save(conn, &app, *id, body, &expected).await;
    Ok(tagged(HttpResponse::Ok(), &state.db.tenant(user.user_id, work).await?))
}

/// Save what the workflow has so far: into a draft (with `If-Match`), or into a new one.
#[utoipa::path(tag = "versions", params(("If-Match" = Option<String>, Header)),
    responses((status = 200, body = VersionView), (status = 412, description = "`current` has the newer draft")))]
#[post("/api/training/versions/auto-save")]
pub async fn save_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    Json(body): Json<AutoSave>,
) -> Result<HttpResponse> {
    let (expected, app) = (if_match(&req), state.clone());
    let work = async move |conn: &mut Conn| packages::auto_save(conn, &app, user.user_id, body, expected).await;
    Ok(tagged(HttpResponse::Ok(), &state.db.tenant(user.user_id, work).await?))
}

/// Delete a draft. Published versions are kept.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path)), responses((status = 204)))]
#[delete("/api/training/versions/{id}")]
pub async fn delete_version(state: State, user: AuthUser, id: web::Path<VersionId>) -> Result<HttpResponse> {
    state.db.tenant(user.user_id, async move |conn: &mut Conn| packages::delete(conn, *id).await).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Publish a draft: it gets the next number of its package and never changes again.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path), ("If-Match" = Option<String>, Header)),
    request_body = Option<Summary>, responses((status = 200, body = VersionView)))]
#[post("/api/training/versions/{id}/publish")]
pub async fn publish_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<VersionId>,
    Optional(body): Optional<Summary>,
) -> Result<HttpResponse> {
    let (expected, app, summary) = (if_match(&req), state.clone(), body);
    let work =
        async move |conn: &mut Conn| packages::publish(conn, &app, user.user_id, *id, summary, expected.as_ref()).await;
    Ok(tagged(HttpResponse::Ok(), &state.db.tenant(user.user_id, work).await?))
}

/// Archive a published version. Repeating it is harmless.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path)), responses((status = 200, body = VersionView)))]
#[post("/api/training/versions/{id}/archive")]
pub async fn archive_version(state: State, user: AuthUser, id: web::Path<VersionId>) -> Result<HttpResponse> {
    let work = async move |conn: &mut Conn| packages::archive(conn, *id).await;
    Ok(tagged(HttpResponse::Ok(), &state.db.tenant(user.user_id, work).await?))
}

/// Make a new draft with the content of a published or archived version, which becomes its parent.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path), ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[!-~]([ -~]*[!-~])?$")),
    request_body = Option<Summary>, responses((status = 201, body = VersionView)))]
#[post("/api/training/versions/{id}/restore")]
pub async fn restore_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<VersionId>,
    Optional(body): Optional<Summary>,
) -> Result<HttpResponse> {
    let (app, summary) = (state.clone(), body);
    let key = idempotency_key(&req, &format!("restore_version {id}"), &summary)?;
    let work =
        async move |conn: &mut Conn| packages::restore(conn, &app, user.user_id, *id, summary, key.as_ref()).await;
    Ok(tagged(HttpResponse::Created(), &state.db.tenant(user.user_id, work).await?))
}

/// Fork a published or archived version into a draft of its package, of another one, or of a new one.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path), ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[!-~]([ -~]*[!-~])?$")),
    request_body = Option<ForkVersion>, responses((status = 201, body = VersionView)))]
#[post("/api/training/versions/{id}/fork")]
pub async fn fork_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<VersionId>,
    Optional(body): Optional<ForkVersion>,
) -> Result<HttpResponse> {
    let (app, request) = (state.clone(), body);
    let key = idempotency_key(&req, &format!("fork_version {id}"), &request)?;
    let work = async move |conn: &mut Conn| packages::fork(conn, &app, user.user_id, *id, request, key.as_ref()).await;
    Ok(tagged(HttpResponse::Created(), &state.db.tenant(user.user_id, work).await?))
}

/// Train a published version.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path), ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[!-~]([ -~]*[!-~])?$")),
    request_body = Option<LaunchVersion>, responses((status = 201, body = JobView)))]
#[post("/api/training/versions/{id}/launch")]
pub async fn launch_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<VersionId>,
    Optional(body): Optional<LaunchVersion>,
) -> Result<HttpResponse> {
    let request = body;
    let key = idempotency_key(&req, &format!("launch_version {id}"), &request)?;
    let (user, limits) = (user.user_id, Limits::of(&state).await);
    let config = std::sync::Arc::clone(&state.config);
    let work = async move |conn: &mut Conn| {
        packages::launch(conn, user, *id, request, key.as_ref(), (limits, &config.catalog)).await
    };
    Ok(HttpResponse::Created().json(state.db.tenant(user, work).await?))
}

/// What a published version would need: memory, steps, time, cost. It is made in the background when the version is
/// published.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path)), responses((status = 200, body = VersionEstimate)))]
#[get("/api/training/versions/{id}/estimate")]
pub async fn get_version_estimate(
    state: State,
    user: AuthUser,
    id: web::Path<VersionId>,
) -> Result<web::Json<VersionEstimate>> {
    let work = async move |conn: &mut Conn| costs::estimate::find(conn, *id).await;
    Ok(web::Json(state.db.tenant(user.user_id, work).await?))
}

/// Ask for a published version to be deployed. The wish is noted; no target is served yet, which 501 says.
#[utoipa::path(tag = "versions", params(("id" = VersionId, Path)), request_body = Option<DeployVersion>,
    responses((status = 501, description = "`TARGET_NOT_SERVED`")))]
#[post("/api/training/versions/{id}/deploy")]
pub async fn deploy_version(
    state: State,
    user: AuthUser,
    id: web::Path<VersionId>,
    Optional(body): Optional<DeployVersion>,
) -> Result<HttpResponse> {
    let request = body;
    let work = async move |conn: &mut Conn| packages::deploy(conn, user.user_id, *id, request).await;
    let target = state.db.tenant(user.user_id, work).await?;
    Err(packages::not_served(target).into())
}

/// What differs between two versions, field by field.
#[utoipa::path(tag = "versions", params(("a" = VersionId, Path), ("b" = VersionId, Path)),
    responses((status = 200, body = Comparison)))]
#[get("/api/training/versions/{a}/compare/{b}")]
pub async fn compare_versions(
    state: State,
    user: AuthUser,
    ids: web::Path<(VersionId, VersionId)>,
) -> Result<web::Json<Comparison>> {
    let (a, b) = ids.into_inner();
    let work = async move |conn: &mut Conn| packages::compare(conn, a, b).await;
    Ok(web::Json(state.db.tenant(user.user_id, work).await?))
}
