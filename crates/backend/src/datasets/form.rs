//! `POST /datasets/upload`: a form with `name`, `file` and optionally `validation`, in this order, streamed
//! to storage through a few buffers.

use super::{begin, discard, finish, key, too_large};
use crate::{
    error::{Error, Result},
    state::AppState,
    store::Dataset,
};
use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future};
use std::{
    io,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use wire::{
    dataset::{DatasetView, Split},
    ids::UserId,
    problem::Code,
    storage::ObjectInfo,
};

/// Chunks between the client's connection and the gateway's, each at most 64 KiB.
const BUFFERED_CHUNKS: usize = 8;
const MAX_NAME_BYTES: usize = 1024;
/// What boundaries, headers and the name may add to the files.
const FORM_OVERHEAD: u64 = 64 << 10;
const TOUCH_EVERY: Duration = Duration::from_secs(60);
/// How long the rest of a refused form is read and thrown away: a client that is still sending would
/// otherwise see a broken connection instead of the refusal.
const LINGER: Duration = Duration::from_secs(5);

/// Receives a whole form. Runs to its end, or to its clean-up, also when the client goes away.
pub async fn receive(state: AppState, user: UserId, req: &HttpRequest, payload: web::Payload) -> Result<DatasetView> {
    let declared = req.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let form = Multipart::new(req.headers(), payload);
    let task = actix_web::rt::spawn(async move {
        let mut form = form;
        let result = read(&state, user, &mut form, declared).await;
        if result.is_err() {
            let rest = form.try_for_each(|field| field.try_for_each(|_| future::ok(())));
            // Nothing to do when the rest is slow or broken: the refusal is what counts.
            let _ = tokio::time::timeout(LINGER, rest).await;
        }
        result
    });
    task.await.map_err(Error::defect)?
}

async fn read(state: &AppState, user: UserId, form: &mut Multipart, declared: Option<u64>) -> Result<DatasetView> {
    // Refused before a byte of it is read.
    let limit = state.config.dataset_max_bytes;
    if declared.is_some_and(|size| size > limit.saturating_add(FORM_OVERHEAD)) {
        return Err(too_large(state));
    }
    let name = name(form).await?;
    let dataset = begin(state, user, &name).await?;
    match store_files(state, &dataset, form).await {
        Ok(files) => finish(state, dataset, files).await,
        Err(error) => {
            discard(state, &dataset).await;
            Err(error)
        }
    }
}

async fn name(form: &mut Multipart) -> Result<String> {
    let missing = || Error::refused(Code::Invalid, "name: must be the first field of the form, before the files");
    let mut field = form.try_next().await.map_err(malformed)?.ok_or_else(missing)?;
    if field.name() != Some("name") {
        return Err(missing());
    }
    let mut text = Vec::new();
    while let Some(chunk) = field.try_next().await.map_err(malformed)? {
        if text.len() + chunk.len() > MAX_NAME_BYTES {
            return Err(Error::refused(Code::Invalid, "name: is too long; use at most 96 characters"));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).map_err(|_| Error::refused(Code::Invalid, "name: is not UTF-8"))
}

async fn store_files(state: &AppState, dataset: &Dataset, form: &mut Multipart) -> Result<Vec<(Split, ObjectInfo)>> {
    let mut files: Vec<(Split, ObjectInfo)> = Vec::new();
    while let Some(field) = form.try_next().await.map_err(malformed)? {
        let split = match (field.name(), files.len()) {
            (Some("file"), 0) => Split::Train,
            (Some("validation"), 1) => Split::Validation,
            (Some(other), _) => {
                let detail = format!(
                    "form: unexpected field `{other}`; send name, file and optionally validation, in this order"
                );
                return Err(Error::refused(Code::Invalid, detail));
            }
            (None, _) => return Err(Error::refused(Code::Invalid, "form: a field has no name")),
        };
        let before = files.iter().map(|(_, object)| object.size).sum();
        files.push((split, store(state, dataset, split, before, field).await?));
    }
    if files.is_empty() {
        return Err(Error::refused(Code::Invalid, "file: is missing; send the dataset as a file in the field `file`"));
    }
    Ok(files)
}

/// Streams one file to storage. `before` are the bytes of the files before it.
async fn store(state: &AppState, dataset: &Dataset, split: Split, before: u64, mut field: Field) -> Result<ObjectInfo> {
    let filename = field.content_disposition().and_then(|d| d.get_filename()).unwrap_or_default();
    let key = key(dataset, split, filename);
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    let body = futures::stream::unfold(receiver, async |mut r| r.recv().await.map(|chunk| (chunk, r)));
    let pump = pump(state, dataset, before, &mut field, sender);
    let (pumped, stored) = future::join(pump, state.gateway.put(&key, body)).await;
    pumped?;
    Ok(stored?)
}

/// Moves a field into `sender`. When the gateway hangs up it has the better error, so that is no error here.
async fn pump(
    state: &AppState,
    dataset: &Dataset,
    before: u64,
    field: &mut Field,
    sender: mpsc::Sender<io::Result<Bytes>>,
) -> Result<()> {
    let (id, limit) = (dataset.id(), state.config.dataset_max_bytes);
    let (mut size, mut touched) = (before, Instant::now());
    while let Some(chunk) = field.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                // An error in the body makes the gateway drop what it has.
                let _ = sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                return Err(malformed(error));
            }
        };
        size = size.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if size > limit {
            let _ = sender.send(Err(io::ErrorKind::FileTooLarge.into())).await;
            return Err(too_large(state));
        }
        if sender.send(Ok(chunk)).await.is_err() {
            return Ok(());
        }
        if touched.elapsed() > TOUCH_EVERY {
            touched = Instant::now();
            state.db.tenant(dataset.owner(), async move |conn| Dataset::touch(conn, id).await).await?;
        }
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn malformed(error: MultipartError) -> Error {
    Error::refused(
        Code::Invalid,
        format!("form: {error}; send multipart/form-data with name, file and optionally validation"),
    )
}
