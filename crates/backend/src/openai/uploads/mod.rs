//! Uploads in parts: opened, filled in any order, completed in the order the client names.

mod complete;
pub mod routes;
pub mod rows;

pub use complete::complete;

use super::{
    body,
    error::{Error, Result},
    files::{FileObject, form, rows::FileRow},
    ids,
};
use crate::{
    audit, datasets, datasets::form as stream, db::Conn, error::Error as Cause, state::AppState, store::unsigned,
};
use actix_web::{HttpRequest, web};
use chrono::{TimeDelta, Utc};
use rows::{State, UploadRow};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::ids::UserId;

/// A client has this long to complete.
const OPEN_FOR: TimeDelta = TimeDelta::hours(1);
const MAX_PART_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UploadStatus {
    Pending,
    Completed,
    Cancelled,
    Expired,
}

/// An upload. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Upload {
    pub id: String,
    #[schema(example = "upload")]
    pub object: &'static str,
    pub bytes: u64,
    pub created_at: i64,
    pub expires_at: i64,
    pub filename: String,
    #[schema(example = "fine-tune")]
    pub purpose: &'static str,
    pub status: UploadStatus,
    /// Once it is completed.
    #[schema(required)]
    pub file: Option<FileObject>,
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UploadedPart {
    pub id: String,
    #[schema(example = "upload.part")]
    pub object: &'static str,
    pub created_at: i64,
    pub upload_id: String,
}

/// Body of `POST /v1/uploads`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateUpload {
    #[schema(minimum = 1)]
    bytes: u64,
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    filename: String,
    /// Any; rows are recognised by their content.
    mime_type: String,
    #[schema(example = "fine-tune", pattern = "^fine-tune$")]
    purpose: String,
    expires_after: Option<ExpiresAfter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpiresAfter {
    #[schema(example = "created_at", pattern = "^created_at$")]
    anchor: String,
    #[schema(minimum = 3600, maximum = 2592000)]
    seconds: i64,
}

pub async fn create(state: &AppState, user: UserId, content: &[u8]) -> Result<Upload> {
    let request: CreateUpload = body::read(&body::json(content)?)?;
    form::check_purpose(&request.purpose)?;
    if request.bytes == 0 {
        return Err(Error::invalid("bytes", "invalid_value", "bytes must be at least 1"));
    }
    if request.bytes > state.config.dataset_max_bytes {
        return Err(datasets::too_large(state).into());
    }
    let filename = form::check_filename("filename", &request.filename)?;
    let after = request.expires_after.map(|e| (e.anchor, e.seconds.to_string()));
    let lifetime = form::lifetime(after.as_ref().map(|a| a.0.as_str()), after.as_ref().map(|a| a.1.as_str()))?;
    let insert =
        async move |conn: &mut Conn| UploadRow::insert(conn, user, &filename, request.bytes, lifetime, OPEN_FOR).await;
    let row = state.db.tenant(user, insert).await?;
    Ok(view(row, None))
}

fn view(row: UploadRow, file: Option<FileRow>) -> Upload {
    let status = match row.state() {
        State::Pending | State::Completing => UploadStatus::Pending,
        State::Completed => UploadStatus::Completed,
        State::Cancelled => UploadStatus::Cancelled,
        State::Expired => UploadStatus::Expired,
    };
    Upload {
        id: ids::show(ids::UPLOAD, row.id),
        object: "upload",
        bytes: unsigned(row.size),
        created_at: row.created_at.timestamp(),
        expires_at: row.expires_at.timestamp(),
        filename: row.filename,
        purpose: "fine-tune",
        status,
        file: file.map(FileObject::from),
    }
}

async fn find(state: &AppState, user: UserId, id: &str) -> Result<UploadRow> {
    let upload = ids::parse(ids::UPLOAD, id).ok_or_else(|| missing(id))?;
    let row = state.db.tenant(user, async move |conn| UploadRow::find(conn, upload).await).await?;
    row.ok_or_else(|| missing(id))
}

fn missing(id: &str) -> Error {
    Error::not_found(None, format!("No such Upload object: {id}")).about("upload_id")
}

fn not_open(row: &UploadRow) -> Error {
    let what = match row.state() {
        State::Pending => "is open again",
        State::Completing => "is being completed",
        State::Completed => "is completed",
        State::Cancelled => "is cancelled",
        State::Expired => "has expired",
    };
    let error = Error::conflict(format!("the upload '{}' {what}", ids::show(ids::UPLOAD, row.id)));
    if matches!(row.state(), State::Pending | State::Completing) { error.passing() } else { error }
}

/// Receives one part. Runs to its end, or to its clean-up, also when the client goes away.
pub async fn add_part(
    state: AppState,
    user: UserId,
    id: &str,
    req: &HttpRequest,
    payload: web::Payload,
) -> Result<UploadedPart> {
    let row = find(&state, user, id).await?;
    let mut form = stream::Form::new(req, payload, "the field data");
    let task = actix_web::rt::spawn(audit::carry(async move {
        let result = store_part(&state, &row, &mut form).await;
        if result.is_err() {
            form.drain().await;
        }
        result
    }));
    task.await.map_err(Cause::defect)?
}

async fn store_part(state: &AppState, row: &UploadRow, form: &mut stream::Form) -> Result<UploadedPart> {
    if row.state() != State::Pending {
        return Err(not_open(row));
    }
    let missing = || Error::invalid("data", "missing_required_parameter", "Missing required parameter: 'data'.");
    let mut field = form.next().await?.filter(|f| f.name() == Some("data")).ok_or_else(missing)?;
    let (upload, owner) = (row.id, row.owner());
    let parts = state.db.tenant(owner, async move |conn| UploadRow::parts(conn, upload).await).await?;
    let part = Uuid::new_v4();
    let key = row.part_key(part);
    let object = stream::stream_to(state, &key, parts.iter().map(|p| p.1).sum(), &mut field).await?;
    if object.size > MAX_PART_BYTES {
        state.gateway.delete(&key).await?;
        let message = format!("a part has at most {MAX_PART_BYTES} bytes");
        return Err(Error::invalid("data", "file_too_large", message));
    }
    let this = row.clone();
    let note = async move |conn: &mut Conn| this.add_part(conn, part, object.size).await;
    let created_at = state.db.tenant(owner, note).await?.timestamp();
    let (id, upload_id) = (ids::show(ids::PART, part), ids::show(ids::UPLOAD, upload));
    Ok(UploadedPart { id, object: "upload.part", created_at, upload_id })
}

/// Gives an upload up. Repeating it is harmless.
pub async fn cancel(state: &AppState, user: UserId, id: &str) -> Result<Upload> {
    let row = find(state, user, id).await?;
    let upload = row.id;
    let cancel = async move |conn: &mut Conn| {
        let done = UploadRow::advance(conn, upload, &[State::Pending, State::Cancelled], State::Cancelled).await?;
        Ok((done, UploadRow::find(conn, upload).await?))
    };
    match state.db.tenant(user, cancel).await? {
        (true, Some(row)) => {
            state.gateway.delete_prefix(&row.part_prefix()).await?;
            Ok(view(row, None))
        }
        (_, Some(row)) => Err(not_open(&row)),
        (_, None) => Err(missing(id)),
    }
}

/// Removes what uploads left that nobody completed in time.
pub async fn sweep(state: &AppState) -> crate::Result<()> {
    // Whoever is completing one has as long again.
    let deadline = Utc::now() - OPEN_FOR;
    let overdue = state.db.system(async move |conn| UploadRow::overdue(conn, deadline).await).await?;
    for row in overdue {
        if let Err(error) = complete::expire(state, &row).await {
            tracing::warn!(upload.id = %row.id, %error, "cannot remove an expired upload yet");
        }
    }
    Ok(())
}
