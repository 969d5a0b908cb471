//! Removes what uploads left behind: streams whose backend died, sessions nobody completed, objects of deleted artifacts,
//! and of deleted or refused datasets that storage refused to delete at the time or that jobs needed, files and uploads whose
//! time is over, old idempotency keys, webhook deliveries and reports of refused datasets, and what ended attempts left half done. Makes the partitions of the months
//! to come.

use crate::{
    datasets,
    error::Result,
    jobs::leftovers,
    openai, registry,
    state::AppState,
    store::{Artifact, Dataset, Model, idempotency, metric, webhook::Delivery},
};
use chrono::{TimeDelta, Utc};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use wire::dataset::DatasetStatus;

const EVERY: Duration = Duration::from_secs(60);
/// Between two looks whether it is for us to sweep.
const LOOK: Duration = Duration::from_secs(1);
/// A client may come back to an upload straight to storage for this long.
const SESSION_SILENCE: TimeDelta = TimeDelta::hours(24);
/// As long as a download URL is good, and much longer than a request that begins to continue from an adapter.
const ARTIFACT_GRACE: TimeDelta = TimeDelta::minutes(15);

/// Sweeps until `stop`, as long as this backend leads: one of several is enough.
pub async fn run(state: AppState, stop: CancellationToken) {
    loop {
        let wait = if state.leader.leads() {
            if let Err(error) = sweep(&state).await {
                tracing::warn!(error = %service::error::chain(&error), "sweeping uploads failed, trying again in a minute");
            }
            EVERY
        } else {
            LOOK
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One pass.
pub async fn sweep(state: &AppState) -> Result<()> {
    openai::files::sweep(state).await?;
    openai::uploads::sweep(state).await?;
    let now = Utc::now();
    let stale = async move |conn: &mut crate::db::Conn| {
        idempotency::forget_old(conn).await?;
        Delivery::forget_old(conn).await?;
        Dataset::forget_old(conn).await?;
        metric::make_partitions(conn).await?;
        let datasets = Dataset::stale(conn, now - datasets::SILENCE, now - SESSION_SILENCE).await?;
        Ok((datasets, Model::stale(conn, now - SESSION_SILENCE).await?))
    };
    let (datasets, models) = state.db.system(stale).await?;
    for dataset in datasets {
        tracing::info!(dataset.id = %dataset.id(), "removing what is left of a dataset");
        match dataset.status.0 {
            // Its report stays.
            DatasetStatus::Invalid if dataset.deleted_at.is_none() => datasets::purge(state, &dataset).await?,
            _ => datasets::discard(state, &dataset).await,
        }
    }
    for model in models {
        tracing::info!(model = %model.name, revision = %model.revision, "removing an upload that nobody finished");
        registry::discard(state, &model).await;
    }
    sweep_artifacts(state).await?;
    leftovers::sweep(state, now).await
}

/// Frees the storage of deleted artifacts.
async fn sweep_artifacts(state: &AppState) -> Result<()> {
    let before = Utc::now() - ARTIFACT_GRACE;
    let unneeded = state.db.system(async move |conn| Artifact::unneeded(conn, before).await).await?;
    for artifact in unneeded {
        let id = artifact.id;
        match state.gateway.delete_prefix(&artifact.storage_path).await {
            Ok(gone) => {
                tracing::info!(artifact.id = %id, "removed the {} objects of a deleted artifact", gone.deleted);
                state.db.system(async move |conn| Artifact::purged(conn, id).await).await?;
            }
            Err(error) => {
                tracing::warn!(artifact.id = %id, error = %service::error::chain(&error), "cannot remove objects yet");
            }
        }
    }
    Ok(())
}
