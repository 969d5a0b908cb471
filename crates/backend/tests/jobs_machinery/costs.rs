//! What attempts cost, and when a budget stops them, with the test as trainer.

use crate::{
    callbacks::{Played, event, metric},
    world::{Settings, World},
};
use serde_json::{Value, json};
use wire::JobState;

/// A running job that costs one unit of money per second and may cost 100.
async fn metered(world: &World) -> Played<'_> {
    let trainer = Played::new(world).await;
    let set = "UPDATE training_jobs SET price_per_hour = 3600, currency = 'EUR', budget_limit = 100
        WHERE id = $1::text::uuid";
    world.db.execute(set, &[&trainer.job.to_string()]).await.unwrap();
    assert_eq!(trainer.send(json!([])).await.0, 200);
    trainer
}

/// Moves the start of the attempt, and the last report, into the past.
async fn age(trainer: &Played<'_>, seconds: f64) {
    let (id, db) = (trainer.job.to_string(), &trainer.world.db);
    let begin = "UPDATE job_attempts SET claimed_at = now() - make_interval(secs => $2) WHERE job_id = $1::text::uuid";
    db.execute(begin, &[&id, &seconds]).await.unwrap();
    let contact = "UPDATE training_jobs SET last_contact_at = now() - interval '1 minute' WHERE id = $1::text::uuid";
    db.execute(contact, &[&id]).await.unwrap();
}

/// Percentages told, ascending.
async fn alerts(trainer: &Played<'_>) -> Vec<i32> {
    let query = "SELECT (data ->> 'percent')::int FROM notifications
        WHERE job_id = $1::text::uuid AND kind = 'training.job.budget_alert' ORDER BY 1";
    trainer.world.db.query(query, &[&trainer.job.to_string()]).await.unwrap().iter().map(|r| r.get(0)).collect()
}

async fn records(trainer: &Played<'_>) -> Value {
    trainer.world.get(&format!("/api/costs?job_id={}", trainer.job)).await["items"].clone()
}

fn about(value: &Value, wanted: f64) {
    let value = value.as_f64().unwrap();
    assert!((value - wanted).abs() < 3.0, "{value} is not about {wanted}");
}

fn stopped(seq: u64) -> Value {
    event(seq, json!({"type": "stopped", "reason": "paused", "step": 1, "checkpoint": null}))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_charged_once_and_each_threshold_told_once_whatever_is_repeated() {
    let mut world = World::new().await;
    let trainer = metered(&world).await;
    age(&trainer, 60.0).await;
    for _ in 0..3 {
        let (status, reply) = trainer.send(json!([metric(1, 1)])).await;
        assert_eq!((status, &reply["directive"]), (200, &json!("continue")));
        // 40 s are left, but for an unknown checkpoint.
        about(&json!(reply["pause_in_ms"].as_f64().unwrap() / 1000.0), 39.0);
    }
    let shown = records(&trainer).await;
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown:#}");
    about(&shown[0]["amount"], 60.0);
    assert_eq!((&shown[0]["currency"], &shown[0]["finished_at"]), (&json!("EUR"), &Value::Null));
    assert_eq!(alerts(&trainer).await, [50]);

    let (job, instance) = (trainer.job, trainer.instance);
    world.kill_backend();
    world.start_backend().await;
    let trainer = Played { job, instance, token: world.token(job, 1, 1), world: &world };
    age(&trainer, 85.0).await;
    for _ in 0..2 {
        assert_eq!(trainer.send(json!([metric(1, 1), metric(2, 2)])).await.0, 200);
    }
    assert_eq!(alerts(&trainer).await, [50, 80]);
    about(&records(&trainer).await[0]["amount"], 85.0);

    age(&trainer, 99.6).await;
    let (_, reply) = trainer.send(json!([])).await;
    assert_eq!((&reply["directive"], &reply["pause_in_ms"]), (&json!("pause"), &Value::Null));
    let view = world.view(job).await;
    assert_eq!(view.state, JobState::Pausing);
    let pause = view.pause.unwrap();
    assert_eq!(pause.limit, Some(100.0));
    assert!(pause.message.contains("raise its budget_limit"), "{}", pause.message);
    assert_eq!(alerts(&trainer).await, [50, 80, 95, 100]);

    trainer.send(json!([stopped(3)])).await;
    let ended = records(&trainer).await;
    assert!(!ended[0]["finished_at"].is_null(), "{ended:#}");
    trainer.send(json!([stopped(3)])).await;
    trainer.send(json!([])).await;
    assert_eq!(records(&trainer).await, ended, "what is over costs nothing more");
    assert_eq!(alerts(&trainer).await, [50, 80, 95, 100]);
    let actual = world.view(job).await.cost.actual.unwrap();
    assert!((actual - ended[0]["amount"].as_f64().unwrap()).abs() < 1e-4, "{actual} {ended:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_pauses_by_itself_at_the_end_of_the_budget_is_paused_and_another_one_is_not() {
    let world = World::new().await;
    let trainer = metered(&world).await;
    age(&trainer, 97.0).await;
    trainer.send(json!([metric(1, 1), stopped(2)])).await;
    let view = world.view(trainer.job).await;
    assert_eq!((view.state, view.pause.map(|p| p.limit)), (JobState::Pausing, Some(Some(100.0))));

    let early = metered(&world).await;
    age(&early, 50.0).await;
    early.send(json!([metric(1, 1), stopped(2)])).await;
    assert_eq!(world.view(early.job).await.state, JobState::Running, "its attempt is over, its budget is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn thresholds_are_configurable_and_what_costs_nothing_raises_none() {
    let world = World::with(Settings::default().with("BUDGET_ALERTS", "10,20")).await;
    let trainer = metered(&world).await;
    age(&trainer, 30.0).await;
    trainer.send(json!([])).await;
    assert_eq!(alerts(&trainer).await, [10, 20]);

    let free = Played::new(&world).await;
    free.send(json!([])).await;
    age(&free, 30.0).await;
    let (_, reply) = free.send(json!([])).await;
    assert_eq!(reply["pause_in_ms"], Value::Null);
    let shown = records(&free).await;
    about(&shown[0]["seconds"], 30.0);
    assert_eq!((&shown[0]["amount"], alerts(&free).await), (&json!(0.0), vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_is_resumed_only_after_its_limit_was_raised() {
    let world = World::new().await;
    let job = world.insert(json!({}), 3, "paused").await;
    let spend = "UPDATE training_jobs SET budget_limit = 1, actual_cost = 0.9951, currency = 'USD',
        pause = '{\"reason\": \"budget\", \"message\": \"m\", \"limit\": 1}' WHERE id = $1::text::uuid";
    world.db.execute(spend, &[&job.to_string()]).await.unwrap();
    for action in ["resume", "start"] {
        let (status, problem) = world.post(&format!("/training/jobs/{job}/{action}")).await;
        assert_eq!(status, 409);
        let detail = "the job has spent 0.9951 of its limit of 1.0000 USD; raise its budget_limit and resume it";
        assert!(problem["detail"].as_str().unwrap().ends_with(detail), "{problem:#}");
    }
    let patch = async |body: Value| {
        let request = world.request(reqwest::Method::PATCH, &format!("/training/jobs/{job}")).json(&body);
        let reply = request.send().await.unwrap();
        (reply.status().as_u16(), reply.json::<Value>().await.unwrap())
    };
    assert_eq!(patch(json!({"budget_limit": -1.0})).await.0, 422);
    assert_eq!(patch(json!({"budget": 1.0})).await.0, 422);
    // Nothing said changes nothing; less is not more.
    assert_eq!(patch(json!({})).await.1["cost"]["budget_limit"], 1.0);
    patch(json!({"budget_limit": 0.9})).await;
    assert_eq!(world.post(&format!("/training/jobs/{job}/resume")).await.0, 409);
    let (status, view) = patch(json!({"budget_limit": 2.0})).await;
    assert_eq!((status, &view["cost"]["budget_limit"]), (200, &json!(2.0)));
    let (status, view) = world.post(&format!("/training/jobs/{job}/resume")).await;
    assert_eq!((status, &view["pause"]), (200, &Value::Null), "{view:#}");
}
