//! What jobs made: a row for each result whose files were verified.

use super::{
    Json, Name,
    page::{PageQuery, Sort},
    signed, unsigned,
};
use crate::{
    db::Conn,
    error::{Error, Result},
    schema::{model_artifacts as artifacts, training_jobs as jobs},
};
use chrono::{DateTime, Utc};
use diesel::{
    dsl::{not, sql},
    prelude::*,
    sql_types::Bool,
};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;
use wire::{
    TrainingConfig,
    artifact::{ArtifactKind, ModelArtifactView},
    ids::{ArtifactId, JobId, UserId},
    layout,
    model::ModelFile,
    problem::Code,
    storage::FileRef,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = artifacts, check_for_backend(diesel::pg::Pg))]
pub struct Artifact {
    pub id: Uuid,
    pub job_id: Uuid,
    pub attempt: i32,
    pub name: String,
    pub kind: Name<ArtifactKind>,
    pub base_model: String,
    pub base_revision: String,
    pub storage_path: String,
    pub files: Json<Vec<ModelFile>>,
    pub size: i64,
    pub metrics: Json<Value>,
    pub created_at: DateTime<Utc>,
}

impl From<Artifact> for ModelArtifactView {
    fn from(row: Artifact) -> Self {
        Self {
            id: ArtifactId(row.id),
            job_id: JobId(row.job_id),
            attempt: u32::try_from(row.attempt).unwrap_or_default(),
            name: row.name,
            kind: row.kind.0,
            base_model: row.base_model,
            base_revision: row.base_revision,
            size: unsigned(row.size),
            metrics: row.metrics.0,
            created_at: row.created_at,
            files: None,
        }
    }
}

impl Artifact {
    /// Notes what an attempt made, once. `files` are verified and lie below the attempt's artifacts.
    pub async fn record(conn: &mut Conn, user: UserId, job: JobId, attempt: i32, files: &[FileRef]) -> Result<()> {
        let number = u32::try_from(attempt).map_err(Error::defect)?;
        let prefix = format!("{}{}", layout::attempt_prefix(user, job, number), layout::ARTIFACTS);
        let row = jobs::table.find(job.0).select((
            jobs::name,
            jobs::config,
            jobs::model_name,
            jobs::model_revision,
            jobs::progress,
        ));
        let (name, Json(config), model, revision, metrics): (
            String,
            Json<TrainingConfig>,
            String,
            String,
            Json<Value>,
        ) = row.first(conn).await?;
        let kind = if config.trains_adapter() { ArtifactKind::Adapter } else { ArtifactKind::Model };
        let below = |f: &FileRef| ModelFile {
            path: f.key.strip_prefix(&prefix).unwrap_or(&f.key).to_owned(),
            size: f.size,
            sha256: f.sha256.clone(),
        };
        let stored: Vec<ModelFile> = files.iter().map(below).collect();
        let values = (
            artifacts::id.eq(ArtifactId::random().0),
            artifacts::user_id.eq(user.0),
            artifacts::job_id.eq(job.0),
            artifacts::attempt.eq(attempt),
            artifacts::name.eq(name),
            artifacts::kind.eq(Name(kind)),
            artifacts::base_model.eq(model),
            artifacts::base_revision.eq(revision),
            artifacts::storage_path.eq(prefix),
            artifacts::size.eq(signed(files.iter().map(|f| f.size).sum())),
            artifacts::files.eq(Json(stored)),
            artifacts::metrics.eq(metrics),
        );
        diesel::insert_into(artifacts::table).values(values).on_conflict_do_nothing().execute(conn).await?;
        Ok(())
    }

    pub async fn find(conn: &mut Conn, id: ArtifactId) -> Result<Self> {
        let live = artifacts::table.filter(artifacts::id.eq(id.0)).filter(artifacts::deleted_at.is_null());
        let row = live.select(Self::as_select()).first(conn).await.optional()?;
        row.ok_or_else(|| Error::refused(Code::NotFound, format!("no artifact {id}; `GET /api/artifacts` lists yours")))
    }

    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery, job: Option<JobId>) -> Result<Vec<Self>> {
        let mut rows = artifacts::table.filter(artifacts::deleted_at.is_null()).into_boxed();
        if let Some(job) = job {
            rows = rows.filter(artifacts::job_id.eq(job.0));
        }
        super::page::sorted!(rows, artifacts, query, Sort::Newest);
        Ok(rows.select(Self::as_select()).limit(query.limit()? + 1).load(conn).await?)
    }

    /// Hides it; its objects go when nothing needs them any more, see [`Self::unneeded`].
    pub async fn soft_delete(conn: &mut Conn, id: ArtifactId) -> Result<()> {
        let live = artifacts::table.filter(artifacts::id.eq(id.0)).filter(artifacts::deleted_at.is_null());
        diesel::update(live).set(artifacts::deleted_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }

    /// Artifacts deleted before `before` whose objects are still there, but for those that an unfinished job continues
    /// from, that a draft or published version names, or whose objects are another artifact's too.
    pub async fn unneeded(conn: &mut Conn, before: DateTime<Utc>) -> Result<Vec<Self>> {
        let needed = sql::<Bool>(
            "EXISTS (SELECT FROM training_jobs j WHERE j.spec #>> '{adapter,job_id}' = model_artifacts.job_id::text
                 AND j.state NOT IN ('succeeded', 'failed', 'cancelled') AND j.deleted_at IS NULL)
             OR EXISTS (SELECT FROM training_package_versions v
                 WHERE v.config_snapshot @> jsonb_build_object('lora', jsonb_build_object('init_from', model_artifacts.job_id::text))
                 AND v.status <> 'archived')
             OR EXISTS (SELECT FROM model_artifacts o WHERE o.storage_path = model_artifacts.storage_path
                 AND o.id <> model_artifacts.id AND o.deleted_at IS NULL)",
        );
        let deleted = artifacts::table.filter(artifacts::deleted_at.lt(before)).filter(artifacts::purged_at.is_null());
        let rows = deleted.filter(not(needed)).order(artifacts::deleted_at).limit(100);
        Ok(rows.select(Self::as_select()).load(conn).await?)
    }

    /// Its objects are gone.
    pub async fn purged(conn: &mut Conn, id: Uuid) -> Result<()> {
        diesel::update(artifacts::table.find(id)).set(artifacts::purged_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }

    /// Whether what a job made was deleted.
    pub async fn is_deleted(conn: &mut Conn, job: JobId) -> Result<bool> {
        let gone = artifacts::table.filter(artifacts::job_id.eq(job.0)).filter(artifacts::deleted_at.is_not_null());
        Ok(diesel::select(diesel::dsl::exists(gone)).get_result(conn).await?)
    }

    /// Where the files are.
    #[must_use]
    pub fn file_refs(&self) -> Vec<FileRef> {
        let key = |f: &ModelFile| format!("{}{}", self.storage_path, f.path);
        let reference = |f: &ModelFile| FileRef { key: key(f), size: f.size, sha256: f.sha256.clone() };
        self.files.0.iter().map(reference).collect()
    }
}
