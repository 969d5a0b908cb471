//! The independent witness: every stub trainer writes what was acknowledged to a ledger of its own and syncs it.
//! Afterwards the ledger must be in the database, every event once, without gaps, and the job at its one end.

use crate::world::World;
use backend::jobs::state;
use std::collections::{BTreeMap, BTreeSet};
use wire::{Event, JobId, JobState, JobView, event::StreamBody};

/// What the trainers of a job hold for acknowledged: (attempt, seq) to event.
type Ledger = BTreeMap<(i32, u64), Event>;

/// Waits for the job's end and compares ledger, event log, metric points and states.
pub async fn check(world: &World, job: JobId) -> JobView {
    let view = world.end(job).await;
    let log = events(world, job).await;
    let ledger = ledger(world, job);
    for (identity, event) in &ledger {
        let stored = log.get(identity);
        assert_eq!(stored, Some(event), "{job}: {identity:?} was acknowledged\n{}", world.log());
    }
    let attempts: BTreeSet<i32> = log.keys().map(|(attempt, _)| *attempt).collect();
    for attempt in attempts {
        let seqs: Vec<u64> = log.keys().filter(|(of, _)| *of == attempt).map(|(_, seq)| *seq).collect();
        let complete: Vec<u64> = (1..=u64::try_from(seqs.len()).unwrap()).collect();
        assert_eq!(seqs, complete, "{job}: attempt {attempt} has gaps");
        let applied = "SELECT last_seq FROM job_attempts WHERE job_id = $1::text::uuid AND attempt = $2";
        let row = world.db.query_one(applied, &[&job.to_string(), &attempt]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), i64::try_from(seqs.len()).unwrap(), "{job}: attempt {attempt} is not applied");
    }
    points(world, job).await;
    states(world, job, view.state).await;
    view
}

/// Lines of (attempt, event) below the ledger directory.
fn ledger(world: &World, job: JobId) -> Ledger {
    let text = std::fs::read_to_string(world.ledger(job)).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<(i32, Event)>(line).unwrap());
    lines.map(|(attempt, event)| ((attempt, event.seq), event)).collect()
}

/// The event log of a job. An event that is stored twice fails here.
async fn events(world: &World, job: JobId) -> Ledger {
    let query = "SELECT attempt, seq, body::text FROM job_events WHERE job_id = $1::text::uuid AND seq IS NOT NULL";
    let mut log = Ledger::new();
    for row in world.db.query(query, &[&job.to_string()]).await.unwrap() {
        let identity = (row.get::<_, i32>(0), u64::try_from(row.get::<_, i64>(1)).unwrap());
        let body: StreamBody = serde_json::from_str(row.get(2)).unwrap();
        let StreamBody::Event { event } = body else { panic!("{identity:?} is no event") };
        assert!(log.insert(identity, event).is_none(), "{job}: {identity:?} is there twice");
    }
    log
}

/// Every value of every metrics event is a point, and every point is one.
async fn points(world: &World, job: JobId) {
    let said = "SELECT attempt, (body -> 'event' ->> 'step')::bigint AS step, key AS name, value::float8 AS value
        FROM job_events, jsonb_each(body -> 'event' -> 'values')
        WHERE job_id = $1::text::uuid AND body -> 'event' ->> 'type' = 'metrics'";
    let kept = "SELECT attempt, step, name, value FROM metrics_points WHERE job_id = $1::text::uuid";
    let differ =
        format!("SELECT count(*) FROM (({said}) EXCEPT ALL ({kept}) UNION ALL (({kept}) EXCEPT ALL ({said}))) d");
    assert_eq!(world.count(&differ, job).await, 0, "{job}: events and metric points differ");
}

/// Every change of state was allowed, and the end is the end.
async fn states(world: &World, job: JobId, now: JobState) {
    // A job that a row inserts is queued from the start.
    let mut before = None;
    for name in world.states(job).await {
        let state: JobState = name.parse().unwrap();
        let from = match state {
            JobState::Queued => JobState::Validating,
            _ => JobState::Queued,
        };
        let before = before.replace(state).unwrap_or(from);
        assert!(state::can(before, state), "{job}: {before} became {state}");
    }
    assert_eq!(before, Some(now), "{job}: its log says otherwise");
    assert!(now.is_terminal(), "{job} is {now}");
}
