//! Models: the base models of the registry, and the results of fine-tuning jobs.

use super::{
    error::{Error, Result},
    jobs::{rows::Record, view::Status},
    list::List,
};
use crate::{
    auth::AuthUser,
    db::Conn,
    schema::{models as base, openai_jobs as extras, training_jobs as jobs},
    state::AppState,
};
use actix_web::{delete, get, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;
use wire::{JobId, JobState};

type State = web::Data<AppState>;

/// Who owns base models.
const REGISTRY: &str = "hone";
/// Between a model's name and the step of one of its checkpoints.
const CHECKPOINT: &str = ":ckpt-step-";

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ModelObject {
    pub id: String,
    #[schema(example = "model")]
    pub object: &'static str,
    pub created: i64,
    pub owned_by: String,
}

/// Reply to a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ModelDeleted {
    pub id: String,
    #[schema(example = "model")]
    pub object: &'static str,
    pub deleted: bool,
}

fn model(id: String, created: DateTime<Utc>, owned_by: &str) -> ModelObject {
    ModelObject { id, object: "model", created: created.timestamp(), owned_by: owned_by.to_owned() }
}

/// Base models by their newest revision, and models that jobs of this user made.
#[utoipa::path(tag = "openai", context_path = "/v1", operation_id = "list_openai_models",
    responses((status = 200, body = List<ModelObject>)))]
#[get("/models")]
pub async fn list_openai_models(state: State, user: AuthUser) -> Result<web::Json<List<ModelObject>>> {
    let read = async |conn: &mut Conn| Ok((base_models(conn).await?, tuned_models(conn).await?));
    let (bases, tuned) = state.db.tenant(user.user_id, read).await?;
    let bases = bases.into_iter().map(|(name, at)| model(name, at, REGISTRY));
    let tuned = tuned.into_iter().map(|(name, at)| model(name, at, &user.name));
    let all: Vec<ModelObject> = tuned.chain(bases).collect();
    let limit = i64::try_from(all.len()).unwrap_or(i64::MAX);
    Ok(web::Json(List::page(all, limit, |m| m.id.clone())))
}

/// A model by name; also a checkpoint of a fine-tuned one.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = ModelObject)))]
#[get("/models/{id}")]
pub async fn get_openai_model(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<ModelObject>> {
    find(&state, &user, &id).await.map(web::Json)
}

/// Delete a fine-tuned model: its name is gone, and its job says so.
#[utoipa::path(tag = "openai", context_path = "/v1", params(("id" = String, Path)),
    responses((status = 200, body = ModelDeleted)))]
#[delete("/models/{id}")]
pub async fn delete_openai_model(
    state: State,
    user: AuthUser,
    id: web::Path<String>,
) -> Result<web::Json<ModelDeleted>> {
    let found = find(&state, &user, &id).await?;
    if !found.id.starts_with("ft:") {
        let message = format!("The model '{id}' is a base model of this server, which its users cannot delete.");
        return Err(Error::forbidden(message).about("model"));
    }
    if found.id.contains(CHECKPOINT) {
        let message = format!("'{id}' is a checkpoint, which goes with its model; delete the model.");
        return Err(Error::forbidden(message).about("model"));
    }
    let name = found.id.clone();
    let forget = async move |conn: &mut Conn| {
        let this = extras::table.filter(extras::fine_tuned_model.eq(name)).filter(extras::model_deleted_at.is_null());
        diesel::update(this).set(extras::model_deleted_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    };
    state.db.tenant(user.user_id, forget).await?;
    Ok(web::Json(ModelDeleted { id: found.id, object: "model", deleted: true }))
}

async fn find(state: &AppState, user: &AuthUser, id: &str) -> Result<ModelObject> {
    let (name, step) = match id.split_once(CHECKPOINT) {
        Some((name, step)) => (name.to_owned(), Some(step.to_owned())),
        None => (id.to_owned(), None),
    };
    let read = async move |conn: &mut Conn| {
        if !name.starts_with("ft:") {
            return base_model(conn, &name).await;
        }
        let Some(record) = Record::find_by_model(conn, &name).await? else { return Ok(None) };
        tuned(conn, record, step.as_deref()).await
    };
    let found = state.db.tenant(user.user_id, read).await?;
    let missing = || {
        let message = format!("The model '{id}' does not exist or you do not have access to it.");
        Error::not_found("model_not_found", message).about("model")
    };
    let (at, owner) = found.ok_or_else(missing)?;
    Ok(model(id.to_owned(), at, owner.unwrap_or(&user.name)))
}

/// When it was made, and who owns it when that is not the user.
type Found = Option<(DateTime<Utc>, Option<&'static str>)>;

async fn base_model(conn: &mut Conn, name: &str) -> crate::Result<Found> {
    let (name, revision) = name.split_once('@').map_or((name, None), |(n, r)| (n, Some(r)));
    let mut rows = base::table.filter(base::status.eq("ready")).filter(base::name.eq(name)).into_boxed();
    if let Some(revision) = revision {
        rows = rows.filter(base::revision.eq(revision));
    }
    let newest = rows.order(base::created_at.desc()).select(base::created_at);
    let at: Option<DateTime<Utc>> = newest.first(conn).await.optional()?;
    Ok(at.map(|at| (at, Some(REGISTRY))))
}

/// The result of a job, or its checkpoint of a step.
async fn tuned(conn: &mut Conn, record: Record, step: Option<&str>) -> crate::Result<Found> {
    let Record { job, extra, .. } = record;
    if extra.model_deleted_at.is_some() {
        return Ok(None);
    }
    let Some(step) = step else {
        let state: JobState = job.state.parse().map_err(crate::Error::defect)?;
        let done = Status::from(state) == Status::Succeeded;
        return Ok(job.finished_at.filter(|_| done).map(|at| (at, None)));
    };
    let keep = job.config.0.training.save_total_limit;
    let checkpoints = super::jobs::checkpoints::list(conn, JobId(job.id), &extra.fine_tuned_model, keep).await?;
    let found = checkpoints.iter().find(|c| c.step_number.to_string() == step);
    Ok(found.and_then(|c| DateTime::from_timestamp(c.created_at, 0)).map(|at| (at, None)))
}

async fn base_models(conn: &mut Conn) -> crate::Result<Vec<(String, DateTime<Utc>)>> {
    let rows = base::table.filter(base::status.eq("ready")).distinct_on(base::name);
    let rows = rows.order((base::name, base::created_at.desc())).select((base::name, base::created_at));
    Ok(rows.load(conn).await?)
}

async fn tuned_models(conn: &mut Conn) -> crate::Result<Vec<(String, DateTime<Utc>)>> {
    let rows = extras::table
        .inner_join(jobs::table.on(jobs::id.eq(extras::job_id)))
        .filter(jobs::state.eq(JobState::Succeeded.as_str()))
        .filter(jobs::deleted_at.is_null())
        .filter(extras::model_deleted_at.is_null())
        .order(extras::created_at.desc())
        .select((extras::fine_tuned_model, jobs::finished_at.assume_not_null()));
    Ok(rows.load(conn).await?)
}
