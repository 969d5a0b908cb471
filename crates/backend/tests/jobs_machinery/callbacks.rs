//! The callback contract, with the test as trainer.

use crate::world::World;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use wire::{InstanceId, JobId, JobState, event::MAX_BATCH_BYTES, layout};

/// A trainer played by the test.
pub struct Played<'a> {
    pub world: &'a World,
    pub job: JobId,
    pub instance: InstanceId,
    pub token: String,
}

impl<'a> Played<'a> {
    pub async fn new(world: &'a World) -> Self {
        let job = world.remote_job().await;
        Self { world, job, instance: InstanceId::random(), token: world.token(job, 1, 1) }
    }

    pub async fn send(&self, events: Value) -> (u16, Value) {
        let body = json!({"job_id": self.job, "attempt": 1, "instance_id": self.instance, "events": events});
        self.world.callback(self.job, &self.token, body.to_string().into_bytes()).await
    }

    async fn dead_letters(&self) -> i64 {
        self.world.count("SELECT count(*) FROM dead_letters WHERE job_id = $1::text::uuid", self.job).await
    }
}

pub fn event(seq: u64, kind: Value) -> Value {
    let mut event = kind;
    event["seq"] = json!(seq);
    event["at"] = json!("2026-01-01T00:00:00Z");
    event
}

pub fn metric(seq: u64, step: u32) -> Value {
    let loss = 1.0 / (f64::from(step) + 1.0);
    event(seq, json!({"type": "metrics", "step": step, "epoch": 0.0, "values": {"train_loss": loss}}))
}

fn plan(seq: u64, total: u64) -> Value {
    let kind = json!({"type": "plan", "total_steps": total, "epochs": 1.0, "train_rows": 1, "eval_rows": 0,
        "train_tokens": 1, "truncated_rows": 0, "trainable_parameters": 1, "total_parameters": 1});
    event(seq, kind)
}

fn finished(seq: u64, trainer: &Played<'_>) -> Value {
    let key = format!("{}artifacts/a", layout::attempt_prefix(trainer.world.user, trainer.job, 1));
    let manifest = json!([{"key": key, "size": 1, "sha256": "00"}]);
    let summary = json!({"steps": 1, "tokens": 1, "train_seconds": 1.0});
    event(seq, json!({"type": "finished", "last_seq": seq, "manifest": manifest, "summary": summary}))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_batch_claims_the_attempt_and_the_job_runs() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    let (status, reply) = trainer.send(json!([])).await;
    assert_eq!((status, &reply["directive"], &reply["acked_seq"]), (200, &json!("continue"), &json!(0)));
    let view = world.view(trainer.job).await;
    assert_eq!(view.state, JobState::Running);
    assert!(view.started_at.is_some() && view.last_contact_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_accepted_and_applied_once() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    for _ in 0..3 {
        let (status, reply) = trainer.send(json!([plan(1, 9), metric(2, 1), metric(3, 2)])).await;
        assert_eq!((status, &reply["acked_seq"]), (200, &json!(3)));
    }
    assert_eq!(world.steps(trainer.job).await, [(1, 1), (2, 1)]);
    let stored = "SELECT count(*) FROM job_events WHERE job_id = $1::text::uuid AND seq IS NOT NULL";
    assert_eq!(world.count(stored, trainer.job).await, 3);
    let progress = world.view(trainer.job).await.progress;
    assert_eq!((progress.step, progress.total_steps), (2, Some(9)));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_at_once_but_a_gap_holds_back_the_state_and_is_asked_for() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    let (_, reply) = trainer.send(json!([metric(4, 3), finished(5, &trainer)])).await;
    assert_eq!((&reply["acked_seq"], &reply["resend_from"]), (&json!(0), &json!(1)));
    assert_eq!(world.steps(trainer.job).await, [(3, 1)]);
    assert_eq!(world.view(trainer.job).await.state, JobState::Running);
    let (_, reply) = trainer.send(json!([plan(1, 3), metric(2, 1)])).await;
    assert_eq!((&reply["acked_seq"], &reply["resend_from"]), (&json!(2), &json!(3)));
    let (_, reply) = trainer.send(json!([metric(3, 2)])).await;
    assert_eq!((&reply["acked_seq"], reply.get("resend_from")), (&json!(5), None));
    assert!(world.states(trainer.job).await.contains(&"finalizing".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_and_duplication_of_the_same_events_gives_the_same_job() {
    let world = World::new().await;
    let mut outcomes = Vec::new();
    for seed in 0..8 {
        let mut rng = StdRng::seed_from_u64(seed);
        let trainer = Played::new(&world).await;
        let mut events = vec![plan(1, 20)];
        events.extend((2..=12).map(|seq| metric(seq.into(), seq - 1)));
        events.push(event(13, json!({"type": "phase", "phase": "uploading", "message": "done"})));
        let mut sent: Vec<Value> = events.iter().chain(&events).cloned().collect();
        sent.shuffle(&mut rng);
        while !sent.is_empty() {
            let size = rng.random_range(1..=sent.len().min(5));
            let (status, reply) = trainer.send(sent.drain(..size).collect()).await;
            assert_eq!(status, 200, "seed {seed}: {reply}");
        }
        let view = world.view(trainer.job).await;
        let last_seq =
            world.count("SELECT last_seq FROM job_attempts WHERE job_id = $1::text::uuid", trainer.job).await;
        let progress = serde_json::to_value(view.progress).unwrap();
        outcomes.push((view.state, progress, last_seq, world.steps(trainer.job).await));
    }
    assert_eq!(outcomes[0].2, 13);
    assert!(outcomes.iter().all(|o| *o == outcomes[0]), "{outcomes:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_current_attempt_of_the_claiming_instance_may_report() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([])).await;
    let job = trainer.job;
    let with = async |token: &str, instance: InstanceId, attempt: u32| {
        let body = json!({"job_id": job, "attempt": attempt, "instance_id": instance, "events": [metric(1, 1)]});
        world.callback(job, token, body.to_string().into_bytes()).await
    };
    let (status, problem) = with(&trainer.token, InstanceId::random(), 1).await;
    assert_eq!((status, &problem["code"]), (410, &json!("STALE_ATTEMPT")));
    assert_eq!(problem["detail"], "another instance of the trainer runs this attempt; stop");
    assert_eq!(with(&world.token(job, 1, 0), trainer.instance, 1).await.0, 410, "an older epoch");
    assert_eq!(with(&world.token(job, 2, 1), trainer.instance, 2).await.0, 410, "an attempt that is not there");
    assert_eq!(with(&trainer.token, trainer.instance, 2).await.0, 403, "another attempt than the token's");
    assert_eq!(with(&world.token(JobId::random(), 1, 1), trainer.instance, 1).await.0, 403, "another job's token");
    assert_eq!(with("nonsense", trainer.instance, 1).await.0, 401);
    assert_eq!(world.steps(job).await, [], "nothing of that was stored");
    assert_eq!(with(&trainer.token, trainer.instance, 1).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_under_a_known_seq_is_a_dead_letter_and_the_rest_flows() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([metric(1, 1)])).await;
    let (status, problem) = trainer.send(json!([metric(1, 7), metric(2, 2)])).await;
    assert_eq!((status, &problem["errors"][0]["path"]), (422, &json!("seq 1")));
    assert_eq!(world.steps(trainer.job).await, [(1, 1), (2, 1)]);
    assert_eq!(trainer.dead_letters().await, 1);
    trainer.send(json!([metric(1, 7)])).await;
    assert_eq!(trainer.dead_letters().await, 1, "kept once");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_oversized_bodies_are_dead_letters_and_the_next_batch_flows() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([])).await;
    let (status, problem) = world.callback(trainer.job, &trainer.token, b"{\"events\": [\0".to_vec()).await;
    assert_eq!((status, &problem["code"]), (422, &json!("INVALID")), "{problem}");
    let (status, problem) = world.callback(trainer.job, &trainer.token, vec![b' '; MAX_BATCH_BYTES + 1]).await;
    assert_eq!(status, 422, "{problem}");
    let (status, _) = trainer.send(json!([{"seq": 1, "type": "surprise"}, metric(2, 1)])).await;
    assert_eq!(status, 422);
    assert_eq!(trainer.dead_letters().await, 3);
    let (status, reply) = trainer.send(json!([metric(3, 2)])).await;
    assert_eq!((status, &reply["acked_seq"]), (200, &json!(3)), "an unknown event leaves no gap");
    assert_eq!(world.steps(trainer.job).await, [(1, 1), (2, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_over_stores_late_events_and_is_not_resurrected() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([metric(1, 1)])).await;
    world
        .db
        .execute("UPDATE training_jobs SET state = 'failed' WHERE id = $1::text::uuid", &[&trainer.job.to_string()])
        .await
        .unwrap();
    let (status, reply) = trainer.send(json!([metric(2, 2), finished(3, &trainer)])).await;
    assert_eq!((status, &reply["directive"], &reply["acked_seq"]), (200, &json!("stop"), &json!(3)));
    assert_eq!(world.view(trainer.job).await.state, JobState::Failed);
    assert_eq!(world.steps(trainer.job).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_rides_on_the_next_reply_and_beats_a_later_finish() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([metric(1, 1)])).await;
    let path = format!("/training/jobs/{}/cancel", trainer.job);
    let (status, view) = world.post(&path).await;
    assert_eq!((status, &view["state"]), (200, &json!("cancelling")));
    assert_eq!(world.post(&path).await.0, 200, "cancelling twice is the same");
    let (_, reply) = trainer.send(json!([])).await;
    assert_eq!(reply["directive"], "cancel");
    let (_, reply) = trainer.send(json!([finished(2, &trainer)])).await;
    assert_eq!(reply["directive"], "cancel");
    assert_eq!(world.view(trainer.job).await.state, JobState::Cancelling);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_of_cancel_and_finish_has_one_outcome() {
    let world = World::new().await;
    for _ in 0..20 {
        let trainer = Played::new(&world).await;
        trainer.send(json!([])).await;
        let path = format!("/training/jobs/{}/cancel", trainer.job);
        let (cancel, finish) = tokio::join!(world.post(&path), trainer.send(json!([finished(1, &trainer)])));
        assert_eq!((cancel.0, finish.0), (200, 200));
        // Whoever came first, the user's cancel holds: the artifacts cannot be verified.
        let states = world.states(trainer.job).await;
        assert_eq!(states.last().map(String::as_str), Some("cancelling"), "{states:?}");
    }
}
