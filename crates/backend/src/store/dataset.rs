//! Datasets.

use super::{Json, Name, page::PageQuery, signed, unsigned};
use crate::{audit, db::Conn, error::Result, schema::datasets};
use chrono::{DateTime, Utc};
use diesel::{
    dsl::{count_star, not, sql},
    prelude::*,
    sql_types::{BigInt, Bool},
};
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::{
    dataset::{
        DatasetFile, DatasetFormat, DatasetOrigin, DatasetStatistics, DatasetStatus, DatasetView, FileStatistics, Split,
    },
    ids::{DatasetId, UserId},
    layout,
    problem::Problem,
    storage::ObjectInfo,
};

/// A file on its way straight to storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingFile {
    pub split: Split,
    /// Upload session at the gateway.
    pub session: String,
    pub key: String,
    pub size: u64,
    pub sha256: Option<String>,
    /// Set once the gateway completed the session.
    pub stored: Option<ObjectInfo>,
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = datasets, check_for_backend(diesel::pg::Pg))]
pub struct Dataset {
    pub id: Uuid,
    pub user_id: Uuid,
    pub name: String,
    pub status: Name<DatasetStatus>,
    pub format: Option<Name<DatasetFormat>>,
    pub files: Json<Vec<DatasetFile>>,
    pub uploads: Json<Vec<PendingFile>>,
    pub row_count: i64,
    pub size: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub deleted_at: Option<DateTime<Utc>>,
    pub description: String,
    pub origin: Option<Json<DatasetOrigin>>,
}

impl From<Dataset> for DatasetView {
    fn from(row: Dataset) -> Self {
        Self {
            id: DatasetId(row.id),
            name: row.name,
            description: row.description,
            status: row.status.0,
            format: row.format.map(|f| f.0),
            files: row.files.0,
            rows: unsigned(row.row_count),
            size: unsigned(row.size),
            origin: row.origin.map(|o| o.0),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

impl From<Dataset> for DatasetStatistics {
    fn from(row: Dataset) -> Self {
        let file = |f: DatasetFile| FileStatistics {
            split: f.split,
            rows: f.report.rows,
            size: f.size,
            duplicates: f.report.duplicates,
            statistics: f.report.statistics,
            tokens: f.report.tokens,
        };
        let duplicates = row.files.0.iter().map(|f| f.report.duplicates).sum();
        let files = row.files.0.into_iter().map(file).collect();
        Self { rows: unsigned(row.row_count), size: unsigned(row.size), duplicates, files }
    }
}

impl Dataset {
    #[must_use]
    pub const fn id(&self) -> DatasetId {
        DatasetId(self.id)
    }

    #[must_use]
    pub const fn owner(&self) -> UserId {
        UserId(self.user_id)
    }

    #[must_use]
    pub fn prefix(&self) -> String {
        layout::dataset_prefix(self.owner(), self.id())
    }

    /// A stored file. A refused dataset has reports of files that are gone.
    #[must_use]
    pub fn file(&self, split: Split) -> Option<&DatasetFile> {
        let stored = self.status.0 == DatasetStatus::Ready;
        self.files.0.iter().filter(|_| stored).find(|f| f.split == split)
    }

    /// A new dataset without files, in status `uploading`.
    pub async fn insert(conn: &mut Conn, user: UserId, id: DatasetId, name: &str) -> Result<Self> {
        let values = (
            datasets::id.eq(id.0),
            datasets::user_id.eq(user.0),
            datasets::name.eq(name),
            datasets::status.eq(Name(DatasetStatus::Uploading)),
            datasets::storage_path.eq(layout::dataset_prefix(user, id)),
        );
        let insert = diesel::insert_into(datasets::table).values(values);
        audit::about(id);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    /// Notes what it is made of.
    pub async fn set_origin(conn: &mut Conn, id: DatasetId, origin: DatasetOrigin) -> Result<()> {
        let set = (datasets::parent_id.eq(origin.dataset_id.0), datasets::origin.eq(Json(origin)));
        diesel::update(datasets::table.find(id.0)).set(set).execute(conn).await?;
        Ok(())
    }

    /// How many datasets the tenant has, and their bytes.
    pub async fn total(conn: &mut Conn) -> Result<(u64, u64)> {
        let live = datasets::table.filter(datasets::deleted_at.is_null());
        let (count, bytes): (i64, i64) =
            live.select((count_star(), sql::<BigInt>("coalesce(sum(size), 0)::bigint"))).first(conn).await?;
        Ok((unsigned(count), unsigned(bytes)))
    }

    /// Changes what is given.
    pub async fn rename(
        conn: &mut Conn,
        id: DatasetId,
        name: Option<String>,
        description: Option<String>,
    ) -> Result<Self> {
        if let Some(name) = name {
            diesel::update(datasets::table.find(id.0)).set(datasets::name.eq(name)).execute(conn).await?;
        }
        if let Some(text) = description {
            diesel::update(datasets::table.find(id.0)).set(datasets::description.eq(text)).execute(conn).await?;
        }
        Ok(datasets::table.find(id.0).select(Self::as_select()).first(conn).await?)
    }

    pub async fn find_by_name(conn: &mut Conn, name: &str) -> Result<Option<Self>> {
        let named = datasets::table.filter(datasets::name.eq(name)).filter(datasets::deleted_at.is_null());
        Ok(named.select(Self::as_select()).first(conn).await.optional()?)
    }

    /// By id, else by name; a problem with near names otherwise.
    pub async fn find(conn: &mut Conn, id_or_name: &str) -> Result<Self> {
        if let Ok(id) = id_or_name.parse::<Uuid>() {
            let this = datasets::table.filter(datasets::id.eq(id)).filter(datasets::deleted_at.is_null());
            if let Some(row) = this.select(Self::as_select()).first(conn).await.optional()? {
                return Ok(row);
            }
        }
        if let Some(row) = Self::find_by_name(conn, id_or_name).await? {
            return Ok(row);
        }
        let live = datasets::table.filter(datasets::deleted_at.is_null());
        let names: Vec<String> = live.select(datasets::name).order(datasets::name).limit(1000).load(conn).await?;
        Err(Problem::not_found("dataset", id_or_name, names.iter().map(String::as_str)).into())
    }

    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery) -> Result<Vec<Self>> {
        let mut rows = datasets::table.filter(datasets::deleted_at.is_null()).into_boxed();
        if let Some((at, id)) = query.after::<Uuid>()? {
            rows = rows.filter(datasets::created_at.le(at).and(datasets::created_at.lt(at).or(datasets::id.lt(id))));
        }
        let rows = rows.order((datasets::created_at.desc(), datasets::id.desc())).limit(query.limit()? + 1);
        Ok(rows.select(Self::as_select()).load(conn).await?)
    }

    pub async fn set_uploads(conn: &mut Conn, id: DatasetId, uploads: Vec<PendingFile>) -> Result<()> {
        let size = uploads.iter().map(|u| u.size).sum();
        let set = (datasets::uploads.eq(Json(uploads)), datasets::size.eq(signed(size)));
        diesel::update(datasets::table.find(id.0)).set(set).execute(conn).await?;
        Ok(())
    }

    /// Tells the sweeper that the upload is alive.
    pub async fn touch(conn: &mut Conn, id: DatasetId) -> Result<()> {
        diesel::update(datasets::table.find(id.0)).set(datasets::updated_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }

    /// Moves from `from` to `to`; false when the dataset is in another status (or gone).
    pub async fn advance(conn: &mut Conn, id: DatasetId, from: DatasetStatus, to: DatasetStatus) -> Result<bool> {
        let guarded = datasets::table
            .filter(datasets::id.eq(id.0))
            .filter(datasets::status.eq(Name(from)))
            .filter(datasets::deleted_at.is_null());
        Ok(diesel::update(guarded).set(datasets::status.eq(Name(to))).execute(conn).await? == 1)
    }

    /// Back to `uploading` when whoever validates has given no sign of life since `deadline`.
    pub async fn reset_validation(conn: &mut Conn, id: DatasetId, deadline: DateTime<Utc>) -> Result<bool> {
        let dead = datasets::table
            .filter(datasets::id.eq(id.0))
            .filter(datasets::status.eq(Name(DatasetStatus::Validating)))
            .filter(datasets::updated_at.lt(deadline));
        let set = datasets::status.eq(Name(DatasetStatus::Uploading));
        Ok(diesel::update(dead).set(set).execute(conn).await? == 1)
    }

    /// Stores the validated files; none when the dataset was deleted in the meantime.
    pub async fn set_ready(conn: &mut Conn, id: DatasetId, files: Vec<DatasetFile>) -> Result<Option<Self>> {
        let guarded = datasets::table
            .filter(datasets::id.eq(id.0))
            .filter(datasets::status.eq(Name(DatasetStatus::Validating)))
            .filter(datasets::deleted_at.is_null());
        let (rows, size) = files.iter().fold((0, 0), |(r, s), f| (r + f.report.rows, s + f.size));
        let rows_of = |split| signed(files.iter().filter(|f| f.split == split).map(|f| f.report.rows).sum());
        let tokens = files.iter().map(|f| f.report.tokens.as_ref().map(|t| t.total)).sum::<Option<u64>>();
        let set = (
            datasets::status.eq(Name(DatasetStatus::Ready)),
            datasets::format.eq(files.as_slice().first().map(|f| Name(f.report.format))),
            datasets::row_count.eq(signed(rows)),
            datasets::train_rows.eq(rows_of(Split::Train)),
            datasets::validation_rows.eq(rows_of(Split::Validation)),
            datasets::duplicate_rows.eq(signed(files.iter().map(|f| f.report.duplicates).sum())),
            datasets::token_count.eq(tokens.map(signed)),
            datasets::validated_at.eq(Utc::now()),
            datasets::size.eq(signed(size)),
            datasets::files.eq(Json(files)),
            datasets::uploads.eq(Json(Vec::<PendingFile>::new())),
        );
        let update = diesel::update(guarded).set(set).returning(Self::as_returning());
        Ok(update.get_result(conn).await.optional()?)
    }

    /// Stores why the files cannot be used; false when the dataset was deleted in the meantime.
    pub async fn set_invalid(conn: &mut Conn, id: DatasetId, files: Vec<DatasetFile>) -> Result<bool> {
        let guarded = datasets::table
            .filter(datasets::id.eq(id.0))
            .filter(datasets::status.eq(Name(DatasetStatus::Validating)))
            .filter(datasets::deleted_at.is_null());
        let set = (
            datasets::status.eq(Name(DatasetStatus::Invalid)),
            datasets::format.eq(files.as_slice().first().map(|f| Name(f.report.format))),
            datasets::validated_at.eq(Utc::now()),
            // Nothing of it stays in storage.
            datasets::size.eq(0),
            datasets::files.eq(Json(files)),
        );
        Ok(diesel::update(guarded).set(set).execute(conn).await? == 1)
    }

    /// Hides a refused dataset. Its row goes at once when nothing of it is in storage any more, else with its objects.
    pub async fn forget(conn: &mut Conn, id: DatasetId) -> Result<()> {
        let clean = datasets::table
            .filter(datasets::id.eq(id.0))
            .filter(datasets::status.eq(Name(DatasetStatus::Invalid)))
            .filter(datasets::purged_at.is_not_null());
        if diesel::delete(clean).execute(conn).await? == 0 {
            Self::soft_delete(conn, id).await?;
        }
        Ok(())
    }

    /// Forgets the reports of a month ago.
    pub async fn forget_old(conn: &mut Conn) -> Result<()> {
        let old = "DELETE FROM datasets
            WHERE status = 'invalid' AND purged_at IS NOT NULL AND validated_at < now() - interval '30 days'";
        diesel::sql_query(old).execute(conn).await?;
        Ok(())
    }

    /// Hides the dataset; its objects go when [`Dataset::purged`] is reached.
    pub async fn soft_delete(conn: &mut Conn, id: DatasetId) -> Result<()> {
        let live = datasets::table.filter(datasets::id.eq(id.0)).filter(datasets::deleted_at.is_null());
        diesel::update(live).set(datasets::deleted_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }

    /// The objects of a deleted or refused dataset are gone. What never became a dataset leaves no row either, once it
    /// is deleted.
    pub async fn purged(conn: &mut Conn, id: DatasetId) -> Result<()> {
        let this = datasets::table.filter(datasets::id.eq(id.0));
        let unborn =
            this.filter(datasets::deleted_at.is_not_null()).filter(datasets::status.ne(Name(DatasetStatus::Ready)));
        if diesel::delete(unborn).execute(conn).await? == 0 {
            let invalid = datasets::status.eq(Name(DatasetStatus::Invalid));
            let gone = this.filter(datasets::deleted_at.is_not_null().or(invalid));
            let set = (datasets::purged_at.eq(Utc::now()), datasets::uploads.eq(Json(Vec::<PendingFile>::new())));
            diesel::update(gone).set(set).execute(conn).await?;
        }
        Ok(())
    }

    /// Deleted datasets whose objects are still there and no unfinished job needs, refused ones whose objects are still
    /// there, and uploads without a sign of life since `streams_before` (through the backend) or `sessions_before` (straight to storage).
    pub async fn stale(
        conn: &mut Conn,
        streams_before: DateTime<Utc>,
        sessions_before: DateTime<Utc>,
    ) -> Result<Vec<Self>> {
        let streamed = datasets::uploads.eq(Json(Vec::<PendingFile>::new()));
        let dead = datasets::updated_at.lt(sessions_before).or(datasets::updated_at.lt(streams_before).and(streamed));
        let on_the_way = [DatasetStatus::Uploading, DatasetStatus::Validating].map(Name);
        let unfinished = datasets::deleted_at.is_null().and(datasets::status.eq_any(on_the_way)).and(dead);
        let invalid = datasets::status.eq(Name(DatasetStatus::Invalid));
        let refused = datasets::deleted_at.is_null().and(invalid).and(datasets::updated_at.lt(streams_before));
        // A request that deletes purges by itself; the sweeper only takes over when it did not get there.
        let needed = sql::<Bool>(
            "EXISTS (SELECT FROM training_jobs j WHERE datasets.id IN (j.dataset_id, j.validation_dataset_id)
                 AND j.state NOT IN ('succeeded', 'failed', 'cancelled') AND j.deleted_at IS NULL)",
        );
        let deleted = datasets::deleted_at.lt(streams_before).assume_not_null().and(not(needed));
        let rows = datasets::table.filter(datasets::purged_at.is_null()).filter(unfinished.or(refused).or(deleted));
        Ok(rows.select(Self::as_select()).limit(100).load(conn).await?)
    }
}
