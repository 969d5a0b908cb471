//! Applying a batch: one transaction, whatever way the batch came (callback or object in storage).
//!
//! The job's row is locked first, so batches of one job are applied one after the other and the ids of their
//! events ascend in the order they become visible.

use super::parse::{Batch, Received, Rejected};
use crate::{
    costs::{budget::Spending, ledger},
    db::Conn,
    error::{Error, Result},
    jobs::{
        effect::{Effect, effect},
        policy::Policy,
        progress,
        rows::{AttemptRow, JobRow},
        state::can,
        transition::{Change, Moved},
        verdict::Outcome,
    },
    schema::{job_attempts, job_events},
};
use diesel::{
    dsl::sql,
    prelude::*,
    sql_types::{Array, BigInt, Binary, Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use std::collections::{HashMap, HashSet};
use wire::{CallbackReply, Directive, Event, EventKind, JobState, event::StreamBody, job::Progress, problem::Code};

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

/// Applies `batch`, which was sent with a token for `epoch`.
pub async fn apply(conn: &mut Conn, batch: Batch, epoch: i64, policy: &Policy) -> Result<Applied> {
    let stale = |why: &str| Error::refused(Code::StaleAttempt, format!("{why}; stop"));
    let job = JobRow::lock(conn, batch.job).await?.ok_or_else(|| stale("this job no longer exists"))?;
    if job.attempt() != batch.attempt || job.epoch != epoch {
        let why = format!("attempt {} is over: the job is at attempt {}", batch.attempt, job.attempt);
        return Err(stale(&why));
    }
    let attempt = AttemptRow::find(conn, batch.job, job.attempt).await?;
    let attempt = attempt.ok_or_else(|| stale("this attempt was never dispatched"))?;
    let mut ingest = Ingest {
        state: job.state()?,
        progress: job.progress(),
        last_seq: attempt.last_seq,
        rejected: batch.rejected.clone(),
        moved: Vec::new(),
        job,
        attempt,
        policy,
        charge: false,
    };
    ingest.claim(conn, batch.instance.0).await?;
    let gap_before = ingest.has_gap(conn, &batch.events).await?;
    let new = ingest.store(conn, batch.events).await?;
    ingest.store_metrics(conn, &new).await?;
    let stored = new.len();
    let ready = if gap_before { ingest.waiting(conn).await? } else { new.into_iter().map(|e| e.event).collect() };
    let gap = ingest.advance(conn, ready).await?;
    let spending = ingest.watch_budget(conn).await?;
    ingest.save(conn).await?;
    let acked_seq = unsigned(ingest.last_seq);
    let reply = CallbackReply {
        directive: ingest.directive(),
        acked_seq,
        resend_from: gap.then(|| acked_seq.saturating_add(1)),
        pause_in_ms: spending.map(|s| millis(s.pause_in())),
    };
    Ok(Applied { reply, rejected: ingest.rejected, stored, moved: ingest.moved })
}

struct Ingest<'a> {
    job: JobRow,
    attempt: AttemptRow,
    state: JobState,
    progress: Progress,
    /// Every event up to here is applied.
    last_seq: i64,
    policy: &'a Policy,
    rejected: Vec<Rejected>,
    moved: Vec<Moved>,
    /// What the attempt costs is to be written down now.
    charge: bool,
}

impl Ingest<'_> {
    /// The first instance that reports owns the attempt.
    async fn claim(&mut self, conn: &mut Conn, instance: uuid::Uuid) -> Result<()> {
        let refused = |why: &str| Err(Error::refused(Code::StaleAttempt, format!("{why}; stop")));
        match self.attempt.instance_id {
            Some(owner) if owner == instance => return Ok(()),
            Some(_) => return refused("another instance of the trainer runs this attempt"),
            None if self.attempt.outcome.is_some() => return refused("this attempt is over"),
            None if !crate::jobs::state::has_runtime(self.state) => return refused("this attempt is over"),
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

    /// Whether stored events already wait for a missing one.
    async fn has_gap(&self, conn: &mut Conn, events: &[Received]) -> Result<bool> {
        if events.is_empty() {
            return Ok(false);
        }
        let waiting = self.after_last_seq().select(job_events::id);
        Ok(diesel::select(diesel::dsl::exists(waiting)).get_result(conn).await?)
    }

    fn after_last_seq(&self) -> job_events::BoxedQuery<'static, diesel::pg::Pg> {
        job_events::table
            .filter(job_events::job_id.eq(self.job.id))
            .filter(job_events::attempt.eq(self.job.attempt))
            .filter(job_events::seq.gt(self.last_seq))
            .into_boxed()
    }

    /// Stores what is new and returns it. The same identity with other content is refused.
    async fn store(&mut self, conn: &mut Conn, events: Vec<Received>) -> Result<Vec<Received>> {
        if events.is_empty() {
            return Ok(events);
        }
        #[derive(QueryableByName)]
        struct Inserted {
            #[diesel(sql_type = BigInt)]
            seq: i64,
        }
        let inserted: Vec<Inserted> = diesel::sql_query(
            "INSERT INTO job_events (job_id, user_id, attempt, seq, body_hash, body)
             SELECT $1, $2, $3, e.seq, e.hash, e.body
             FROM unnest($4::bigint[], $5::bytea[], $6::jsonb[]) AS e(seq, hash, body) ORDER BY e.seq
             ON CONFLICT (job_id, attempt, seq) DO NOTHING RETURNING seq",
        )
        .bind::<SqlUuid, _>(self.job.id)
        .bind::<SqlUuid, _>(self.job.user_id)
        .bind::<Integer, _>(self.job.attempt)
        .bind::<Array<BigInt>, _>(events.iter().map(|e| e.seq).collect::<Vec<_>>())
        .bind::<Array<Binary>, _>(events.iter().map(|e| &e.hash).collect::<Vec<_>>())
        .bind::<Array<Jsonb>, _>(events.iter().map(|e| &e.body).collect::<Vec<_>>())
        .load(conn)
        .await?;
        let inserted: HashSet<i64> = inserted.into_iter().map(|i| i.seq).collect();
        let (new, known): (Vec<_>, Vec<_>) = events.into_iter().partition(|e| inserted.contains(&e.seq));
        self.compare(conn, known).await?;
        Ok(new)
    }

    async fn compare(&mut self, conn: &mut Conn, known: Vec<Received>) -> Result<()> {
        if known.is_empty() {
            return Ok(());
        }
        let seqs: Vec<i64> = known.iter().map(|e| e.seq).collect();
        let stored: Vec<(Option<i64>, Option<Vec<u8>>)> = job_events::table
            .filter(job_events::job_id.eq(self.job.id))
            .filter(job_events::attempt.eq(self.job.attempt))
            .filter(job_events::seq.eq_any(seqs))
            .select((job_events::seq, job_events::body_hash))
            .load(conn)
            .await?;
        let stored: HashMap<i64, Vec<u8>> = stored.into_iter().filter_map(|(seq, hash)| Some((seq?, hash?))).collect();
        for event in known.into_iter().filter(|e| stored.get(&e.seq) != Some(&e.hash)) {
            let reason = "an event with this seq and other content was stored before".to_owned();
            self.rejected.push(Rejected { seq: Some(event.seq), reason, body: event.body });
        }
        Ok(())
    }

    async fn store_metrics(&self, conn: &mut Conn, new: &[Received]) -> Result<()> {
        let (mut steps, mut names, mut epochs, mut values) = (vec![], vec![], vec![], vec![]);
        let (mut times, mut seqs) = (vec![], vec![]);
        for Received { seq, event, .. } in new {
            let EventKind::Metrics { step, epoch, values: all } = &event.kind else { continue };
            for (name, value) in all {
                // The parser checked the range.
                steps.push(i64::try_from(*step).unwrap_or(i64::MAX));
                names.push(name.as_str());
                epochs.push(*epoch);
                values.push(*value);
                times.push(event.at);
                seqs.push(*seq);
            }
        }
        if steps.is_empty() {
            return Ok(());
        }
        diesel::sql_query(
            "INSERT INTO metrics_points (job_id, attempt, user_id, step, name, epoch, value, at, seq)
             SELECT $1, $2, $3, m.step, m.name, m.epoch, m.value, m.at, m.seq
             FROM unnest($4::bigint[], $5::text[], $6::float8[], $7::float8[], $8::timestamptz[], $9::bigint[])
                 AS m(step, name, epoch, value, at, seq)
             ON CONFLICT DO NOTHING",
        )
        .bind::<SqlUuid, _>(self.job.id)
        .bind::<Integer, _>(self.job.attempt)
        .bind::<SqlUuid, _>(self.job.user_id)
        .bind::<Array<BigInt>, _>(steps)
        .bind::<Array<Text>, _>(names)
        .bind::<Array<Double>, _>(epochs)
        .bind::<Array<Double>, _>(values)
        .bind::<Array<Timestamptz>, _>(times)
        .bind::<Array<BigInt>, _>(seqs)
        .execute(conn)
        .await?;
        Ok(())
    }

    /// Stored events after the last applied one, in order.
    async fn waiting(&self, conn: &mut Conn) -> Result<Vec<Event>> {
        let rows = self.after_last_seq().order(job_events::seq).limit(CATCH_UP).select(job_events::body);
        let bodies: Vec<serde_json::Value> = rows.load(conn).await?;
        let mut events = Vec::with_capacity(bodies.len());
        for body in bodies {
            if let StreamBody::Event { event } = serde_json::from_value(body)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Applies `events` (ascending) as far as they follow without a gap; whether one was left waiting.
    async fn advance(&mut self, conn: &mut Conn, events: Vec<Event>) -> Result<bool> {
        for event in events {
            let seq = i64::try_from(event.seq).unwrap_or(i64::MAX);
            if seq <= self.last_seq {
                continue;
            }
            if seq != self.last_seq.saturating_add(1) {
                return Ok(true);
            }
            self.last_seq = seq;
            if self.state.is_terminal() {
                continue;
            }
            progress::fold(&mut self.progress, &event.kind);
            self.take_effect(conn, &event).await?;
        }
        Ok(false)
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
        if self.job.budget_limit.is_none()
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

    async fn save(&mut self, conn: &mut Conn) -> Result<()> {
        if self.last_seq != self.attempt.last_seq {
            diesel::update(job_attempts::table.find((self.job.id, self.job.attempt)))
                .set((
                    job_attempts::last_seq.eq(self.last_seq),
                    job_attempts::checkpoint_step.eq(self.attempt.checkpoint_step),
                    job_attempts::checkpoint_prefix.eq(self.attempt.checkpoint_prefix.as_deref()),
                ))
                .execute(conn)
                .await?;
        }
        let changed = self.progress != self.job.progress();
        let progress = if changed { Some(serde_json::to_value(&self.progress)?) } else { None };
        // After its last word a trainer only has to exit: nothing extends its lease any more.
        let live = matches!(self.state, JobState::Running | JobState::Pausing) && self.attempt.outcome.is_none();
        #[derive(QueryableByName)]
        struct Saved {
            #[diesel(sql_type = Bool)]
            charge: bool,
        }
        let saved: Saved = diesel::sql_query(
            "UPDATE training_jobs j SET
                 progress = coalesce($2, progress),
                 last_contact_at = clock_timestamp(),
                 lease_expires_at = CASE WHEN $3 THEN clock_timestamp() + make_interval(secs => $4)
                     ELSE lease_expires_at END
             FROM (SELECT last_contact_at AS at FROM training_jobs WHERE id = $1) before
             WHERE id = $1
             RETURNING floor(extract(epoch FROM before.at) / $5) IS DISTINCT FROM
                 floor(extract(epoch FROM j.last_contact_at) / $5) AS charge",
        )
        .bind::<SqlUuid, _>(self.job.id)
        .bind::<Nullable<Jsonb>, _>(progress)
        .bind::<Bool, _>(live)
        .bind::<Double, _>(self.policy.lease.as_secs_f64())
        .bind::<Double, _>(CHARGE_SECONDS)
        .get_result(conn)
        .await?;
        if self.charge || saved.charge {
            ledger::charge(conn, self.job.id(), self.job.attempt, self.policy.alerts).await?;
        }
        Ok(())
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
