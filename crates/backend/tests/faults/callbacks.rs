//! Rows 10, 12 and 35: what happens to reports on their way.

use crate::{
    oracle, seeds,
    world::{Played, Setup},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use testkit::fault::{Fault, Rule};
use wire::{JobState, event::MAX_BATCH_BYTES};

fn script(steps: u64) -> Value {
    let paced = json!({"op": "paced", "from": 1, "to": steps, "ms": 2});
    json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": steps}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_only_replies_are_lost() {
    for seed in seeds() {
        let world = Setup::seed(seed).start().await;
        world.callbacks.rules([Rule::new(Fault::LoseReply).on("/callback").chance(0.3)]);
        let jobs = [world.job(script(30)).await, world.job(script(30)).await];
        for job in jobs {
            let view = oracle::check(&world, job).await;
            let seen = (view.state, view.attempt, &view.failure);
            assert_eq!(seen, (JobState::Succeeded, 1, &None), "seed {seed}\n{}", world.log());
        }
        assert!(world.callbacks.injected("lose_reply") > 3, "seed {seed}: nothing was lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_12_reports_are_doubled_late_and_out_of_order() {
    for seed in seeds() {
        let world = Setup::seed(seed).start().await;
        world.callbacks.rules([
            Rule::new(Fault::Duplicate).on("/callback").chance(0.3),
            Rule::new(Fault::Reorder).on("/callback").chance(0.1),
            Rule::new(Fault::LoseRequest).on("/callback").chance(0.1),
            Rule::new(Fault::Delay(Duration::from_millis(30))).on("/callback").chance(0.2),
        ]);
        // One by one, in one piece, and backwards.
        let backwards = json!({"1": [{"op": "started"}, {"op": "reversed", "from": 1, "to": 20},
            {"op": "metrics", "from": 21, "to": 30}, {"op": "again"}, {"op": "finish", "steps": 30}]});
        let jobs = [world.job(script(30)).await, world.job(script(30)).await, world.job(backwards).await];
        for job in jobs {
            let view = oracle::check(&world, job).await;
            assert_eq!((view.state, view.attempt), (JobState::Succeeded, 1), "seed {seed}\n{}", world.log());
            let page = world.get(&format!("/training/jobs/{job}/metrics?limit=1000")).await;
            let points = page["items"].as_array().unwrap().iter();
            let steps: Vec<u64> = points.map(|point| point["step"].as_u64().unwrap()).collect();
            assert_eq!(steps, (1..=30).collect::<Vec<_>>(), "seed {seed}: the curve");
        }
        assert!(world.callbacks.injected("duplicate") > 3, "seed {seed}: nothing was doubled");
    }
}

/// A body no trainer of ours sends.
fn malformed(random: &mut StdRng, played: &Played<'_>, seq: u64) -> Vec<u8> {
    let good = played.batch(&[json!({"seq": seq, "at": "2026-01-01T00:00:00Z", "type": "metrics", "step": 1,
        "epoch": 0.0, "values": {"train_loss": 1.0}})]);
    let mut bytes = good.to_string().into_bytes();
    match random.random_range(0..6) {
        0 => bytes.truncate(random.random_range(1..bytes.len())),
        1 => bytes = (0..random.random_range(1..2000)).map(|_| random.random()).collect(),
        2 => bytes = vec![b' '; MAX_BATCH_BYTES + 1],
        3 => bytes = format!("{{\"job_id\": {}", "[".repeat(random.random_range(1..100_000))).into_bytes(),
        4 => bytes.insert(1, 0),
        _ => bytes = json!({"events": "none"}).to_string().into_bytes(),
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn row_35_malformed_and_huge_reports_become_dead_letters_and_hold_up_nobody() {
    let world = Setup::seed(1).start().await;
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(seed);
        let job = world.job(script(40)).await;
        let played = Played::external(&world).await;
        let mut letters = 0;
        for seq in 1..=20 {
            let body = malformed(&mut random, &played, seq);
            let (status, problem) = played.send_bytes(body.clone()).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            assert_eq!((status, &problem["code"]), (422, &json!("INVALID")), "seed {seed}: {shown}: {problem}");
            letters += 1;
            let step = json!({"type": "metrics", "step": seq, "epoch": 0.0, "values": {"train_loss": 1.0}});
            let (status, reply) = played.send(&[(seq, step)]).await;
            assert_eq!((status, &reply["acked_seq"]), (200, &json!(seq)), "seed {seed}: {reply}");
        }
        let kept = "SELECT count(*) FROM dead_letters WHERE job_id = $1::text::uuid";
        assert_eq!(world.count(kept, played.job).await, letters, "seed {seed}");
        let view = oracle::check(&world, job).await;
        assert_eq!((view.state, view.attempt), (JobState::Succeeded, 1), "seed {seed}: the other job");
        let (status, _) = world.ask(Method::POST, &format!("/training/jobs/{}/cancel", played.job)).await;
        assert_eq!(status, 200);
    }
}
