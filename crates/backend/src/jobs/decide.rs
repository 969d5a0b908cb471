//! What to do about a job, as one pure function for all launchers.
//!
//! The reconciler loads a [`JobSnapshot`], observes the outside world, calls [`decide`], performs the actions,
//! and starts over. Every action is idempotent and every change of state is guarded by (state, attempt,
//! epoch), so it does not matter where a backend dies or how many of them run.
//!
//! Invariants (tested over random histories in `decide/model.rs`, and over every state of a small world in
//! `decide/protocol.rs`):
//! - a job leaves an attempt only when that attempt's runtime is proven gone; so `cancelled`, `paused`,
//!   `retry_wait` and `queued` have no runtime, and at most one attempt of a job runs;
//! - `succeeded` follows only from verified artifacts;
//! - attempts never exceed the maximum.

use super::{
    policy::Policy,
    verdict::{self, Ending, Exit, Outcome, Verdict},
};
use chrono::{DateTime, Utc};
use std::time::Duration;
use wire::job::{Failure, FailureCode, JobState};

#[cfg(test)]
mod model;
#[cfg(test)]
mod protocol;

/// A job's row with its current attempt, read in one transaction together with the database's clock.
#[derive(Debug, Clone)]
pub struct JobSnapshot {
    pub state: JobState,
    /// 0 before the first dispatch.
    pub attempt: u32,
    pub max_attempts: u32,
    /// The fencing number; a token with another one is dead.
    pub epoch: i64,
    /// `retry_wait`: when to queue again. `pausing`: when patience ends.
    pub retry_at: Option<DateTime<Utc>>,
    pub lease_expires_at: Option<DateTime<Utc>>,
    /// Last optimizer step reported, for messages.
    pub step: u64,
    pub current: Option<AttemptSnapshot>,
}

#[derive(Debug, Clone, Default)]
pub struct AttemptSnapshot {
    /// The job's epoch when it was dispatched; smaller than the job's: fenced.
    pub epoch: i64,
    pub claimed: bool,
    /// Set once, by the trainer's last word or by the fence.
    pub outcome: Option<Outcome>,
    pub failure: Option<Failure>,
    /// Step of the last durable checkpoint this attempt reported.
    pub checkpoint_step: Option<u64>,
}

/// What a launcher sees of an attempt's runtime.
#[derive(Debug, Clone, PartialEq)]
pub enum Runtime {
    /// Nothing was started yet.
    NotStarted,
    /// Started, and waiting for its turn, a machine or its image, all of which may take long.
    Waiting,
    Alive,
    /// It must not go on, for this reason, and something of it may still be there.
    Doomed(Exit),
    /// Over, and it will not come back.
    Gone(Exit),
    /// It cannot be observed now (another machine, service unreachable).
    Unknown,
}

/// What the gateway says about the promised artifacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verification {
    /// All there with the promised sizes and digests, and the job's manifest is written.
    Complete,
    /// Something is missing or differs: what.
    Broken(String),
    /// The gateway could not answer; nothing is known.
    Unreachable,
}

/// The outside world at one moment.
#[derive(Debug, Clone)]
pub struct Observed {
    pub runtime: Runtime,
    /// Event objects in storage were ingested after `runtime` was observed.
    pub events_collected: bool,
    pub verification: Option<Verification>,
    /// Another trainer may start.
    pub capacity: bool,
    /// One full lease has passed since this backend started and since the last database outage.
    pub sweeper_armed: bool,
    /// 0 to 1, for the retry delay.
    pub jitter: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// queued → starting with the next attempt and epoch; then launch.
    Dispatch,
    /// Start the current attempt's runtime; "already started" is success.
    Launch,
    /// Raise the epoch so that the attempt can change nothing any more, and record why. Not if it was heard meanwhile.
    Fence(Failure),
    /// The same, heard or not.
    Revoke(Failure),
    /// Give an attempt that waits for a machine more time for its first word.
    Renew,
    /// SIGTERM, and SIGKILL once `grace` has passed since the first request.
    Stop { grace: Duration },
    /// Ingest the event objects that the trainer put into storage.
    CollectEvents,
    /// Check the promised artifacts and write the job's manifest.
    Verify,
    /// retry_wait → queued.
    Requeue,
    /// The attempt is over.
    Settle(Settlement),
}

/// How an attempt ends and what becomes of its job.
#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    pub to: JobState,
    pub outcome: Outcome,
    pub failure: Option<Failure>,
    pub exit_code: Option<i32>,
    /// For `retry_wait`.
    pub retry_in: Option<Duration>,
    /// The attempt does not count against the maximum (preempted after it had made durable progress).
    pub refund: bool,
}

/// The actions to take now, in order. None: wait for an event or for time to pass.
#[must_use]
pub fn decide(job: &JobSnapshot, seen: &Observed, now: DateTime<Utc>, policy: &Policy) -> Vec<Action> {
    match job.state {
        JobState::Validating => vec![],
        JobState::Queued if seen.capacity => vec![Action::Dispatch],
        JobState::RetryWait if job.retry_at.is_none_or(|at| at <= now) => vec![Action::Requeue],
        JobState::Queued
        | JobState::RetryWait
        | JobState::Paused
        | JobState::Succeeded
        | JobState::Failed
        | JobState::Cancelled => remove_leftover(seen, policy),
        JobState::Finalizing => finalize(job, seen, policy),
        JobState::Starting | JobState::Running | JobState::Pausing | JobState::Cancelling => {
            attend(job, seen, now, policy)
        }
    }
}

/// A trainer that outlived its job, usually by the moment it needs to exit.
fn remove_leftover(seen: &Observed, policy: &Policy) -> Vec<Action> {
    match seen.runtime {
        Runtime::Alive | Runtime::Waiting | Runtime::Doomed(_) => vec![Action::Stop { grace: policy.linger }],
        Runtime::NotStarted | Runtime::Gone(_) | Runtime::Unknown => vec![],
    }
}

fn attend(job: &JobSnapshot, seen: &Observed, now: DateTime<Utc>, policy: &Policy) -> Vec<Action> {
    let Some(attempt) = &job.current else {
        // Only a damaged database gets here; there is no runtime to wait for.
        return vec![Action::Settle(settle(job, seen, policy, verdict::without_attempt()))];
    };
    if let Runtime::Gone(exit) = &seen.runtime {
        // Its last words may still lie in storage.
        let spoke = !matches!(exit.ending, Ending::StartFailed { .. } | Ending::Withdrawn);
        if spoke && job.state != JobState::Cancelling && !seen.events_collected {
            return vec![Action::CollectEvents];
        }
        return vec![Action::Settle(settle(job, seen, policy, verdict::of(job, attempt, exit)))];
    }
    let fenced = attempt.epoch != job.epoch;
    if job.state == JobState::Cancelling || fenced {
        return vec![Action::Stop { grace: policy.kill_grace }];
    }
    let expired = job.lease_expires_at.is_none_or(|at| at <= now);
    if attempt.outcome.is_some() {
        // It said its last word and exits by itself; help it when it does not.
        let help = expired || matches!(seen.runtime, Runtime::Doomed(_));
        return if help { vec![Action::Stop { grace: policy.linger }] } else { vec![] };
    }
    if let Runtime::Doomed(exit) = &seen.runtime {
        return match attempt.claimed && !seen.events_collected {
            true => vec![Action::CollectEvents],
            false => vec![Action::Revoke(verdict::doomed(job, attempt, exit))],
        };
    }
    if seen.runtime == Runtime::Waiting && !attempt.claimed {
        return wait(job, now, policy);
    }
    if expired && seen.sweeper_armed {
        return match seen.events_collected {
            false => vec![Action::CollectEvents],
            true => vec![Action::Fence(verdict::silence(job, attempt, policy, &seen.runtime))],
        };
    }
    if job.state == JobState::Starting && seen.runtime == Runtime::NotStarted {
        return vec![Action::Launch];
    }
    let impatient = job.state == JobState::Pausing && job.retry_at.is_some_and(|at| at <= now);
    if impatient {
        return vec![Action::Stop { grace: policy.pause_grace }];
    }
    vec![]
}

/// An attempt in a queue of the cluster says nothing, and that is no silence.
fn wait(job: &JobSnapshot, now: DateTime<Utc>, policy: &Policy) -> Vec<Action> {
    let soon = now + policy.claim / 2;
    match job.state {
        // There is nothing to save.
        JobState::Pausing => vec![Action::Stop { grace: policy.pause_grace }],
        JobState::Starting if job.lease_expires_at.is_none_or(|at| at <= soon) => vec![Action::Renew],
        _ => vec![],
    }
}

fn finalize(job: &JobSnapshot, seen: &Observed, policy: &Policy) -> Vec<Action> {
    match &seen.verification {
        None => vec![Action::Verify],
        Some(Verification::Unreachable) => vec![],
        Some(Verification::Complete) => vec![Action::Settle(Settlement {
            to: JobState::Succeeded,
            outcome: Outcome::Succeeded,
            failure: None,
            exit_code: Some(0),
            retry_in: None,
            refund: false,
        })],
        Some(Verification::Broken(what)) => match &seen.runtime {
            Runtime::Gone(_) => {
                vec![Action::Settle(settle(job, seen, policy, verdict::broken_artifacts(what)))]
            }
            Runtime::NotStarted | Runtime::Waiting | Runtime::Alive | Runtime::Doomed(_) | Runtime::Unknown => {
                vec![Action::Stop { grace: policy.kill_grace }]
            }
        },
    }
}

/// Where a job goes when its attempt ended in `verdict` and the runtime is gone.
fn settle(job: &JobSnapshot, seen: &Observed, policy: &Policy, verdict: Verdict) -> Settlement {
    let Verdict { outcome, failure, exit_code } = verdict;
    let retryable = failure.as_ref().is_some_and(|f| f.code.is_retryable());
    let end = |to| Settlement { to, outcome, failure: None, exit_code, retry_in: None, refund: false };
    let failed = |failure| Settlement { failure, ..end(JobState::Failed) };
    match job.state {
        JobState::Cancelling => end(JobState::Cancelled),
        JobState::Pausing if outcome == Outcome::Paused || retryable => Settlement { failure, ..end(JobState::Paused) },
        _ if retryable => {
            let preempted = failure.as_ref().is_some_and(|f| f.code == FailureCode::Preempted);
            let refund = preempted && job.current.as_ref().is_some_and(|a| a.checkpoint_step.is_some());
            if job.attempt >= job.max_attempts && !refund {
                return failed(failure.map(|f| verdict::exhausted(f, job)));
            }
            let wait = if preempted { Duration::ZERO } else { policy.retry_delay(job.attempt, seen.jitter) };
            Settlement { failure, retry_in: Some(wait), refund, ..end(JobState::RetryWait) }
        }
        _ => failed(failure),
    }
}
