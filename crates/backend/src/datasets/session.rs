//! Uploads straight to storage: open sessions, then complete them.

use super::{SILENCE, begin, discard, finish, keep_alive, key, too_large, validate::refusal_of};
use crate::{
    db::Conn,
    error::{Error, Result},
    state::AppState,
    store::{Dataset, dataset::PendingFile},
};
use chrono::Utc;
use wire::{
    dataset::{CreateDataset, CreateDatasetFile, CreatedDataset, DatasetStatus, DatasetView, Split},
    ids::{DatasetId, UserId},
    problem::{Code, Problem},
    storage::{FileRef, ObjectInfo, OpenUpload, UploadKind, UploadSession},
};

/// Reserves the name and opens one upload per file. The same request again, with digests, goes on with the uploads of the
/// first.
pub async fn create(state: &AppState, user: UserId, request: CreateDataset) -> Result<CreatedDataset> {
    check(state, &request.files)?;
    let name = request.name.clone();
    let find = async move |conn: &mut Conn| Dataset::find_by_name(conn, &name).await;
    if let Some(before) = state.db.tenant(user, find).await?.filter(|d| is_same_upload(d, &request.files)) {
        return resume(state, before).await;
    }
    let size = request.files.iter().fold(0_u64, |sum, f| sum.saturating_add(f.size));
    let dataset = begin(state, user, &request.name, size).await?;
    match open(state, &dataset, &request.files).await {
        Ok(uploads) => Ok(CreatedDataset { dataset: dataset.into(), uploads }),
        Err(error) => {
            discard(state, &dataset).await;
            Err(error)
        }
    }
}

fn is_same_upload(dataset: &Dataset, files: &[CreateDatasetFile]) -> bool {
    let known = &dataset.uploads.0;
    let same = |file: &CreateDatasetFile| {
        let key = key(dataset, file.split, &file.filename);
        let is_it = |k: &PendingFile| k.key == key && k.size == file.size && k.sha256 == file.sha256;
        file.sha256.is_some() && known.iter().any(is_it)
    };
    dataset.status.0 == DatasetStatus::Uploading && known.len() == files.len() && files.iter().all(same)
}

/// What is missing of a dataset, with fresh URLs. Nothing is when it is complete.
pub async fn uploads(state: &AppState, user: UserId, id_or_name: String) -> Result<CreatedDataset> {
    let find = async move |conn: &mut Conn| Dataset::find(conn, &id_or_name).await;
    let dataset = state.db.tenant(user, find).await?;
    match dataset.status.0 {
        DatasetStatus::Uploading => resume(state, dataset).await,
        _ => Ok(CreatedDataset { dataset: dataset.into(), uploads: Vec::new() }),
    }
}

/// The open sessions of an upload; a session that has expired without its file is opened anew.
async fn resume(state: &AppState, dataset: Dataset) -> Result<CreatedDataset> {
    let mut pending = dataset.uploads.0.clone();
    let mut uploads = Vec::new();
    for file in pending.iter_mut().filter(|file| file.stored.is_none()) {
        match state.gateway.upload(&file.session).await {
            Ok(session) => uploads.push(session),
            Err(error) if error.status() == Some(404) && !is_stored(state, file).await? => {
                let (key, size, sha256) = (file.key.clone(), file.size, file.sha256.clone());
                let request = OpenUpload { key, size, kind: UploadKind::Dataset, sha256 };
                let session = state.gateway.open_upload(&request).await?;
                file.session.clone_from(&session.id);
                uploads.push(session);
            }
            Err(error) if error.status() == Some(404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Also where nothing changed: it is alive.
    save(state, &dataset, pending).await?;
    Ok(CreatedDataset { dataset: dataset.into(), uploads })
}

/// Whether the file of a session that is over is there.
async fn is_stored(state: &AppState, file: &PendingFile) -> Result<bool> {
    let Some(sha256) = file.sha256.clone() else { return Ok(false) };
    match state.gateway.verify(vec![FileRef { key: file.key.clone(), size: file.size, sha256 }]).await {
        Ok(()) => Ok(true),
        Err(error) if error.is_transient() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

fn check(state: &AppState, files: &[CreateDatasetFile]) -> Result<()> {
    let count = |split| files.iter().filter(|f| f.split == split).count();
    if count(Split::Train) != 1 || count(Split::Validation) > 1 {
        return Err(Error::refused(Code::Invalid, "files: must hold one train file and at most one validation file"));
    }
    for file in files {
        if file.size == 0 {
            return Err(Error::refused(Code::Invalid, format!("files: {} is empty", file.filename)));
        }
    }
    let total = files.iter().fold(0_u64, |sum, f| sum.saturating_add(f.size));
    if total > state.config.dataset_max_bytes {
        return Err(too_large(state));
    }
    Ok(())
}

async fn open(state: &AppState, dataset: &Dataset, files: &[CreateDatasetFile]) -> Result<Vec<UploadSession>> {
    let (mut sessions, mut pending) = (Vec::new(), Vec::new());
    for file in files {
        let key = key(dataset, file.split, &file.filename);
        let request =
            OpenUpload { key: key.clone(), size: file.size, kind: UploadKind::Dataset, sha256: file.sha256.clone() };
        let session = state.gateway.open_upload(&request).await?;
        pending.push(PendingFile {
            split: file.split,
            session: session.id.clone(),
            key,
            size: file.size,
            sha256: file.sha256.clone(),
            stored: None,
        });
        sessions.push(session);
        // After each one: an open session that no row knows would never be aborted.
        save(state, dataset, pending.clone()).await?;
    }
    Ok(sessions)
}

async fn save(state: &AppState, dataset: &Dataset, pending: Vec<PendingFile>) -> Result<()> {
    let id = dataset.id();
    state.db.tenant(dataset.owner(), async move |conn| Dataset::set_uploads(conn, id, pending).await).await
}

/// Completes the uploads of a dataset and validates it. Repeating it after success gives the same answer.
pub async fn complete(state: &AppState, user: UserId, id: DatasetId) -> Result<DatasetView> {
    let find = async move |conn: &mut Conn| Dataset::find(conn, &id.to_string()).await;
    let mut dataset = state.db.tenant(user, find).await?;
    match dataset.status.0 {
        DatasetStatus::Ready => return Ok(dataset.into()),
        DatasetStatus::Uploading => {}
        DatasetStatus::Validating => take_over(state, &dataset).await?,
        DatasetStatus::Invalid => return Err(refused(&dataset)),
    }
    let before = dataset.clone();
    let work = async {
        let files = store_all(state, &mut dataset).await?;
        finish(state, dataset, files).await
    };
    keep_alive(state, &before, work).await
}

/// The same answer as the first time.
fn refused(dataset: &Dataset) -> Error {
    let lost = || Problem::new(Code::DatasetInvalid, "the rows of this dataset are not valid");
    refusal_of(dataset).unwrap_or_else(lost).into()
}

/// Starts again where another request stopped to give signs of life.
async fn take_over(state: &AppState, dataset: &Dataset) -> Result<()> {
    let (id, deadline) = (dataset.id(), Utc::now() - SILENCE);
    let reset = async move |conn: &mut Conn| Dataset::reset_validation(conn, id, deadline).await;
    if state.db.tenant(dataset.owner(), reset).await? {
        return Ok(());
    }
    Err(Error::refused(Code::Conflict, "another request is validating this dataset; ask for it in a moment"))
}

/// Completes what is not yet complete. Missing parts leave the dataset as it is, so that the client can
/// send them; content that is not what was declared discards it.
async fn store_all(state: &AppState, dataset: &mut Dataset) -> Result<Vec<(Split, ObjectInfo)>> {
    let mut pending = dataset.uploads.0.clone();
    if pending.is_empty() {
        return Err(Error::refused(Code::Conflict, "this dataset is being uploaded by another request"));
    }
    let mut files = Vec::new();
    for at in 0..pending.len() {
        let Some(file) = pending.get_mut(at) else { break };
        let info = match &file.stored {
            Some(info) => info.clone(),
            None => match store(state, file).await {
                Ok(info) => info,
                Err(error) => {
                    if error.code() == Some(Code::ChecksumMismatch) {
                        discard(state, dataset).await;
                    }
                    return Err(error);
                }
            },
        };
        file.stored = Some(info.clone());
        files.push((file.split, info));
        save(state, dataset, pending.clone()).await?;
    }
    files.sort_by_key(|(split, _)| *split != Split::Train);
    dataset.uploads.0 = pending;
    Ok(files)
}

async fn store(state: &AppState, file: &PendingFile) -> Result<ObjectInfo> {
    match state.gateway.complete_upload(&file.session).await {
        // The session may be over because an earlier completion's reply was lost.
        Err(error) if error.status() == Some(404) => match &file.sha256 {
            Some(sha256) => {
                let wanted = FileRef { key: file.key.clone(), size: file.size, sha256: sha256.clone() };
                state.gateway.verify(vec![wanted]).await?;
                let (key, sha256) = (file.key.clone(), Some(sha256.clone()));
                Ok(ObjectInfo { key, size: file.size, sha256, last_modified: None })
            }
            None => {
                let detail = "the upload has expired; delete the dataset and upload it again";
                Err(Error::refused(Code::Conflict, detail))
            }
        },
        other => Ok(other?),
    }
}
