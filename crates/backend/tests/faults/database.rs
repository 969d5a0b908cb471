//! Rows 2 to 5: the database loses replies, crashes, is full, is locked.

use crate::{
    oracle, seeds,
    world::{PATIENCE, Setup, World},
};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::{
    Postgres,
    fault::{Fault, Rule},
    limits::SmallDisk,
};
use wire::{JobId, JobState};

fn script(steps: u64, ms: u64) -> Value {
    let paced = json!({"op": "paced", "from": 1, "to": steps, "ms": ms});
    json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": steps}]})
}

async fn unnoticed(world: &World, job: JobId, seed: u64) {
    let view = oracle::check(world, job).await;
    let seen = (view.state, view.attempt, &view.failure);
    assert_eq!(seen, (JobState::Succeeded, 1, &None), "seed {seed}: the user noticed\n{}", world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_02_replies_to_commit_are_lost() {
    for seed in seeds() {
        let world = Setup::seed(seed).start().await;
        world.database.rules([Rule::new(Fault::LoseReply).on("COMMIT").chance(0.15)]);
        let mut jobs = Vec::new();
        for _ in 0..3 {
            jobs.push(world.job(script(25, 5)).await);
        }
        for job in jobs {
            unnoticed(&world, job, seed).await;
        }
        assert!(world.database.injected("lose_reply") > 0, "seed {seed}: nothing was lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_03_postgres_crashes() {
    let postgres = Postgres::start().await.unwrap();
    let mut world = Setup::seed(1).on(postgres).short_lease().start().await;
    for seed in seeds() {
        let job = world.job(script(60, 20)).await;
        world.until(job, "a step", |view| view.progress.step > seed % 10).await;
        postgres_of(&world).crash();
        let (status, problem) = world.ask(Method::GET, &format!("/training/jobs/{job}")).await;
        assert_eq!((status, &problem["code"]), (503, &json!("UNAVAILABLE")), "seed {seed}: {problem}");
        assert_eq!(problem["detail"], "the database cannot be reached; try again in a moment", "seed {seed}");
        // Sometimes longer than the lease: the outage is not the trainer's silence.
        tokio::time::sleep(Duration::from_millis(if seed % 2 == 1 { 3500 } else { 200 })).await;
        postgres_of(&world).restart().unwrap();
        world.reconnect().await;
        unnoticed(&world, job, seed).await;
    }
}

fn postgres_of(world: &World) -> &Postgres {
    world.setup.postgres.as_ref().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn row_04_the_disk_of_the_database_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(dir.path(), 200) {
        Ok(disk) => disk,
        Err(skip) => return eprintln!("row 4 {skip}"),
    };
    let postgres = Postgres::start_in(disk.path()).await.unwrap();
    let mut world = Setup::seed(1).on(postgres).short_lease().start().await;
    for seed in seeds() {
        let job = world.job(script(80, 50)).await;
        world.until(job, "a step", |view| view.progress.step > seed % 10).await;
        disk.fill().unwrap();
        // Writes that need room are refused as unavailable, and nothing is a defect of ours.
        let deadline = Instant::now() + PATIENCE;
        let mut refused = 0;
        while refused < 3 {
            assert!(Instant::now() < deadline, "seed {seed}: a full disk refuses nothing\n{}", world.log());
            let change = world.request(Method::PATCH, &format!("/training/jobs/{job}"));
            let reply = change.json(&json!({"budget_limit": 1000})).send().await.unwrap();
            let status = reply.status().as_u16();
            let problem: Value = reply.json().await.unwrap();
            assert!(matches!(status, 200 | 503), "seed {seed}: {status} {problem}\n{}", world.log());
            refused += u32::from(status == 503);
            let _ = world.db.batch_execute("CREATE TABLE IF NOT EXISTS junk (x text); INSERT INTO junk SELECT repeat(md5(random()::text), 100) FROM generate_series(1, 1000)").await;
        }
        disk.free().unwrap();
        // It gives up when it cannot write its own log; the operator starts it again.
        postgres_of(&world).revive().unwrap();
        world.reconnect().await;
        world.db.batch_execute("DROP TABLE IF EXISTS junk; CHECKPOINT").await.unwrap();
        unnoticed(&world, job, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_05_a_table_is_locked_and_the_pool_is_used_up() {
    let world = Setup::seed(1).with("DATABASE_LOCK_SECONDS", 1).with("DATABASE_WAIT_SECONDS", 1).start().await;
    for seed in seeds() {
        let job = world.job(script(60, 50)).await;
        world.until(job, "a step", |view| view.progress.step > seed % 10).await;
        world.db.batch_execute("BEGIN; LOCK TABLE training_jobs IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let ask = async || {
            let asked = Instant::now();
            let (status, problem) = world.ask(Method::GET, "/training/jobs").await;
            (status, problem["code"].clone(), asked.elapsed())
        };
        let replies = futures::future::join_all((0..40).map(|_| ask())).await;
        for (status, code, took) in replies {
            assert_eq!((status, &code), (503, &json!("UNAVAILABLE")), "seed {seed}\n{}", world.log());
            assert!(took < Duration::from_secs(4), "seed {seed}: refused after {took:?}");
        }
        // What needs no table works meanwhile.
        let (status, _) = world.ask(Method::GET, "/health").await;
        assert_eq!(status, 200, "seed {seed}");
        world.db.batch_execute("ROLLBACK").await.unwrap();
        unnoticed(&world, job, seed).await;
    }
}
