//! A backend that dies and comes back, two of them, and a database that is away for a while.

use crate::world::{PATIENCE, Settings, World};
use backend::jobs::supervisor::{procfs, record};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::{Duration, Instant};
use wire::{JobId, JobState, job::FailureCode};

fn recorded(world: &World, job: JobId) -> record::Record {
    record::read(&world.attempt_dir(job, 1), record::RECORD).unwrap().unwrap()
}

fn send(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_backend_adopts_the_running_trainer_and_misses_nothing() {
    let mut world = World::new().await;
    let script = json!({"1": [
        {"op": "started"}, {"op": "plan", "total": 40}, {"op": "paced", "from": 1, "to": 40, "ms": 50},
        {"op": "finish", "steps": 40},
    ]});
    let job = world.job(script).await;
    world.until(job, "a few steps", |view| view.progress.step >= 5).await;
    world.kill_backend();
    world.start_backend().await;
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!(view.attempt, 1, "the same attempt went on");
    assert_eq!(world.steps(job).await, (1..=40).map(|step| (step, 1)).collect::<Vec<_>>());
    assert_eq!(world.states(job).await, ["starting", "running", "finalizing", "succeeded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_died_while_the_backend_was_away_is_judged_by_its_exit_record() {
    let mut world = World::new().await;
    let script = json!({"*": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 2}, {"op": "obey"}]});
    let job = world.insert(script, 1, "queued").await;
    world.until(job, "the second step", |view| view.progress.step == 2).await;
    world.kill_backend();
    send(recorded(&world, job).trainer.unwrap().pid, Signal::SIGABRT);
    world.start_backend().await;
    let failure = world.wait(job, JobState::Failed).await.failure.unwrap();
    assert_eq!(failure.code, FailureCode::TrainerDied);
    assert!(failure.message.contains("signal 6 (SIGABRT)"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatched_job_that_was_never_launched_is_launched_by_the_next_backend() {
    let mut world = World::new().await;
    world.kill_backend();
    // As a backend that died between COMMIT and launch leaves it.
    let script = json!({"1": [
        {"op": "started"}, {"op": "metrics", "from": 1, "to": 1}, {"op": "finish", "steps": 1},
    ]});
    let job = world.insert(script, 1, "queued").await;
    let states = "UPDATE training_jobs SET state = 'starting', attempt = 1, epoch = 1,
        lease_expires_at = now() + interval '1 minute' WHERE id = $1::text::uuid";
    world.db.execute(states, &[&job.to_string()]).await.unwrap();
    let attempt =
        "INSERT INTO job_attempts (job_id, attempt, user_id, epoch) VALUES ($1::text::uuid, 1, $2::text::uuid, 1)";
    world.db.execute(attempt, &[&job.to_string(), &world.user.to_string()]).await.unwrap();
    world.start_backend().await;
    world.wait(job, JobState::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_while_the_backend_was_away_is_not_held_against_the_trainer() {
    let mut world = World::with(Settings::default().short_lease()).await;
    let script = json!({"*": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 1}, {"op": "obey"}]});
    let job = world.job(script).await;
    world.until(job, "the first step", |view| view.progress.step == 1).await;
    world.kill_backend();
    let expired = "UPDATE training_jobs SET lease_expires_at = now() - interval '1 hour' WHERE id = $1::text::uuid";
    world.db.execute(expired, &[&job.to_string()]).await.unwrap();
    world.start_backend().await;
    let since = Instant::now();
    let renewed = "SELECT count(*) FROM training_jobs WHERE id = $1::text::uuid AND lease_expires_at > now()";
    while world.count(renewed, job).await == 0 {
        assert!(since.elapsed() < PATIENCE, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let view = world.view(job).await;
    assert_eq!((view.state, view.attempt), (JobState::Running, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_without_its_supervisor_is_still_found_and_stopped() {
    let world = World::new().await;
    let job = world.job(json!({"1": [{"op": "started"}, {"op": "ignore_sigterm"}, {"op": "defy"}]})).await;
    world.wait(job, JobState::Running).await;
    let (supervisor, trainer) = {
        let found = recorded(&world, job);
        (found.supervisor.unwrap(), found.trainer.unwrap())
    };
    send(supervisor.pid, Signal::SIGKILL);
    assert_eq!(world.post(&format!("/training/jobs/{job}/cancel")).await.0, 200);
    world.wait(job, JobState::Cancelled).await;
    assert!(procfs::stat(trainer.pid).is_none_or(|p| p.zombie || p.start_time != trainer.start_time));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backends_share_the_work_without_doing_it_twice() {
    let world = World::with(Settings::default().with("MAX_CONCURRENT_JOBS", 2)).await;
    let _second = world.second_backend().await;
    let paced = json!({"op": "paced", "from": 1, "to": 5, "ms": 20});
    let script = json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": 5}]});
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(world.job(script.clone()).await);
    }
    for job in jobs {
        let view = world.wait(job, JobState::Succeeded).await;
        assert_eq!(view.attempt, 1);
        assert_eq!(world.states(job).await, ["starting", "running", "finalizing", "succeeded"]);
        assert_eq!(world.steps(job).await, (1..=5).map(|step| (step, 1)).collect::<Vec<_>>());
    }
    let most = "SELECT max(running) FROM (SELECT sum(change) OVER (ORDER BY id) AS running FROM (
            SELECT id, CASE body ->> 'state' WHEN 'starting' THEN 1 WHEN 'finalizing' THEN -1 ELSE 0 END AS change
            FROM job_events WHERE seq IS NULL) changes) counts";
    let most: i64 = world.db.query_one(most, &[]).await.unwrap().get(0);
    assert!(most <= 2, "{most} at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_crash_delays_reports_and_loses_none() {
    let cluster = testkit::Postgres::start().await.unwrap();
    let database = cluster.create_database().await.unwrap();
    let mut world = World::on(Settings::default().short_lease(), database).await;
    let paced = json!({"op": "paced", "from": 1, "to": 60, "ms": 30});
    let job = world.job(json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": 60}]})).await;
    world.until(job, "a few steps", |view| view.progress.step >= 5).await;
    cluster.crash();
    let (status, problem) = world.post(&format!("/training/jobs/{job}/pause")).await;
    assert_eq!((status, &problem["code"]), (503, &json!("UNAVAILABLE")), "{problem}");
    // Longer than the lease: the outage is not the trainer's silence.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.restart().unwrap();
    world.reconnect().await;
    world.recovered().await;
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!(view.attempt, 1);
    assert_eq!(world.steps(job).await, (1..=60).map(|step| (step, 1)).collect::<Vec<_>>());
}
