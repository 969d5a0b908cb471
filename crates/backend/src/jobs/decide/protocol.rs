//! The callback protocol explored exhaustively (stateright): two backends that handle callbacks and act on decisions
//! they made a while ago, trainers of which an attempt may by accident have two, a network that loses, repeats and
//! reorders, and crashes of everybody at any point. Every reachable state is checked against the invariants.
//!
//! The database's transactions are the atomic steps. `decide`, `effect` and `can` are the real ones. Left out: pausing
//! and event objects in storage, which the random histories in `model.rs` have.

mod explore;

use super::*;
use crate::jobs::{
    effect::{Effect, effect},
    state::{can, has_runtime},
};
use std::collections::{BTreeSet, VecDeque};
use wire::{EventKind, event::Summary};

/// A trainer says this much: metrics, and that it has finished.
const LAST: u8 = 2;
const EVENTS: usize = 2;
const MAX_ATTEMPTS: u8 = 2;

/// What a careless change could do; each must be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// The reply goes out before COMMIT.
    AcknowledgesBeforeCommit,
    /// Callbacks of an earlier epoch are taken.
    NoFence,
    /// Changes are written whatever the row says by now.
    NoCompareAndSet,
    /// A lease is over when the backend's own clock, which is ahead, says so.
    OwnClock,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lease {
    None,
    Valid,
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    epoch: u8,
    claimed: Option<u8>,
    outcome: Option<&'static str>,
    /// How often each event was applied; events are applied in the order of seq.
    applied: [u8; EVENTS],
    stored: BTreeSet<u8>,
    /// Who stored them.
    from: BTreeSet<u8>,
    last_seq: u8,
    launched: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Instance {
    attempt: u8,
    epoch: u8,
    alive: bool,
    /// Exited by itself.
    clean: bool,
    /// What it said stays on the network, and may arrive any number of times, in any order, or never.
    said: u8,
    /// The best reply on its way to it, which may never arrive; worse ones would tell it nothing.
    replied: u8,
    refused: bool,
    acked: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Request {
    instance: u8,
    seq: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Job {
    state: JobState,
    attempt: u8,
    epoch: u8,
    lease: Lease,
}

/// What a backend saw, and what it still means to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Plan {
    job: Job,
    last_seq: u8,
    collected: bool,
    verified: Option<bool>,
    actions: VecDeque<Deed>,
}

/// [`Action`] without its texts and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Deed {
    Dispatch,
    Launch,
    Fence,
    Stop,
    Collect,
    Verify,
    Requeue,
    Settle { to: JobState, outcome: &'static str },
}

/// One that dies is one that forgets its plan, and may look again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Backend {
    plan: Option<Plan>,
    /// Answered and not yet committed: the planted bug.
    uncommitted: Option<Request>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    job: Job,
    rows: Vec<Row>,
    instances: Vec<Instance>,
    backends: [Backend; 2],
    /// The first terminal state.
    ended: Option<JobState>,
    /// A rule that a step itself broke.
    broke: Option<&'static str>,
    crashes: u8,
    expiries: u8,
    doubles: u8,
    cancelled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Look(usize),
    Act(usize),
    Handle(usize, Request),
    Commit(usize),
    Forget(usize),
    Say(u8),
    Exit(u8),
    Crash(u8),
    HearReply(u8),
    HearRefusal(u8),
    Expire,
    Double,
    Cancel,
}

#[derive(Debug)]
struct Protocol {
    bug: Bug,
    crashes: u8,
    expiries: u8,
    doubles: u8,
    cancels: bool,
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_000_000, 0).unwrap()
}

impl World {
    fn row(&mut self) -> Option<&mut Row> {
        self.rows.get_mut(usize::from(self.job.attempt).checked_sub(1)?)
    }

    fn runtime(&self, attempt: u8) -> Runtime {
        let Some(row) = usize::from(attempt).checked_sub(1).and_then(|i| self.rows.get(i)) else {
            return Runtime::NotStarted;
        };
        let own: Vec<&Instance> = self.instances.iter().filter(|i| i.attempt == attempt).collect();
        if own.iter().any(|i| i.alive) {
            return Runtime::Alive;
        }
        match (row.launched, own.iter().all(|i| i.clean)) {
            (false, _) => Runtime::NotStarted,
            (true, _) if own.is_empty() => Runtime::Gone(Exit::new(Ending::Withdrawn)),
            (true, true) => Runtime::Gone(Exit::new(Ending::Code { code: 0 })),
            (true, false) => Runtime::Gone(Exit::new(Ending::Signal { signal: 9, out_of_memory: false })),
        }
    }

    /// The guarded UPDATE.
    fn become_(&mut self, to: JobState, bug: Bug) -> bool {
        if !can(self.job.state, to) && bug != Bug::NoCompareAndSet {
            return false;
        }
        self.job.state = to;
        if to.is_terminal() {
            self.ended.get_or_insert(to);
        }
        true
    }

    fn look(&mut self, backend: usize, bug: Bug) {
        let ahead = bug == Bug::OwnClock && backend == 1;
        let before = self.backends[backend].plan.take().filter(|p| p.job.attempt == self.job.attempt);
        let kept = before.filter(|p| p.actions.is_empty());
        let (collected, verified) = kept.map_or((false, None), |p| (p.collected, p.verified));
        let current = usize::from(self.job.attempt).checked_sub(1).and_then(|i| self.rows.get(i));
        let last_seq = current.map_or(0, |row| row.last_seq);
        let current = current.map(|row| AttemptSnapshot {
            epoch: row.epoch.into(),
            claimed: row.claimed.is_some(),
            outcome: row.outcome.and_then(Outcome::parse),
            ..AttemptSnapshot::default()
        });
        let second = Duration::from_secs(1);
        let job = JobSnapshot {
            state: self.job.state,
            attempt: self.job.attempt.into(),
            max_attempts: MAX_ATTEMPTS.into(),
            epoch: self.job.epoch.into(),
            retry_at: None,
            lease_expires_at: match self.job.lease {
                Lease::None => None,
                Lease::Valid if ahead => Some(now() - second),
                Lease::Valid => Some(now() + second),
                Lease::Over => Some(now() - second),
            },
            step: 0,
            current,
        };
        let seen = Observed {
            runtime: self.runtime(self.job.attempt),
            events_collected: collected,
            verification: verified
                .map(|good| if good { Verification::Complete } else { Verification::Broken("missing".into()) }),
            capacity: true,
            sweeper_armed: true,
            jitter: 0.5,
        };
        let actions = decide(&job, &seen, now(), &Policy::default());
        let actions: VecDeque<Deed> = actions.iter().map(Deed::of).collect();
        // The lease has played its part.
        let job = Job { lease: Lease::None, ..self.job.clone() };
        self.remember(backend, Plan { job, last_seq, collected, verified, actions });
    }

    /// A plan that says no more than none is none: fewer states to look at.
    fn remember(&mut self, backend: usize, plan: Plan) {
        let worth = !plan.actions.is_empty() || plan.collected || plan.verified.is_some();
        self.backends[backend].plan = worth.then_some(plan);
    }

    fn act(&mut self, backend: usize, bug: Bug) {
        let Some(mut plan) = self.backends[backend].plan.take() else { return };
        let Some(deed) = plan.actions.pop_front() else { return };
        let careless = bug == Bug::NoCompareAndSet;
        let same = careless || (plan.job.attempt == self.job.attempt && plan.job.epoch == self.job.epoch);
        let attempt = plan.job.attempt;
        match deed {
            Deed::Dispatch => {
                if (careless || self.job.attempt == attempt) && self.become_(JobState::Starting, bug) {
                    self.job.attempt += 1;
                    self.job.epoch += 1;
                    self.job.lease = Lease::Valid;
                    self.rows.push(Row {
                        epoch: self.job.epoch,
                        claimed: None,
                        outcome: None,
                        applied: [0; EVENTS],
                        stored: BTreeSet::new(),
                        from: BTreeSet::new(),
                        last_seq: 0,
                        launched: false,
                    });
                }
                return;
            }
            Deed::Requeue => {
                if same {
                    self.become_(JobState::Queued, bug);
                }
                return;
            }
            Deed::Launch => {
                self.launch(attempt);
                return;
            }
            Deed::Fence => {
                let over = matches!(self.job.lease, Lease::Over | Lease::None);
                let guarded = matches!(self.job.state, JobState::Starting | JobState::Running);
                if same && guarded && (over || bug == Bug::OwnClock) {
                    if !over {
                        self.broke = Some("fenced a trainer whose lease is valid");
                    }
                    self.job.epoch += 1;
                    if let Some(row) = self.row() {
                        row.outcome.get_or_insert(Outcome::Failed.as_str());
                    }
                }
            }
            Deed::Stop => {
                self.instances.iter_mut().filter(|i| i.attempt == attempt).for_each(|i| i.alive = false);
                if let Some(row) = usize::from(attempt).checked_sub(1).and_then(|i| self.rows.get_mut(i)) {
                    row.launched = true;
                }
                plan.collected = false;
            }
            Deed::Collect => plan.collected = true,
            // A trainer finishes after its uploads; what it promised is there if it said so.
            Deed::Verify => plan.verified = Some(self.row().is_some_and(|row| row.stored.contains(&LAST))),
            Deed::Settle { to, outcome } => {
                let last_seq = self.row().map_or(0, |row| row.last_seq);
                let current = careless || (self.job.state == plan.job.state && last_seq == plan.last_seq);
                if same && current && self.become_(to, bug) {
                    self.job.lease = Lease::None;
                    if let Some(row) = self.row() {
                        row.outcome.get_or_insert(outcome);
                    }
                }
                return;
            }
        }
        self.remember(backend, plan);
    }

    /// Creating the record is what counts, not whether the decision is still good.
    fn launch(&mut self, attempt: u8) {
        let Some(row) = usize::from(attempt).checked_sub(1).and_then(|i| self.rows.get_mut(i)) else { return };
        if !row.launched {
            row.launched = true;
            let epoch = row.epoch;
            self.instances.push(Instance::new(attempt, epoch));
        }
    }

    /// The callback's transaction and its reply; none is 410.
    fn receive(&mut self, request: Request, bug: Bug) -> Option<u8> {
        let Request { instance, seq } = request;
        let sender = self.instances[usize::from(instance)].clone();
        let fenced = sender.attempt != self.job.attempt || sender.epoch != self.job.epoch;
        if fenced && bug != Bug::NoFence {
            return None;
        }
        let before = self.job.clone();
        let mut row = self.row()?.clone();
        match row.claimed {
            Some(owner) if owner == instance => {}
            Some(_) => return None,
            None if row.outcome.is_some() || !has_runtime(self.job.state) => return None,
            None => {
                row.claimed = Some(instance);
                if self.job.state == JobState::Starting {
                    self.become_(JobState::Running, bug);
                }
            }
        }
        row.stored.insert(seq);
        row.from.insert(instance);
        while row.stored.contains(&(row.last_seq + 1)) {
            row.last_seq += 1;
            row.applied[usize::from(row.last_seq) - 1] += 1;
            let over = self.job.state.is_terminal();
            let finishes = matches!(effect(&event(row.last_seq)), Effect::Finish { .. });
            if finishes && !over && row.outcome.is_none() && can(self.job.state, JobState::Finalizing) {
                self.become_(JobState::Finalizing, bug);
                self.job.lease = Lease::None;
            }
        }
        if self.job.state == JobState::Running && row.outcome.is_none() {
            self.job.lease = Lease::Valid;
        }
        if fenced && self.job != before {
            self.broke = Some("an earlier epoch changed the job");
        }
        let acked = row.last_seq;
        *self.row()? = row;
        Some(acked)
    }

    fn reply(&mut self, instance: u8, reply: Option<u8>) {
        let instance = &mut self.instances[usize::from(instance)];
        match reply {
            Some(acked) => instance.replied = instance.replied.max(acked),
            None => instance.refused = true,
        }
    }
}

fn event(seq: u8) -> EventKind {
    if seq == LAST {
        EventKind::Finished { last_seq: LAST.into(), manifest: Vec::new(), summary: Summary::default() }
    } else {
        EventKind::Metrics { step: seq.into(), epoch: 0.0, values: Default::default() }
    }
}

impl Instance {
    const fn new(attempt: u8, epoch: u8) -> Self {
        Self { attempt, epoch, alive: true, clean: false, said: 0, replied: 0, refused: false, acked: 0 }
    }
}

impl Deed {
    fn of(action: &Action) -> Self {
        match action {
            Action::Dispatch => Self::Dispatch,
            Action::Launch => Self::Launch,
            Action::Fence(_) => Self::Fence,
            Action::Stop { .. } => Self::Stop,
            Action::CollectEvents => Self::Collect,
            Action::Verify => Self::Verify,
            Action::Requeue => Self::Requeue,
            // What a cluster does is in `model.rs`.
            Action::Revoke(_) | Action::Renew => unreachable!("no trainer here waits or is doomed"),
            Action::Settle(end) => Self::Settle { to: end.to, outcome: end.outcome.as_str() },
        }
    }
}
