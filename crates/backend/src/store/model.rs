//! The registry of base models. A revision is named by its content, so everyone may read every model; only
//! the one who brings it writes its row, except that uploads of the same content may be continued by others
//! (through a system transaction).

use super::{Json, Name, page::PageQuery, signed, unsigned};
use crate::{db::Conn, error::Result, schema::models};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::{
    ids::UserId,
    layout,
    model::{ModelFile, ModelInfo, ModelStatus, ModelView},
    problem::Problem,
};

/// A model file on its way to storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingUpload {
    pub path: String,
    /// Upload session at the gateway.
    pub session: String,
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = models, check_for_backend(diesel::pg::Pg))]
pub struct Model {
    pub name: String,
    pub revision: String,
    pub user_id: Uuid,
    pub status: Name<ModelStatus>,
    pub size: i64,
    pub files: Json<Vec<ModelFile>>,
    pub uploads: Json<Vec<PendingUpload>>,
    pub info: Option<Json<ModelInfo>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Model> for ModelView {
    fn from(row: Model) -> Self {
        Self {
            name: row.name,
            revision: row.revision,
            status: row.status.0,
            size: unsigned(row.size),
            files: row.files.0,
            info: row.info.map(|i| i.0),
            created_at: row.created_at,
        }
    }
}

impl Model {
    #[must_use]
    pub fn prefix(&self) -> String {
        layout::model_prefix(&self.name, &self.revision)
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status.0 == ModelStatus::Ready
    }

    /// The row of this revision, made in status `uploading` when it is missing.
    pub async fn ensure(
        conn: &mut Conn,
        user: UserId,
        name: &str,
        revision: &str,
        files: &[ModelFile],
    ) -> Result<Self> {
        let size = files.iter().map(|f| f.size).sum();
        let values = (
            models::name.eq(name),
            models::revision.eq(revision),
            models::user_id.eq(user.0),
            models::status.eq(Name(ModelStatus::Uploading)),
            models::size.eq(signed(size)),
            models::files.eq(Json(files.to_vec())),
        );
        let insert = diesel::insert_into(models::table).values(values);
        insert.on_conflict((models::name, models::revision)).do_nothing().execute(conn).await?;
        Ok(models::table.find((name, revision)).select(Self::as_select()).first(conn).await?)
    }

    /// The newest ready revision, or the one that is asked for; a problem with near names otherwise.
    pub async fn find(conn: &mut Conn, name: &str, revision: Option<&str>) -> Result<Self> {
        let ready = models::table.filter(models::status.eq(Name(ModelStatus::Ready)));
        let mut named = ready.filter(models::name.eq(name)).into_boxed();
        if let Some(revision) = revision {
            named = named.filter(models::revision.eq(revision));
        }
        let newest = named.order((models::created_at.desc(), models::revision.desc()));
        if let Some(row) = newest.select(Self::as_select()).first(conn).await.optional()? {
            return Ok(row);
        }
        let revisions = ready.filter(models::name.eq(name)).select(models::revision).limit(1000);
        let revisions: Vec<String> = revisions.load(conn).await?;
        if let Some(revision) = revision.filter(|_| !revisions.is_empty()) {
            return Err(unknown_revision(name, revision, &revisions));
        }
        let names: Vec<String> = ready.select(models::name).distinct().limit(1000).load(conn).await?;
        Err(Problem::not_found("model", name, names.iter().map(String::as_str)).into())
    }

    /// This revision in any status.
    pub async fn find_any(conn: &mut Conn, name: &str, revision: &str) -> Result<Self> {
        let row = models::table.find((name, revision)).select(Self::as_select()).first(conn).await.optional()?;
        if let Some(row) = row {
            return Ok(row);
        }
        let known: Vec<String> =
            models::table.filter(models::name.eq(name)).select(models::revision).limit(1000).load(conn).await?;
        Err(unknown_revision(name, revision, &known))
    }

    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery) -> Result<Vec<Self>> {
        let mut rows = models::table.filter(models::status.eq(Name(ModelStatus::Ready))).into_boxed();
        if let Some((at, key)) = query.after::<String>()? {
            let (name, revision) = key.split_once('@').unwrap_or((&key, ""));
            let (name, revision) = (name.to_owned(), revision.to_owned());
            let same_name = models::name.eq(name.clone()).and(models::revision.lt(revision));
            let same_time = models::created_at.eq(at).and(models::name.lt(name).or(same_name));
            rows = rows.filter(models::created_at.le(at)).filter(models::created_at.lt(at).or(same_time));
        }
        let order = (models::created_at.desc(), models::name.desc(), models::revision.desc());
        Ok(rows.order(order).limit(query.limit()? + 1).select(Self::as_select()).load(conn).await?)
    }

    pub async fn set_uploads(&self, conn: &mut Conn, uploads: Vec<PendingUpload>) -> Result<()> {
        let this = models::table.find((&self.name, &self.revision));
        diesel::update(this).set(models::uploads.eq(Json(uploads))).execute(conn).await?;
        Ok(())
    }

    /// The row after it became ready; the same when another request was faster.
    pub async fn set_ready(&self, conn: &mut Conn, info: &ModelInfo) -> Result<Self> {
        let set = (
            models::status.eq(Name(ModelStatus::Ready)),
            models::info.eq(Json(info.clone())),
            models::uploads.eq(Json(Vec::<PendingUpload>::new())),
        );
        let this = models::table.find((&self.name, &self.revision));
        Ok(diesel::update(this).set(set).returning(Self::as_returning()).get_result(conn).await?)
    }

    /// Forgets a revision that never became ready.
    pub async fn delete_unfinished(&self, conn: &mut Conn) -> Result<()> {
        let this = models::table
            .filter(models::name.eq(&self.name))
            .filter(models::revision.eq(&self.revision))
            .filter(models::status.eq(Name(ModelStatus::Uploading)));
        diesel::delete(this).execute(conn).await?;
        Ok(())
    }

    /// Uploads without a sign of life since `before`.
    pub async fn stale(conn: &mut Conn, before: DateTime<Utc>) -> Result<Vec<Self>> {
        let rows =
            models::table.filter(models::status.eq(Name(ModelStatus::Uploading))).filter(models::updated_at.lt(before));
        Ok(rows.select(Self::as_select()).limit(100).load(conn).await?)
    }
}

fn unknown_revision(name: &str, revision: &str, known: &[String]) -> crate::Error {
    Problem::not_found(&format!("revision of {name}"), revision, known.iter().map(String::as_str)).into()
}
