//! Datasets from first byte to ready, and away again.
//!
//! A row in status `uploading` exists before the first object does, so whatever dies in between, the sweeper
//! finds what to remove. A dataset is ready only after the gateway validated every file of it. One whose rows are refused
//! stays as `invalid` with the report and without its objects; everything else ends in [`discard`], which keeps nothing.

pub mod form;
mod session;
mod split;
mod validate;

pub use session::{complete, create, uploads};
pub use split::split;
pub use validate::finish;

use crate::{
    config::Quota,
    db::Conn,
    error::{Error, Result},
    state::AppState,
    store::{Dataset, usage},
};
use chrono::TimeDelta;
use std::time::Duration;
use wire::{
    dataset::{DatasetStatus, Split, UpdateDataset},
    ids::{DatasetId, UserId},
    problem::Code,
};

/// Longest description in characters.
const MAX_DESCRIPTION: usize = 2000;

fn check_name(name: &str) -> Result<()> {
    if wire::model::is_valid_name(name) {
        return Ok(());
    }
    let detail = format!(
        "name: `{name}` cannot be a dataset name; use 1 to 96 letters, digits, `.`, `_` or `-`, not starting with `.` or `-`"
    );
    Err(Error::refused(Code::Invalid, detail))
}

/// Refuses a user whose datasets are too many, or would be too large with `size` more bytes.
async fn check_quota(conn: &mut Conn, quota: Quota, size: u64) -> Result<()> {
    let (count, bytes) = Dataset::total(conn).await?;
    if count >= quota.count {
        let detail = format!("you have {count} datasets, and {} are allowed; delete some first", quota.count);
        return Err(Error::refused(Code::Overloaded, detail));
    }
    if bytes.saturating_add(size) > quota.bytes || bytes >= quota.bytes {
        let detail = format!(
            "your datasets have {bytes} bytes, this one would add {size}, and {} are allowed; delete some first",
            quota.bytes
        );
        return Err(Error::refused(Code::TooLarge, detail));
    }
    Ok(())
}

/// Changes name or description.
pub async fn update(state: &AppState, user: UserId, id_or_name: String, change: UpdateDataset) -> Result<Dataset> {
    let UpdateDataset { name, description } = change;
    if let Some(name) = &name {
        check_name(name)?;
    }
    if description.as_ref().is_some_and(|d| d.chars().count() > MAX_DESCRIPTION || d.contains('\0')) {
        let detail = format!("description: must be a text of at most {MAX_DESCRIPTION} characters");
        return Err(Error::refused(Code::Invalid, detail));
    }
    let work = async move |conn: &mut Conn| {
        let dataset = Dataset::find(conn, &id_or_name).await?;
        Dataset::rename(conn, dataset.id(), name, description).await
    };
    state.db.tenant(user, work).await
}

/// Reserves `name` and makes the row the upload belongs to; `size` is what it will have at least.
pub async fn begin(state: &AppState, user: UserId, name: &str, size: u64) -> Result<Dataset> {
    check_name(name)?;
    let quota = state.config.dataset_quota;
    let name = name.to_owned();
    let insert = async move |conn: &mut Conn| reserve(conn, quota, user, (&name, size)).await;
    state.db.tenant(user, insert).await
}

/// Makes the row of a dataset that will have at least so many bytes.
async fn reserve(conn: &mut Conn, quota: Quota, user: UserId, (name, size): (&str, u64)) -> Result<Dataset> {
    match Dataset::find_by_name(conn, name).await? {
        // What was refused makes way for what is hopefully better.
        Some(other) if other.status.0 == DatasetStatus::Invalid => Dataset::forget(conn, other.id()).await?,
        Some(other) => return Err(taken(&other)),
        None => {}
    }
    check_quota(conn, quota, size).await?;
    Dataset::insert(conn, user, DatasetId::random(), name).await
}

fn taken(other: &Dataset) -> Error {
    let name = &other.name;
    let detail = match other.status.0 {
        DatasetStatus::Ready | DatasetStatus::Invalid => {
            format!("a dataset named `{name}` exists; choose another name, or delete it first")
        }
        DatasetStatus::Uploading | DatasetStatus::Validating => {
            format!("a dataset named `{name}` is being uploaded; wait until it is there, or delete it")
        }
    };
    Error::refused(Code::Conflict, detail)
}

/// Signs of life while an upload or a validation runs; without one for [`SILENCE`] its backend is dead.
const BEAT: Duration = Duration::from_secs(30);
pub const SILENCE: TimeDelta = TimeDelta::minutes(5);

/// Does `work` on a dataset, and keeps the sweeper and other requests off it meanwhile.
pub(crate) async fn keep_alive<T>(state: &AppState, dataset: &Dataset, work: impl Future<Output = T>) -> T {
    let id = dataset.id();
    let beat = async {
        loop {
            tokio::time::sleep(BEAT).await;
            let touched = state.db.tenant(dataset.owner(), async move |conn| Dataset::touch(conn, id).await).await;
            if let Err(error) = touched {
                tracing::warn!(dataset.id = %id, error = %service::error::chain(&error), "cannot note that it is alive");
            }
        }
    };
    tokio::select! {
        done = work => done,
        never = beat => never,
    }
}

/// Removes a dataset that did not become one: the row is hidden at once, then its objects go. When storage
/// cannot be reached now, the sweeper tries again.
pub async fn discard(state: &AppState, dataset: &Dataset) {
    let id = dataset.id();
    let hidden = state.db.tenant(dataset.owner(), async move |conn| Dataset::soft_delete(conn, id).await).await;
    let purged = match hidden {
        Ok(()) => purge(state, dataset).await,
        Err(error) => Err(error),
    };
    if let Err(error) = purged {
        tracing::warn!(dataset.id = %id, error = %service::error::chain(&error), "cannot remove a refused dataset yet");
    }
}

/// Removes the objects of a dataset whose row is deleted, or whose rows were refused. Idempotent.
pub async fn purge(state: &AppState, dataset: &Dataset) -> Result<()> {
    for upload in &dataset.uploads.0 {
        state.gateway.abort_upload(&upload.session).await?;
    }
    state.gateway.delete_prefix(&dataset.prefix()).await?;
    let id = dataset.id();
    state.db.tenant(dataset.owner(), async move |conn| Dataset::purged(conn, id).await).await
}

/// Deletes a dataset unless a job still needs it.
pub async fn delete(state: &AppState, user: UserId, id_or_name: String) -> Result<()> {
    let hide = async move |conn: &mut Conn| {
        let dataset = Dataset::find(conn, &id_or_name).await?;
        let used = usage::of_dataset(conn, dataset.id()).await?;
        let jobs = used.jobs.iter().filter(|j| j.blocks_deletion).map(|j| format!("job {}", j.id));
        let drafts = used.versions.iter().filter(|v| v.blocks_deletion).map(|v| format!("draft {}", v.name));
        let needing: Vec<String> = jobs.chain(drafts).take(10).collect();
        if !needing.is_empty() {
            let detail = format!(
                "unfinished jobs or drafts use this dataset; cancel or change them first: {}",
                needing.join(", ")
            );
            return Err(Error::refused(Code::Conflict, detail));
        }
        Dataset::soft_delete(conn, dataset.id()).await?;
        Ok(dataset)
    };
    let dataset = state.db.tenant(user, hide).await?;
    if let Err(error) = purge(state, &dataset).await {
        // The dataset is gone for its user; the sweeper removes what is left of it.
        tracing::warn!(dataset.id = %dataset.id(), error = %service::error::chain(&error), "cannot remove objects yet");
    }
    Ok(())
}

/// Key of a file: `train.jsonl`, `validation.txt`; only the extension comes from the user.
pub(crate) fn key(dataset: &Dataset, split: Split, filename: &str) -> String {
    let extension = filename.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    let extension = extension.filter(|e| (1..=8).contains(&e.len()) && e.chars().all(|c| c.is_ascii_alphanumeric()));
    let stem = name(split);
    format!("{}{stem}.{}", dataset.prefix(), extension.as_deref().unwrap_or("data"))
}

const fn name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Validation => "validation",
    }
}

pub(crate) fn too_large(state: &AppState) -> Error {
    let limit = state.config.dataset_max_bytes;
    Error::refused(Code::TooLarge, format!("a dataset may have at most {limit} bytes; nothing was stored"))
}
