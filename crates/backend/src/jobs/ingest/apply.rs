//! Applying submissions: one transaction for a group of them, whatever way they came (callback or object in storage).
//!
//! The jobs' rows are locked first, so batches of one job are applied one after the other and the ids of their
//! events ascend in the order they become visible.

use super::{
    Submission, bury,
    parse::{Received, Rejected},
    rows::{self, Attempt, Contact, Held, Job, Reached},
};
use crate::{
    costs::{budget::Spending, ledger},
    db::Conn,
    error::{Error, Result},
    jobs::{
        effect::{Effect, effect},
        policy::Policy,
        progress,
        state::{can, has_runtime},
        transition::{Change, Moved},
        verdict::Outcome,
    },
    schema::{job_attempts, job_events},
};
use diesel::{
    dsl::sql,
    prelude::*,
    sql_types::{Nullable, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;
use wire::{CallbackReply, Directive, Event, JobState, event::StreamBody, job::Progress, problem::Code};

/// Stored events looked at in one batch to close a gap; the rest follows with the next one.
const CATCH_UP: i64 = 2000;
/// How often the cost of a running attempt is written down, in seconds.
const CHARGE_SECONDS: f64 = 5.0;
/// `now()` is the start of the transaction, which may have waited for a lock since.
const LAST_WORD: &str = "coalesce(stopped_at, clock_timestamp())";

/// What was done, to be reported after COMMIT.
#[derive(Debug)]
pub struct Applied {
    pub reply: CallbackReply,
    /// Events that were refused, those the parser refused included.
    pub rejected: Vec<Rejected>,
    pub stored: usize,
    pub moved: Vec<Moved>,
}

/// What became of a submission in its group's transaction.
#[derive(Debug)]
pub enum Fate {
    Applied(Applied),
    /// Nothing of it was stored.
    Refused(Error),
    /// Another transaction has the job's row, or there is none.
    LeftOut,
}

/// Applies one submission, waiting for the job's row if need be.
pub async fn apply(conn: &mut Conn, submission: &Submission, policy: &Policy) -> Result<Applied> {
    match apply_group(conn, &[submission], policy, Held::Wait).await?.pop() {
        Some(Fate::Applied(applied)) => Ok(applied),
        Some(Fate::Refused(error)) => Err(error),
        Some(Fate::LeftOut) | None => Err(stale("this job no longer exists")),
    }
}

/// Applies `group`, in which every job occurs at most once. One fate each, in order.
pub async fn apply_group(conn: &mut Conn, group: &[&Submission], policy: &Policy, held: Held) -> Result<Vec<Fate>> {
    let ids: Vec<Uuid> = group.iter().map(|s| s.whose.job.0).collect();
    let jobs = rows::lock(conn, &ids, held).await?;
    let mut attempts = rows::attempts(conn, &jobs).await?;
    let mut admitted = Vec::with_capacity(group.len());
    for submission in group {
        let Some(job) = jobs.get(&submission.whose.job.0) else {
            admitted.push(Err(Fate::LeftOut));
            continue;
        };
        let attempt = attempts.remove(&job.id);
        let ingest = match Ingest::new(submission, job, attempt, policy) {
            Ok(mut ingest) => ingest.claim(conn).await.map(|()| ingest),
            Err(refusal) => Err(refusal),
        };
        admitted.push(match ingest {
            Ok(ingest) => Ok(ingest),
            Err(refusal @ Error::Refused(_)) => Err(Fate::Refused(refusal)),
            Err(error) => return Err(error),
        });
    }
    let mut open: Vec<&mut Ingest<'_>> = admitted.iter_mut().filter_map(|a| a.as_mut().ok()).collect();
    work(conn, &mut open, policy).await?;
    service::fail_point!("ingest.before_commit");
    Ok(admitted.into_iter().map(|a| a.map_or_else(|fate| fate, |ingest| Fate::Applied(ingest.finish()))).collect())
}

async fn work(conn: &mut Conn, open: &mut [&mut Ingest<'_>], policy: &Policy) -> Result<()> {
    let submissions: Vec<&Submission> = open.iter().map(|i| i.submission).collect();
    let stored = rows::store(conn, &submissions).await?;
    let mut new = Vec::with_capacity(open.len());
    for ingest in open.iter_mut() {
        new.push((ingest.submission, ingest.tell_apart(conn, &stored).await?));
    }
    rows::store_metrics(conn, &new).await?;
    for (ingest, (_, events)) in open.iter_mut().zip(&new) {
        ingest.stored = events.len();
        if ingest.attempt.gap && !ingest.submission.batch.events.is_empty() {
            let waiting = ingest.waiting(conn).await?;
            ingest.advance(conn, waiting.iter()).await?;
        } else {
            ingest.advance(conn, events.iter().map(|e| &e.event)).await?;
        }
        ingest.spending = ingest.watch_budget(conn).await?;
    }
    let reached: Vec<Reached> = open.iter().filter_map(|i| i.reached()).collect();
    rows::save_attempts(conn, &reached).await?;
    let contacts = open.iter().map(|i| i.contact()).collect::<Result<_>>()?;
    let due = rows::save_contacts(conn, contacts, policy.lease, CHARGE_SECONDS).await?;
    let due = open.iter().filter(|i| i.charge || due.contains(&i.job.id)).map(|i| (i.job.id(), i.job.attempt));
    ledger::charge(conn, &due.collect::<Vec<_>>(), policy.alerts).await?;
    for ingest in open.iter() {
        bury(conn, ingest.submission.whose, &ingest.rejected).await?;
    }
    Ok(())
}

fn stale(why: &str) -> Error {
    Error::refused(Code::StaleAttempt, format!("{why}; stop"))
}

struct Ingest<'a> {
    submission: &'a Submission,
    job: &'a Job,
    attempt: Attempt,
    state: JobState,
    before: Progress,
    progress: Progress,
    /// Every event up to here is applied.
    last_seq: i64,
    policy: &'a Policy,
    rejected: Vec<Rejected>,
    moved: Vec<Moved>,
    stored: usize,
    /// An event is missing before others that are stored.
    gap: bool,
    spending: Option<Spending>,
    /// What the attempt costs is to be written down now.
    charge: bool,
}

impl<'a> Ingest<'a> {
    fn new(submission: &'a Submission, job: &'a Job, attempt: Option<Attempt>, policy: &'a Policy) -> Result<Self> {
        let whose = submission.whose;
        if job.attempt != whose.attempt || job.epoch != whose.epoch {
            let why = format!("attempt {} is over: the job is at attempt {}", whose.attempt, job.attempt);
            return Err(stale(&why));
        }
        let attempt = attempt.ok_or_else(|| stale("this attempt was never dispatched"))?;
        // `{}` until a trainer reports.
        let before: Progress = serde_json::from_value(job.progress.clone()).unwrap_or_default();
        Ok(Self {
            state: job.state.parse().map_err(Error::defect)?,
            progress: before.clone(),
            before,
            last_seq: attempt.last_seq,
            rejected: submission.batch.rejected.clone(),
            moved: Vec::new(),
            stored: 0,
            gap: false,
            spending: None,
            charge: false,
            submission,
            job,
            attempt,
            policy,
        })
    }

    fn finish(self) -> Applied {
        let acked_seq = unsigned(self.last_seq);
        let reply = CallbackReply {
            directive: self.directive(),
            acked_seq,
            resend_from: self.gap.then(|| acked_seq.saturating_add(1)),
            pause_in_ms: self.spending.map(|s| millis(s.pause_in())),
        };
        Applied { reply, rejected: self.rejected, stored: self.stored, moved: self.moved }
    }

    /// The first instance that reports owns the attempt.
    async fn claim(&mut self, conn: &mut Conn) -> Result<()> {
        let (instance, refused) = (self.submission.batch.instance.0, |why| Err(stale(why)));
        match self.attempt.instance_id {
            Some(owner) if owner == instance => return Ok(()),
            Some(_) => return refused("another instance of the trainer runs this attempt"),
            None if self.attempt.outcome.is_some() => return refused("this attempt is over"),
            None if !has_runtime(self.state) => return refused("this attempt is over"),
            None => {}
        }
        diesel::update(job_attempts::table.find((self.job.id, self.job.attempt)))
            .set((job_attempts::instance_id.eq(instance), job_attempts::claimed_at.eq(diesel::dsl::now)))
            .execute(conn)
            .await?;
        self.attempt.instance_id = Some(instance);
        self.charge = true;
        if self.state == JobState::Starting {
            self.become_(conn, Change::to(JobState::Running).failure(None).lease(self.policy.lease)).await?;
        }
        Ok(())
    }

    async fn become_(&mut self, conn: &mut Conn, change: Change) -> Result<()> {
        let moved = change.guarded(self.job.attempt, self.job.epoch).apply(conn, self.job.id()).await?;
        // The row is locked, so the state is what was read.
        let moved = moved.ok_or_else(|| Error::defect(format!("job {} changed under its lock", self.job.id)))?;
        self.state = moved.to;
        self.moved.push(moved);
        Ok(())
    }

    /// The submitted events that are among the `stored` ones. Of the others, those with other content than what was
    /// stored before are refused.
    async fn tell_apart(&mut self, conn: &mut Conn, stored: &HashSet<(Uuid, i64)>) -> Result<Vec<&'a Received>> {
        let (submission, job) = (self.submission, self.job.id);
        let (new, known): (Vec<_>, Vec<_>) =
            submission.batch.events.iter().partition(|e| stored.contains(&(job, e.seq)));
        if known.is_empty() {
            return Ok(new);
        }
        let seqs: Vec<i64> = known.iter().map(|e| e.seq).collect();
        let before: Vec<(Option<i64>, Option<Vec<u8>>)> = job_events::table
            .filter(job_events::job_id.eq(job))
            .filter(job_events::attempt.eq(self.job.attempt))
            .filter(job_events::seq.eq_any(seqs))
            .select((job_events::seq, job_events::body_hash))
            .load(conn)
            .await?;
        let before: HashMap<i64, Vec<u8>> = before.into_iter().filter_map(|(seq, hash)| Some((seq?, hash?))).collect();
        for event in known.into_iter().filter(|e| before.get(&e.seq) != Some(&e.hash)) {
            let reason = "an event with this seq and other content was stored before".to_owned();
            self.rejected.push(Rejected { seq: Some(event.seq), reason, body: event.body.clone() });
        }
        Ok(new)
    }

    /// Stored events after the last applied one, in order.
    async fn waiting(&self, conn: &mut Conn) -> Result<Vec<Event>> {
        let rows = job_events::table
            .filter(job_events::job_id.eq(self.job.id))
            .filter(job_events::attempt.eq(self.job.attempt))
            .filter(job_events::seq.gt(self.last_seq))
            .order(job_events::seq)
            .limit(CATCH_UP)
            .select(job_events::body);
        let bodies: Vec<serde_json::Value> = rows.load(conn).await?;
        let mut events = Vec::with_capacity(bodies.len());
        for body in bodies {
            if let StreamBody::Event { event } = serde_json::from_value(body)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Applies `events` (ascending) as far as they follow without a gap.
    async fn advance(&mut self, conn: &mut Conn, events: impl Iterator<Item = &Event>) -> Result<()> {
        for event in events {
            let seq = i64::try_from(event.seq).unwrap_or(i64::MAX);
            if seq <= self.last_seq {
                continue;
            }
            if seq != self.last_seq.saturating_add(1) {
                self.gap = true;
                return Ok(());
            }
            self.last_seq = seq;
            if self.state.is_terminal() {
                continue;
            }
            progress::fold(&mut self.progress, &event.kind);
            self.take_effect(conn, event).await?;
        }
        Ok(())
    }

    async fn take_effect(&mut self, conn: &mut Conn, event: &Event) -> Result<()> {
        let this = job_attempts::table.find((self.job.id, self.job.attempt));
        match effect(&event.kind) {
            Effect::None => {}
            Effect::Checkpoint { step, prefix } => {
                let step = i64::try_from(step).unwrap_or(i64::MAX);
                ledger::measure_checkpoint(conn, (self.job.id(), self.job.attempt), step, event.at).await?;
                if self.attempt.checkpoint_step.is_none_or(|known| known <= step) {
                    self.attempt.checkpoint_step = Some(step);
                    self.attempt.checkpoint_prefix = Some(prefix);
                }
            }
            Effect::Finish { manifest } => {
                let manifest = serde_json::to_value(manifest)?;
                let set = (
                    job_attempts::manifest.eq(manifest),
                    job_attempts::stopped_at.eq(sql::<Nullable<Timestamptz>>(LAST_WORD)),
                );
                diesel::update(this).set(set).execute(conn).await?;
                self.charge = true;
                if self.attempt.outcome.is_none() && can(self.state, JobState::Finalizing) {
                    self.become_(conn, Change::to(JobState::Finalizing).no_lease()).await?;
                }
            }
            Effect::End { outcome, failure } => {
                if self.attempt.outcome.is_some() {
                    return Ok(());
                }
                self.attempt.outcome = Some(outcome.as_str().to_owned());
                let failure = failure.map(serde_json::to_value).transpose()?;
                let end = (
                    job_attempts::outcome.eq(outcome.as_str()),
                    job_attempts::failure.eq(failure),
                    job_attempts::stopped_at.eq(sql::<Nullable<Timestamptz>>(LAST_WORD)),
                );
                diesel::update(this).set(end).execute(conn).await?;
                self.charge = true;
                // The reconciler waits for the process to leave.
                diesel::sql_query("SELECT pg_notify('hone_jobs', $1::text)")
                    .bind::<SqlUuid, _>(self.job.id)
                    .execute(conn)
                    .await?;
            }
        }
        Ok(())
    }

    /// Lets the job pause when its budget asks for it. What a running attempt has left, for the trainer.
    async fn watch_budget(&mut self, conn: &mut Conn) -> Result<Option<Spending>> {
        let paused_itself = self.attempt.outcome.as_deref() == Some(Outcome::Paused.as_str());
        if !self.job.has_budget
            || self.job.is_external()
            || self.state != JobState::Running
            || (self.attempt.outcome.is_some() && !paused_itself)
        {
            return Ok(None);
        }
        let spending = ledger::spending(conn, self.job.id(), self.job.attempt, &self.progress).await?;
        let Some(spending) = spending else { return Ok(None) };
        if spending.is_due() || (paused_itself && spending.explains_a_pause()) {
            let change = Change::to(JobState::Pausing).timer(Some(self.policy.pause)).pause(spending.pause());
            self.become_(conn, change).await?;
            self.charge = true;
            return Ok(None);
        }
        Ok(Some(spending))
    }

    fn reached(&self) -> Option<Reached> {
        (self.last_seq != self.attempt.last_seq).then(|| Reached {
            job: self.job.id,
            attempt: self.job.attempt,
            last_seq: self.last_seq,
            checkpoint_step: self.attempt.checkpoint_step,
            checkpoint_prefix: self.attempt.checkpoint_prefix.clone(),
        })
    }

    fn contact(&self) -> Result<Contact> {
        let changed = self.progress != self.before;
        let progress = if changed { Some(serde_json::to_value(&self.progress)?) } else { None };
        // After its last word a trainer only has to exit: nothing extends its lease any more.
        let live = matches!(self.state, JobState::Running | JobState::Pausing) && self.attempt.outcome.is_none();
        Ok(Contact { job: self.job.id, progress, live })
    }

    fn directive(&self) -> Directive {
        match self.state {
            JobState::Cancelling => Directive::Cancel,
            JobState::Pausing => Directive::Pause,
            JobState::Starting | JobState::Running | JobState::Finalizing | JobState::Validating => Directive::Continue,
            JobState::Queued
            | JobState::RetryWait
            | JobState::Paused
            | JobState::Succeeded
            | JobState::Failed
            | JobState::Cancelled => Directive::Stop,
        }
    }
}

/// For the trainer; 0 when it is too late already.
fn millis(seconds: f64) -> u64 {
    let wait = std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

fn unsigned(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or_default()
}
