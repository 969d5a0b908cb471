//! Handlers of files.

use super::{FileDeleted, FileObject, Purpose, form};
use crate::{
    auth::AuthUser,
    db::Conn,
    openai::{
        error::{Error, Result},
        ids,
        list::{List, Query},
        results,
    },
    state::AppState,
    store::Dataset,
};
use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use utoipa::ToSchema;
use wire::dataset::Split;

type State = web::Data<AppState>;

/// Form of `POST /v1/files`.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the form in the OpenAPI document")]
pub struct FileForm {
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    #[schema(example = "fine-tune")]
    purpose: String,
    #[schema(rename = "expires_after[anchor]", example = "created_at", pattern = "^created_at$")]
    anchor: Option<String>,
    #[schema(rename = "expires_after[seconds]", example = 86_400, minimum = 3600, maximum = 2592000)]
    seconds: Option<u32>,
}

/// Upload rows for fine-tuning. A file with bad rows gets the status `error`.
#[utoipa::path(tag = "openai", context_path = "/v1",
    request_body(content = FileForm, content_type = "multipart/form-data"), responses((status = 200, body = FileObject)))]
#[post("/files")]
pub async fn create_file(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    payload: web::Payload,
) -> Result<web::Json<FileObject>> {
    form::receive(AppState::clone(&state), user, &req, payload).await.map(web::Json)
}

/// Files, newest first.
#[utoipa::path(tag = "openai", context_path = "/v1",
    params(("after" = Option<String>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 10000), ("order" = Option<String>, Query, pattern = "^(asc|desc)$"),
        ("purpose" = Option<String>, Query)),
    responses((status = 200, body = List<FileObject>)))]
#[get("/files")]
pub async fn list_files(state: State, user: AuthUser, req: HttpRequest) -> Result<web::Json<List<FileObject>>> {
    super::list(&state, user.user_id, &Query::of(req.query_string())).await.map(web::Json)
}

/// A file.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = FileObject)))]
#[get("/files/{id}")]
pub async fn get_file(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<FileObject>> {
    Ok(web::Json(super::find(&state, user.user_id, &id).await?.into()))
}

/// Delete a file. Jobs that use it go on.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = FileDeleted)))]
#[delete("/files/{id}")]
pub async fn delete_file(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<FileDeleted>> {
    super::delete(&state, user.user_id, &id).await.map(web::Json)
}

/// The content of a file.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = String, content_type = "application/octet-stream")))]
#[get("/files/{id}/content")]
pub async fn get_file_content(state: State, user: AuthUser, id: web::Path<String>) -> Result<HttpResponse> {
    let row = super::find(&state, user.user_id, &id).await?;
    let mut reply = HttpResponse::Ok();
    reply.content_type("application/octet-stream");
    reply.insert_header(("content-disposition", "attachment"));
    if let (Purpose::FineTuneResults, Some(job)) = (row.purpose.0, row.job_id) {
        return Ok(reply.streaming(results::content(AppState::clone(&state), user.user_id, job)));
    }
    let Some(dataset) = row.dataset_id else {
        let message = "the rows of this file are not valid, so its content was not kept";
        return Err(Error::invalid("id", "invalid_file", message));
    };
    let find = async move |conn: &mut Conn| Dataset::find(conn, &dataset.to_string()).await;
    let dataset = state.db.tenant(user.user_id, find).await?;
    let file = dataset.file(Split::Train).ok_or_else(|| ids::no_file(&id))?;
    let object = state.gateway.get(&file.key, None).await?;
    Ok(reply.no_chunking(file.size).streaming(object.bytes_stream()))
}
