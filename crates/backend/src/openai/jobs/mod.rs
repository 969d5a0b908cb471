//! Fine-tuning jobs: training jobs, in OpenAI's words.

pub mod checkpoints;
pub mod create;
pub mod events;
pub mod method;
pub mod routes;
pub mod rows;
pub mod view;

use super::{
    error::{Error, Result},
    ids,
    list::{List, Query},
    results,
};
use crate::{
    db::Conn,
    jobs::control::{self, Wish},
    state::AppState,
};
use checkpoints::Checkpoint;
use events::JobEvent;
use rows::Record;
use view::FineTuningJob;
use wire::{
    ids::{JobId, UserId},
    problem::Code,
};

pub async fn list(state: &AppState, user: UserId, query: &Query) -> Result<List<FineTuningJob>> {
    let limit = query.limit(20, 100)?;
    let metadata = query.metadata();
    let after = query.get("after").map(|id| ids::job(id).map_err(|e| e.about("after"))).transpose()?;
    let read = async move |conn: &mut Conn| {
        results::settle(conn, user).await?;
        let position = match after {
            Some(id) => match Record::position(conn, id).await? {
                Some(position) => Some(position),
                None => return Ok(None),
            },
            None => None,
        };
        let records = Record::list(conn, position, metadata, limit).await?;
        view::many(conn, user, records).await.map(Some)
    };
    let views = state.db.tenant(user, read).await?;
    let views = views.ok_or_else(|| ids::no_job(query.get("after").unwrap_or_default()).about("after"))?;
    Ok(List::page(views, limit, |job| job.id.clone()))
}

pub async fn find(state: &AppState, user: UserId, id: &str) -> Result<FineTuningJob> {
    let job = ids::job(id)?;
    let read = async move |conn: &mut Conn| {
        results::settle(conn, user).await?;
        match Record::find(conn, job).await? {
            Some(record) => view::one(conn, user, record).await.map(Some),
            None => Ok(None),
        }
    };
    state.db.tenant(user, read).await?.ok_or_else(|| ids::no_job(id))
}

/// Cancels, pauses or resumes.
pub async fn ask(state: &AppState, user: UserId, id: &str, wish: Wish) -> Result<FineTuningJob> {
    let job = ids::job(id)?;
    let policy = state.config.policy;
    let change = async move |conn: &mut Conn| {
        if Record::find(conn, job).await?.is_none() {
            return Ok(None);
        }
        control::request(conn, JobId(job), wish, &policy).await.map(Some)
    };
    match state.db.tenant(user, change).await {
        Ok(Some(moved)) => {
            if let Some(moved) = moved {
                moved.count();
            }
            find(state, user, id).await
        }
        Ok(None) => Err(ids::no_job(id)),
        Err(error) if error.code() == Some(Code::Conflict) => {
            Err(Error::conflict(error.to_string().replace(&JobId(job).to_string(), id)))
        }
        Err(error) => Err(error.into()),
    }
}

pub async fn list_events(state: &AppState, user: UserId, id: &str, query: &Query) -> Result<List<JobEvent>> {
    let job = ids::job(id)?;
    let limit = query.limit(20, 1000)?;
    let position = |id: &str| {
        let missing = || Error::invalid("after", "invalid_value", format!("'{id}' is not an event of this job"));
        ids::parse_position(ids::EVENT, id).ok_or_else(missing)
    };
    let before = query.get("after").map(position).transpose()?;
    let read = async move |conn: &mut Conn| match Record::find(conn, job).await? {
        Some(record) => {
            let total = record.job.progress.0.0.total_steps;
            events::list(conn, JobId(job), total, before, limit).await.map(Some)
        }
        None => Ok(None),
    };
    let events = state.db.tenant(user, read).await?.ok_or_else(|| ids::no_job(id))?;
    Ok(List::page(events, limit, |event| event.id.clone()))
}

pub async fn list_checkpoints(state: &AppState, user: UserId, id: &str, query: &Query) -> Result<List<Checkpoint>> {
    let job = ids::job(id)?;
    let limit = query.limit(10, 100)?;
    let read = async move |conn: &mut Conn| match Record::find(conn, job).await? {
        Some(record) => {
            let keep = record.job.config.0.training.save_total_limit;
            checkpoints::list(conn, JobId(job), &record.extra.fine_tuned_model, keep).await.map(Some)
        }
        None => Ok(None),
    };
    let mut found = state.db.tenant(user, read).await?.ok_or_else(|| ids::no_job(id))?;
    if let Some(after) = query.get("after") {
        let missing = || Error::invalid("after", "invalid_value", format!("'{after}' is not a checkpoint of this job"));
        let at = found.iter().position(|c| c.id == after).ok_or_else(missing)?;
        found.drain(..=at);
    }
    Ok(List::page(found, limit, |checkpoint| checkpoint.id.clone()))
}
