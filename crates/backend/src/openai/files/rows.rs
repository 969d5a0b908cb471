//! The table of files. A file of purpose `fine-tune` has the id of the dataset that holds its rows; the results of a job
//! have the job's.

use super::{FileObject, FileStatus, Purpose};
use crate::{
    db::Conn,
    error::Result,
    openai::ids,
    schema::{datasets, openai_files as files},
    store::{Name, signed, unsigned},
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;
use wire::ids::{KeyId, UserId};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = files, check_for_backend(diesel::pg::Pg))]
pub struct FileRow {
    pub id: Uuid,
    pub user_id: Uuid,
    pub filename: String,
    pub purpose: Name<Purpose>,
    pub size: i64,
    pub status: Name<FileStatus>,
    pub status_details: Option<String>,
    pub dataset_id: Option<Uuid>,
    pub job_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
}

/// What a new file is made of.
#[derive(Debug, Clone)]
pub struct NewFile {
    pub id: Uuid,
    pub user: UserId,
    pub filename: String,
    pub purpose: Purpose,
    pub size: u64,
    /// Why it cannot be used, when it cannot.
    pub error: Option<String>,
    pub dataset: Option<Uuid>,
    pub job: Option<Uuid>,
    pub key: Option<KeyId>,
    pub sha256: Option<String>,
    pub lifetime: Option<TimeDelta>,
}

/// Which files, in which order.
#[derive(Debug, Clone)]
pub struct FileList {
    pub purpose: Option<String>,
    pub oldest_first: bool,
    /// After the file of this time and id.
    pub after: Option<(DateTime<Utc>, Uuid)>,
    pub limit: i64,
}

impl From<FileRow> for FileObject {
    fn from(row: FileRow) -> Self {
        Self {
            id: ids::show(ids::FILE, row.id),
            object: "file",
            bytes: unsigned(row.size),
            created_at: row.created_at.timestamp(),
            expires_at: row.expires_at.map(|at| at.timestamp()),
            filename: row.filename,
            purpose: row.purpose.0,
            status: row.status.0,
            status_details: row.status_details,
        }
    }
}

/// Files that are there: not deleted, not expired, and their datasets not deleted either.
#[diesel::dsl::auto_type]
fn live() -> _ {
    let dataset = datasets::table.on(files::dataset_id.eq(datasets::id.nullable()));
    let unexpired = files::expires_at.is_null().or(files::expires_at.gt(diesel::dsl::now).assume_not_null());
    files::table
        .left_join(dataset)
        .filter(files::deleted_at.is_null())
        .filter(datasets::deleted_at.is_null())
        .filter(unexpired)
}

impl FileRow {
    /// Inserts a file; none when its id is taken.
    pub async fn insert(conn: &mut Conn, new: NewFile) -> Result<Option<Self>> {
        let status = if new.error.is_some() { FileStatus::Error } else { FileStatus::Processed };
        let values = (
            files::id.eq(new.id),
            files::user_id.eq(new.user.0),
            files::filename.eq(new.filename),
            files::purpose.eq(Name(new.purpose)),
            files::size.eq(signed(new.size)),
            files::status.eq(Name(status)),
            files::status_details.eq(new.error),
            files::dataset_id.eq(new.dataset),
            files::job_id.eq(new.job),
            files::key_id.eq(new.key.map(|k| k.0)),
            files::sha256.eq(new.sha256),
            files::expires_at.eq(new.lifetime.map(|t| Utc::now() + t)),
        );
        let insert = diesel::insert_into(files::table).values(values).on_conflict(files::id).do_nothing();
        Ok(insert.returning(Self::as_returning()).get_result(conn).await.optional()?)
    }

    pub async fn find(conn: &mut Conn, id: Uuid) -> Result<Option<Self>> {
        Ok(live().filter(files::id.eq(id)).select(Self::as_select()).first(conn).await.optional()?)
    }

    /// One row more than the limit when there are more.
    pub async fn list(conn: &mut Conn, list: FileList) -> Result<Vec<Self>> {
        let mut rows = live().select(Self::as_select()).limit(list.limit + 1).into_boxed();
        if let Some(purpose) = list.purpose {
            rows = rows.filter(files::purpose.eq(purpose));
        }
        if let Some((at, id)) = list.after {
            let same = files::created_at.eq(at);
            rows = if list.oldest_first {
                rows.filter(files::created_at.ge(at)).filter(files::created_at.gt(at).or(same.and(files::id.gt(id))))
            } else {
                rows.filter(files::created_at.le(at)).filter(files::created_at.lt(at).or(same.and(files::id.lt(id))))
            };
        }
        let rows = if list.oldest_first {
            rows.order((files::created_at, files::id))
        } else {
            rows.order((files::created_at.desc(), files::id.desc()))
        };
        Ok(rows.load(conn).await?)
    }

    /// The file that the same key made of the same content within the last minute.
    pub async fn twin(conn: &mut Conn, key: Option<KeyId>, sha256: &str, filename: &str) -> Result<Option<Self>> {
        let recent = files::created_at.gt(Utc::now() - TimeDelta::seconds(60));
        let same =
            live().filter(files::key_id.is_not_distinct_from(key.map(|k| k.0))).filter(files::filename.eq(filename));
        let same = same.filter(files::sha256.assume_not_null().eq(sha256)).filter(recent);
        let newest = same.order(files::created_at.desc()).select(Self::as_select());
        Ok(newest.first(conn).await.optional()?)
    }

    /// Hides the file.
    pub async fn delete(conn: &mut Conn, id: Uuid) -> Result<()> {
        let this = files::table.filter(files::id.eq(id)).filter(files::deleted_at.is_null());
        diesel::update(this).set(files::deleted_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }

    /// Files whose time is over and that were not deleted yet, of every tenant.
    pub async fn expired(conn: &mut Conn) -> Result<Vec<Self>> {
        let over = files::expires_at.lt(diesel::dsl::now).assume_not_null();
        let rows = files::table.filter(files::deleted_at.is_null()).filter(over);
        Ok(rows.select(Self::as_select()).limit(100).load(conn).await?)
    }

    #[must_use]
    pub const fn owner(&self) -> UserId {
        UserId(self.user_id)
    }
}
