//! Datasets.

use super::body::Json;
use crate::{
    auth::AuthUser,
    datasets,
    error::{Error, Result},
    state::AppState,
    store::{
        Dataset,
        page::{PageQuery, page},
        usage,
    },
};
use actix_web::{HttpRequest, HttpResponse, delete, get, patch, post, web};
use serde::Deserialize;
use utoipa::ToSchema;
use wire::{
    Page,
    dataset::{
        CreateDataset, CreatedDataset, DatasetPreview, DatasetStatistics, DatasetStatus, DatasetUsage, DatasetView,
        Split, SplitDataset, SplitDatasets, UpdateDataset,
    },
    ids::DatasetId,
    problem::Code,
};

type State = web::Data<AppState>;

/// Form of `POST /datasets/upload`; the fields come in this order.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the form in the OpenAPI document")]
pub struct UploadForm {
    name: String,
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    #[schema(value_type = Option<String>, format = Binary)]
    validation: Option<Vec<u8>>,
}

/// Upload a dataset in one request. It is validated, and its rows are kept only when every one is good; otherwise the
/// dataset is listed as `invalid`, with the report, until the next upload of its name.
#[utoipa::path(tag = "datasets", request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 201, body = DatasetView)))]
#[post("/datasets/upload")]
pub async fn upload_dataset(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse> {
    let view = datasets::form::receive(AppState::clone(&state), user.user_id, &req, payload).await?;
    Ok(HttpResponse::Created().json(view))
}

/// Open an upload straight to storage: put the parts, then complete. The same files with the same `sha256` again: what is
/// missing of the upload that was begun.
#[utoipa::path(tag = "datasets", responses((status = 201, body = CreatedDataset)))]
#[post("/datasets")]
pub async fn create_dataset(state: State, user: AuthUser, Json(body): Json<CreateDataset>) -> Result<HttpResponse> {
    let created = datasets::create(&state, user.user_id, body).await?;
    Ok(HttpResponse::Created().json(created))
}

/// The parts that are missing of an upload, with fresh URLs.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = CreatedDataset)))]
#[get("/datasets/{id}/uploads")]
pub async fn dataset_uploads(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<CreatedDataset>> {
    Ok(web::Json(datasets::uploads(&state, user.user_id, id.into_inner()).await?))
}

/// Validate an upload whose parts are all there. Repeating it is harmless.
#[utoipa::path(tag = "datasets", params(("id" = DatasetId, Path)), responses((status = 200, body = DatasetView)))]
#[post("/datasets/{id}/complete")]
pub async fn complete_dataset(state: State, user: AuthUser, id: web::Path<DatasetId>) -> Result<HttpResponse> {
    Ok(HttpResponse::Ok().json(datasets::complete(&state, user.user_id, *id).await?))
}

/// Datasets, newest first.
#[utoipa::path(tag = "datasets", params(PageQuery), responses((status = 200, body = Page<DatasetView>)))]
#[get("/datasets")]
pub async fn list_datasets(
    state: State,
    user: AuthUser,
    query: web::Query<PageQuery>,
) -> Result<web::Json<Page<DatasetView>>> {
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Dataset::list(conn, &query).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// A dataset by id or name.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = DatasetView)))]
#[get("/datasets/{id}")]
pub async fn get_dataset(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<DatasetView>> {
    let row = state.db.tenant(user.user_id, async move |conn| Dataset::find(conn, &id).await).await?;
    Ok(web::Json(row.into()))
}

/// Change name or description.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = DatasetView)))]
#[patch("/datasets/{id}")]
pub async fn update_dataset(
    state: State,
    user: AuthUser,
    id: web::Path<String>,
    Json(body): Json<UpdateDataset>,
) -> Result<web::Json<DatasetView>> {
    let row = datasets::update(&state, user.user_id, id.into_inner(), body).await?;
    Ok(web::Json(row.into()))
}

/// Divide the rows of a file by a seed into two new datasets, with their bytes and in their order.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name")),
    responses((status = 201, body = SplitDatasets)))]
#[post("/datasets/{id}/split")]
pub async fn split_dataset(
    state: State,
    user: AuthUser,
    id: web::Path<String>,
    Json(body): Json<SplitDataset>,
) -> Result<HttpResponse> {
    let made = datasets::split(AppState::clone(&state), user.user_id, id.into_inner(), body).await?;
    Ok(HttpResponse::Created().json(made))
}

/// What the rows of a dataset look like on the whole.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = DatasetStatistics)))]
#[get("/datasets/{id}/statistics")]
pub async fn get_dataset_statistics(
    state: State,
    user: AuthUser,
    id: web::Path<String>,
) -> Result<web::Json<DatasetStatistics>> {
    let row = state.db.tenant(user.user_id, async move |conn| Dataset::find(conn, &id).await).await?;
    Ok(web::Json(row.into()))
}

/// The jobs and package versions that use a dataset.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = DatasetUsage)))]
#[get("/datasets/{id}/usage")]
pub async fn get_dataset_usage(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<DatasetUsage>> {
    let read = async move |conn: &mut crate::db::Conn| {
        let dataset = Dataset::find(conn, &id).await?;
        usage::of_dataset(conn, dataset.id()).await
    };
    Ok(web::Json(state.db.tenant(user.user_id, read).await?))
}

/// Delete a dataset. Refused while unfinished jobs or drafts use it.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name")),
    responses((status = 204)))]
#[delete("/datasets/{id}")]
pub async fn delete_dataset(state: State, user: AuthUser, id: web::Path<String>) -> Result<HttpResponse> {
    datasets::delete(&state, user.user_id, id.into_inner()).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Which rows to show.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PreviewQuery {
    /// Rows, 1 to 100; 5 when absent.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// Rows to skip; 0 when absent.
    offset: Option<usize>,
    /// `train` when absent.
    split: Option<Split>,
}

/// Rows of a dataset, page by page.
#[utoipa::path(tag = "datasets", params(("id" = String, Path, description = "id or name"), PreviewQuery),
    responses((status = 200, body = DatasetPreview)))]
#[get("/datasets/{id}/preview")]
pub async fn preview_dataset(
    state: State,
    user: AuthUser,
    id: web::Path<String>,
    query: web::Query<PreviewQuery>,
) -> Result<web::Json<DatasetPreview>> {
    let row = state.db.tenant(user.user_id, async move |conn| Dataset::find(conn, &id).await).await?;
    let limit = query.limit.unwrap_or(5);
    if !(1..=100).contains(&limit) {
        return Err(Error::refused(Code::Invalid, format!("limit: must be between 1 and 100, not {limit}")));
    }
    if row.status.0 == DatasetStatus::Invalid {
        let detail = format!("the rows of the dataset `{}` were refused and not kept; its report says why", row.name);
        return Err(Error::refused(Code::Conflict, detail));
    }
    let file = row.file(query.split.unwrap_or(Split::Train));
    let missing = || Error::refused(Code::NotFound, format!("the dataset {} has no such file", row.name));
    let file = file.ok_or_else(missing)?;
    Ok(web::Json(
        state.gateway.preview_dataset(&file.key, file.report.format, query.offset.unwrap_or_default(), limit).await?,
    ))
}
