//! Random histories of one job: two backends that act on what they saw a while ago and die in between,
//! trainers that work, fail, hang or die, a cluster that lets them wait, moves them out and loses their machine, somebody
//! who deletes what is not theirs, a channel that loses, repeats and reorders, and a user who changes their mind. The world applies actions and messages under the same guards as the database does.

mod invariants;

use super::*;
use crate::jobs::{
    effect::{Effect, effect},
    state::{can, has_runtime},
};
use proptest::prelude::*;
use std::collections::VecDeque;
use wire::{
    EventKind,
    event::{StopReason, Summary},
};

/// The truth about a process.
#[derive(Debug, Clone, PartialEq)]
enum Process {
    NotStarted,
    /// In a queue of the cluster.
    Waiting,
    Alive {
        stop_since: Option<DateTime<Utc>>,
    },
    Ended(Ending),
}

impl Process {
    /// It is there, or will be.
    const fn stands(&self) -> bool {
        matches!(self, Self::Waiting | Self::Alive { .. })
    }
}

#[derive(Debug, Clone)]
struct Attempt {
    row: AttemptSnapshot,
    process: Process,
    /// Why the cluster does not want it any more.
    doomed: Option<Ending>,
    /// Whether what it promised is in storage.
    artifacts: bool,
    /// Messages applied, as `last_seq` counts them.
    applied: u64,
}

#[derive(Debug, Clone)]
struct Message {
    attempt: u32,
    epoch: i64,
    kind: Option<EventKind>,
    /// Lies in storage as well.
    stored: bool,
}

/// What a backend saw, and what it still means to do about it.
#[derive(Debug, Clone)]
struct Plan {
    job: JobSnapshot,
    applied: u64,
    seen: Observed,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone)]
struct World {
    now: DateTime<Utc>,
    policy: Policy,
    job: JobSnapshot,
    attempts: Vec<Attempt>,
    channel: Vec<Message>,
    backends: [Option<Plan>; 2],
    /// Started trainers wait.
    full: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Look(usize),
    Act(usize),
    Crash(usize),
    Pass(u16),
    Trainer(Deed),
    Cluster(Whim),
    Deliver { index: usize, keep: bool },
    Lose(usize),
    Cancel,
    Pause,
    Resume,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Trainers {
    Diligent,
    Silent,
}

#[derive(Debug, Clone)]
enum Deed {
    Heartbeat,
    Checkpoint,
    Finish { good: bool, stored: bool },
    Fail(FailureCode),
    Stop(StopReason),
    Exit(i32),
    Die { out_of_memory: bool },
}

/// What a cluster does by itself.
#[derive(Debug, Clone)]
enum Whim {
    Fill,
    Admit,
    Doom(Ending),
    End(Ending),
}

fn whims() -> impl Strategy<Value = Whim> {
    let cause = || "why".to_owned();
    prop_oneof![
        1 => Just(Whim::Fill),
        2 => Just(Whim::Admit),
        2 => prop_oneof![Just(Ending::Deleted { what: cause() }), Just(Ending::StartFailed { reason: cause() })]
            .prop_map(Whim::Doom),
        3 => prop_oneof![
            Just(Ending::Evicted { cause: cause() }),
            Just(Ending::NodeLost { cause: cause() }),
            Just(Ending::OutOfDisk { cause: cause() }),
            Just(Ending::Deleted { what: cause() }),
            Just(Ending::DeadlineExceeded),
        ]
        .prop_map(Whim::End),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let deed = prop_oneof![
        4 => Just(Deed::Heartbeat),
        1 => Just(Deed::Checkpoint),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(good, stored)| Deed::Finish { good, stored }),
        1 => prop_oneof![Just(FailureCode::Diverged), Just(FailureCode::StorageUnavailable)].prop_map(Deed::Fail),
        1 => prop_oneof![Just(StopReason::Paused), Just(StopReason::Preempted), Just(StopReason::Cancelled)].prop_map(Deed::Stop),
        2 => prop_oneof![Just(0), Just(64), Just(65), Just(66), Just(67), Just(68), Just(75), Just(1)].prop_map(Deed::Exit),
        1 => any::<bool>().prop_map(|out_of_memory| Deed::Die { out_of_memory }),
    ];
    let step = prop_oneof![
        6 => (0_usize..2).prop_map(Step::Look),
        8 => (0_usize..2).prop_map(Step::Act),
        1 => (0_usize..2).prop_map(Step::Crash),
        3 => (1_u16..90).prop_map(Step::Pass),
        8 => deed.prop_map(Step::Trainer),
        2 => whims().prop_map(Step::Cluster),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(index, keep)| Step::Deliver { index, keep }),
        1 => any::<usize>().prop_map(Step::Lose),
        1 => Just(Step::Cancel),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
    ];
    proptest::collection::vec(step, 1..120)
}

impl Attempt {
    /// What a launcher sees.
    fn runtime(&self) -> Runtime {
        match (&self.process, &self.doomed) {
            (Process::NotStarted, _) => Runtime::NotStarted,
            (Process::Ended(ending), _) => Runtime::Gone(Exit::new(ending.clone())),
            (Process::Waiting | Process::Alive { .. }, Some(ending)) => Runtime::Doomed(Exit::new(ending.clone())),
            (Process::Waiting, None) => Runtime::Waiting,
            (Process::Alive { .. }, None) => Runtime::Alive,
        }
    }

    fn admit(&mut self) {
        if self.process == Process::Waiting {
            self.process = Process::Alive { stop_since: None };
        }
    }
}

impl World {
    fn new(max_attempts: u32) -> Self {
        let job = JobSnapshot {
            state: JobState::Queued,
            attempt: 0,
            max_attempts,
            epoch: 0,
            retry_at: None,
            lease_expires_at: None,
            step: 0,
            current: None,
        };
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let policy = Policy::default();
        Self { now, policy, job, attempts: vec![], channel: vec![], backends: [None, None], full: false }
    }

    fn current(&mut self) -> Option<&mut Attempt> {
        self.attempts.last_mut()
    }

    fn snapshot(&self) -> JobSnapshot {
        JobSnapshot { current: self.attempts.last().map(|a| a.row.clone()), ..self.job.clone() }
    }

    fn observe(&self) -> Runtime {
        self.attempts.last().map_or(Runtime::NotStarted, Attempt::runtime)
    }

    /// The guarded UPDATE.
    fn become_(&mut self, to: JobState) -> bool {
        if !can(self.job.state, to) {
            return false;
        }
        self.job.state = to;
        self.job.retry_at = None;
        true
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Look(b) => self.look(*b),
            Step::Act(b) => self.act(*b),
            Step::Crash(b) => self.backends[*b] = None,
            Step::Pass(seconds) => self.now += Duration::from_secs((*seconds).into()),
            Step::Trainer(deed) => self.deed(deed),
            Step::Cluster(whim) => self.whim(whim),
            Step::Deliver { index, keep } => {
                let Some(index) = index.checked_rem(self.channel.len()) else { return };
                let message = if *keep { self.channel[index].clone() } else { self.channel.remove(index) };
                self.receive(&message);
            }
            Step::Lose(index) => {
                if let Some(index) = index.checked_rem(self.channel.len()) {
                    // What is in storage is not lost.
                    if !self.channel[index].stored {
                        self.channel.remove(index);
                    }
                }
            }
            Step::Cancel => {
                let direct = !has_runtime(self.job.state);
                self.become_(if direct { JobState::Cancelled } else { JobState::Cancelling });
            }
            Step::Pause => {
                if self.become_(JobState::Pausing) {
                    self.job.retry_at = Some(self.now + self.policy.pause);
                } else if !has_runtime(self.job.state) {
                    self.become_(JobState::Paused);
                }
            }
            Step::Resume => {
                if self.job.state == JobState::Paused && self.become_(JobState::Queued) {
                    self.job.max_attempts += u32::from(self.job.attempt > 0);
                }
            }
        }
    }

    fn look(&mut self, backend: usize) {
        let job = self.snapshot();
        let kept = self.backends[backend].take().filter(|p| p.job.attempt == job.attempt && p.actions.is_empty());
        let fresh = Observed {
            runtime: self.observe(),
            events_collected: false,
            verification: None,
            capacity: true,
            sweeper_armed: true,
            jitter: 0.5,
        };
        let seen = kept.map_or(fresh, |plan| plan.seen);
        let actions = decide(&job, &seen, self.now, &self.policy).into();
        let applied = self.attempts.last().map_or(0, |a| a.applied);
        self.backends[backend] = Some(Plan { job, applied, seen, actions });
    }

    fn act(&mut self, backend: usize) {
        let Some(mut plan) = self.backends[backend].take() else { return };
        let Some(action) = plan.actions.pop_front() else { return };
        let same = plan.job.attempt == self.job.attempt && plan.job.epoch == self.job.epoch;
        let number = plan.job.attempt;
        match action {
            Action::Dispatch => {
                if self.become_(JobState::Starting) {
                    self.job.attempt += 1;
                    self.job.epoch += 1;
                    self.job.lease_expires_at = Some(self.now + self.policy.claim);
                    let row = AttemptSnapshot { epoch: self.job.epoch, ..AttemptSnapshot::default() };
                    let process = Process::NotStarted;
                    self.attempts.push(Attempt { row, process, doomed: None, artifacts: false, applied: 0 });
                }
                return;
            }
            Action::Requeue => {
                if same {
                    self.become_(JobState::Queued);
                }
                return;
            }
            Action::Launch => {
                // Creating the record is what counts, not whether the decision is still good.
                let started = if self.full { Process::Waiting } else { Process::Alive { stop_since: None } };
                if let Some(attempt) = self.attempt(number).filter(|a| a.process == Process::NotStarted) {
                    attempt.process = started;
                }
                return;
            }
            Action::Fence(failure) => {
                let expired = self.job.lease_expires_at.is_none_or(|at| at <= self.now);
                if same && expired {
                    self.fence(failure);
                }
            }
            Action::Revoke(failure) => {
                if same {
                    self.fence(failure);
                }
            }
            Action::Renew => {
                if same && self.job.state == JobState::Starting {
                    self.job.lease_expires_at = Some(self.now + self.policy.claim);
                }
                return;
            }
            Action::Stop { grace } => {
                self.stop(number, grace);
                plan.seen.runtime = self.observe_attempt(number);
                plan.seen.events_collected = false;
            }
            Action::CollectEvents => {
                let stored: Vec<_> = self.channel.iter().filter(|m| m.stored && m.attempt == number).cloned().collect();
                self.channel.retain(|m| !(m.stored && m.attempt == number));
                stored.iter().for_each(|m| self.receive(m));
                plan.seen.events_collected = true;
            }
            Action::Verify => {
                let good = self.attempt(number).is_some_and(|a| a.artifacts);
                let broken = Verification::Broken("a file is missing".into());
                plan.seen.verification = Some(if good { Verification::Complete } else { broken });
            }
            Action::Settle(settlement) => {
                let applied = self.attempts.last().map_or(0, |a| a.applied);
                if same && self.job.state == plan.job.state && applied == plan.applied {
                    self.settle(settlement);
                }
                return;
            }
        }
        self.backends[backend] = Some(plan);
    }

    fn attempt(&mut self, number: u32) -> Option<&mut Attempt> {
        self.attempts.get_mut(usize::try_from(number).unwrap().checked_sub(1)?)
    }

    fn observe_attempt(&mut self, number: u32) -> Runtime {
        self.attempt(number).map_or(Runtime::NotStarted, |a| a.runtime())
    }

    fn fence(&mut self, failure: Failure) {
        if !matches!(self.job.state, JobState::Starting | JobState::Running | JobState::Pausing) {
            return;
        }
        self.job.epoch += 1;
        let row = &mut self.current().unwrap().row;
        if row.outcome.is_none() {
            (row.outcome, row.failure) = (Some(Outcome::Failed), Some(failure));
        }
    }

    fn whim(&mut self, whim: &Whim) {
        match whim {
            Whim::Fill => self.full = true,
            Whim::Admit => self.full = false,
            Whim::Doom(_) | Whim::End(_) => {}
        }
        for attempt in self.attempts.iter_mut().filter(|a| a.process.stands()) {
            match whim {
                Whim::Fill => {}
                Whim::Admit => attempt.admit(),
                Whim::Doom(ending) => attempt.doomed = Some(ending.clone()),
                Whim::End(ending) => attempt.process = Process::Ended(ending.clone()),
            }
        }
    }

    fn stop(&mut self, number: u32, grace: Duration) {
        let now = self.now;
        let Some(attempt) = self.attempt(number) else { return };
        attempt.process = match &attempt.process {
            Process::NotStarted | Process::Waiting => Process::Ended(Ending::Withdrawn),
            Process::Alive { stop_since: None } => Process::Alive { stop_since: Some(now) },
            Process::Alive { stop_since: Some(since) } if now - since >= chrono::Duration::from_std(grace).unwrap() => {
                Process::Ended(Ending::Signal { signal: 9, out_of_memory: false })
            }
            other => other.clone(),
        };
    }

    fn settle(&mut self, settlement: Settlement) {
        if !self.become_(settlement.to) {
            return;
        }
        self.job.retry_at = settlement.retry_in.map(|wait| self.now + wait);
        self.job.lease_expires_at = None;
        self.job.max_attempts += u32::from(settlement.refund);
        if let Some(attempt) = self.current() {
            attempt.row.outcome.get_or_insert(settlement.outcome);
        }
    }

    /// The running process (of the newest attempt that has one) does something.
    fn deed(&mut self, deed: &Deed) {
        let Some(index) = self.attempts.iter().rposition(|a| matches!(a.process, Process::Alive { .. })) else {
            return;
        };
        let number = u32::try_from(index).unwrap() + 1;
        let epoch = self.attempts[index].row.epoch;
        let mut say = |kind, stored| self.channel.push(Message { attempt: number, epoch, kind, stored });
        match deed {
            Deed::Heartbeat => say(None, false),
            Deed::Checkpoint => {
                say(Some(EventKind::Checkpoint { step: 1, prefix: "p".into(), size: 1 }), false);
            }
            Deed::Finish { good, stored } => {
                let file = wire::storage::FileRef { key: "k".into(), size: 1, sha256: "s".into() };
                say(
                    Some(EventKind::Finished { last_seq: 1, manifest: vec![file], summary: Summary::default() }),
                    *stored,
                );
                // Stored objects are not taken back by a trainer that says it finished once more.
                self.attempts[index].artifacts |= *good;
            }
            Deed::Fail(code) => {
                let failure = Failure { code: *code, message: "it said so".into() };
                say(Some(EventKind::Failed { failure }), false);
            }
            Deed::Stop(reason) => {
                say(Some(EventKind::Stopped { reason: *reason, step: 1, checkpoint: None }), false);
            }
            Deed::Exit(code) => self.attempts[index].process = Process::Ended(Ending::Code { code: *code }),
            Deed::Die { out_of_memory } => {
                let ending = Ending::Signal { signal: 9, out_of_memory: *out_of_memory };
                self.attempts[index].process = Process::Ended(ending);
            }
        }
    }

    /// What the callback route does.
    fn receive(&mut self, message: &Message) {
        if message.attempt != self.job.attempt || message.epoch != self.job.epoch {
            return;
        }
        let lease = self.now + self.policy.lease;
        let runs = has_runtime(self.job.state);
        let attempt = self.attempts.last_mut().unwrap();
        if !attempt.row.claimed {
            if attempt.row.outcome.is_some() || !runs {
                return;
            }
            attempt.row.claimed = true;
            if self.job.state == JobState::Starting {
                self.job.state = JobState::Running;
                self.job.lease_expires_at = Some(lease);
            }
        }
        if let Some(kind) = &message.kind {
            attempt.applied += 1;
            let state = self.job.state;
            match effect(kind) {
                _ if state.is_terminal() => {}
                Effect::None => {}
                Effect::Checkpoint { step, .. } => attempt.row.checkpoint_step = Some(step),
                Effect::End { outcome, failure } => {
                    if attempt.row.outcome.is_none() {
                        (attempt.row.outcome, attempt.row.failure) = (Some(outcome), failure);
                    }
                }
                Effect::Finish { .. } => {
                    if attempt.row.outcome.is_none() && can(state, JobState::Finalizing) {
                        self.job.state = JobState::Finalizing;
                        self.job.lease_expires_at = None;
                    }
                }
            }
        }
        let attempt = self.attempts.last().unwrap();
        if matches!(self.job.state, JobState::Running | JobState::Pausing) && attempt.row.outcome.is_none() {
            self.job.lease_expires_at = Some(lease);
        }
    }
}
