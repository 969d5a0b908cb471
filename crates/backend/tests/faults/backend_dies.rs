//! Row 1: the backend dies between two durable steps. The user sees nothing of it.

use crate::{
    oracle, seeds,
    world::{PATIENCE, Setup, World},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use wire::JobState;

/// Lets the backend die at `point` while it works on `script`, starts it again, and lets the job end well in attempt
/// `last`.
async fn die_at(world: &mut World, point: &str, script: Value, (seed, last): (u64, u32)) {
    world.backend.process.kill().unwrap();
    world.restart_with(&[("HONE_FAIL_POINT", point)]).await;
    let job = world.job(script).await;
    let died = world.backend.process.wait(PATIENCE);
    assert!(died.is_ok(), "seed {seed}: {point} was never reached\n{}", world.log());
    let away = Instant::now();
    world.restart_with(&[]).await;
    assert!(away.elapsed() < Duration::from_secs(3), "seed {seed}: {point}: serving again took {:?}", away.elapsed());
    let view = oracle::check(world, job).await;
    let seen = (view.state, view.attempt, &view.failure);
    assert_eq!(seen, (JobState::Succeeded, last, &None), "seed {seed}: {point}: the user noticed\n{}", world.log());
}

fn script(steps: u64) -> Value {
    let paced = json!({"op": "paced", "from": 1, "to": steps, "ms": 5});
    json!({"1": [{"op": "started"}, {"op": "plan", "total": steps}, paced, {"op": "finish", "steps": steps}]})
}

fn pick<T: Copy>(all: &[T], seed: u64) -> T {
    all[usize::try_from(seed).unwrap() % all.len()]
}

#[tokio::test(flavor = "multi_thread")]
async fn row_01_the_backend_dies_while_it_starts_an_attempt() {
    let mut world = Setup::seed(1).start().await;
    for seed in seeds() {
        let point = pick(&["dispatch.before_commit", "dispatch.after_commit", "launch.after_start"], seed);
        die_at(&mut world, point, script(5), (seed, 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_01_the_backend_dies_before_and_after_any_commit() {
    let mut world = Setup::seed(1).start().await;
    for seed in seeds() {
        for point in ["commit.before", "commit.after"] {
            // Beyond those of the start; most of the others are reports.
            let point = format!("{point}:{}", 25 + seed.wrapping_mul(7) % 30);
            die_at(&mut world, &point, script(25), (seed, 1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_01_the_backend_dies_before_and_after_the_commit_of_a_report() {
    let mut world = Setup::seed(1).start().await;
    for seed in seeds() {
        for point in ["ingest.before_commit", "ingest.after_commit"] {
            let point = format!("{point}:{}", 1 + seed % 20);
            die_at(&mut world, &point, script(25), (seed, 1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_01_the_backend_dies_while_it_ends_a_job() {
    let mut world = Setup::seed(1).start().await;
    for seed in seeds() {
        let points = ["verify.after_manifest", "settle.before_commit", "settle.after_commit", "collect.after_ingest"];
        let point = pick(&points, seed);
        let by_storage = json!({"1": [{"op": "started"}, {"op": "finish_by_storage", "steps": 7}]});
        let script = if point.starts_with("collect") { by_storage } else { script(5) };
        die_at(&mut world, point, script, (seed, 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_01_the_backend_dies_while_it_replaces_an_attempt() {
    let mut world = Setup::seed(1).short_lease().start().await;
    for seed in seeds() {
        let heard = 1 + seed % 4;
        // One that is silent until its lease is over, and one that is killed.
        let (point, end) = match seed % 2 {
            0 => ("requeue.after_commit", json!({"op": "signal", "number": 9})),
            _ => ("fence.after_commit", json!({"op": "hang"})),
        };
        let first = json!([{"op": "started"}, {"op": "paced", "from": 1, "to": heard, "ms": 5}, end]);
        let second = json!([{"op": "started"}, {"op": "metrics", "from": 1, "to": 9}, {"op": "finish", "steps": 9}]);
        die_at(&mut world, point, json!({"1": first, "2": second}), (seed, 2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_01_the_backend_dies_at_random_moments() {
    let mut world = Setup::seed(1).start().await;
    for seed in seeds() {
        let job = world.job(script(60)).await;
        for round in 0..2 {
            tokio::time::sleep(Duration::from_millis(50 + seed.wrapping_mul(37 + round * 11) % 400)).await;
            world.backend.process.kill().unwrap();
            world.restart_with(&[]).await;
        }
        let view = oracle::check(&world, job).await;
        assert_eq!((view.state, view.attempt), (JobState::Succeeded, 1), "seed {seed}\n{}", world.log());
    }
}
