//! What `/v1` knows about a job beyond the job itself.

use super::method::Method;
use crate::{
    db::Conn,
    error::Result,
    openai::list::Metadata,
    schema::{metrics_points, openai_files, openai_jobs as extras, training_jobs as jobs},
    store::{Job, Json},
};
use chrono::{DateTime, Utc};
use diesel::{
    dsl::sql,
    prelude::*,
    sql_types::{Bool, Jsonb},
};
use diesel_async::RunQueryDsl;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;
use wire::{
    event::metric::TOKENS_SEEN,
    ids::{JobId, UserId},
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = extras, check_for_backend(diesel::pg::Pg))]
pub struct Extra {
    pub model: String,
    pub fine_tuned_model: String,
    pub method: Json<Method>,
    pub seed: i64,
    pub metadata: Option<Json<BTreeMap<String, String>>>,
    pub model_deleted_at: Option<DateTime<Utc>>,
}

/// A fine-tuning job.
#[derive(Debug, Clone)]
pub struct Record {
    pub job: Job,
    pub extra: Extra,
    /// The dataset, and so the file, with the held-out rows.
    pub validation: Option<Uuid>,
}

type Columns = (Job, Extra, Option<Uuid>);

impl From<Columns> for Record {
    fn from((job, extra, validation): Columns) -> Self {
        Self { job, extra, validation }
    }
}

#[diesel::dsl::auto_type]
fn all() -> _ {
    extras::table.inner_join(jobs::table.on(jobs::id.eq(extras::job_id))).filter(jobs::deleted_at.is_null())
}

impl Record {
    pub async fn find(conn: &mut Conn, job: Uuid) -> Result<Option<Self>> {
        let this = all().filter(extras::job_id.eq(job));
        let columns = (Job::as_select(), Extra::as_select(), jobs::validation_dataset_id);
        let row: Option<Columns> = this.select(columns).first(conn).await.optional()?;
        Ok(row.map(Self::from))
    }

    /// The job whose result has this name.
    pub async fn find_by_model(conn: &mut Conn, name: &str) -> Result<Option<Self>> {
        let this = all().filter(extras::fine_tuned_model.eq(name));
        let columns = (Job::as_select(), Extra::as_select(), jobs::validation_dataset_id);
        let row: Option<Columns> = this.select(columns).first(conn).await.optional()?;
        Ok(row.map(Self::from))
    }

    /// Newest first, after the job of this time and id; one row more than the limit when there are more.
    pub async fn list(
        conn: &mut Conn,
        after: Option<(DateTime<Utc>, Uuid)>,
        metadata: Option<Metadata>,
        limit: i64,
    ) -> Result<Vec<Self>> {
        let columns = (Job::as_select(), Extra::as_select(), jobs::validation_dataset_id);
        let mut rows = all().select(columns).into_boxed();
        match metadata {
            None => {}
            Some(Metadata::None) => rows = rows.filter(extras::metadata.is_null()),
            Some(Metadata::Some(pairs)) => {
                let contains = sql::<Bool>("openai_jobs.metadata @> ").bind::<Jsonb, _>(Json(pairs));
                rows = rows.filter(contains);
            }
        }
        if let Some((at, id)) = after {
            let same = extras::created_at.eq(at).and(extras::job_id.lt(id));
            rows = rows.filter(extras::created_at.le(at)).filter(extras::created_at.lt(at).or(same));
        }
        let rows = rows.order((extras::created_at.desc(), extras::job_id.desc())).limit(limit + 1);
        let rows: Vec<Columns> = rows.load(conn).await?;
        Ok(rows.into_iter().map(Self::from).collect())
    }

    /// Where a job stands in the list.
    pub async fn position(conn: &mut Conn, job: Uuid) -> Result<Option<(DateTime<Utc>, Uuid)>> {
        let row = extras::table.find(job).select((extras::created_at, extras::job_id));
        Ok(row.first(conn).await.optional()?)
    }
}

/// What a new job is remembered by.
#[derive(Debug, Clone)]
pub struct NewExtra {
    pub job: JobId,
    pub user: UserId,
    pub model: String,
    pub fine_tuned_model: String,
    pub method: Method,
    pub seed: u32,
    pub metadata: Option<BTreeMap<String, String>>,
}

impl NewExtra {
    pub async fn insert(self, conn: &mut Conn) -> Result<()> {
        let values = (
            extras::job_id.eq(self.job.0),
            extras::user_id.eq(self.user.0),
            extras::model.eq(self.model),
            extras::fine_tuned_model.eq(self.fine_tuned_model),
            extras::method.eq(Json(self.method)),
            extras::seed.eq(i64::from(self.seed)),
            extras::metadata.eq(self.metadata.map(Json)),
        );
        diesel::insert_into(extras::table).values(values).execute(conn).await?;
        Ok(())
    }
}

/// Those of `jobs` whose result file is there.
pub async fn with_results(conn: &mut Conn, jobs: &[Uuid]) -> Result<BTreeSet<Uuid>> {
    let rows = openai_files::table.filter(openai_files::id.eq_any(jobs)).filter(openai_files::deleted_at.is_null());
    let ids: Vec<Uuid> = rows.select(openai_files::id).load(conn).await?;
    Ok(ids.into_iter().collect())
}

/// Tokens each of `jobs` has trained on.
pub async fn trained_tokens(conn: &mut Conn, jobs: &[Uuid]) -> Result<BTreeMap<Uuid, f64>> {
    use metrics_points as m;
    let rows = m::table
        .filter(m::job_id.eq_any(jobs))
        .filter(m::name.eq(TOKENS_SEEN))
        .distinct_on(m::job_id)
        .order((m::job_id, m::attempt.desc(), m::step.desc()))
        .select((m::job_id, m::value));
    Ok(rows.load(conn).await?.into_iter().collect())
}
