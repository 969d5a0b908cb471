//! What is done with a published version: training it, and asking for its deployment.

use super::{check::training_config, invalid};
use crate::{
    catalog::Catalog,
    creation::{Limits, Wanted},
    db::Conn,
    error::{Error, Result},
    store::{
        Json, Version,
        idempotency::{self, IdempotencyKey},
        job::Origin,
    },
};
use diesel::sql_types;
use diesel_async::RunQueryDsl;
use serde_json::json;
use uuid::Uuid;
use wire::{
    JobView,
    ids::{UserId, VersionId},
    job::{CreateJob, TrainerKind},
    package::{DeployTarget, DeployVersion, LaunchVersion, Steps, VersionStatus},
    problem::{Code, Problem},
};

/// A version whose content is final, with it.
async fn published(conn: &mut Conn, id: VersionId, verb: &str) -> Result<(Version, Steps)> {
    let row = Version::find(conn, id).await?;
    if row.status.0 != VersionStatus::Published {
        let (name, status) = (&row.name, row.status.0.as_str());
        let detail = format!("`{name}` is {status}; only published versions can be {verb}");
        return Err(Error::refused(Code::Conflict, detail));
    }
    let steps = row.steps()?;
    Ok((row, steps))
}

/// Creates and queues a job with what a published version says, within `limits`.
pub async fn launch(
    conn: &mut Conn,
    user: UserId,
    id: VersionId,
    request: LaunchVersion,
    key: Option<&IdempotencyKey>,
    (limits, catalog): (Limits, &Catalog),
) -> Result<JobView> {
    if let Some(reply) = idempotency::claim(conn, user, key).await? {
        return Ok(reply);
    }
    let (row, steps) = published(conn, id, "trained").await?;
    if steps.dataset.as_ref().is_some_and(|d| d.datasets.len() > 1) {
        let message = "a job trains on one dataset, and this version has several; publish one that has a single one";
        return Err(invalid("dataset.datasets", message));
    }
    let mut config = training_config(&steps).ok_or_else(|| Error::defect("a published version lacks a step"))?;
    if let Some(fields) = config.as_object_mut() {
        fields.insert("name".into(), json!(request.name.as_deref().unwrap_or(&row.name)));
    }
    let deploy = steps.deploy.unwrap_or_default();
    let origin = Origin { version: Some(id), gpu_config: deploy.gpu_config, budget_limit: deploy.budget_limit };
    let job = CreateJob {
        config,
        max_attempts: request.max_attempts,
        trainer: TrainerKind::Candle,
        gpu_config: None,
        budget_limit: None,
    };
    let wanted = Wanted::read(job, origin, catalog)?;
    let view = wanted.insert(conn, user, limits).await?;
    idempotency::keep(conn, user, key, &view).await?;
    Ok(view)
}

/// Notes that a published version is to be deployed, once however often it is asked for. Nothing serves a target
/// yet: the caller commits this and answers with [`not_served`].
pub async fn deploy(conn: &mut Conn, user: UserId, id: VersionId, request: DeployVersion) -> Result<DeployTarget> {
    let (_, steps) = published(conn, id, "deployed").await?;
    let deploy = steps.deploy.unwrap_or_default();
    let target = request.target.or(deploy.target).unwrap_or(DeployTarget::Local);
    diesel::sql_query(
        "INSERT INTO deployments (id, user_id, version_id, target, config) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (version_id, target) WHERE status = 'requested' DO NOTHING",
    )
    .bind::<sql_types::Uuid, _>(Uuid::now_v7())
    .bind::<sql_types::Uuid, _>(user.0)
    .bind::<sql_types::Uuid, _>(id.0)
    .bind::<sql_types::Text, _>(target.as_str())
    .bind::<sql_types::Jsonb, _>(Json(deploy))
    .execute(conn)
    .await?;
    Ok(target)
}

/// The honest answer to a deployment nobody carries out.
#[must_use]
pub fn not_served(target: DeployTarget) -> Problem {
    let target = target.as_str();
    let detail = format!(
        "the wish to deploy to `{target}` is noted, but this installation does not serve that target yet; \
         `hone chat` and the job's artifacts give you the model now"
    );
    Problem::new(Code::TargetNotServed, detail)
}
