//! Estimated costs: a rehearsal's duration at the job's price.

use super::Price;
use crate::{
    db::Conn, error::Result, estimation, schema::training_jobs as jobs, state::AppState, store::columns::to_numeric,
};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use std::time::Duration;
use wire::{
    JobView, UserId,
    job::{CreateJob, TrainerKind},
    problem::Code,
};

/// A rehearsal that finds no room is tried again this often, this far apart.
const TRIES: u32 = 5;
const BETWEEN: Duration = Duration::from_secs(20);

/// What `seconds` cost.
#[must_use]
pub fn cost(seconds: f64, price: &Price) -> f64 {
    seconds / 3600.0 * price.per_hour
}

/// Estimates what a new job costs and stores it, in the background: a trainer rehearses it, which takes seconds. What
/// costs nothing needs no rehearsal. An estimate that cannot be made stays absent.
pub fn later(state: &AppState, user: UserId, job: &JobView) {
    if job.cost.estimated.is_some() || job.state.is_terminal() || job.trainer != TrainerKind::Candle {
        return;
    }
    let (state, job) = (state.clone(), job.clone());
    tokio::spawn(async move {
        if let Err(error) = estimate(&state, user, &job).await {
            tracing::warn!(job.id = %job.id, error = %service::error::chain(&error), "cannot estimate what the job costs");
        }
    });
}

async fn estimate(state: &AppState, user: UserId, job: &JobView) -> Result<()> {
    let config = serde_json::to_value(&job.config)?;
    let request =
        CreateJob { config, max_attempts: None, trainer: TrainerKind::Candle, gpu_config: None, budget_limit: None };
    let mut told = None;
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(BETWEEN).await;
        }
        match estimation::estimate(state, user, request.clone()).await {
            Err(error) if error.code() == Some(Code::Overloaded) => {}
            result => {
                told = result?.total_seconds;
                break;
            }
        }
    }
    let Some(seconds) = told else { return Ok(()) };
    let price = Price { per_hour: job.cost.price_per_hour, currency: job.cost.currency.clone() };
    let (id, amount) = (job.id, cost(seconds, &price));
    let store = async move |conn: &mut Conn| {
        let set = jobs::estimated_cost.eq(to_numeric(Some(amount)));
        diesel::update(jobs::table.find(id.0)).set(set).execute(conn).await?;
        Ok(())
    };
    state.db.system(store).await
}
