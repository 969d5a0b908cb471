//! `POST /datasets/upload`: a form with `name`, `file` and optionally `validation`, in this order, streamed
//! to storage through a few buffers.

use super::{begin, discard, finish, keep_alive, key, too_large};
use crate::{
    audit,
    error::{Error, Result},
    state::AppState,
    store::Dataset,
};
use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::{HttpRequest, web};
use bytes::Bytes;
use futures::{TryStreamExt, future};
use std::{io, time::Duration};
use tokio::sync::mpsc;
use wire::{
    dataset::{DatasetView, Split},
    ids::UserId,
    problem::Code,
    storage::ObjectInfo,
};

/// Chunks between the client's connection and the gateway's, each at most 64 KiB.
const BUFFERED_CHUNKS: usize = 8;
const MAX_TEXT_BYTES: usize = 1024;
/// What boundaries, headers and the name may add to the files.
const FORM_OVERHEAD: u64 = 64 << 10;
/// Longest silence of a client in mid-upload.
const IDLE: Duration = Duration::from_secs(60);
/// How long the rest of a refused form is read and thrown away: a client that is still sending would
/// otherwise see a broken connection instead of the refusal.
const LINGER: Duration = Duration::from_secs(5);

/// Receives a whole form. Runs to its end, or to its clean-up, also when the client goes away.
pub async fn receive(state: AppState, user: UserId, req: &HttpRequest, payload: web::Payload) -> Result<DatasetView> {
    let declared = req.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let mut form = Form::new(req, payload, "name, file and optionally validation");
    let task = actix_web::rt::spawn(audit::carry(async move {
        let result = read(&state, user, &mut form, declared).await;
        if result.is_err() {
            form.drain().await;
        }
        result
    }));
    task.await.map_err(Error::defect)?
}

/// A multipart form that arrives.
pub(crate) struct Form {
    fields: Multipart,
    /// The fields it should have, for a refusal.
    wanted: &'static str,
    /// After an error the stream must not be polled again.
    broken: bool,
}

impl Form {
    pub fn new(req: &HttpRequest, payload: web::Payload, wanted: &'static str) -> Self {
        Self { fields: Multipart::new(req.headers(), payload), wanted, broken: false }
    }

    pub async fn next(&mut self) -> Result<Option<Field>> {
        let field = in_time(self.fields.try_next(), self.wanted).await;
        self.broken = field.is_err();
        field
    }

    /// Reads what is left and throws it away.
    pub async fn drain(self) {
        if !self.broken {
            let rest = self.fields.try_for_each(|field| field.try_for_each(|_| future::ok(())));
            // Nothing to do when the rest is slow or broken: the refusal is what counts.
            let _ = tokio::time::timeout(LINGER, rest).await;
        }
    }
}

async fn read(state: &AppState, user: UserId, form: &mut Form, declared: Option<u64>) -> Result<DatasetView> {
    // Refused before a byte of it is read.
    let limit = state.config.dataset_max_bytes;
    if declared.is_some_and(|size| size > limit.saturating_add(FORM_OVERHEAD)) {
        return Err(too_large(state));
    }
    let name = name(form).await?;
    // The form is a little more than its files.
    let size = declared.unwrap_or_default().saturating_sub(FORM_OVERHEAD);
    let dataset = begin(state, user, &name, size).await?;
    let work = async {
        match store_files(state, &dataset, form).await {
            Ok(files) => finish(state, dataset.clone(), files).await,
            Err(error) => {
                discard(state, &dataset).await;
                Err(error)
            }
        }
    };
    keep_alive(state, &dataset, work).await
}

async fn name(form: &mut Form) -> Result<String> {
    let missing = || Error::refused(Code::Invalid, "name: must be the first field of the form, before the files");
    let mut field = form.next().await?.ok_or_else(missing)?;
    if field.name() != Some("name") {
        return Err(missing());
    }
    text(&mut field).await
}

/// A field that is a short text.
pub(crate) async fn text(field: &mut Field) -> Result<String> {
    let name = field.name().unwrap_or("form").to_owned();
    let refuse = |why: &str| Error::refused(Code::Invalid, format!("{name}: {why}"));
    let mut text = Vec::new();
    while let Some(chunk) = in_time(field.try_next(), "short texts beside the file").await? {
        if text.len() + chunk.len() > MAX_TEXT_BYTES {
            return Err(refuse(&format!("is too long; use at most {MAX_TEXT_BYTES} bytes")));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).map_err(|_| refuse("is not UTF-8"))
}

async fn store_files(state: &AppState, dataset: &Dataset, form: &mut Form) -> Result<Vec<(Split, ObjectInfo)>> {
    let mut files: Vec<(Split, ObjectInfo)> = Vec::new();
    while let Some(field) = form.next().await? {
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

async fn store(state: &AppState, dataset: &Dataset, split: Split, before: u64, mut field: Field) -> Result<ObjectInfo> {
    let filename = field.content_disposition().and_then(|d| d.get_filename()).unwrap_or_default();
    let key = key(dataset, split, filename);
    stream_to(state, &key, before, &mut field).await
}

/// Streams one file to storage. `before` are the bytes of the files before it.
pub(crate) async fn stream_to(state: &AppState, key: &str, before: u64, field: &mut Field) -> Result<ObjectInfo> {
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    let body = futures::stream::unfold(receiver, async |mut r| r.recv().await.map(|chunk| (chunk, r)));
    let pump = pump(state, before, field, sender);
    let (pumped, stored) = future::join(pump, state.gateway.put(key, body)).await;
    pumped?;
    Ok(stored?)
}

/// Moves a field into `sender`. When the gateway hangs up it has the better error, so that is no error here.
async fn pump(state: &AppState, before: u64, field: &mut Field, sender: mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
    let mut size = before;
    loop {
        let chunk = match in_time(field.try_next(), "whole files").await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(()),
            Err(error) => {
                // An error in the body makes the gateway drop what it has.
                let _ = sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                return Err(error);
            }
        };
        size = size.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if size > state.config.dataset_max_bytes {
            let _ = sender.send(Err(io::ErrorKind::FileTooLarge.into())).await;
            return Err(too_large(state));
        }
        if sender.send(Ok(chunk)).await.is_err() {
            return Ok(());
        }
    }
}

/// The next piece of a form; `wanted` is what it should hold.
async fn in_time<T>(next: impl Future<Output = Result<T, MultipartError>>, wanted: &str) -> Result<T> {
    let problem = match tokio::time::timeout(IDLE, next).await {
        Ok(Ok(piece)) => return Ok(piece),
        Ok(Err(error)) => {
            format!("form: {error}; send multipart/form-data with {wanted}")
        }
        Err(_) => format!("form: nothing arrived for {} s; the upload was given up", IDLE.as_secs()),
    };
    Err(Error::refused(Code::Invalid, problem))
}
