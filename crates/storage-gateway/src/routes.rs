//! HTTP: extract, authorise, call, map. The contract is `wire::storage`.

use crate::{
    auth::Caller,
    digest,
    gateway::{Gateway, META_SHA256, store_failed},
    intake, keys, model, objects, rows, uploads,
};
use actix_web::{
    HttpRequest, HttpResponse,
    body::SizedStream,
    http::{
        StatusCode,
        header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, LAST_MODIFIED, RANGE},
    },
    web::{self, Data, Json, Path, Query},
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use service::{ApiError, ApiResult};
use std::sync::Arc;
use wire::{
    dataset::{DatasetPreview, ValidationReport},
    model::ModelInfo,
    problem::{Code, Problem},
    storage::{
        CompleteUpload, Deleted, InspectRequest, ObjectInfo, ObjectList, OpenUpload, PreviewRequest, SHA256_HEADER,
        SelectRequest, SignMethod, SignRequest, SignedUrl, UploadSession, ValidateRequest, VerifyRequest,
    },
};

type Shared = Data<Arc<Gateway>>;

/// Rows a preview may have.
const MAX_PREVIEW: usize = 100;

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/uploads", web::post().to(open_upload))
        .service(web::resource("/uploads/{id}").route(web::get().to(get_upload)).route(web::delete().to(abort_upload)))
        .route("/uploads/{id}/complete", web::post().to(complete_upload))
        .service(web::resource("/objects").route(web::get().to(list_objects)).route(web::delete().to(delete_prefix)))
        .service(
            web::resource("/objects/{key:.*}")
                .route(web::put().to(put_object))
                .route(web::get().to(get_object))
                .route(web::head().to(head_object))
                .route(web::delete().to(delete_object)),
        )
        .route("/sign", web::post().to(sign_object))
        .route("/verify", web::post().to(verify_objects))
        .route("/datasets/validate", web::post().to(validate_dataset))
        .route("/datasets/preview", web::post().to(preview_dataset))
        .route("/datasets/select", web::post().to(select_rows))
        .route("/models/inspect", web::post().to(inspect_model));
}

async fn open_upload(gateway: Shared, caller: Caller, body: Json<OpenUpload>) -> ApiResult<HttpResponse> {
    let key = caller.writable(&body.key)?;
    let session = uploads::open(&gateway, &key, body.into_inner()).await?;
    Ok(HttpResponse::Created().json(session))
}

async fn get_upload(gateway: Shared, caller: Caller, id: Path<String>) -> ApiResult<Json<UploadSession>> {
    let session = gateway.sessions.open(&id)?;
    let key = caller.writable(&session.key)?;
    uploads::show(&gateway, &key, &session, id.into_inner()).await.map(Json)
}

async fn complete_upload(
    gateway: Shared,
    caller: Caller,
    id: Path<String>,
    body: web::Bytes,
) -> ApiResult<Json<ObjectInfo>> {
    let session = gateway.sessions.open(&id)?;
    let key = caller.writable(&session.key)?;
    // The body is optional, but a malformed one must not pass for "no digest".
    let request = if body.is_empty() { CompleteUpload::default() } else { parse_json(&body)? };
    uploads::complete(Arc::clone(&gateway), key, session, request).await.map(Json)
}

async fn abort_upload(gateway: Shared, caller: Caller, id: Path<String>) -> ApiResult<HttpResponse> {
    let session = gateway.sessions.open(&id)?;
    let key = caller.writable(&session.key)?;
    uploads::abort(&gateway, &key, &session).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn put_object(
    gateway: Shared,
    caller: Caller,
    key: Path<String>,
    req: HttpRequest,
    body: web::Payload,
) -> ApiResult<Json<ObjectInfo>> {
    let key = caller.writable(&key)?;
    let sha256 = header(req.headers(), SHA256_HEADER).map(digest::parse_sha256).transpose()?;
    let size = header(req.headers(), CONTENT_LENGTH.as_str()).and_then(|v| v.parse().ok());
    intake::receive(&gateway, &key, intake::Declared { size, sha256 }, body).await.map(Json)
}

async fn get_object(gateway: Shared, caller: Caller, key: Path<String>, req: HttpRequest) -> ApiResult<HttpResponse> {
    let key = caller.readable(&key)?;
    let range = header(req.headers(), RANGE.as_str()).and_then(objects::parse_range);
    let place = gateway.place(&key);
    let download = match gateway.store.get(&place, range.as_ref()).await {
        Err(crate::store::StoreError::Range { .. }) => return not_satisfiable(&gateway, &key).await,
        other => other.map_err(|e| store_failed(e, &key))?,
    };
    let status = if download.content_range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut reply = object_headers(status, &download.head);
    if let Some(content_range) = download.content_range {
        reply.insert_header((CONTENT_RANGE, content_range));
    }
    let body = download.body.inspect_ok(|chunk| {
        metrics::counter!("gateway_download_bytes_total").increment(u64::try_from(chunk.len()).unwrap_or(0));
    });
    Ok(reply.body(SizedStream::new(download.length, body)))
}

async fn head_object(gateway: Shared, caller: Caller, key: Path<String>) -> ApiResult<HttpResponse> {
    let key = caller.readable(&key)?;
    let head = gateway.store.head(&gateway.place(&key)).await.map_err(|e| store_failed(e, &key))?;
    let nothing = stream::empty::<Result<bytes::Bytes, std::io::Error>>().boxed();
    Ok(object_headers(StatusCode::OK, &head).body(SizedStream::new(head.size, nothing)))
}

async fn delete_object(gateway: Shared, caller: Caller, key: Path<String>) -> ApiResult<HttpResponse> {
    let key = caller.writable(&key)?;
    gateway.store.delete(&gateway.place(&key)).await.map_err(|e| store_failed(e, &key))?;
    Ok(HttpResponse::NoContent().finish())
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<u16>,
}

async fn list_objects(gateway: Shared, caller: Caller, query: Query<ListQuery>) -> ApiResult<Json<ObjectList>> {
    caller.check_readable_prefix(&query.prefix)?;
    objects::list(&gateway, &query.prefix, &query.after, query.limit).await.map(Json)
}

#[derive(Deserialize)]
struct DeleteQuery {
    prefix: String,
}

async fn delete_prefix(gateway: Shared, caller: Caller, query: Query<DeleteQuery>) -> ApiResult<Json<Deleted>> {
    caller.check_writable_prefix(&query.prefix)?;
    keys::check_delete_prefix(&query.prefix)?;
    objects::delete_prefix(&gateway, &query.prefix).await.map(Json)
}

async fn sign_object(gateway: Shared, caller: Caller, body: Json<SignRequest>) -> ApiResult<Json<SignedUrl>> {
    let key = match body.method {
        SignMethod::Get => caller.readable(&body.key)?,
        SignMethod::Put => caller.writable(&body.key)?,
    };
    objects::sign(&gateway, &key, &body).map(Json)
}

async fn verify_objects(gateway: Shared, caller: Caller, body: Json<VerifyRequest>) -> ApiResult<HttpResponse> {
    for file in &body.files {
        caller.readable(&file.key)?;
    }
    digest::verify(&gateway, &body).await?;
    Ok(HttpResponse::Ok().finish())
}

async fn validate_dataset(
    gateway: Shared,
    caller: Caller,
    body: Json<ValidateRequest>,
) -> ApiResult<Json<ValidationReport>> {
    let key = caller.readable(&body.key)?;
    let format = body.format;
    rows::parse_object(&gateway, &key, move |reader| dataset::validate(reader, format, None)).await.map(Json)
}

async fn preview_dataset(
    gateway: Shared,
    caller: Caller,
    body: Json<PreviewRequest>,
) -> ApiResult<Json<DatasetPreview>> {
    let key = caller.readable(&body.key)?;
    let (format, offset, limit) = (body.format, body.offset, body.limit.min(MAX_PREVIEW));
    rows::parse_object(&gateway, &key, move |reader| {
        dataset::preview(reader, Some(format), offset..offset.saturating_add(limit))
    })
    .await
    .map(Json)
}

async fn select_rows(gateway: Shared, caller: Caller, body: Json<SelectRequest>) -> ApiResult<Json<ObjectInfo>> {
    let (from, to) = (caller.readable(&body.from)?, caller.writable(&body.to)?);
    let (format, sample) = (body.format, body.sample);
    rows::rewrite(&gateway, &from, &to, move |reader, mut out| dataset::select(reader, format, sample, &mut out))
        .await
        .map(Json)
}

async fn inspect_model(gateway: Shared, caller: Caller, body: Json<InspectRequest>) -> ApiResult<Json<ModelInfo>> {
    caller.check_readable_prefix(&body.prefix)?;
    model::inspect(&gateway, &body.prefix).await.map(Json)
}

fn parse_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(body).map_err(|e| ApiError::new(Code::Invalid, format!("request body: {e}")))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn object_headers(status: StatusCode, head: &crate::store::Head) -> actix_web::HttpResponseBuilder {
    let mut reply = HttpResponse::build(status);
    reply.content_type("application/octet-stream").insert_header((ACCEPT_RANGES, "bytes"));
    if let Some(sha256) = head.metadata.get(META_SHA256) {
        reply.insert_header((SHA256_HEADER, sha256.as_str()));
    }
    if let Some(modified) = head.last_modified {
        reply.insert_header((LAST_MODIFIED, modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string()));
    }
    reply
}

/// 416, which has no code of its own, with the size the client should have asked within.
async fn not_satisfiable(gateway: &Gateway, key: &keys::Key) -> ApiResult<HttpResponse> {
    let head = gateway.store.head(&gateway.place(key)).await.map_err(|e| store_failed(e, key))?;
    let mut problem = Problem::new(Code::Invalid, format!("`{key}` has {} bytes, the range lies outside", head.size));
    problem.status = StatusCode::RANGE_NOT_SATISFIABLE.as_u16();
    let mut reply = HttpResponse::RangeNotSatisfiable();
    reply.insert_header((CONTENT_RANGE, format!("bytes */{}", head.size)));
    Ok(reply.content_type(wire::problem::PROBLEM_JSON).json(problem))
}
