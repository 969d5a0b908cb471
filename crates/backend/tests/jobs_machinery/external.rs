//! Trainers outside Hone that report by Kubeflow's `trainerStatus`. The bodies are those that Transformers 5.23 sends
//! (`KubeflowCallback`); `scripts/ref_kubeflow_status.py` runs the real one against a Hone.

use crate::world::{PATIENCE, Settings, World};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use wire::{
    JobId, JobState,
    job::{CreatedJob, ExternalTrainer, FailureCode, TrainerKind},
};

impl World {
    /// A job that a trainer elsewhere is to report to.
    async fn external_job(&self) -> (JobId, ExternalTrainer) {
        let report = json!({"format": "text", "bytes": 1, "rows": 1, "duplicates": 0, "error_count": 0, "errors": []});
        let file = json!([{"split": "train", "key": "datasets/x", "size": 1, "sha256": "0", "report": report}]);
        let update = "UPDATE datasets SET files = $1::text::jsonb";
        self.db.execute(update, &[&file.to_string()]).await.unwrap();
        let body = json!({"config": {"model": "tiny", "dataset": "data"}, "trainer": "external"});
        let reply = self.request(Method::POST, "/training/jobs").json(&body).send().await.unwrap();
        assert_eq!(reply.status(), 201, "{}", reply.text().await.unwrap());
        let created: CreatedJob = reply.json().await.unwrap();
        assert_eq!((created.job.trainer, created.job.max_attempts), (TrainerKind::External, 1));
        self.wait(created.job.id, JobState::Starting).await;
        (created.job.id, created.external.unwrap())
    }

    /// Reports as Transformers does; status and reply.
    async fn report(&self, to: &ExternalTrainer, status: Value) -> (u16, Value) {
        let body = json!({"trainerStatus": status}).to_string();
        let post = reqwest::Client::new().post(&to.status_url).header("Content-Type", "application/json");
        let reply = post.bearer_auth(&to.token).body(body).send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap())
    }
}

fn metrics(values: &[(&str, &str)]) -> Value {
    values.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// As Python writes the time.
fn now() -> String {
    chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_elsewhere_reports_its_way_to_success() {
    let world = World::new().await;
    let (job, external) = world.external_job().await;
    assert!(external.status_url.ends_with(&format!("/namespaces/hone/trainjobs/{job}/status")));

    let begin = json!({"lastUpdatedTime": now(), "progressPercentage": 0,
        "metrics": metrics(&[("total_steps", "20")])});
    let (status, reply) = world.report(&external, begin.clone()).await;
    assert_eq!((status, &reply["trainerStatus"]["progressPercentage"]), (200, &json!(0)));
    let view = world.wait(job, JobState::Running).await;
    assert_eq!((view.progress.step, view.progress.total_steps), (0, Some(20)));
    assert!(view.last_contact_at.is_some());

    let values = [
        ("loss", "2.5"),
        ("grad_norm", "0.75"),
        ("learning_rate", "5e-05"),
        ("epoch", "0.35"),
        ("current_step", "7"),
        ("total_steps", "20"),
        ("current_epoch", "0.35"),
    ];
    let middle = json!({"lastUpdatedTime": now(), "progressPercentage": 35, "estimatedRemainingSeconds": 4,
        "metrics": metrics(&values)});
    assert_eq!(world.report(&external, middle.clone()).await.0, 200);
    // A report that comes twice is applied once.
    assert_eq!(world.report(&external, middle).await.0, 200);
    let view = world.view(job).await;
    assert_eq!((view.progress.step, view.progress.eta_seconds, view.progress.loss), (7, Some(4.0), Some(2.5)));

    let values = [
        ("loss", "1.5"),
        ("grad_norm", "0.75"),
        ("learning_rate", "0.0"),
        ("epoch", "1.0"),
        ("train_runtime", "6.1"),
        ("train_samples_per_second", "13.1"),
        ("train_loss", "2.25"),
    ];
    let end = json!({"lastUpdatedTime": now(), "progressPercentage": 100, "estimatedRemainingSeconds": 0,
        "metrics": metrics(&values)});
    assert_eq!(world.report(&external, end.clone()).await.0, 200);
    let view = world.wait(job, JobState::Succeeded).await;
    assert_eq!((view.progress.step, view.progress.loss, view.progress.eta_seconds), (20, Some(1.5), Some(0.0)));
    assert_eq!(world.states(job).await, ["queued", "starting", "running", "finalizing", "succeeded"]);
    // What is over stays as it is.
    assert_eq!(world.report(&external, end).await.0, 200);
    assert_eq!(world.view(job).await, view);

    let points = world.get(&format!("/training/jobs/{job}/metrics")).await;
    let points: Vec<(u64, Value)> = points["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["step"].as_u64().unwrap(), p["values"].clone()))
        .collect();
    assert_eq!(
        points,
        [
            (7, json!({"train_loss": 2.5, "grad_norm": 0.75, "learning_rate": 5e-5, "epoch": 0.35})),
            // The norm did not change, so nothing says that it was measured again.
            (
                20,
                json!({"train_loss": 1.5, "learning_rate": 0.0, "epoch": 1.0, "train_runtime": 6.1,
            "train_samples_per_second": 13.1, "mean_train_loss": 2.25})
            ),
        ]
    );
    let kinds: Vec<String> = world.get(&format!("/training/jobs/{job}/events")).await["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|m| m["event"]["type"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(kinds, ["log", "progress", "progress", "metrics", "progress", "metrics", "finished"]);
    assert_eq!(world.get(&format!("/training/jobs/{job}/artifacts")).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_token_of_its_own_job_may_report() {
    let world = World::new().await;
    let (job, external) = world.external_job().await;
    let (other, others) = world.external_job().await;
    let status = json!({"progressPercentage": 100});
    let stolen = ExternalTrainer { token: others.token.clone(), ..external.clone() };
    assert_eq!(world.report(&stolen, status.clone()).await.0, 403);
    let made_up = ExternalTrainer { token: "nonsense".into(), ..external.clone() };
    assert_eq!(world.report(&made_up, status).await.0, 401);
    let (code, problem) = world.report(&external, json!({"progressPercentage": "much"})).await;
    assert_eq!((code, &problem["code"]), (422, &json!("INVALID")));
    // A job that Hone trains has no ear for it.
    let own = world.remote_job().await;
    let url = external.status_url.replace(&job.to_string(), &own.to_string());
    let own = ExternalTrainer { status_url: url, token: world.token(own, 1, 1), ..others };
    assert_eq!(world.report(&own, json!({"progressPercentage": 100})).await.0, 409);
    for job in [job, other] {
        assert_eq!(world.view(job).await.state, JobState::Starting);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_elsewhere_that_falls_silent_fails_its_job_with_the_reason() {
    let settings = Settings::default().short_lease().with("EXTERNAL_LEASE_SECONDS", 2);
    let world = World::with(settings).await;
    let (job, external) = world.external_job().await;
    assert_eq!(world.report(&external, json!({"progressPercentage": 10})).await.0, 200);
    let deadline = Instant::now() + PATIENCE;
    while !world.view(job).await.state.is_terminal() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let view = world.view(job).await;
    let failure = view.failure.unwrap();
    assert_eq!((view.state, failure.code), (JobState::Failed, FailureCode::LeaseExpired));
    assert!(failure.message.contains("no word from the trainer for 2 s at step 10"), "{}", failure.message);
    // It wakes up again: too late.
    assert_eq!(world.report(&external, json!({"progressPercentage": 100})).await.0, 410);
    assert_eq!(world.view(job).await.state, JobState::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_elsewhere_takes_no_place_here_and_can_be_cancelled_but_not_paused() {
    let world = World::new().await;
    let (job, external) = world.external_job().await;
    assert_eq!(world.report(&external, json!({"progressPercentage": 10})).await.0, 200);
    let own = world.job(json!({"1": [{"op": "started"}, {"op": "finish", "steps": 1}]})).await;
    world.wait(own, JobState::Succeeded).await;
    // And it waits for none.
    let _busy = world.job(json!({"1": [{"op": "started"}, {"op": "obey"}]})).await;
    let (second, _) = world.external_job().await;
    assert_eq!(world.view(second).await.state, JobState::Starting);

    let (status, problem) = world.post(&format!("/training/jobs/{job}/pause")).await;
    assert_eq!((status, &problem["code"]), (409, &json!("CONFLICT")), "{problem}");
    assert_eq!(world.post(&format!("/training/jobs/{job}/cancel")).await.0, 200);
    world.wait(job, JobState::Cancelled).await;
    assert_eq!(world.report(&external, json!({"progressPercentage": 100})).await.0, 200);
    assert_eq!(world.view(job).await.state, JobState::Cancelled);
    let body = json!({"config": {"model": "tiny", "dataset": "data"}, "trainer": "external", "max_attempts": 3});
    let reply = world.request(Method::POST, "/training/jobs").json(&body).send().await.unwrap();
    assert_eq!(reply.status(), 422);
}
