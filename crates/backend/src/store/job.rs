//! Jobs as the API reads and creates them. Everything that changes a job's state is in `crate::jobs`.

use super::{
    Json,
    columns::{to_float, to_numeric},
    page::PageQuery,
};
use crate::{
    audit,
    costs::Price,
    db::Conn,
    error::{Error, Result},
    schema::{job_attempts, job_events, training_jobs as jobs},
};
use chrono::{DateTime, Utc};
use diesel::{dsl::sql, prelude::*, sql_types};
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::{
    JobState, JobView, TrainingConfig,
    cost::{JobCost, Pause},
    event::{EventKind, StreamBody},
    ids::{DatasetId, JobId, UserId, VersionId},
    job::{AdapterSpec, CheckpointView, DatasetSpec, Failure, ModelSpec, Progress, TrainerKind},
    problem::Code,
    storage::FileRef,
};

/// Model and dataset as they were when the job was created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpecSnapshot {
    pub model: ModelSpec,
    pub dataset: DatasetSpec,
    /// That of `lora.init_from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterSpec>,
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = jobs, check_for_backend(diesel::pg::Pg))]
pub struct Job {
    pub id: Uuid,
    pub name: String,
    pub state: String,
    pub config: Json<TrainingConfig>,
    pub model_name: String,
    pub model_revision: String,
    pub dataset_id: Uuid,
    pub dataset_name: String,
    pub attempt: i32,
    pub max_attempts: i32,
    pub progress: Json<ProgressColumn>,
    pub failure: Option<Json<Failure>>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub last_contact_at: Option<DateTime<Utc>>,
    pub version_id: Option<Uuid>,
    pub framework: String,
    pub gpu_config: Option<String>,
    pub pause: Option<Json<Pause>>,
    #[diesel(select_expression = to_float(jobs::estimated_cost))]
    pub estimated_cost: Option<f64>,
    #[diesel(select_expression = to_float(jobs::actual_cost))]
    pub actual_cost: Option<f64>,
    #[diesel(select_expression = to_float(jobs::budget_limit))]
    pub budget_limit: Option<f64>,
    #[diesel(select_expression = to_float(jobs::price_per_hour.nullable()))]
    pub price_per_hour: Option<f64>,
    pub currency: String,
}

/// `progress` is `{}` until the trainer reports; absent fields take their defaults.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "serde_json::Map<String, serde_json::Value>")]
pub struct ProgressColumn(pub Progress);

impl From<serde_json::Map<String, serde_json::Value>> for ProgressColumn {
    fn from(stored: serde_json::Map<String, serde_json::Value>) -> Self {
        let mut whole = serde_json::to_value(Progress::default()).unwrap_or_default();
        if let Some(fields) = whole.as_object_mut() {
            fields.extend(stored);
        }
        Self(serde_json::from_value(whole).unwrap_or_default())
    }
}

impl TryFrom<Job> for JobView {
    type Error = Error;

    fn try_from(row: Job) -> Result<Self> {
        let count = |value: i32| u32::try_from(value).unwrap_or_default();
        Ok(Self {
            id: JobId(row.id),
            name: row.name,
            state: row.state.parse().map_err(Error::defect)?,
            model: row.model_name,
            model_revision: row.model_revision,
            dataset: row.dataset_name,
            dataset_id: DatasetId(row.dataset_id),
            version_id: row.version_id.map(VersionId),
            config: row.config.0,
            trainer: if row.framework == TrainerKind::External.as_str() {
                TrainerKind::External
            } else {
                TrainerKind::Candle
            },
            attempt: count(row.attempt),
            max_attempts: count(row.max_attempts),
            progress: row.progress.0.0,
            failure: row.failure.map(|f| f.0),
            pause: row.pause.map(|p| p.0),
            gpu_config: row.gpu_config,
            cost: JobCost {
                estimated: row.estimated_cost,
                actual: row.actual_cost,
                budget_limit: row.budget_limit,
                price_per_hour: row.price_per_hour.unwrap_or_default(),
                currency: row.currency,
            },
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            last_contact_at: row.last_contact_at,
        })
    }
}

/// Where a job comes from, and what that says about it.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    pub version: Option<VersionId>,
    pub gpu_config: Option<String>,
    pub budget_limit: Option<f64>,
}

/// What a new job is made of.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub name: String,
    pub config: TrainingConfig,
    pub spec: SpecSnapshot,
    /// Whose rows are held out, when they are not of the training dataset.
    pub validation_dataset: Option<DatasetId>,
    pub max_attempts: i32,
    pub trainer: TrainerKind,
    pub origin: Origin,
    pub price: Price,
}

impl NewJob {
    /// Stores the job in state `validating`; `crate::jobs` moves it on.
    pub async fn insert(self, conn: &mut Conn, user: UserId) -> Result<JobId> {
        let id = JobId::random();
        let values = (
            jobs::id.eq(id.0),
            jobs::user_id.eq(user.0),
            jobs::name.eq(self.name),
            jobs::state.eq(JobState::Validating.as_str()),
            jobs::framework.eq(self.trainer.as_str()),
            jobs::config.eq(Json(self.config)),
            jobs::model_name.eq(self.spec.model.name.clone()),
            jobs::model_revision.eq(self.spec.model.revision.clone()),
            jobs::dataset_id.eq(self.spec.dataset.id.0),
            jobs::dataset_name.eq(self.spec.dataset.name.clone()),
            jobs::spec.eq(Json(self.spec)),
            jobs::validation_dataset_id.eq(self.validation_dataset.map(|d| d.0)),
            jobs::max_attempts.eq(self.max_attempts),
            jobs::version_id.eq(self.origin.version.map(|v| v.0)),
            jobs::gpu_config.eq(self.origin.gpu_config),
            jobs::budget_limit.eq(to_numeric(self.origin.budget_limit)),
            jobs::estimated_cost.eq(to_numeric((self.price.per_hour == 0.0).then_some(0.0))),
            jobs::price_per_hour.eq(to_numeric(Some(self.price.per_hour)).assume_not_null()),
            jobs::currency.eq(self.price.currency),
        );
        diesel::insert_into(jobs::table).values(values).execute(conn).await?;
        audit::about(id);
        Ok(id)
    }
}

/// Names of the terminal states.
fn over() -> Vec<&'static str> {
    JobState::ALL.into_iter().filter(|s| s.is_terminal()).map(JobState::as_str).collect()
}

impl Job {
    pub async fn find(conn: &mut Conn, id: JobId) -> Result<Self> {
        let live = jobs::table.filter(jobs::id.eq(id.0)).filter(jobs::deleted_at.is_null());
        let row = live.select(Self::as_select()).first(conn).await.optional()?;
        row.ok_or_else(|| Error::refused(Code::NotFound, format!("no job {id}; `GET /training/jobs` lists yours")))
    }

    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery, state: Option<JobState>) -> Result<Vec<Self>> {
        let mut rows = jobs::table.filter(jobs::deleted_at.is_null()).into_boxed();
        if let Some(state) = state {
            rows = rows.filter(jobs::state.eq(state.as_str()));
        }
        if let Some((at, id)) = query.after::<Uuid>()? {
            rows = rows.filter(jobs::created_at.le(at).and(jobs::created_at.lt(at).or(jobs::id.lt(id))));
        }
        let rows = rows.order((jobs::created_at.desc(), jobs::id.desc())).limit(query.limit()? + 1);
        Ok(rows.select(Self::as_select()).load(conn).await?)
    }

    /// Sets what a job may cost, unless it is over.
    pub async fn set_budget(conn: &mut Conn, id: JobId, limit: Option<f64>) -> Result<()> {
        if Self::find(conn, id).await?.framework == TrainerKind::External.as_str() {
            let detail = format!("job {id} is trained outside Hone, where it cannot be paused for a budget");
            return Err(Error::refused(Code::Conflict, detail));
        }
        let this = jobs::table.filter(jobs::id.eq(id.0)).filter(jobs::state.ne_all(over()));
        let set = jobs::budget_limit.eq(to_numeric(limit));
        if diesel::update(this).set(set).execute(conn).await? == 0 {
            let job = Self::find(conn, id).await?;
            return Err(Error::refused(Code::Conflict, format!("job {id} is {} and costs nothing more", job.state)));
        }
        Ok(())
    }

    /// How many jobs of the tenant are not over.
    pub async fn unfinished(conn: &mut Conn) -> Result<i64> {
        let rows = jobs::table.filter(jobs::state.ne_all(over())).filter(jobs::deleted_at.is_null());
        Ok(rows.count().get_result(conn).await?)
    }

    /// Checkpoints the trainer reported, in the order of the log.
    pub async fn checkpoints(conn: &mut Conn, id: JobId) -> Result<Vec<CheckpointView>> {
        let is_checkpoint = sql::<sql_types::Bool>("body -> 'event' ->> 'type' = 'checkpoint'");
        let rows: Vec<(i32, Json<StreamBody>, DateTime<Utc>)> = job_events::table
            .filter(job_events::job_id.eq(id.0))
            .filter(is_checkpoint)
            .order(job_events::id)
            .select((job_events::attempt, job_events::body, job_events::created_at))
            .load(conn)
            .await?;
        let view = |(attempt, Json(body), created_at): (i32, Json<StreamBody>, DateTime<Utc>)| match body {
            StreamBody::Event { event } => match event.kind {
                EventKind::Checkpoint { step, prefix, size } => {
                    let attempt = u32::try_from(attempt).unwrap_or_default();
                    Some(CheckpointView { attempt, step, prefix, size, created_at })
                }
                _ => None,
            },
            StreamBody::State { .. } => None,
        };
        Ok(rows.into_iter().filter_map(view).collect())
    }

    /// The newest attempt that left a manifest, with what it holds.
    pub async fn manifest(conn: &mut Conn, id: JobId) -> Result<Option<(u32, Vec<FileRef>)>> {
        let row: Option<(i32, Option<Json<Vec<FileRef>>>)> = job_attempts::table
            .filter(job_attempts::job_id.eq(id.0))
            .filter(job_attempts::manifest.is_not_null())
            .order(job_attempts::attempt.desc())
            .select((job_attempts::attempt, job_attempts::manifest))
            .first(conn)
            .await
            .optional()?;
        Ok(row.and_then(|(attempt, files)| Some((u32::try_from(attempt).ok()?, files?.0))))
    }
}
