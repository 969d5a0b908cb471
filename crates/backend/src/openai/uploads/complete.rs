//! Completing an upload: its parts become one object, and that a file.

use super::{
    Upload, find, not_open,
    rows::{State, UploadRow},
    view,
};
use crate::{
    audit,
    auth::AuthUser,
    datasets,
    db::Conn,
    error::Error as Cause,
    openai::{
        auth::Delivery,
        body,
        error::{Error, Result},
        files::{
            form::{self, Source},
            rows::FileRow,
        },
        ids,
    },
    state::AppState,
    store::unsigned,
};
use bytes::Bytes;
use chrono::TimeDelta;
use futures::{TryStreamExt, future};
use md5::{Digest, Md5};
use serde::Deserialize;
use std::{collections::BTreeMap, io};
use tokio::sync::mpsc;
use uuid::Uuid;
use wire::{dataset::Split, ids::UserId, storage::ObjectInfo};

/// Chunks between the two calls to the gateway.
const BUFFERED_CHUNKS: usize = 8;

/// Body of `POST /v1/uploads/{id}/complete`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteUpload {
    /// In the order of the file.
    part_ids: Vec<String>,
    /// Of the whole file, in hexadecimal digits.
    md5: Option<String>,
}

/// Completes an upload. Repeating it gives the same answer.
pub async fn complete(state: &AppState, user: &AuthUser, id: &str, content: &[u8]) -> Result<Upload> {
    let request: CompleteUpload = body::read(&body::json(content)?)?;
    let row = find(state, user.user_id, id).await?;
    match row.state() {
        State::Pending => {}
        State::Completed => return completed(state, user.user_id, row).await,
        State::Completing | State::Cancelled | State::Expired => return Err(not_open(&row)),
    }
    let parts = choose(state, &row, &request.part_ids).await?;
    if !advance(state, &row, &[State::Pending], State::Completing).await? {
        return Err(not_open(&find(state, user.user_id, id).await?));
    }
    // To its end, also when the client goes away.
    let (state, user) = (state.clone(), user.clone());
    let task = actix_web::rt::spawn(audit::carry(async move {
        let result = make_file(&state, &user, &row, parts, request.md5).await;
        let file = match result {
            Ok(file) => file,
            Err(error) => {
                advance(&state, &row, &[State::Completing], State::Pending).await?;
                return Err(error);
            }
        };
        let upload = row.id;
        let end = async move |conn: &mut Conn| UploadRow::complete(conn, upload, file).await;
        let row = state.db.tenant(user.user_id, end).await?;
        state.gateway.delete_prefix(&row.part_prefix()).await?;
        completed(&state, user.user_id, row).await
    }));
    task.await.map_err(Cause::defect)?
}

async fn completed(state: &AppState, user: UserId, row: UploadRow) -> Result<Upload> {
    let file = row.file_id;
    let find = async move |conn: &mut Conn| match file {
        Some(id) => FileRow::find(conn, id).await,
        None => Ok(None),
    };
    let file = state.db.tenant(user, find).await?;
    Ok(view(row, file))
}

async fn advance(state: &AppState, row: &UploadRow, from: &'static [State], to: State) -> Result<bool> {
    let id = row.id;
    Ok(state.db.tenant(row.owner(), async move |conn| UploadRow::advance(conn, id, from, to).await).await?)
}

/// The named parts in their order; together they must have the size that was declared.
async fn choose(state: &AppState, row: &UploadRow, named: &[String]) -> Result<Vec<Uuid>> {
    let upload = row.id;
    let known = state.db.tenant(row.owner(), async move |conn| UploadRow::parts(conn, upload).await).await?;
    let mut known: BTreeMap<Uuid, u64> = known.into_iter().collect();
    let (mut chosen, mut size) = (Vec::new(), 0_u64);
    for name in named {
        let part = ids::parse(ids::PART, name).and_then(|id| known.remove(&id).map(|size| (id, size)));
        let Some((part, bytes)) = part else {
            let message = format!("'{name}' is no part of this upload, or it is named twice");
            return Err(Error::invalid("part_ids", "invalid_value", message));
        };
        chosen.push(part);
        size = size.saturating_add(bytes);
    }
    let declared = unsigned(row.size);
    if size != declared {
        let message = format!("the parts have {size} bytes together, and the upload was opened for {declared}");
        return Err(Error::invalid("part_ids", "invalid_value", message));
    }
    Ok(chosen)
}

/// Makes the file of an upload, and gives its id. After an error the parts are as before.
async fn make_file(
    state: &AppState,
    user: &AuthUser,
    row: &UploadRow,
    parts: Vec<Uuid>,
    wanted: Option<String>,
) -> Result<Uuid> {
    let dataset = form::begin(state, user).await?;
    let work = async {
        let key = datasets::key(&dataset, Split::Train, "train.jsonl");
        let object = match assemble(state, row, &key, parts).await {
            Ok((object, md5)) if wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(&md5)) => object,
            Ok((_, md5)) => {
                datasets::discard(state, &dataset).await;
                let message = format!("the parts have the MD5 {md5} together, and not the one that was sent");
                return Err(Error::mismatch("md5", message));
            }
            Err(error) => {
                datasets::discard(state, &dataset).await;
                return Err(error);
            }
        };
        let source = Source { filename: row.filename.clone(), delivery: Delivery::First, user };
        source.finish(state, &dataset, object, row.lifetime.and_then(TimeDelta::try_seconds)).await
    };
    datasets::keep_alive(state, &dataset, work).await?;
    Ok(dataset.id)
}

/// Streams the parts into one object; also gives its MD5.
async fn assemble(state: &AppState, row: &UploadRow, key: &str, parts: Vec<Uuid>) -> Result<(ObjectInfo, String)> {
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    let stream = futures::stream::unfold(receiver, async |mut r| r.recv().await.map(|chunk| (chunk, r)));
    let pumped = pump(state, row, parts, sender);
    let (md5, stored) = future::join(pumped, state.gateway.put(key, stream)).await;
    Ok((stored?, md5?))
}

async fn pump(
    state: &AppState,
    row: &UploadRow,
    parts: Vec<Uuid>,
    sender: mpsc::Sender<io::Result<Bytes>>,
) -> Result<String> {
    let mut md5 = Md5::new();
    for part in parts {
        let mut body = state.gateway.get(&row.part_key(part), None).await?.bytes_stream();
        loop {
            match body.try_next().await {
                Ok(Some(chunk)) => {
                    md5.update(&chunk);
                    // When the gateway hangs up it has the better error.
                    if sender.send(Ok(chunk)).await.is_err() {
                        return Ok(String::new());
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // An error in the body makes the gateway drop what it has.
                    let _ = sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                    return Err(
                        Cause::from(service::ClientError::Transport { service: "storage", source: error }).into()
                    );
                }
            }
        }
    }
    Ok(hex::encode(md5.finalize()))
}

/// Ends an upload whose time is over.
pub async fn expire(state: &AppState, row: &UploadRow) -> Result<()> {
    state.gateway.delete_prefix(&row.part_prefix()).await?;
    advance(state, row, &[State::Pending, State::Completing], State::Expired).await?;
    Ok(())
}
