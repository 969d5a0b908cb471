//! Trainers as processes: from dispatch to the end, whatever end it is.

use crate::world::{PATIENCE, Settings, World};
use backend::jobs::supervisor::{procfs, record};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};
use wire::{JobId, JobState, job::FailureCode, layout};

fn finish(steps: u64) -> Value {
    json!({"op": "finish", "steps": steps})
}

fn once(steps: std::ops::RangeInclusive<i64>) -> Vec<(i64, i64)> {
    steps.map(|step| (step, 1)).collect()
}

/// Rows of what a job made: attempt, kind, name, base model, where it is, first file, size, last step.
async fn artifacts(world: &World, job: JobId) -> Vec<String> {
    let query = "SELECT concat_ws(' ', attempt, kind, name, base_model, base_revision, storage_path,
            files -> 0 ->> 'path', size, metrics ->> 'step')
        FROM model_artifacts WHERE job_id = $1::text::uuid ORDER BY attempt";
    world.db.query(query, &[&job.to_string()]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_run_ends_succeeded_with_verified_artifacts_and_its_log() {
    let world = World::new().await;
    let script = json!({"1": [
        {"op": "started"}, {"op": "plan", "total": 5}, {"op": "metrics", "from": 1, "to": 3}, {"op": "again"},
        {"op": "checkpoint", "step": 3}, {"op": "reversed", "from": 4, "to": 5}, {"op": "print", "text": "all done"},
        finish(5),
    ]});
    let job = world.job(script).await;
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!((view.attempt, view.progress.step, view.failure), (1, 5, None));
    assert!(view.finished_at.is_some());
    assert_eq!(world.states(job).await, ["starting", "running", "finalizing", "succeeded"]);
    assert_eq!(world.steps(job).await, once(1..=5));
    let manifest = world.gateway.object(&format!("{}manifest.json", layout::job_prefix(world.user, job))).unwrap();
    assert!(String::from_utf8(manifest).unwrap().contains("adapter_model.safetensors"));
    let made = artifacts(&world, job).await;
    let prefix = format!("{}artifacts/", layout::attempt_prefix(world.user, job, 1));
    assert_eq!(made, [format!("1 adapter test tiny r1 {prefix} adapter_model.safetensors 7 5")]);
    let log = format!("{}logs/trainer.log", layout::attempt_prefix(world.user, job, 1));
    let deadline = Instant::now() + PATIENCE;
    while world.gateway.object(&log).is_none() {
        assert!(Instant::now() < deadline, "the log was not kept: {:?}", world.gateway.keys());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(String::from_utf8(world.gateway.object(&log).unwrap()).unwrap().contains("all done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_replies_gaps_and_repetitions_are_applied_once() {
    let world = World::new().await;
    let script = json!({"1": [
        {"op": "started"}, {"op": "deaf", "from": 1, "to": 3}, {"op": "skip", "from": 4, "to": 6},
        {"op": "metrics", "from": 7, "to": 8}, finish(8),
    ]});
    let job = world.job(script).await;
    world.wait(job, JobState::Succeeded).await;
    assert_eq!(world.steps(job).await, once(1..=8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_trainer_is_retried_from_its_checkpoint_and_the_job_succeeds() {
    let world = World::new().await;
    let script = json!({
        "1": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 4}, {"op": "checkpoint", "step": 4},
            {"op": "signal", "number": 9}],
        "2": [{"op": "started"}, {"op": "metrics", "from": 5, "to": 6}, finish(6)],
    });
    let job = world.job(script).await;
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!(view.attempt, 2);
    assert_eq!(artifacts(&world, job).await.len(), 1, "only the attempt that ended well made something");
    let resumed = "SELECT (body -> 'event' ->> 'resumed_from_step')::bigint FROM job_events
        WHERE job_id = $1::text::uuid AND attempt = 2 AND body -> 'event' ->> 'type' = 'started'";
    assert_eq!(world.count(resumed, job).await, 4);
    assert_eq!(world.steps(job).await, once(1..=6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_is_killed_every_time_fails_the_job_with_the_cause() {
    let world = World::new().await;
    let script = json!({"*": [
        {"op": "started"}, {"op": "metrics", "from": 1, "to": 2}, {"op": "print", "text": "a famous last word"},
        {"op": "signal", "number": 9},
    ]});
    let job = world.insert(script, 2, "queued").await;
    let view = world.wait(job, JobState::Failed).await;
    let failure = view.failure.unwrap();
    assert_eq!((failure.code, view.attempt), (FailureCode::TrainerDied, 2));
    for part in ["gave up after 2 attempts", "signal 9 (SIGKILL)", "at step 2 of attempt 2", "a famous last word"] {
        assert!(failure.message.contains(part), "`{part}` is not in: {}", failure.message);
    }
    let expected = ["starting", "running", "retry_wait", "queued", "starting", "running", "failed"];
    assert_eq!(world.states(job).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reported_fatal_failure_is_not_tried_again() {
    let world = World::new().await;
    let script = json!({"*": [
        {"op": "started"}, {"op": "fail", "code": "DIVERGED", "message": "loss is NaN at step 3"},
        {"op": "exit", "code": 64},
    ]});
    let job = world.job(script).await;
    let view = world.wait(job, JobState::Failed).await;
    let failure = view.failure.unwrap();
    assert_eq!((failure.code, view.attempt), (FailureCode::Diverged, 1));
    assert_eq!(failure.message, "loss is NaN at step 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_hangs_is_fenced_killed_and_replaced() {
    let world = World::with(Settings::default().short_lease()).await;
    let script = json!({
        "1": [{"op": "started"}, {"op": "ignore_sigterm"}, {"op": "hang"}],
        "2": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 1}, finish(1)],
    });
    let job = world.job(script).await;
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!(view.attempt, 2);
    let first = "SELECT failure ->> 'code', failure ->> 'message' FROM job_attempts WHERE job_id = $1::text::uuid AND attempt = 1";
    let row = world.db.query_one(first, &[&job.to_string()]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "LEASE_EXPIRED");
    let message: &str = row.get(1);
    assert!(message.contains("no word from the trainer for 3 s"), "{message}");
    assert!(is_gone(&world, job, 1));
    assert_eq!(world.view(job).await.attempt, 2);
    let epoch = world.count("SELECT epoch FROM training_jobs WHERE id = $1::text::uuid", job).await;
    assert_eq!(epoch, 3, "dispatched, fenced, dispatched");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_ends_a_stubborn_trainer_and_its_children_within_five_seconds() {
    let world = World::new().await;
    let script = json!({"1": [{"op": "started"}, {"op": "ignore_sigterm"}, {"op": "grandchild"}, {"op": "defy"}]});
    let job = world.job(script).await;
    world.wait(job, JobState::Running).await;
    let asked = Instant::now();
    assert_eq!(world.post(&format!("/training/jobs/{job}/cancel")).await.0, 200);
    world.wait(job, JobState::Cancelled).await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(is_gone(&world, job, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_obedient_trainer_is_cancelled_and_cancelling_again_is_the_same() {
    let world = World::new().await;
    let job = world.job(json!({"1": [{"op": "started"}, {"op": "obey"}]})).await;
    world.wait(job, JobState::Running).await;
    let path = format!("/training/jobs/{job}/cancel");
    assert_eq!(world.post(&path).await.0, 200);
    world.wait(job, JobState::Cancelled).await;
    let (status, view) = world.post(&path).await;
    assert_eq!((status, &view["state"]), (200, &json!("cancelled")));
    let (status, problem) = world.post(&format!("/training/jobs/{job}/resume")).await;
    assert_eq!((status, &problem["code"]), (409, &json!("CONFLICT")), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_as_many_jobs_run_as_allowed_and_a_queued_one_is_cancelled_at_once() {
    let world = World::new().await;
    let first = world.job(json!({"1": [{"op": "started"}, {"op": "obey"}]})).await;
    world.wait(first, JobState::Running).await;
    let quick = json!({"1": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 1}, finish(1)]});
    let second = world.job(quick.clone()).await;
    let third = world.job(quick).await;
    let (_, view) = world.post(&format!("/training/jobs/{second}/cancel")).await;
    assert_eq!(view["state"], "cancelled");
    assert_eq!(world.view(third).await.state, JobState::Queued);
    world.post(&format!("/training/jobs/{first}/cancel")).await;
    world.wait(third, JobState::Succeeded).await;
    assert_eq!(world.states(second).await, ["cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_continues_from_its_checkpoint_without_losing_an_attempt() {
    let world = World::new().await;
    let script = json!({
        "1": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 7}, {"op": "obey"}],
        "2": [{"op": "started"}, {"op": "metrics", "from": 8, "to": 9}, finish(9)],
    });
    let job = world.insert(script, 1, "queued").await;
    world.wait(job, JobState::Running).await;
    let (status, view) = world.post(&format!("/training/jobs/{job}/pause")).await;
    assert_eq!((status, &view["state"]), (200, &json!("pausing")));
    world.wait(job, JobState::Paused).await;
    assert_eq!(world.post(&format!("/training/jobs/{job}/pause")).await.0, 200);
    assert_eq!(world.post(&format!("/training/jobs/{job}/resume")).await.0, 200);
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!((view.attempt, view.max_attempts), (2, 2));
    assert_eq!(world.steps(job).await, once(1..=9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_trainer_fails_the_job_with_the_path() {
    let world = World::with(Settings { trainer: "/no/such/hone-trainer".into(), ..Settings::default() }).await;
    let job = world.job(json!({})).await;
    let failure = world.wait(job, JobState::Failed).await.failure.unwrap();
    assert_eq!(failure.code, FailureCode::StartFailed);
    let expected = "no executable trainer at /no/such/hone-trainer; set TRAINER_BIN";
    assert!(failure.message.contains(expected), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_cannot_be_executed_fails_the_job_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let trainer = dir.path().join("trainer");
    std::fs::write(&trainer, "this is no program").unwrap();
    std::fs::set_permissions(&trainer, PermissionsExt::from_mode(0o755)).unwrap();
    let world = World::with(Settings { trainer, ..Settings::default() }).await;
    let job = world.job(json!({})).await;
    let failure = world.wait(job, JobState::Failed).await.failure.unwrap();
    assert_eq!(failure.code, FailureCode::StartFailed);
    assert!(failure.message.contains("cannot execute"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_says_it_finished_without_artifacts_does_not_succeed() {
    let world = World::new().await;
    let metrics = json!({"op": "metrics", "from": 1, "to": 1});
    let script = json!({
        "1": [{"op": "started"}, metrics, {"op": "finish_empty_handed", "steps": 1}],
        "2": [{"op": "started"}, metrics, finish(1)],
    });
    let job = world.job(script).await;
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!(view.attempt, 2);
    let first = "SELECT failure ->> 'code' FROM job_attempts WHERE job_id = $1::text::uuid AND attempt = 1";
    assert_eq!(world.db.query_one(first, &[&job.to_string()]).await.unwrap().get::<_, &str>(0), "ARTIFACT_MISSING");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_left_in_storage_are_taken_before_a_dead_attempt_is_judged() {
    let world = World::new().await;
    let job = world.job(json!({"1": [{"op": "finish_by_storage", "steps": 4}]})).await;
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!((view.attempt, view.progress.step), (1, 4));
    assert_eq!(world.steps(job).await, once(1..=4));
    let prefix = format!("{}events/", layout::attempt_prefix(world.user, job, 1));
    assert!(!world.gateway.keys().iter().any(|key| key.starts_with(&prefix)), "the object was removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_gets_its_contract_and_no_secrets() {
    let canary = "canary-0b5f1c";
    let settings = Settings::default()
        .with("AWS_SECRET_ACCESS_KEY", canary)
        .with("AWS_ACCESS_KEY_ID", canary)
        .with("SENTRY_DSN", canary)
        .with("OTEL_EXPORTER_OTLP_TIMEOUT", 1234);
    let world = World::with(settings).await;
    let file = world.dir.path().join("environment.json");
    let metrics = json!({"op": "metrics", "from": 1, "to": 1});
    let job =
        world.job(json!({"1": [{"op": "environment", "file": file}, {"op": "started"}, metrics, finish(1)]})).await;
    world.wait(job, JobState::Succeeded).await;
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains(canary), "{text}");
    let all: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
    for name in ["DATABASE_URL", "TOKEN_SIGNING_KEY", "HONE_BOOTSTRAP_KEY", "JOB_TOKEN"] {
        assert!(!all.contains_key(name), "{name}");
    }
    assert_eq!(all["OTEL_EXPORTER_OTLP_TIMEOUT"], "1234");
    assert_eq!(all["JOB_ID"], job.to_string());
    let mode = std::fs::metadata(&all["JOB_TOKEN_FILE"]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_need_nothing_keep_none_from_its_turn() {
    let settings = Settings::default().with("MAX_CONCURRENT_JOBS", 200);
    let world = World::with(settings).await;
    // More than are attended to at a time, on a machine that cannot be reached.
    for _ in 0..80 {
        world.remote_job().await;
    }
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(world.job(json!({"1": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 1}, finish(1)]})).await);
        jobs.push(world.job(json!({"1": [{"op": "started"}, {"op": "obey"}]})).await);
    }
    for pair in jobs.chunks(2) {
        world.wait(pair[0], JobState::Succeeded).await;
        world.wait(pair[1], JobState::Running).await;
        let (status, _) = world.post(&format!("/training/jobs/{}/cancel", pair[1])).await;
        assert_eq!(status, 200);
        world.wait(pair[1], JobState::Cancelled).await;
    }
}

/// Whether the attempt's end is on record and none of its processes is left.
fn is_gone(world: &World, job: JobId, attempt: u32) -> bool {
    let dir = world.attempt_dir(job, attempt);
    let found: record::Record = record::read(&dir, record::RECORD).unwrap().unwrap();
    let leader = found.supervisor.unwrap();
    let members = procfs::session_members(leader.pid, leader.start_time);
    let ended = record::read::<record::ExitRecord>(&dir, record::EXIT).unwrap().is_some();
    ended && members.iter().all(|p| p.pid == leader.pid)
}
