//! What a group of submissions reads and writes, a statement for all of its jobs at a time.

use super::{Submission, parse::Received};
use crate::{db::Conn, error::Result, schema::training_jobs};
use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{Array, BigInt, Binary, Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use uuid::Uuid;
use wire::{EventKind, JobId, job::TrainerKind};

/// Whether to wait for the row of a job that another transaction holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Wait,
    LeaveOut,
}

/// What ingest needs of a job; configuration and specification are large and stay where they are.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = training_jobs, check_for_backend(Pg))]
pub struct Job {
    pub id: Uuid,
    pub state: String,
    pub framework: String,
    pub attempt: i32,
    pub epoch: i64,
    pub progress: Value,
    #[diesel(select_expression = training_jobs::budget_limit.is_not_null())]
    pub has_budget: bool,
}

impl Job {
    #[must_use]
    pub const fn id(&self) -> JobId {
        JobId(self.id)
    }

    #[must_use]
    pub fn is_external(&self) -> bool {
        self.framework == TrainerKind::External.as_str()
    }
}

/// Holds the rows until the transaction ends. In the order of ids, so that two groups never wait for each other.
pub async fn lock(conn: &mut Conn, jobs: &[Uuid], held: Held) -> Result<HashMap<Uuid, Job>> {
    let rows = training_jobs::table
        .filter(training_jobs::id.eq_any(jobs))
        .order(training_jobs::id)
        .select(Job::as_select())
        .for_no_key_update();
    let rows: Vec<Job> = match held {
        Held::Wait => rows.load(conn).await?,
        Held::LeaveOut => rows.skip_locked().load(conn).await?,
    };
    Ok(rows.into_iter().map(|job| (job.id, job)).collect())
}

/// A job's current attempt.
#[derive(Debug, Clone, QueryableByName)]
pub struct Attempt {
    #[diesel(sql_type = SqlUuid)]
    job_id: Uuid,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub instance_id: Option<Uuid>,
    #[diesel(sql_type = BigInt)]
    pub last_seq: i64,
    #[diesel(sql_type = Nullable<Text>)]
    pub outcome: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub checkpoint_prefix: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub checkpoint_step: Option<i64>,
    /// Stored events wait for a missing one before them.
    #[diesel(sql_type = Bool)]
    pub gap: bool,
}

/// The current attempts of locked jobs. A statement of its own: one that waits for a lock sees the other tables as they
/// were before.
pub async fn attempts(conn: &mut Conn, jobs: &HashMap<Uuid, Job>) -> Result<HashMap<Uuid, Attempt>> {
    let (ids, numbers): (Vec<_>, Vec<_>) = jobs.values().map(|job| (job.id, job.attempt)).unzip();
    let rows: Vec<Attempt> = diesel::sql_query(
        "SELECT a.job_id, a.instance_id, a.last_seq, a.outcome, a.checkpoint_prefix, a.checkpoint_step,
             EXISTS (SELECT FROM job_events e
                 WHERE e.job_id = a.job_id AND e.attempt = a.attempt AND e.seq > a.last_seq) AS gap
         FROM unnest($1::uuid[], $2::int[]) AS j(id, attempt)
         JOIN job_attempts a ON a.job_id = j.id AND a.attempt = j.attempt",
    )
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Array<Integer>, _>(numbers)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.job_id, row)).collect())
}

/// Stores the events that are new; returns which.
pub async fn store(conn: &mut Conn, group: &[&Submission]) -> Result<HashSet<(Uuid, i64)>> {
    #[derive(QueryableByName)]
    struct Inserted {
        #[diesel(sql_type = SqlUuid)]
        job_id: Uuid,
        #[diesel(sql_type = BigInt)]
        seq: i64,
    }
    let (mut jobs, mut users, mut attempts) = (vec![], vec![], vec![]);
    let (mut seqs, mut hashes, mut bodies) = (vec![], vec![], vec![]);
    for submission in group {
        for event in &submission.batch.events {
            jobs.push(submission.whose.job.0);
            users.push(submission.whose.user.0);
            attempts.push(submission.whose.attempt);
            seqs.push(event.seq);
            hashes.push(&event.hash);
            bodies.push(&event.body);
        }
    }
    if jobs.is_empty() {
        return Ok(HashSet::new());
    }
    let inserted: Vec<Inserted> = diesel::sql_query(
        "INSERT INTO job_events (job_id, user_id, attempt, seq, body_hash, body)
         SELECT e.job, e.tenant, e.attempt, e.seq, e.hash, e.body
         FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::bigint[], $5::bytea[], $6::jsonb[])
             AS e(job, tenant, attempt, seq, hash, body)
         ORDER BY e.job, e.seq
         ON CONFLICT (job_id, attempt, seq) DO NOTHING RETURNING job_id, seq",
    )
    .bind::<Array<SqlUuid>, _>(jobs)
    .bind::<Array<SqlUuid>, _>(users)
    .bind::<Array<Integer>, _>(attempts)
    .bind::<Array<BigInt>, _>(seqs)
    .bind::<Array<Binary>, _>(hashes)
    .bind::<Array<Jsonb>, _>(bodies)
    .load(conn)
    .await?;
    Ok(inserted.into_iter().map(|row| (row.job_id, row.seq)).collect())
}

/// Stores the values of new metrics events.
pub async fn store_metrics(conn: &mut Conn, new: &[(&Submission, Vec<&Received>)]) -> Result<()> {
    let (mut jobs, mut users, mut attempts, mut seqs) = (vec![], vec![], vec![], vec![]);
    let (mut steps, mut names, mut epochs, mut values, mut times) = (vec![], vec![], vec![], vec![], vec![]);
    for (submission, events) in new {
        for Received { seq, event, .. } in events {
            let EventKind::Metrics { step, epoch, values: all } = &event.kind else { continue };
            for (name, value) in all {
                jobs.push(submission.whose.job.0);
                users.push(submission.whose.user.0);
                attempts.push(submission.whose.attempt);
                // The parser checked the range.
                steps.push(i64::try_from(*step).unwrap_or(i64::MAX));
                names.push(name.as_str());
                epochs.push(*epoch);
                values.push(*value);
                times.push(event.at);
                seqs.push(*seq);
            }
        }
    }
    if jobs.is_empty() {
        return Ok(());
    }
    diesel::sql_query(
        "INSERT INTO metrics_points (job_id, user_id, attempt, step, name, epoch, value, at, seq)
         SELECT m.job, m.tenant, m.attempt, m.step, m.name, m.epoch, m.value, m.at, m.seq
         FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::bigint[], $5::text[], $6::float8[], $7::float8[],
             $8::timestamptz[], $9::bigint[]) AS m(job, tenant, attempt, step, name, epoch, value, at, seq)
         ON CONFLICT DO NOTHING",
    )
    .bind::<Array<SqlUuid>, _>(jobs)
    .bind::<Array<SqlUuid>, _>(users)
    .bind::<Array<Integer>, _>(attempts)
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

/// How far an attempt's events are applied.
#[derive(Debug)]
pub struct Reached {
    pub job: Uuid,
    pub attempt: i32,
    pub last_seq: i64,
    pub checkpoint_step: Option<i64>,
    pub checkpoint_prefix: Option<String>,
}

pub async fn save_attempts(conn: &mut Conn, all: &[Reached]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    diesel::sql_query(
        "UPDATE job_attempts a
         SET last_seq = v.last_seq, checkpoint_step = v.step, checkpoint_prefix = v.prefix
         FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[], $5::text[])
             AS v(job, attempt, last_seq, step, prefix)
         WHERE a.job_id = v.job AND a.attempt = v.attempt",
    )
    .bind::<Array<SqlUuid>, _>(all.iter().map(|r| r.job).collect::<Vec<_>>())
    .bind::<Array<Integer>, _>(all.iter().map(|r| r.attempt).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(all.iter().map(|r| r.last_seq).collect::<Vec<_>>())
    .bind::<Array<Nullable<BigInt>>, _>(all.iter().map(|r| r.checkpoint_step).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(all.iter().map(|r| r.checkpoint_prefix.as_deref()).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

/// A sign of life.
#[derive(Debug)]
pub struct Contact {
    pub job: Uuid,
    /// None: as it was.
    pub progress: Option<Value>,
    /// Its lease begins anew.
    pub live: bool,
}

/// Notes the contacts; returns the jobs for which a new period of `every` seconds has begun with it. Periods of jobs begin
/// at different times.
pub async fn save_contacts(conn: &mut Conn, all: Vec<Contact>, lease: Duration, every: f64) -> Result<HashSet<Uuid>> {
    #[derive(QueryableByName)]
    struct Due {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Bool)]
        due: bool,
    }
    let (jobs, live): (Vec<_>, Vec<_>) = all.iter().map(|c| (c.job, c.live)).unzip();
    let progress: Vec<_> = all.into_iter().map(|c| c.progress).collect();
    let rows: Vec<Due> = diesel::sql_query(
        "UPDATE training_jobs j SET
             progress = coalesce(v.progress, j.progress),
             last_contact_at = clock_timestamp(),
             lease_expires_at = CASE WHEN v.live THEN clock_timestamp() + make_interval(secs => $4)
                 ELSE j.lease_expires_at END
         FROM unnest($1::uuid[], $2::jsonb[], $3::bool[]) AS v(id, progress, live)
         JOIN training_jobs before ON before.id = v.id
         CROSS JOIN LATERAL (SELECT get_byte(uuid_send(v.id), 15) / 256.0 AS phase) p
         WHERE j.id = v.id
         RETURNING j.id, floor(extract(epoch FROM before.last_contact_at) / $5 + p.phase) IS DISTINCT FROM
             floor(extract(epoch FROM j.last_contact_at) / $5 + p.phase) AS due",
    )
    .bind::<Array<SqlUuid>, _>(jobs)
    .bind::<Array<Nullable<Jsonb>>, _>(progress)
    .bind::<Array<Bool>, _>(live)
    .bind::<Double, _>(lease.as_secs_f64())
    .bind::<Double, _>(every)
    .load(conn)
    .await?;
    Ok(rows.into_iter().filter(|row| row.due).map(|row| row.id).collect())
}
