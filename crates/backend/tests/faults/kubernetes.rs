//! Row 33: the API of a cluster answers 409, 410 and 429, loses replies, drops watches; somebody deletes Jobs by hand; the
//! backend dies in between. The cluster is a stand-in ([`testkit::kube`]); its pods are processes.

use crate::{
    oracle, seeds,
    world::{PATIENCE, Setup, World, stub},
};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::kube::{Faults, Kube};
use wire::{JobId, JobState, job::FailureCode, layout};

const ALL: Faults =
    Faults { too_many: 0.05, error: 0.05, lost_reply: 0.1, conflict: 0.3, drop_watch: 0.2, expire: 0.2 };

fn finishes(from: u64, steps: u64) -> Value {
    json!([{"op": "started"}, {"op": "paced", "from": from, "to": steps, "ms": 20}, {"op": "finish", "steps": steps}])
}

/// Up to a checkpoint at 5, and then until something happens.
fn lasts() -> Value {
    json!([{"op": "started"}, {"op": "paced", "from": 1, "to": 5, "ms": 2}, {"op": "checkpoint", "step": 5}, {"op": "defy"}])
}

fn dies() -> Value {
    let mut ops = lasts();
    ops.as_array_mut().unwrap().pop();
    ops.as_array_mut().unwrap().push(json!({"op": "signal", "number": 9}));
    ops
}

async fn empty(kube: &Kube, world: &World, seed: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<Value> = ["jobs", "pods", "secrets", "configmaps"].iter().flat_map(|k| kube.all(k)).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "seed {seed}: this is left: {left:#?}\n{}", world.log());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

async fn step(world: &World, job: JobId) {
    world.until(job, "its checkpoint", |view| view.progress.step == 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_33_a_cluster_that_refuses_forgets_and_drops_costs_nothing_but_time() {
    for seed in seeds() {
        let kube = Kube::start(&stub(), seed);
        let mut setup =
            Setup::seed(seed).with("KUBE_TTL_SECONDS", 1).with("KUBE_GRACE_SECONDS", 2).with("KUBE_RESYNC_SECONDS", 2);
        for (name, value) in kube.environment() {
            setup = setup.with(name, value);
        }
        let mut world = setup.start().await;
        kube.disturb(ALL);
        let good = world.job(json!({"1": finishes(1, 40)})).await;
        let dead = world.job(json!({"1": dies(), "2": finishes(6, 10)})).await;
        let unwanted = world.job(json!({"1": lasts()})).await;
        let deleted = world.job(json!({"1": lasts()})).await;
        step(&world, unwanted).await;
        step(&world, deleted).await;
        let killed = seed % 2 == 1;
        if killed {
            world.backend.process.kill().unwrap();
            world.restart_with(&[]).await;
        }
        let policy = if seed % 3 == 0 { "Foreground" } else { "Background" };
        kube.delete_job(&layout::workload_name(deleted, 1), policy);
        let (status, view) = world.ask(Method::POST, &format!("/training/jobs/{unwanted}/cancel")).await;
        assert_eq!(status, 200, "seed {seed}: {view}");

        let view = oracle::check(&world, good).await;
        assert_eq!(
            (view.state, view.attempt),
            (JobState::Succeeded, 1),
            "seed {seed}: {:?}\n{}",
            view.failure,
            world.log()
        );
        let view = oracle::check(&world, dead).await;
        assert_eq!(
            (view.state, view.attempt),
            (JobState::Succeeded, 2),
            "seed {seed}: {:?}\n{}",
            view.failure,
            world.log()
        );
        let view = oracle::check(&world, unwanted).await;
        assert_eq!((view.state, view.failure), (JobState::Cancelled, None), "seed {seed}");
        let view = oracle::check(&world, deleted).await;
        let failure = view.failure.expect("a cause");
        assert_eq!(failure.code, FailureCode::DeletedExternally, "seed {seed}: {}", failure.message);
        assert!(failure.message.contains("deleted externally"), "seed {seed}: {}", failure.message);

        kube.disturb(Faults::default());
        empty(&kube, &world, seed).await;
        assert_eq!(kube.running(), 0, "seed {seed}");
        // What a backend was told dies with it.
        let impatient = if killed { 0 } else { kube.impatient() };
        assert_eq!(impatient, 0, "seed {seed}: a request came before the time that its 429 named");
        let refused = kube.requests().iter().filter(|r| r.status >= 400 && r.status != 404).count();
        assert!(refused > 0, "seed {seed}: nothing went wrong");
    }
}
