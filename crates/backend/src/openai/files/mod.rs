//! Files: uploaded rows, which are datasets at the same time, and the results of jobs.

pub mod form;
pub mod routes;
pub mod rows;

use super::{
    error::{Error, Result},
    ids,
    list::{List, Query},
    results,
};
use crate::{
    datasets,
    db::Conn,
    state::AppState,
    store::{Dataset, usage},
};
use rows::{FileList, FileRow};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::ids::{DatasetId, UserId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = FilePurpose)]
pub enum Purpose {
    FineTune,
    FineTuneResults,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileStatus {
    /// Every row is good.
    Processed,
    /// `status_details` says what is wrong; the content was not kept.
    Error,
}

/// A file as OpenAI's clients see it. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FileObject {
    pub id: String,
    #[schema(example = "file")]
    pub object: &'static str,
    pub bytes: u64,
    pub created_at: i64,
    #[schema(required)]
    pub expires_at: Option<i64>,
    pub filename: String,
    pub purpose: Purpose,
    pub status: FileStatus,
    #[schema(required)]
    pub status_details: Option<String>,
}

/// Reply to a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FileDeleted {
    pub id: String,
    #[schema(example = "file")]
    pub object: &'static str,
    pub deleted: bool,
}

pub async fn list(state: &AppState, user: UserId, query: &Query) -> Result<List<FileObject>> {
    let limit = query.limit(10_000, 10_000)?;
    let oldest_first = match query.get("order") {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(other) => {
            let message = format!("order must be 'asc' or 'desc', not '{other}'");
            return Err(Error::invalid("order", "invalid_value", message));
        }
    };
    let after = query.get("after").map(|id| ids::file(id).map_err(|e| e.about("after"))).transpose()?;
    let purpose = query.get("purpose").map(str::to_owned);
    let read = async move |conn: &mut Conn| {
        results::settle(conn, user).await?;
        let position = match after {
            Some(id) => match FileRow::find(conn, id).await? {
                Some(row) => Some((row.created_at, row.id)),
                None => return Ok(None),
            },
            None => None,
        };
        FileRow::list(conn, FileList { purpose, oldest_first, after: position, limit }).await.map(Some)
    };
    let rows = state.db.tenant(user, read).await?;
    let rows = rows.ok_or_else(|| ids::no_file(query.get("after").unwrap_or_default()).about("after"))?;
    Ok(List::page(rows.into_iter().map(FileObject::from).collect(), limit, |file| file.id.clone()))
}

pub async fn find(state: &AppState, user: UserId, id: &str) -> Result<FileRow> {
    let file = ids::file(id)?;
    let read = async move |conn: &mut Conn| {
        results::settle(conn, user).await?;
        FileRow::find(conn, file).await
    };
    state.db.tenant(user, read).await?.ok_or_else(|| ids::no_file(id))
}

/// Deletes a file at once for its user. What unfinished jobs need of it stays in storage until they are over.
pub async fn delete(state: &AppState, user: UserId, id: &str) -> Result<FileDeleted> {
    let row = find(state, user, id).await?;
    remove(state, user, row.id, row.dataset_id).await?;
    Ok(FileDeleted { id: id.to_owned(), object: "file", deleted: true })
}

async fn remove(state: &AppState, user: UserId, file: Uuid, dataset: Option<Uuid>) -> Result<()> {
    let hide = async move |conn: &mut Conn| {
        FileRow::delete(conn, file).await?;
        let Some(id) = dataset.map(DatasetId) else { return Ok(None) };
        let dataset = Dataset::find_by_name(conn, &ids::show(ids::FILE, id.0)).await?;
        Dataset::soft_delete(conn, id).await?;
        let free = !usage::of_dataset(conn, id).await?.jobs.iter().any(|job| job.blocks_deletion);
        Ok(dataset.filter(|_| free))
    };
    let Some(dataset) = state.db.tenant(user, hide).await? else { return Ok(()) };
    if let Err(error) = datasets::purge(state, &dataset).await {
        // The file is gone for its user; the sweeper removes what is left of it.
        tracing::warn!(dataset.id = %dataset.id(), error = %service::error::chain(&error), "cannot remove objects yet");
    }
    Ok(())
}

/// Deletes files whose time is over.
pub async fn sweep(state: &AppState) -> crate::Result<()> {
    let expired = state.db.system(async |conn| FileRow::expired(conn).await).await?;
    for file in expired {
        if let Err(error) = remove(state, file.owner(), file.id, file.dataset_id).await {
            tracing::warn!(file.id = %file.id, %error, "cannot delete an expired file yet");
        }
    }
    Ok(())
}
