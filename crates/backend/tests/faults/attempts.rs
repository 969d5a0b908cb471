//! Rows 8, 9, 11, 22, 31 and 32: attempts that cannot start, cannot be heard, or come back from the dead.

use crate::{
    oracle, seeds,
    world::{PATIENCE, Setup, World, stub},
};
use backend::jobs::supervisor::{procfs, record};
use nix::{sys::signal::Signal, unistd::Pid};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};
use testkit::{
    Process,
    fault::{Link, Way},
    limits::Clock,
};
use wire::{JobId, JobState, job::FailureCode, job_env};

/// Reports up to `steps` with a checkpoint at 5, then lives on without a word of its own will.
fn until_fenced(steps: u64) -> Value {
    json!([{"op": "started"}, {"op": "paced", "from": 1, "to": 5, "ms": 2}, {"op": "checkpoint", "step": 5},
        {"op": "paced", "from": 6, "to": steps, "ms": 2}, {"op": "defy"}])
}

/// Goes on after the checkpoint at 5.
fn resumed(steps: u64) -> Value {
    json!([{"op": "started"}, {"op": "paced", "from": 6, "to": steps, "ms": 2}, {"op": "finish", "steps": steps}])
}

fn recorded(world: &World, job: JobId, attempt: u32) -> record::Record {
    record::read(&world.attempt_dir(job, attempt), record::RECORD).unwrap().unwrap()
}

fn lives(process: record::Process) -> bool {
    procfs::stat(process.pid).is_some_and(|p| p.start_time == process.start_time && !p.zombie)
}

/// Every step once, as the user sees the curve: of a step that two attempts made, the later one counts.
async fn curve(world: &World, job: JobId, steps: u64) {
    let page = world.get(&format!("/training/jobs/{job}/metrics?limit=1000")).await;
    let steps_seen: Vec<u64> = page["items"].as_array().unwrap().iter().map(|p| p["step"].as_u64().unwrap()).collect();
    let mut once = steps_seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once, (1..=steps).collect::<Vec<_>>(), "the curve has gaps");
    assert!(steps_seen.is_sorted(), "the curve runs backwards: {steps_seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_08_a_frozen_trainer_is_replaced_and_its_ghost_changes_nothing() {
    let mut world = Setup::seed(1).short_lease().start().await;
    for seed in seeds() {
        let frozen_at = 6 + seed % 4;
        let job = world.job(json!({"1": until_fenced(frozen_at), "2": resumed(12)})).await;
        world.until(job, "the freeze", |view| view.progress.step == frozen_at).await;
        // The same program with the same token, as it would be if it could not be killed.
        let contract = world.attempt_dir(job, 1);
        let ghost = world.dir.path().join(format!("ghost-{seed}"));
        std::fs::create_dir(&ghost).unwrap();
        for name in [record::SPEC, record::TOKEN] {
            std::fs::copy(contract.join(name), ghost.join(name)).unwrap();
        }
        let trainer = recorded(&world, job, 1).trainer.unwrap();
        nix::sys::signal::kill(Pid::from_raw(trainer.pid), Signal::SIGSTOP).unwrap();
        world.until(job, "the second attempt", |view| view.attempt == 2).await;
        assert!(!lives(trainer), "seed {seed}: the frozen trainer lives beside its successor");

        let mut command = Command::new(stub());
        command.env_clear().current_dir(&ghost).env(job_env::JOB_SPEC_FILE, ghost.join(record::SPEC));
        command.env(job_env::JOB_TOKEN_FILE, ghost.join(record::TOKEN));
        command.env(job_env::CALLBACK_URL, format!("{}/training/jobs/{job}/callback", world.callbacks.url()));
        command.env(job_env::STORAGE_GATEWAY_URL, world.storage.url());
        let ended = Process::spawn(&mut command).unwrap().wait(PATIENCE).unwrap();
        assert_eq!(ended.code(), Some(job_env::exit::FENCED), "seed {seed}: the ghost was not turned away");

        let view = oracle::check(&world, job).await;
        assert_eq!((view.state, view.attempt), (JobState::Succeeded, 2), "seed {seed}\n{}", world.log());
        curve(&world, job, 12).await;
        let artifacts = world.get(&format!("/training/jobs/{job}/artifacts")).await;
        assert!(!artifacts.to_string().contains("attempt-1/"), "seed {seed}: a stray file: {artifacts}");
        world.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_09_a_partition_longer_than_the_lease_costs_an_attempt_and_no_step() {
    let world = Setup::seed(1).short_lease().start().await;
    for seed in seeds() {
        let heard = 6 + seed % 5;
        let job = world.job(json!({"1": until_fenced(heard), "2": resumed(14)})).await;
        let before = world.until(job, "the partition", |view| view.progress.step == heard).await;
        world.callbacks.link(Link::way(Way::Hold));
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // What the user has to go by meanwhile.
        let during = world.try_view(job).await.unwrap();
        let silence = chrono::Utc::now() - during.last_contact_at.unwrap();
        assert_eq!(during.state, JobState::Running, "seed {seed}");
        assert!(silence.num_milliseconds() >= 1000 && during.progress == before.progress, "seed {seed}: {silence}");
        let fenced = world.until(job, "the fence", |view| view.failure.is_some() || view.attempt == 2).await;
        let failure = fenced.failure.expect("why the first attempt ended");
        assert_eq!(failure.code, FailureCode::LeaseExpired, "seed {seed}");
        let words = "its process was alive, so it hung or could not reach the backend";
        assert!(failure.message.contains(words), "seed {seed}: {}", failure.message);
        world.callbacks.link(Link::default());
        let view = oracle::check(&world, job).await;
        assert_eq!((view.state, view.attempt), (JobState::Succeeded, 2), "seed {seed}\n{}", world.log());
        curve(&world, job, 14).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_09_a_partition_shorter_than_the_lease_is_not_noticed() {
    let world = Setup::seed(1).short_lease().start().await;
    for seed in seeds() {
        let job =
            world.job(json!({"1": [{"op": "started"}, {"op": "paced", "from": 1, "to": 40, "ms": 20}, {"op": "finish", "steps": 40}]})).await;
        world.until(job, "a step", |view| view.progress.step > seed % 20).await;
        world.callbacks.link(Link::way(if seed % 2 == 0 { Way::Hold } else { Way::Refuse }));
        tokio::time::sleep(Duration::from_millis(300 + seed * 97 % 1200)).await;
        world.callbacks.link(Link::default());
        let view = oracle::check(&world, job).await;
        assert_eq!((view.state, view.attempt), (JobState::Succeeded, 1), "seed {seed}\n{}", world.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_22_the_backends_clock_jumps_and_leases_hold() {
    let world_dir = tempfile::tempdir().unwrap();
    let clock = match Clock::new(world_dir.path()) {
        Ok(clock) => clock,
        Err(skip) => return eprintln!("row 22 {skip}"),
    };
    let mut setup = Setup::seed(1).short_lease();
    for (name, value) in clock.environment() {
        setup = setup.with(name, value.to_str().unwrap());
    }
    let world = setup.start().await;
    for seed in seeds() {
        let job = world
            .job(json!({"1": [{"op": "started"}, {"op": "paced", "from": 1, "to": 60, "ms": 40}, {"op": "finish", "steps": 60}]}))
            .await;
        world.until(job, "a step", |view| view.progress.step > seed % 10).await;
        let hours = 1 + i64::try_from(seed % 3).unwrap();
        clock.set(3600 * hours).unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        clock.set(-3600 * hours).unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        clock.set(0).unwrap();
        let view = oracle::check(&world, job).await;
        let seen = (view.state, view.attempt, &view.failure);
        assert_eq!(seen, (JobState::Succeeded, 1, &None), "seed {seed}: the user noticed\n{}", world.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_31_a_job_that_cannot_be_reached_is_cancelled_all_the_same() {
    let world = Setup::seed(1).start().await;
    for seed in seeds() {
        // Whether it would obey does not matter: it never hears of it.
        let deaf = if seed % 2 == 0 { json!({"op": "obey"}) } else { json!({"op": "ignore_sigterm"}) };
        let job = world.job(json!({"1": [{"op": "started"}, deaf, {"op": "defy"}]})).await;
        world.wait(job, JobState::Running).await;
        world.callbacks.link(Link::way(Way::Hold));
        let (status, view) = world.ask(Method::POST, &format!("/training/jobs/{job}/cancel")).await;
        assert_eq!((status, &view["state"]), (200, &json!("cancelling")), "seed {seed}: {view}");
        let asked = Instant::now();
        let trainer = recorded(&world, job, 1).trainer.unwrap();
        let view = oracle::check(&world, job).await;
        assert_eq!((view.state, view.failure), (JobState::Cancelled, None), "seed {seed}");
        assert!(!lives(trainer), "seed {seed}: cancelled, and its trainer lives");
        assert!(asked.elapsed() < Duration::from_secs(10), "seed {seed}: {:?}", asked.elapsed());
        world.callbacks.link(Link::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_32_a_trainer_that_cannot_be_started_says_why() {
    for seed in seeds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hone-trainer");
        let cause = match seed % 3 {
            // Not there.
            0 => "there is no executable trainer at",
            // There, but may not be executed.
            1 => {
                std::fs::write(&path, "#!/bin/sh\n").unwrap();
                "there is no executable trainer at"
            }
            // It may, but the system cannot.
            _ => {
                std::fs::write(&path, [0x7f, b'E', b'L', b'F', 9]).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
                "cannot execute"
            }
        };
        let world = Setup::seed(seed).trainer(&path).start().await;
        let job = world.insert(JobId::random(), json!({}), 1).await;
        let view = oracle::check(&world, job).await;
        let failure = view.failure.expect("a cause");
        assert_eq!((view.state, failure.code), (JobState::Failed, FailureCode::StartFailed), "seed {seed}");
        let shown = path.display().to_string();
        assert!(
            failure.message.contains(cause) && failure.message.contains(&shown),
            "seed {seed}: {}",
            failure.message
        );
    }
}
