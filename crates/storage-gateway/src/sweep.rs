//! Removes what abandoned uploads left: objects in the staging area, and open multipart uploads anywhere. One that was
//! opened to move a large object under its key stays when its gateway dies.

use crate::{
    gateway::Gateway,
    keys::{ROOTS, STAGING},
    session::LIFETIME,
    store::{Place, StoreResult},
};
use chrono::{DateTime, TimeDelta, Utc};
use std::{sync::Arc, time::Duration};

const EVERY: Duration = Duration::from_secs(15 * 60);

/// Sweeps for ever; the first time at once.
pub async fn run(gateway: Arc<Gateway>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match sweep(&gateway, Utc::now()).await {
            Ok(0) => {}
            Ok(n) => tracing::info!("removed {n} abandoned uploads"),
            Err(error) => tracing::warn!(%error, "cannot sweep the staging area, trying again later"),
        }
    }
}

/// Removes staged objects and open uploads whose sessions have expired at `now`; returns how many.
pub async fn sweep(gateway: &Gateway, now: DateTime<Utc>) -> StoreResult<u64> {
    // An hour of grace for a session that completes in its last minute.
    let limit = now - LIFETIME - TimeDelta::hours(1);
    let old = |at: Option<DateTime<Utc>>| at.is_some_and(|at| at < limit);
    let mut removed = 0;
    for bucket in gateway.buckets.distinct() {
        let place = |key: &str| Place { bucket: bucket.to_owned(), key: key.to_owned() };
        // Not all of the bucket: it may hold what is not ours.
        for root in [STAGING].into_iter().chain(ROOTS) {
            for upload in gateway.store.list_multiparts(bucket, root).await? {
                if old(upload.initiated) {
                    gateway.store.abort_multipart(&place(&upload.key), &upload.upload_id).await?;
                    removed += 1;
                }
            }
        }
        let mut after: Option<String> = None;
        loop {
            let page = gateway.store.list(bucket, STAGING, after.as_deref(), 1000).await?;
            for object in page.objects.iter().filter(|object| old(object.last_modified)) {
                gateway.store.delete(&place(&object.key)).await?;
                removed += 1;
            }
            after = page.objects.last().map(|object| object.key.clone());
            if !page.more {
                break;
            }
        }
    }
    metrics::counter!("gateway_swept_uploads_total").increment(removed);
    Ok(removed)
}
