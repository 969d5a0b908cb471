//! The reconciler: reads what jobs should be, observes what is, and acts, again and again.
//!
//! It is level-triggered: notifications only make it look sooner, and a missed one costs a tick. It holds no
//! transaction while it talks to the outside. Two backends may run it: dispatch skips locked rows, every
//! other write is guarded by state, attempt and epoch, and every outside action is idempotent. Only the leader of
//! them judges leases.

mod act;
mod collect;
mod sweep;

use super::{
    decide::{Action, Observed, Runtime, decide},
    external,
    launcher::Launcher,
    policy::Policy,
    rows::Situation,
    state::has_runtime,
};
use crate::{AppState, error::Result, schema::training_jobs};
use act::When;
use diesel::{dsl::sql, prelude::*, sql_types::Bool};
use diesel_async::RunQueryDsl;
use futures::FutureExt;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wire::{JobId, JobState};

/// Jobs attended to at the same time.
const WORKERS: usize = 32;
/// Longest time one job is attended to before the others' state is read again.
const SHIFT: Duration = Duration::from_secs(20);
/// Between two looks at a runtime that is being stopped.
const STOP_POLL: Duration = Duration::from_millis(50);
/// Ticks between two sweeps of what ended attempts left behind.
const SWEEP_EVERY: u32 = 3;

/// Wakes the reconciler, in whole or for one job.
#[derive(Debug, Default)]
pub struct Hints {
    any: Notify,
    busy: Mutex<HashMap<JobId, Arc<Notify>>>,
}

impl Hints {
    /// Something about `job` changed.
    pub fn job(&self, job: JobId) {
        if let Some(attendant) = self.busy().get(&job) {
            attendant.notify_one();
        }
        self.any.notify_one();
    }

    pub fn all(&self) {
        self.any.notify_one();
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Notify>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, job: JobId) -> std::result::Result<Shift, Occupied> {
        let mut busy = self.busy();
        if busy.contains_key(&job) {
            return Err(Occupied::Job);
        }
        if busy.len() >= WORKERS {
            return Err(Occupied::Workers);
        }
        let changed = Arc::new(Notify::new());
        busy.insert(job, Arc::clone(&changed));
        Ok(Shift { hints: Arc::clone(self), job, changed })
    }
}

/// Why a job cannot be attended to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupied {
    /// Somebody does.
    Job,
    Workers,
}

/// Marks a job as attended to until dropped.
#[derive(Debug)]
struct Shift {
    hints: Arc<Hints>,
    job: JobId,
    /// Notified when the job changed under our hands.
    changed: Arc<Notify>,
}

impl Drop for Shift {
    fn drop(&mut self) {
        self.hints.busy().remove(&self.job);
    }
}

#[derive(Debug)]
pub struct Reconciler {
    state: AppState,
    policy: Policy,
    launcher: Arc<dyn Launcher>,
    hints: Arc<Hints>,
    /// When leases became trustworthy: our start, the end of the last database outage or of a sleep of ours, or the
    /// moment from which we lead.
    reachable_since: Mutex<Instant>,
    /// The job that was taken up last; the next pass begins after it, so that none is always left out.
    turn: Mutex<Uuid>,
}

/// What to do after an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Look again at once.
    Again,
    /// Nothing to gain before the next tick.
    Rest,
}

impl Reconciler {
    #[must_use]
    pub fn new(state: AppState, policy: Policy, launcher: Arc<dyn Launcher>, hints: Arc<Hints>) -> Arc<Self> {
        Arc::new(Self {
            state,
            policy,
            launcher,
            hints,
            reachable_since: Mutex::new(Instant::now()),
            turn: Mutex::default(),
        })
    }

    /// Runs until `stop`; attempts go on without it.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = self.passes() => {}
            () = self.sweeps() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn passes(self: &Arc<Self>) {
        let mut shifts = JoinSet::new();
        let mut last = Instant::now();
        loop {
            // Whoever slept this long (a frozen process, a laptop with its lid closed) took no heartbeats either; and
            // before we led, somebody else may have kept them from being stored.
            if last.elapsed() > self.policy.tick + self.policy.lease / 4 || !self.state.leader.leads() {
                self.distrust_leases();
            }
            last = Instant::now();
            match self.pass(&mut shifts).await {
                Ok(()) => {}
                Err(error) => {
                    // Heartbeats could not be stored either, so no lease may be judged for a while.
                    self.distrust_leases();
                    tracing::warn!(error = %service::error::chain(&error), "cannot read the jobs, trying again");
                }
            }
            while shifts.try_join_next().is_some() {}
            tokio::select! {
                () = tokio::time::sleep(self.policy.tick) => {}
                () = self.hints.any.notified() => {}
            }
        }
    }

    /// Beside the passes, because storage may be slow.
    async fn sweeps(&self) {
        loop {
            self.sweep().await;
            tokio::time::sleep(self.policy.tick * SWEEP_EVERY).await;
        }
    }

    fn distrust_leases(&self) {
        *self.reachable_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn turn(&self) -> MutexGuard<'_, Uuid> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweeper_armed(&self) -> bool {
        self.reachable_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= self.policy.lease
    }

    async fn pass(self: &Arc<Self>, shifts: &mut JoinSet<()>) -> Result<()> {
        let work = self.state.db.system(async |conn| {
            let due = sql::<Bool>("(state <> 'retry_wait' OR retry_at IS NULL OR retry_at <= now())");
            let states = JobState::ALL.map(|s| (s, s.as_str()));
            let wanted = |s: JobState| has_runtime(s) || s == JobState::Queued || s == JobState::RetryWait;
            let wanted: Vec<&str> = states.into_iter().filter(|(s, _)| wanted(*s)).map(|(_, name)| name).collect();
            // A trainer of somebody else's that works in time: there is nothing to observe and nothing to do.
            let quiet = sql::<Bool>(
                "framework = 'external' AND state IN ('starting', 'running') AND lease_expires_at > clock_timestamp()
                 AND NOT EXISTS (SELECT FROM job_attempts a WHERE a.job_id = training_jobs.id
                    AND a.attempt = training_jobs.attempt AND a.outcome IS NOT NULL)",
            );
            let rows = training_jobs::table
                .filter(training_jobs::state.eq_any(wanted))
                .filter(due)
                .order(training_jobs::id)
                .select((training_jobs::id, training_jobs::state, quiet));
            Ok(rows.load::<(Uuid, String, bool)>(conn).await?)
        });
        let mut work = work.await?;
        let count = |wanted: &dyn Fn(JobState) -> bool| {
            let jobs = work.iter().filter_map(|(_, s, _)| s.parse().ok()).filter(|s| wanted(*s)).count();
            u32::try_from(jobs).unwrap_or(u32::MAX)
        };
        let active = count(&has_runtime);
        let queued = count(&|s| s == JobState::Queued);
        metrics::gauge!("active_training_jobs").set(f64::from(active));
        metrics::gauge!("queued_training_jobs").set(f64::from(queued));
        let mut fresh = Vec::new();
        if queued > 0 {
            while let Some(job) = self.dispatch().await? {
                fresh.push(job);
            }
        }
        let turn = *self.turn();
        let begin = work.partition_point(|(id, ..)| *id <= turn);
        work.rotate_left(begin);
        let waits = |state: &str| state == JobState::Queued.as_str();
        let due =
            work.into_iter().filter(|(_, state, quiet)| !quiet && !waits(state)).map(|(id, ..)| (JobId(id), true));
        let patience = tokio::time::Instant::now() + self.policy.tick;
        'jobs: for (job, in_turn) in fresh.into_iter().map(|job| (job, false)).chain(due) {
            let shift = loop {
                match self.hints.take(job) {
                    Ok(shift) => break shift,
                    Err(Occupied::Job) => continue 'jobs,
                    Err(Occupied::Workers) => match tokio::time::timeout_at(patience, shifts.join_next()).await {
                        Ok(Some(_)) => {}
                        // The next pass begins with the rest.
                        Ok(None) | Err(_) => break 'jobs,
                    },
                }
            };
            if in_turn {
                *self.turn() = job.0;
            }
            let me = Arc::clone(self);
            shifts.spawn(async move {
                loop {
                    if let Err(error) = me.attend(&shift).await {
                        let error = service::error::chain(&error);
                        tracing::warn!(job.id = %shift.job, error, "cannot attend to the job now");
                    }
                    // It changed while we were busy with what it was.
                    if shift.changed.notified().now_or_never().is_none() {
                        break;
                    }
                }
            });
        }
        Ok(())
    }

    /// Decides and acts until there is nothing to do for this job.
    async fn attend(&self, shift: &Shift) -> Result<()> {
        let until = Instant::now() + SHIFT;
        let mut seen: Option<(u32, Observed)> = None;
        while Instant::now() < until {
            let job = shift.job;
            let Some(at) = self.state.db.system(async move |conn| Situation::load(conn, job).await).await? else {
                return Ok(());
            };
            // An observation is good for the attempt it was made of.
            let mut observed = match seen.take() {
                Some((attempt, observed)) if attempt == at.snapshot.attempt => observed,
                _ => self.observe(&at).await,
            };
            let policy = if at.job.is_external() { self.policy.external() } else { self.policy };
            let actions = decide(&at.snapshot, &observed, at.now, &policy);
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                if self.perform(&at, action, &mut observed, shift).await? == Next::Rest {
                    return Ok(());
                }
            }
            seen = Some((at.snapshot.attempt, observed));
        }
        Ok(())
    }

    async fn observe(&self, at: &Situation) -> Observed {
        let runtime = match &at.attempt {
            Some(attempt) if at.job.is_external() => external::runtime(at.snapshot.state, attempt),
            Some(attempt) => self.launcher.observe(&attempt.handle()).await,
            None => Runtime::NotStarted,
        };
        Observed {
            runtime,
            events_collected: false,
            verification: None,
            // Queued jobs are dispatched by the pass, which counts all jobs at once.
            capacity: false,
            sweeper_armed: self.sweeper_armed() && self.state.leader.leads(),
            jitter: rand::random(),
        }
    }

    async fn perform(&self, at: &Situation, action: Action, seen: &mut Observed, shift: &Shift) -> Result<Next> {
        match action {
            Action::Dispatch => Ok(Next::Rest),
            Action::Requeue => self.requeue(at).await,
            Action::Launch => self.launch(at, seen).await,
            Action::Fence(failure) => self.fence(at, failure, When::Silent).await,
            Action::Revoke(failure) => self.fence(at, failure, When::Always).await,
            Action::Renew => self.renew(at).await,
            Action::Stop { grace } => self.stop(at, grace, seen).await,
            Action::CollectEvents => self.collect(at, seen).await,
            Action::Verify => self.verify(at, seen, shift).await,
            Action::Settle(settlement) => self.settle(at, settlement).await,
        }
    }
}
