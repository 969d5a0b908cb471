//! `TRAINING_MODE=kubernetes` against a stand-in for the cluster ([`testkit::kube`]) whose pods are real processes.

mod access;
mod endings;

use crate::world::{PATIENCE, Settings, World, script_trainer};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::kube::{Fate, Kube};
use wire::{JobId, JobState, job::FailureCode, layout};

/// A backend with a cluster, in which finished Jobs go at once.
async fn world(changes: &[(&'static str, &str)]) -> (Kube, World) {
    let kube = Kube::start(&script_trainer(), 1);
    let world = World::with(settings(&kube, changes)).await;
    (kube, world)
}

fn settings(kube: &Kube, changes: &[(&'static str, &str)]) -> Settings {
    let basic = [("KUBE_TTL_SECONDS", "0"), ("KUBE_GRACE_SECONDS", "2"), ("KUBE_MEMORY", "1536Mi")];
    let mut settings = Settings::default();
    for (name, value) in kube.environment() {
        settings = settings.with(name, value);
    }
    basic.iter().chain(changes).fold(settings, |settings, (name, value)| settings.with(name, value))
}

fn finishes(steps: u64) -> Value {
    json!([{"op": "started"}, {"op": "paced", "from": 1, "to": steps, "ms": 5}, {"op": "finish", "steps": steps}])
}

fn name(job: JobId, attempt: u32) -> String {
    layout::workload_name(job, attempt)
}

/// Waits until nothing of any attempt is in the cluster.
async fn empty(kube: &Kube, world: &World) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<Value> = ["jobs", "pods", "secrets", "configmaps"].iter().flat_map(|k| kube.all(k)).collect();
        if left.is_empty() {
            assert_eq!(kube.running(), 0);
            return;
        }
        assert!(Instant::now() < deadline, "this is left: {left:#?}\n{}", world.log());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_becomes_a_kubernetes_job_with_a_restricted_pod_and_leaves_nothing_behind() {
    let (kube, world) = world(&[]).await;
    let job = world.job(json!({"1": [{"op": "started"}, {"op": "obey"}]})).await;
    world.wait(job, JobState::Running).await;
    let made = kube.job(&name(job, 1)).unwrap();
    let spec = &made["spec"];
    assert_eq!((&spec["backoffLimit"], &spec["suspend"]), (&json!(0), &json!(false)));
    assert_eq!(made["metadata"]["finalizers"], json!(["hone.dev/outcome"]));
    let pod = &spec["template"]["spec"];
    let container = &pod["containers"][0];
    let seccomp = json!({"type": "RuntimeDefault"});
    assert_eq!(pod["restartPolicy"], "Never");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        (&pod["securityContext"]["runAsNonRoot"], &pod["securityContext"]["seccompProfile"]),
        (&json!(true), &seccomp)
    );
    let security = &container["securityContext"];
    assert_eq!(
        (&security["allowPrivilegeEscalation"], &security["readOnlyRootFilesystem"], &security["capabilities"]["drop"]),
        (&json!(false), &json!(true), &json!(["ALL"]))
    );
    assert_eq!(container["resources"]["limits"], json!({"memory": "1536Mi"}));
    let token = &kube.all("secrets")[0];
    assert_eq!(token["metadata"]["ownerReferences"][0]["uid"], made["metadata"]["uid"]);
    let token = token["stringData"]["token"].as_str().unwrap();
    assert!(!made.to_string().contains(token), "the token is a Secret, not a variable");
    // Stop by itself, so that the job ends in success.
    world.post(&format!("/training/jobs/{job}/cancel")).await;
    world.wait(job, JobState::Cancelled).await;
    let job = world.job(json!({"1": finishes(3)})).await;
    assert_eq!(world.wait(job, JobState::Succeeded).await.attempt, 1);
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_means_that_the_pod_is_gone() {
    let (kube, world) = world(&[]).await;
    let job = world.job(json!({"1": [{"op": "started"}, {"op": "ignore_sigterm"}, {"op": "defy"}]})).await;
    world.wait(job, JobState::Running).await;
    assert_eq!(kube.running(), 1);
    let (_, view) = world.post(&format!("/training/jobs/{job}/cancel")).await;
    assert_eq!(view["state"], "cancelling");
    world.wait(job, JobState::Cancelled).await;
    assert_eq!(kube.running(), 0, "it runs on");
    let deleted = kube.requests().into_iter().filter(|r| r.verb == "delete").count();
    assert!(deleted <= 2, "one request to go is enough, not {deleted}");
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_comes_back_adopts_what_runs_and_learns_what_ended() {
    // Its pod is asked, which goes after this.
    let (kube, mut world) = world(&[("KUBE_TTL_SECONDS", "5")]).await;
    let runs = json!({"1": [{"op": "started"}, {"op": "paced", "from": 1, "to": 60, "ms": 50}, {"op": "finish", "steps": 60}]});
    let runs = world.job(runs).await;
    world.wait(runs, JobState::Running).await;
    world.kill_backend();
    world.start_backend().await;
    let view = world.wait(runs, JobState::Succeeded).await;
    assert_eq!((view.attempt, view.failure), (1, None), "the user noticed");

    let dies = world.job(json!({"1": [{"op": "started"}, {"op": "defy"}]})).await;
    world.wait(dies, JobState::Running).await;
    world.kill_backend();
    kube.strike(&name(dies, 1), testkit::kube::Whim::OutOfMemory);
    until("its end", || kube.running() == 0).await;
    // Its Job would be removed now, if it were not for our finalizer.
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.start_backend().await;
    assert_eq!(world.wait(dies, JobState::Failed).await.failure.unwrap().code, FailureCode::TrainerOom);
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_a_queue_of_the_cluster_waits_longer_than_a_silent_trainer_may() {
    let (kube, world) = world(&[
        ("KUBE_QUEUE", "everybody"),
        ("LEASE_SECONDS", "2"),
        ("HEARTBEAT_SECONDS", "1"),
        ("CLAIM_SECONDS", "2"),
    ])
    .await;
    kube.admit(false);
    let job = world.job(json!({"1": finishes(3)})).await;
    until("its Job", || kube.job(&name(job, 1)).is_some()).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let view = world.view(job).await;
    assert_eq!((view.state, view.attempt, view.failure), (JobState::Starting, 1, None), "{}", world.log());
    let made = kube.job(&name(job, 1)).unwrap();
    assert_eq!(made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "everybody");
    kube.admit(true);
    assert_eq!(world.wait(job, JobState::Succeeded).await.attempt, 1);

    kube.admit(false);
    let waits = world.job(json!({"1": finishes(3)})).await;
    until("its Job", || kube.job(&name(waits, 1)).is_some()).await;
    world.post(&format!("/training/jobs/{waits}/pause")).await;
    let view = world.wait(waits, JobState::Paused).await;
    assert_eq!(view.failure, None, "there is nothing wrong with it");
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_called_off_before_it_starts_never_starts() {
    let (kube, world) = world(&[]).await;
    kube.fate(1, Fate::Unschedulable { message: "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.".into() });
    let job = world.job(json!({"1": finishes(3)})).await;
    until("its pod", || !kube.all("pods").is_empty()).await;
    world.post(&format!("/training/jobs/{job}/cancel")).await;
    world.wait(job, JobState::Cancelled).await;
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_specification_comes_as_a_file_and_a_log_can_be_read_while_it_is_written() {
    let (kube, world) = world(&[]).await;
    let long = "x".repeat(100_000);
    let job = world.job(json!({"1": [{"op": "print", "text": "what it says"}, {"op": "started"}, {"op": "obey"}], "9": [{"op": "print", "text": long}]})).await;
    world.wait(job, JobState::Running).await;
    assert_eq!(kube.all("configmaps").len(), 1);
    let log = world.request(reqwest::Method::GET, &format!("/training/jobs/{job}/logs")).send().await.unwrap();
    let log = log.text().await.unwrap();
    assert!(log.contains("what it says"), "{log}");
    world.post(&format!("/training/jobs/{job}/cancel")).await;
    world.wait(job, JobState::Cancelled).await;
    empty(&kube, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backends_start_an_attempt_once() {
    let (kube, world) = world(&[]).await;
    let _second = world.second_backend().await;
    for _ in 0..5 {
        let job = world.job(json!({"1": finishes(2)})).await;
        assert_eq!(world.wait(job, JobState::Succeeded).await.attempt, 1);
    }
    empty(&kube, &world).await;
}
