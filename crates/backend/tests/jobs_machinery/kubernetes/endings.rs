//! How attempts end in a cluster, and what the user is told.

use super::{empty, finishes, name, world};
use crate::world::World;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::kube::{Fate, Kube, Whim};
use wire::{JobId, JobState, job::Failure, job::FailureCode};

/// A job whose first attempt has made a checkpoint and goes on until something happens to it.
async fn running(world: &World) -> JobId {
    let first = json!([{"op": "started"}, {"op": "metrics", "from": 1, "to": 4}, {"op": "checkpoint", "step": 4}, {"op": "defy"}]);
    let second = json!([{"op": "started"}, {"op": "metrics", "from": 5, "to": 6}, {"op": "finish", "steps": 6}]);
    let job = world.job(json!({"1": first, "2": second})).await;
    world.until(job, "the checkpoint", |view| view.progress.step == 4).await;
    job
}

async fn failure(world: &World, job: JobId) -> Failure {
    world.wait(job, JobState::Failed).await.failure.unwrap()
}

/// Why the first attempt ended, of a job that went on.
async fn first_failure(world: &World, job: JobId) -> (FailureCode, String) {
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!(view.attempt, 2);
    let query = "SELECT failure::text FROM job_attempts WHERE job_id = $1::text::uuid AND attempt = 1";
    let row = world.db.query_one(query, &[&job.to_string()]).await.unwrap();
    let failure: Failure = serde_json::from_str(row.get(0)).unwrap();
    (failure.code, failure.message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_killed_for_memory_fails_the_job_with_its_limit() {
    let (kube, world) = world(&[]).await;
    let job = running(&world).await;
    kube.strike(&name(job, 1), Whim::OutOfMemory);
    let failure = failure(&world, job).await;
    assert_eq!(failure.code, FailureCode::TrainerOom);
    assert!(failure.message.contains("with a limit of 1536 MiB; lower training."), "{}", failure.message);
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_preemption_and_a_lost_machine_cost_no_step_and_are_told_apart() {
    let (kube, world) = world(&[]).await;
    let cases: [(Whim, FailureCode, &str); 3] = [
        (
            Whim::Evict { message: "The node was low on resource: memory.".into() },
            FailureCode::Preempted,
            "TerminationByKubelet: The node was low on resource: memory.",
        ),
        (Whim::Preempt, FailureCode::Preempted, "PreemptionByScheduler"),
        (Whim::LoseNode, FailureCode::TrainerDied, "the machine of the trainer was lost at step 4 of attempt 1"),
    ];
    for (whim, code, words) in cases {
        let job = running(&world).await;
        kube.strike(&name(job, 1), whim.clone());
        let (told, message) = first_failure(&world, job).await;
        assert_eq!(told, code, "{whim:?}: {message}");
        assert!(message.contains(words), "{whim:?}: {message}");
        assert!(message.contains("last durable checkpoint: step 4"), "{whim:?}: {message}");
    }
    let job = running(&world).await;
    let message = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Gi\". ";
    kube.strike(&name(job, 1), Whim::Evict { message: message.into() });
    let failure = failure(&world, job).await;
    assert_eq!(failure.code, FailureCode::DiskFull, "{}", failure.message);
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_is_not_waited_for_for_ever() {
    let (kube, world) = world(&[("KUBE_PULL_SECONDS", "1"), ("KUBE_START_SECONDS", "2")]).await;
    let said = "Back-off pulling image \"hone-trainer:test\"";
    let fates = [
        (Fate::Waiting { reason: "ImagePullBackOff".into(), message: said.into() }, said),
        (Fate::Waiting { reason: "InvalidImageName".into(), message: "bad reference".into() }, "bad reference"),
        (Fate::Unschedulable { message: "0/3 nodes are available".into() }, "no machine has room for it (0/3 nodes"),
        (Fate::CannotRun { message: "exec: \"hone-trainer\": not found in $PATH".into() }, "not found in $PATH"),
    ];
    for (fate, words) in fates {
        kube.fate(1, fate);
        let began = Instant::now();
        let job = world.job(json!({"1": finishes(1)})).await;
        let failure = failure(&world, job).await;
        assert_eq!(failure.code, FailureCode::StartFailed, "{}", failure.message);
        assert!(failure.message.contains(words), "{}", failure.message);
        assert!(began.elapsed() < Duration::from_secs(20), "{words}: {:?}", began.elapsed());
        empty(&kube, &world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_deleted_by_hand_is_deleted_externally() {
    let (kube, world) = world(&[("KUBE_TTL_SECONDS", "1")]).await;
    for policy in ["Background", "Foreground"] {
        let job = running(&world).await;
        kube.delete_job(&name(job, 1), policy);
        let failure = failure(&world, job).await;
        assert_eq!(failure.code, FailureCode::DeletedExternally, "{policy}: {}", failure.message);
        let words = "the Kubernetes Job of the trainer was deleted externally at step 4 of attempt 1";
        assert!(failure.message.contains(words), "{policy}: {}", failure.message);
        empty(&kube, &world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_takes_too_long_is_not_tried_again() {
    let (kube, world) = world(&[("KUBE_DEADLINE_SECONDS", "1")]).await;
    let job = world.job(json!({"1": [{"op": "started"}, {"op": "defy"}]})).await;
    let failure = failure(&world, job).await;
    assert_eq!(failure.code, FailureCode::DeadlineExceeded, "{}", failure.message);
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_signals_mean_what_they_mean_for_a_process() {
    let (kube, world) = world(&[]).await;
    let ends =
        |op: Value| json!({"1": [{"op": "started"}, {"op": "print", "text": "its last line"}, op], "2": finishes(2)});
    let job = world.job(ends(json!({"op": "signal", "number": 9}))).await;
    let (code, message) = first_failure(&world, job).await;
    assert_eq!(code, FailureCode::TrainerDied);
    assert!(message.contains("killed by signal 9 (SIGKILL)") && message.contains("its last line"), "{message}");
    let job = world.job(ends(json!({"op": "exit", "code": 65}))).await;
    assert_eq!(first_failure(&world, job).await.0, FailureCode::StorageUnavailable);
    let job = world.job(ends(json!({"op": "exit", "code": 75}))).await;
    assert_eq!(first_failure(&world, job).await.0, FailureCode::Preempted);
    let job = world.job(ends(json!({"op": "exit", "code": 64}))).await;
    assert_eq!(failure(&world, job).await.code, FailureCode::Internal);
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_somebody_else_took_is_said_and_not_touched() {
    let (kube, world): (Kube, World) = world(&[("MAX_CONCURRENT_JOBS", "1")]).await;
    let blocker = running(&world).await;
    let job = world.job(json!({"1": finishes(1)})).await;
    kube.put(
        "jobs",
        json!({"metadata": {"name": name(job, 1), "labels": {"app": "another"}}, "spec": {"suspend": true}}),
    );
    world.post(&format!("/training/jobs/{blocker}/cancel")).await;
    let failure = failure(&world, job).await;
    assert_eq!(failure.code, FailureCode::StartFailed, "{}", failure.message);
    assert!(failure.message.contains("that is not Hone's"), "{}", failure.message);
    let theirs = kube.job(&name(job, 1)).expect("it is not ours to delete");
    assert!(theirs["metadata"].get("deletionTimestamp").is_none() && theirs["metadata"].get("annotations").is_none());
}
