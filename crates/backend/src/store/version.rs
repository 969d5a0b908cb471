//! Versions of packages. What may be written is decided by policy and trigger, not here: an UPDATE or DELETE of a
//! version that is published reaches no row.

use super::{
    Json, Name,
    columns::{to_float, to_numeric},
    page::{PageQuery, Sort},
};
use crate::{
    audit,
    db::Conn,
    error::{Error, Result},
    schema::{training_configs as packages, training_package_versions as versions},
};
use chrono::{DateTime, Utc};
use diesel::{prelude::*, sql_types};
use diesel_async::RunQueryDsl;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use uuid::Uuid;
use wire::{
    ids::{PackageId, UserId, VersionId},
    package::{
        CostState, DeployTarget, DeploymentState, Steps, TrainingState, TrainingStatus, VersionRef, VersionStatus,
        VersionView,
    },
    problem::Code,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = versions, check_for_backend(diesel::pg::Pg))]
pub struct Version {
    pub id: Uuid,
    pub package_id: Uuid,
    pub version_number: Option<i32>,
    pub name: String,
    pub status: Name<VersionStatus>,
    pub revision: i32,
    pub created_at: DateTime<Utc>,
    pub created_by: Uuid,
    pub published_at: Option<DateTime<Utc>>,
    pub archived_at: Option<DateTime<Utc>>,
    pub updated_at: DateTime<Utc>,
    pub model_snapshot: Json<Value>,
    pub config_snapshot: Json<Value>,
    pub dataset_snapshot: Json<Value>,
    pub deploy_snapshot: Json<Value>,
    pub change_summary: Option<String>,
    pub parent_version_id: Option<Uuid>,
    pub is_deployed: bool,
    pub deployment_target: Option<Name<DeployTarget>>,
    pub deployment_url: Option<String>,
    pub deployment_id: Option<String>,
    pub training_status: Option<Name<TrainingStatus>>,
    pub training_started_at: Option<DateTime<Utc>>,
    pub training_completed_at: Option<DateTime<Utc>>,
    pub training_metrics: Option<Json<Value>>,
    #[diesel(select_expression = to_float(versions::estimated_cost))]
    pub estimated_cost: Option<f64>,
    #[diesel(select_expression = to_float(versions::actual_cost))]
    pub actual_cost: Option<f64>,
    #[diesel(select_expression = to_float(versions::budget_limit))]
    pub budget_limit: Option<f64>,
}

/// A step that was not taken is an empty object.
fn read<T: DeserializeOwned>(stored: &Json<Value>) -> Result<Option<T>> {
    match &stored.0 {
        Value::Object(fields) if fields.is_empty() => Ok(None),
        value => Ok(Some(serde_json::from_value(value.clone())?)),
    }
}

fn written<T: Serialize>(step: Option<&T>) -> Result<Json<Value>> {
    Ok(Json(step.map(serde_json::to_value).transpose()?.unwrap_or_else(|| json!({}))))
}

impl TryFrom<Version> for VersionView {
    type Error = Error;

    fn try_from(row: Version) -> Result<Self> {
        let count = |value: i32| u32::try_from(value).unwrap_or_default();
        Ok(Self {
            steps: row.steps()?,
            id: VersionId(row.id),
            package_id: PackageId(row.package_id),
            version_number: row.version_number.map(count),
            name: row.name,
            status: row.status.0,
            revision: count(row.revision),
            change_summary: row.change_summary,
            parent_version_id: row.parent_version_id.map(VersionId),
            deployment: DeploymentState {
                is_deployed: row.is_deployed,
                target: row.deployment_target.map(|t| t.0),
                url: row.deployment_url,
                id: row.deployment_id,
            },
            training: TrainingState {
                status: row.training_status.map(|s| s.0),
                started_at: row.training_started_at,
                completed_at: row.training_completed_at,
                metrics: row.training_metrics.map(|m| m.0),
            },
            cost: CostState { estimated: row.estimated_cost, actual: row.actual_cost, budget_limit: row.budget_limit },
            created_at: row.created_at,
            created_by: UserId(row.created_by),
            published_at: row.published_at,
            archived_at: row.archived_at,
            updated_at: row.updated_at,
            validation: None,
        })
    }
}

/// A draft's content as columns.
#[derive(Debug, Clone, AsChangeset, Insertable)]
#[diesel(table_name = versions, treat_none_as_null = true)]
pub struct Content {
    pub name: String,
    pub change_summary: Option<String>,
    model_snapshot: Json<Value>,
    config_snapshot: Json<Value>,
    dataset_snapshot: Json<Value>,
    deploy_snapshot: Json<Value>,
    deployment_target: Option<Name<DeployTarget>>,
}

impl Content {
    pub fn new(name: String, change_summary: Option<String>, steps: &Steps) -> Result<Self> {
        Ok(Self {
            name,
            change_summary,
            model_snapshot: written(steps.model.as_ref())?,
            config_snapshot: written(steps.config.as_ref())?,
            dataset_snapshot: written(steps.dataset.as_ref())?,
            deploy_snapshot: written(steps.deploy.as_ref())?,
            deployment_target: steps.deploy.as_ref().and_then(|d| d.target).map(Name),
        })
    }
}

/// Which versions a list has.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub package: Option<PackageId>,
    pub status: Option<VersionStatus>,
    pub training_status: Option<TrainingStatus>,
    pub deployed: Option<bool>,
    /// Registry name of the base model.
    pub model: Option<String>,
    pub parent: Option<VersionId>,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = sql_types::Integer)]
    number: i32,
}

#[derive(QueryableByName)]
struct Done {
    #[diesel(sql_type = sql_types::Bool)]
    done: bool,
}

impl Version {
    #[must_use]
    pub const fn id(&self) -> VersionId {
        VersionId(self.id)
    }

    #[must_use]
    pub const fn package(&self) -> PackageId {
        PackageId(self.package_id)
    }

    pub fn steps(&self) -> Result<Steps> {
        Ok(Steps {
            model: read(&self.model_snapshot)?,
            config: read(&self.config_snapshot)?,
            dataset: read(&self.dataset_snapshot)?,
            deploy: read(&self.deploy_snapshot)?,
        })
    }

    #[must_use]
    pub fn reference(&self) -> VersionRef {
        let version_number = self.version_number.and_then(|n| u32::try_from(n).ok());
        VersionRef { id: self.id(), name: self.name.clone(), status: self.status.0, version_number }
    }

    pub async fn find(conn: &mut Conn, id: VersionId) -> Result<Self> {
        let row = versions::table.find(id.0).select(Self::as_select()).first(conn).await.optional()?;
        let missing = || format!("no version {id}; `GET /api/training/versions` lists yours");
        row.ok_or_else(|| Error::refused(Code::NotFound, missing()))
    }

    pub async fn latest_published(conn: &mut Conn, package: PackageId) -> Result<Option<Self>> {
        let published = versions::table
            .filter(versions::package_id.eq(package.0))
            .filter(versions::status.eq(VersionStatus::Published.as_str()));
        let newest = published.order(versions::version_number.desc()).select(Self::as_select());
        Ok(newest.first(conn).await.optional()?)
    }

    /// One row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery, sort: Sort, filter: Filter) -> Result<Vec<Self>> {
        let live = packages::table.filter(packages::deleted_at.is_null()).select(packages::id);
        let mut rows = versions::table.filter(versions::package_id.eq_any(live)).into_boxed();
        if let Some(package) = filter.package {
            rows = rows.filter(versions::package_id.eq(package.0));
        }
        if let Some(status) = filter.status {
            rows = rows.filter(versions::status.eq(status.as_str()));
        }
        if let Some(status) = filter.training_status {
            rows = rows.filter(versions::training_status.eq(Name(status)));
        }
        if let Some(deployed) = filter.deployed {
            rows = rows.filter(versions::is_deployed.eq(deployed));
        }
        if let Some(model) = filter.model {
            rows = rows.filter(versions::model_snapshot.contains(json!({"name": model})));
        }
        if let Some(parent) = filter.parent {
            rows = rows.filter(versions::parent_version_id.eq(parent.0));
        }
        super::page::sorted!(rows, versions, query, sort);
        Ok(rows.select(Self::as_select()).limit(query.limit()? + 1).load(conn).await?)
    }

    /// A new draft.
    pub async fn insert(
        conn: &mut Conn,
        user: UserId,
        package: PackageId,
        parent: Option<VersionId>,
        content: Content,
        budget: Option<f64>,
    ) -> Result<Self> {
        let id = VersionId::random();
        audit::about(id);
        let values = (
            versions::id.eq(id.0),
            versions::user_id.eq(user.0),
            versions::package_id.eq(package.0),
            versions::parent_version_id.eq(parent.map(|p| p.0)),
            versions::created_by.eq(user.0),
            versions::budget_limit.eq(to_numeric(budget)),
            content,
        );
        let insert = diesel::insert_into(versions::table).values(values);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    /// Saves a draft; none when it is no draft or not at `revision` any more.
    pub async fn save(
        conn: &mut Conn,
        id: VersionId,
        revision: i32,
        content: Content,
        budget: Option<f64>,
    ) -> Result<Option<Self>> {
        audit::about(id);
        let set = (content, versions::budget_limit.eq(to_numeric(budget)));
        let this = versions::table
            .filter(versions::id.eq(id.0))
            .filter(versions::status.eq(VersionStatus::Draft.as_str()))
            .filter(versions::revision.eq(revision));
        Ok(diesel::update(this).set(set).returning(Self::as_returning()).get_result(conn).await.optional()?)
    }

    /// The number the next version of `package` gets. Takes the lock on the package that makes it so.
    pub async fn next_number(conn: &mut Conn, package: PackageId) -> Result<i32> {
        let query = diesel::sql_query("SELECT get_next_version_number($1) AS number");
        let row: Number = query.bind::<sql_types::Uuid, _>(package.0).get_result(conn).await?;
        Ok(row.number)
    }

    /// draft → published with what is pinned; none when it is no draft or not at `revision` any more. The trigger
    /// numbers it.
    pub async fn publish(
        conn: &mut Conn,
        user: UserId,
        id: VersionId,
        revision: i32,
        content: Content,
    ) -> Result<Option<Self>> {
        let this = versions::table
            .filter(versions::id.eq(id.0))
            .filter(versions::status.eq(VersionStatus::Draft.as_str()))
            .filter(versions::revision.eq(revision));
        let set = (content, versions::status.eq(VersionStatus::Published.as_str()), versions::published_by.eq(user.0));
        Ok(diesel::update(this).set(set).returning(Self::as_returning()).get_result(conn).await.optional()?)
    }

    /// published → archived; whether it was published.
    pub async fn archive(conn: &mut Conn, id: VersionId) -> Result<bool> {
        let query = diesel::sql_query("SELECT hone_archive_version($1) AS done");
        let row: Done = query.bind::<sql_types::Uuid, _>(id.0).get_result(conn).await?;
        Ok(row.done)
    }

    /// Removes a draft; whether it was one.
    pub async fn delete(conn: &mut Conn, id: VersionId) -> Result<bool> {
        let draft =
            versions::table.filter(versions::id.eq(id.0)).filter(versions::status.eq(VersionStatus::Draft.as_str()));
        Ok(diesel::delete(draft).execute(conn).await? == 1)
    }
}
