//! Handlers of uploads.

use super::{CreateUpload, Upload, UploadedPart, complete::CompleteUpload};
use crate::{auth::AuthUser, openai::error::Result, state::AppState};
use actix_web::{HttpRequest, post, web};
use utoipa::ToSchema;

type State = web::Data<AppState>;

/// Form of `POST /v1/uploads/{id}/parts`.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the form in the OpenAPI document")]
pub struct PartForm {
    #[schema(value_type = String, format = Binary)]
    data: Vec<u8>,
}

/// Open an upload in parts.
#[utoipa::path(tag = "openai", context_path = "/v1", request_body = CreateUpload,
    responses((status = 200, body = Upload)))]
#[post("/uploads")]
pub async fn create_upload(state: State, user: AuthUser, body: web::Bytes) -> Result<web::Json<Upload>> {
    super::create(&state, user.user_id, &body).await.map(web::Json)
}

/// Add a part of at most 64 MiB; parts may come in any order and at the same time.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    request_body(content = PartForm, content_type = "multipart/form-data"), responses((status = 200, body = UploadedPart)))]
#[post("/uploads/{id}/parts")]
pub async fn add_upload_part(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<String>,
    payload: web::Payload,
) -> Result<web::Json<UploadedPart>> {
    super::add_part(AppState::clone(&state), user.user_id, &id, &req, payload).await.map(web::Json)
}

/// Make a file of the parts in the named order.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)), request_body = CompleteUpload,
    responses((status = 200, body = Upload)))]
#[post("/uploads/{id}/complete")]
pub async fn complete_upload(
    state: State,
    user: AuthUser,
    id: web::Path<String>,
    body: web::Bytes,
) -> Result<web::Json<Upload>> {
    super::complete(&state, &user, &id, &body).await.map(web::Json)
}

/// Give an upload up.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = Upload)))]
#[post("/uploads/{id}/cancel")]
pub async fn cancel_upload(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<Upload>> {
    super::cancel(&state, user.user_id, &id).await.map(web::Json)
}
