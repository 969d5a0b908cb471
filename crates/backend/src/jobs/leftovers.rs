//! What ended attempts left half done in storage: checkpoints whose manifest is missing, because the trainer died while it
//! stored or removed them, and artifacts of attempts that never sent the manifest of their results.

use crate::{error::Result, schema::job_attempts, state::AppState};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::{dsl::sql, prelude::*, sql_types::Bool};
use diesel_async::RunQueryDsl;
use std::collections::BTreeSet;
use uuid::Uuid;
use wire::{JobId, UserId, layout};

/// Longer than any URL is good for that a trainer without a backend may still write to.
const GRACE: TimeDelta = TimeDelta::hours(1);
/// Attempts of one pass.
const AT_ONCE: i64 = 100;
/// Objects of one listing.
const PAGE: usize = 1000;

#[derive(Debug, Queryable)]
struct Ended {
    job: Uuid,
    attempt: i32,
    user: Uuid,
    finished: bool,
}

/// One pass over attempts that ended more than an hour before `now`.
pub async fn sweep(state: &AppState, now: DateTime<Utc>) -> Result<()> {
    let ended = state.db.system(async move |conn| {
        let due = job_attempts::table
            .filter(job_attempts::swept_at.is_null())
            .filter(job_attempts::finished_at.lt(now - GRACE));
        // A trainer of somebody else's may succeed without a manifest.
        let finished = sql::<Bool>("manifest IS NOT NULL OR outcome = 'succeeded'");
        let columns = (job_attempts::job_id, job_attempts::attempt, job_attempts::user_id, finished);
        Ok(due.order(job_attempts::finished_at).limit(AT_ONCE).select(columns).load::<Ended>(conn).await?)
    });
    for attempt in ended.await? {
        match remove(state, &attempt).await {
            Ok(0) => {}
            Ok(n) => {
                tracing::info!(job.id = %attempt.job, attempt = attempt.attempt, "removed {n} objects left half done")
            }
            Err(error) => {
                let error = service::error::chain(&error);
                tracing::warn!(job.id = %attempt.job, attempt = attempt.attempt, %error, "cannot remove what is left yet");
                continue;
            }
        }
        let swept = async move |conn: &mut crate::db::Conn| {
            let this = job_attempts::table.find((attempt.job, attempt.attempt));
            Ok(diesel::update(this).set(job_attempts::swept_at.eq(Utc::now())).execute(conn).await?)
        };
        state.db.system(swept).await?;
    }
    Ok(())
}

/// Returns how many objects are gone.
async fn remove(state: &AppState, ended: &Ended) -> Result<u64> {
    let number = u32::try_from(ended.attempt).unwrap_or_default();
    let prefix = layout::attempt_prefix(UserId(ended.user), JobId(ended.job), number);
    let mut removed = 0;
    if !ended.finished {
        removed += state.gateway.delete_prefix(&format!("{prefix}{}", layout::ARTIFACTS)).await?.deleted;
    }
    let checkpoints = format!("{prefix}{}", layout::CHECKPOINTS);
    let (mut all, mut whole) = (BTreeSet::new(), BTreeSet::new());
    let mut after = None;
    loop {
        let page = state.gateway.list(&checkpoints, after.as_deref(), PAGE).await?;
        for object in &page.objects {
            let Some((dir, file)) = object.key.strip_prefix(&checkpoints).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            all.insert(dir.to_owned());
            if file == layout::MANIFEST {
                whole.insert(dir.to_owned());
            }
        }
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    for dir in all.difference(&whole) {
        removed += state.gateway.delete_prefix(&format!("{checkpoints}{dir}/")).await?.deleted;
    }
    Ok(removed)
}
