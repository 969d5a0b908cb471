//! The reconciler's actions on the database and on runtimes.

use super::{Next, Reconciler, STOP_POLL, Shift};
use crate::{
    costs::{alerts::Thresholds, ledger},
    db::Conn,
    error::{Error, Result},
    jobs::{
        decide::{Observed, Runtime, Settlement, Verification},
        external,
        launcher::{LaunchError, LaunchSpec},
        rows::{AttemptRow, JobRow, Situation},
        transition::{Change, Moved, OneMore},
        verdict::{Ending, Exit, Outcome},
    },
    schema::{job_attempts, training_jobs},
    store::{Artifact, job::SpecSnapshot},
};
use diesel::{
    dsl::sql,
    prelude::*,
    sql_types::{BigInt, Bool, Double, Nullable, Timestamptz},
};
use diesel_async::RunQueryDsl;
use service::{
    fail_point,
    token::{Grant, JobGrant},
};
use std::time::Duration;
use wire::{
    JobId, JobSpec, JobState,
    job::{Failure, TrainerKind},
    layout,
    problem::Code,
    storage::Manifest,
};

/// A job token outlives any attempt; it dies with the attempt's epoch.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
const EXTERNAL: &str = TrainerKind::External.as_str();
/// Serialises dispatch over all backends, so that the limit on concurrent jobs holds (arbitrary, but fixed).
const DISPATCH_LOCK: &str = "SELECT pg_advisory_xact_lock(7526411)";

/// Whether an attempt that is heard keeps its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Silent,
    Always,
}

impl Reconciler {
    /// Moves the oldest queued job to `starting` if another trainer may run.
    pub(super) async fn dispatch(&self) -> Result<Option<JobId>> {
        let (limit, policy) = (i64::from(self.policy.max_concurrent), self.policy);
        let launcher = std::sync::Arc::clone(&self.launcher);
        let dispatched = self.state.db.system(async move |conn| {
            diesel::sql_query(DISPATCH_LOCK).execute(conn).await?;
            let running = [JobState::Starting, JobState::Running, JobState::Pausing, JobState::Cancelling];
            let running: i64 = training_jobs::table
                .filter(training_jobs::state.eq_any(running.map(JobState::as_str)))
                .filter(training_jobs::framework.ne(EXTERNAL))
                .count()
                .get_result(conn)
                .await?;
            // A trainer outside Hone takes none of our places.
            let next = training_jobs::table
                .filter(training_jobs::state.eq(JobState::Queued.as_str()))
                .filter(training_jobs::framework.eq(EXTERNAL).or(running.into_sql::<BigInt>().lt(limit)))
                .order((training_jobs::created_at, training_jobs::id))
                .select((training_jobs::id, training_jobs::framework.eq(EXTERNAL)))
                .for_update()
                .skip_locked();
            let Some((id, external)) = next.first::<(uuid::Uuid, bool)>(conn).await.optional()? else {
                return Ok(None);
            };
            let claim = if external { policy.external_claim } else { policy.claim };
            let change = Change::to(JobState::Starting).next_attempt().lease(claim);
            let Some(moved) = change.apply(conn, JobId(id)).await? else { return Ok(None) };
            let number = u32::try_from(moved.attempt).unwrap_or_default();
            let row = training_jobs::table.find(id).select(training_jobs::user_id);
            let user: uuid::Uuid = row.first(conn).await?;
            let runtime = if external { external::place() } else { launcher.describe(JobId(id), number) };
            diesel::insert_into(job_attempts::table)
                .values((
                    job_attempts::job_id.eq(id),
                    job_attempts::attempt.eq(moved.attempt),
                    job_attempts::user_id.eq(user),
                    job_attempts::epoch.eq(moved.epoch),
                    job_attempts::runtime.eq(runtime),
                ))
                .execute(conn)
                .await?;
            fail_point!("dispatch.before_commit");
            Ok(Some((JobId(id), moved)))
        });
        let dispatched = dispatched.await?;
        if dispatched.is_some() {
            fail_point!("dispatch.after_commit");
        }
        if let Some((job, moved)) = &dispatched {
            tracing::info!(job.id = %job, "dispatched attempt {}", moved.attempt);
        }
        Ok(dispatched.map(|(job, _)| job))
    }

    pub(super) async fn requeue(&self, at: &Situation) -> Result<Next> {
        let (job, guard) = (at.job.id(), (at.job.attempt, at.job.epoch));
        // Another attempt of a job whose budget is used up would only be paused again.
        let change = match at.job.used_up()? {
            Some(pause) => Change::to(JobState::Paused).pause(pause),
            None => Change::to(JobState::Queued),
        };
        let change = change.guarded(guard.0, guard.1).no_lease();
        let moved = self.state.db.system(async move |conn| change.apply(conn, job).await).await?;
        if moved.is_some() {
            fail_point!("requeue.after_commit");
            self.hints.all();
        }
        Ok(Next::Rest)
    }

    pub(super) async fn launch(&self, at: &Situation, seen: &mut Observed) -> Result<Next> {
        let Some(attempt) = &at.attempt else { return Ok(Next::Rest) };
        let spec = self.launch_spec(at).await?;
        match self.launcher.launch(&spec).await {
            Ok(()) => {
                fail_point!("launch.after_start");
                tracing::info!(job.id = %at.job.id, "launched attempt {}", at.job.attempt);
                Ok(Next::Rest)
            }
            Err(LaunchError::Transient(reason)) => {
                tracing::warn!(job.id = %at.job.id, "cannot launch attempt {} yet: {reason}", at.job.attempt);
                Ok(Next::Rest)
            }
            Err(LaunchError::Fatal(reason)) => {
                tracing::error!(job.id = %at.job.id, "cannot launch attempt {}: {reason}", at.job.attempt);
                seen.runtime = match self.launcher.refuse(&attempt.handle(), &reason).await {
                    // Another launch was faster, or has failed before.
                    known @ (Runtime::Waiting | Runtime::Alive | Runtime::Doomed(_) | Runtime::Gone(_)) => known,
                    Runtime::NotStarted | Runtime::Unknown => Runtime::Gone(Exit::new(Ending::StartFailed { reason })),
                };
                Ok(Next::Again)
            }
        }
    }

    async fn launch_spec(&self, at: &Situation) -> Result<LaunchSpec> {
        let job = at.job.id();
        let resume_from = self.state.db.system(async move |conn| AttemptRow::last_checkpoint(conn, job).await).await?;
        let SpecSnapshot { model, dataset, adapter } = serde_json::from_value(at.job.spec.clone())?;
        let (user, attempt) = (at.job.user(), at.job.attempt());
        let output_prefix = layout::attempt_prefix(user, job, attempt);
        let mut read =
            vec![model.prefix.clone(), layout::dataset_prefix(user, dataset.id), layout::job_prefix(user, job)];
        read.extend(adapter.as_ref().map(|a| a.prefix.clone()));
        // It may be a file of another dataset.
        read.extend(dataset.validation.as_ref().map(|file| file.key.clone()));
        let (epoch, write) = (at.job.epoch, vec![output_prefix.clone()]);
        let grant = JobGrant { user, job, attempt, epoch, read, write };
        Ok(LaunchSpec {
            callback_url: format!("{}/training/jobs/{job}/callback", self.state.base_url),
            storage_gateway_url: self.state.config.gateway_url.clone(),
            token: self.state.config.token_key.mint(Grant::Job(grant), TOKEN_TTL).map_err(Error::defect)?,
            traceparent: service::telemetry::current_traceparent(),
            gpu: at.job.gpu_config.as_deref().and_then(|id| self.state.config.catalog.gpu_config(id)).cloned(),
            spec: JobSpec {
                job_id: job,
                user_id: user,
                attempt,
                config: serde_json::from_value(at.job.config.clone())?,
                model,
                dataset,
                adapter,
                output_prefix,
                resume_from,
                heartbeat_seconds: self.policy.heartbeat.as_secs().max(1),
            },
        })
    }

    /// Gives an attempt that waits for a machine a fresh lease.
    pub(super) async fn renew(&self, at: &Situation) -> Result<Next> {
        let (job, attempt, epoch) = (at.job.id, at.job.attempt, at.job.epoch);
        let claim = self.policy.claim.as_secs_f64();
        let work = async move |conn: &mut Conn| {
            let this = training_jobs::table
                .find(job)
                .filter(training_jobs::attempt.eq(attempt))
                .filter(training_jobs::epoch.eq(epoch))
                .filter(training_jobs::state.eq(JobState::Starting.as_str()));
            let lease = sql::<Nullable<Timestamptz>>("clock_timestamp() + make_interval(secs => ")
                .bind::<Double, _>(claim)
                .sql(")");
            Ok(diesel::update(this).set(training_jobs::lease_expires_at.eq(lease)).execute(conn).await?)
        };
        self.state.db.system(work).await?;
        Ok(Next::Rest)
    }

    /// Raises the epoch; `When::Silent` unless a heartbeat came in since the decision.
    pub(super) async fn fence(&self, at: &Situation, failure: Failure, when: When) -> Result<Next> {
        let (job, attempt, epoch) = (at.job.id, at.job.attempt, at.job.epoch);
        let stored = serde_json::to_value(&failure)?;
        let fenced = self.state.db.system(async move |conn| {
            let allowed = match when {
                When::Silent => sql::<Bool>("coalesce(lease_expires_at <= clock_timestamp(), true)"),
                When::Always => sql::<Bool>("true"),
            };
            let states = [JobState::Starting, JobState::Running, JobState::Pausing].map(JobState::as_str);
            let this = training_jobs::table
                .find(job)
                .filter(training_jobs::attempt.eq(attempt))
                .filter(training_jobs::epoch.eq(epoch))
                .filter(training_jobs::state.eq_any(states))
                .filter(allowed);
            let raised = diesel::update(this).set(training_jobs::epoch.eq(epoch + 1)).execute(conn).await?;
            if raised == 0 {
                return Ok(false);
            }
            let this = job_attempts::table.find((job, attempt)).filter(job_attempts::outcome.is_null());
            diesel::update(this)
                .set((job_attempts::outcome.eq(Outcome::Failed.as_str()), job_attempts::failure.eq(stored)))
                .execute(conn)
                .await?;
            Ok(true)
        });
        if fenced.await? {
            fail_point!("fence.after_commit");
            tracing::warn!(job.id = %job, "fenced attempt {attempt}: {}", failure.message);
            metrics::counter!("training_attempts_fenced_total").increment(1);
        }
        Ok(Next::Again)
    }

    pub(super) async fn stop(&self, at: &Situation, grace: Duration, seen: &mut Observed) -> Result<Next> {
        let Some(attempt) = &at.attempt else { return Ok(Next::Rest) };
        seen.runtime =
            if at.job.is_external() { external::dismiss() } else { self.launcher.stop(&attempt.handle(), grace).await };
        match seen.runtime {
            Runtime::Gone(_) => {
                seen.events_collected = false;
                Ok(Next::Again)
            }
            Runtime::Alive | Runtime::Waiting | Runtime::Doomed(_) => {
                tokio::time::sleep(STOP_POLL).await;
                Ok(Next::Again)
            }
            Runtime::NotStarted | Runtime::Unknown => Ok(Next::Rest),
        }
    }

    /// Asks the gateway for every promised artifact; writes the manifest when all are there.
    pub(super) async fn verify(&self, at: &Situation, seen: &mut Observed, shift: &Shift) -> Result<Next> {
        let Some(attempt) = &at.attempt else { return Ok(Next::Rest) };
        let files = attempt.manifest()?;
        // Verifying gigabytes takes a while; a cancel in the meantime does not wait for it.
        let verification = tokio::select! {
            done = self.check_artifacts(at, files) => done,
            () = shift.changed.notified() => return Ok(Next::Again),
        };
        let unreachable = verification == Verification::Unreachable;
        seen.verification = Some(verification);
        Ok(if unreachable { Next::Rest } else { Next::Again })
    }

    async fn check_artifacts(&self, at: &Situation, files: Vec<wire::storage::FileRef>) -> Verification {
        if files.is_empty() && !at.job.is_external() {
            return Verification::Broken("the trainer's manifest names no file".into());
        }
        let gateway = &self.state.gateway;
        let result = match gateway.verify(files.clone()).await.map_err(Error::from) {
            Ok(()) => self.write_manifest(at, files).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => Verification::Complete,
            Err(error) if matches!(error.code(), Some(Code::NotFound | Code::ChecksumMismatch)) => {
                Verification::Broken(service::error::chain(&error))
            }
            Err(error) => {
                tracing::warn!(job.id = %at.job.id, error = %service::error::chain(&error), "cannot verify the artifacts yet");
                Verification::Unreachable
            }
        }
    }

    async fn write_manifest(&self, at: &Situation, mut files: Vec<wire::storage::FileRef>) -> Result<()> {
        files.sort_by(|a, b| a.key.cmp(&b.key));
        let body = serde_json::to_vec(&Manifest { files, step: None })?;
        let key = format!("{}{}", layout::job_prefix(at.job.user(), at.job.id()), layout::MANIFEST);
        self.state.gateway.put_bytes(&key, body.into()).await?;
        fail_point!("verify.after_manifest");
        Ok(())
    }

    /// Ends the attempt and moves the job on, if both are as they were when that was decided.
    pub(super) async fn settle(&self, at: &Situation, settlement: Settlement) -> Result<Next> {
        let (before, seq, told) = (at.job.clone(), at.attempt.as_ref().map(|a| a.last_seq), settlement.failure.clone());
        let to = settlement.to;
        let alerts = self.policy.alerts;
        let work = async move |conn: &mut Conn| settle(conn, &before, seq, settlement, alerts).await;
        let moved = self.state.db.system(work).await?;
        let Some(moved) = moved else { return Ok(Next::Again) };
        fail_point!("settle.after_commit");
        moved.count();
        match told {
            Some(failure) => {
                tracing::warn!(job.id = %at.job.id, code = ?failure.code, "attempt {} ended, the job is {to}: {}", at.job.attempt, failure.message)
            }
            None => tracing::info!(job.id = %at.job.id, "attempt {} ended, the job is {to}", at.job.attempt),
        }
        self.hints.all();
        Ok(Next::Rest)
    }
}

async fn settle(
    conn: &mut Conn,
    before: &JobRow,
    seq: Option<i64>,
    settlement: Settlement,
    alerts: Thresholds,
) -> Result<Option<Moved>> {
    let Some(now) = JobRow::lock(conn, before.id()).await? else { return Ok(None) };
    if (now.state != before.state) || (now.attempt, now.epoch) != (before.attempt, before.epoch) {
        return Ok(None);
    }
    // A report that came in between may change the verdict.
    let attempt = AttemptRow::find(conn, before.id(), before.attempt).await?;
    if attempt.as_ref().map(|a| a.last_seq) != seq {
        return Ok(None);
    }
    let files = attempt.as_ref().map(AttemptRow::manifest).transpose()?.unwrap_or_default();
    if let Some(attempt) = attempt {
        let outcome = attempt.outcome.unwrap_or_else(|| settlement.outcome.as_str().to_owned());
        let failure = settlement.failure.as_ref().map(serde_json::to_value).transpose()?;
        diesel::update(job_attempts::table.find((attempt.job_id, attempt.attempt)))
            .set((
                job_attempts::outcome.eq(outcome),
                job_attempts::failure.eq(attempt.failure.or(failure)),
                job_attempts::exit_code.eq(settlement.exit_code),
                job_attempts::finished_at.eq(diesel::dsl::now),
            ))
            .execute(conn)
            .await?;
    }
    ledger::charge(conn, &[(before.id(), before.attempt)], alerts).await?;
    let moved = Change::to(settlement.to)
        .guarded(before.attempt, before.epoch)
        .failure(settlement.failure)
        .timer(settlement.retry_in)
        .no_lease()
        .one_more_attempt(OneMore::from(settlement.refund))
        .apply(conn, before.id())
        .await?;
    fail_point!("settle.before_commit");
    // A trainer outside Hone may keep what it made.
    if moved.is_some() && settlement.to == JobState::Succeeded && !files.is_empty() {
        Artifact::record(conn, before.user(), before.id(), before.attempt, &files).await?;
    }
    Ok(moved)
}
