//! Rows 29, 30 and 34: many requests at once, and clients that do not keep up.

use crate::{
    oracle, seeds,
    world::{KEY, PATIENCE, Played, Setup, World},
};
use futures::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite;
use wire::{JobId, JobState, event::StreamMessage};

#[tokio::test(flavor = "multi_thread")]
async fn row_29_fifty_concurrent_creations_with_one_key_make_one_job() {
    let world = Setup::seed(1).start().await;
    for seed in seeds() {
        let body = json!({"config": {"model": "tiny", "dataset": "data", "method": "pretrain"}});
        let create = async || {
            let request =
                world.request(Method::POST, "/training/jobs").header("Idempotency-Key", format!("key-{seed}"));
            let reply = request.json(&body).send().await.unwrap();
            let status = reply.status().as_u16();
            let job: Value = reply.json().await.unwrap();
            assert_eq!(status, 201, "seed {seed}: {job}\n{}", world.log());
            job["id"].as_str().unwrap().to_owned()
        };
        let ids = futures::future::join_all((0..50).map(|_| create())).await;
        let distinct: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(distinct.len(), 1, "seed {seed}: {distinct:?}");
        let all = world.db.query_one("SELECT count(*) FROM training_jobs", &[]).await.unwrap();
        assert_eq!(u64::try_from(all.get::<_, i64>(0)).unwrap(), 1 + seed - seeds().start, "seed {seed}");
    }
}

/// Races of cancel and finish per seed.
const RACES: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn row_30_cancel_against_complete_has_one_truth() {
    let world = Setup::seed(1).start().await;
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..RACES / 20 {
            let leads: Vec<i64> = (0..20).map(|_| random.random_range(-8..8)).collect();
            futures::future::join_all(leads.into_iter().map(|lead| race(&world, seed, lead))).await;
        }
    }
}

/// The trainer finishes `lead` milliseconds before the user cancels.
async fn race(world: &World, seed: u64, lead: i64) {
    let played = Played::external(world).await;
    let (status, reply) = played.send(&[]).await;
    assert_eq!(status, 200, "seed {seed}: {reply}");
    let wait = |ms: i64| tokio::time::sleep(Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
    let finish = async {
        wait(-lead).await;
        let summary = json!({"steps": 1, "tokens": 1, "train_seconds": 1.0});
        played.send(&[(1, json!({"type": "finished", "last_seq": 1, "manifest": [], "summary": summary}))]).await
    };
    let cancel = async {
        wait(lead).await;
        world.ask(Method::POST, &format!("/training/jobs/{}/cancel", played.job)).await
    };
    let ((finished, _), (cancelled, told)) = tokio::join!(finish, cancel);
    let view = world.end(played.job).await;
    let states = world.states(played.job).await;
    let ends: Vec<&String> = states.iter().filter(|s| s.parse::<JobState>().unwrap().is_terminal()).collect();
    assert_eq!(ends, [view.state.as_str()], "seed {seed}: {states:?}");
    match view.state {
        // Whoever asked was told so.
        JobState::Cancelled => assert_eq!(cancelled, 200, "seed {seed}: {told}"),
        JobState::Succeeded => assert_eq!((finished, cancelled), (200, 409), "seed {seed}: {told} {states:?}"),
        other => panic!("seed {seed}: {other}: {:?}", view.failure),
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn watch(url: &str, job: JobId, after: i64) -> Socket {
    let url = format!("{}/ws/training/{job}?after={after}&token={KEY}", url.replace("http", "ws"));
    tokio_tungstenite::connect_async(url).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn row_34_only_the_client_that_does_not_read_is_dropped_and_it_can_resume() {
    let world = Setup::seed(1).with("SLOW_CLIENT_SECONDS", 1).start().await;
    for seed in seeds() {
        let played = Played::external(&world).await;
        let log = |n: u64| json!({"type": "log", "level": "info", "message": format!("{n}{}", "x".repeat(60_000))});
        // More than sockets and buffers hold.
        for first in (1..=400).step_by(10) {
            let events: Vec<(u64, Value)> = (first..first + 10).map(|n| (n, log(n))).collect();
            let (status, reply) = played.send(&events).await;
            assert_eq!(status, 200, "seed {seed}: {reply}");
        }
        let mut idle = watch(&world.backend.url, played.job, 0).await;
        let mut reader = watch(&world.backend.url, played.job, 0).await;
        let mut all = Vec::new();
        while all.len() < 402 {
            all.push(message(&mut reader).await.expect("a message"));
        }
        let dropped = format!("slow_streams_dropped_total {}", 1 + seed - seeds().start);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = world.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
            if metrics.contains(&dropped) {
                break;
            }
            assert!(Instant::now() < deadline, "seed {seed}: nobody was dropped: {metrics}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What had arrived before is still readable; then the line is dead, and the last id is where to go on.
        let mut got = Vec::new();
        while let Some(message) = message(&mut idle).await {
            got.push(message);
        }
        assert!(got.len() < all.len(), "seed {seed}: it was not dropped");
        let last = got.last().map_or(0, |m| m.id);
        let mut again = watch(&world.backend.url, played.job, last).await;
        while got.len() < all.len() {
            got.push(message(&mut again).await.expect("the rest"));
        }
        assert_eq!(got, all, "seed {seed}");
        // The other one is still there.
        played.send(&[(401, json!({"type": "log", "level": "info", "message": "new"}))]).await;
        assert!(message(&mut reader).await.is_some(), "seed {seed}");
        let (status, _) = world.ask(Method::POST, &format!("/training/jobs/{}/cancel", played.job)).await;
        assert_eq!(status, 200);
        oracle::check(&world, played.job).await;
    }
}

/// The next message; None when the line is dead.
async fn message(socket: &mut Socket) -> Option<StreamMessage> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a frame in time")?.ok()?;
        match frame {
            tungstenite::Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
            tungstenite::Message::Close(_) => return None,
            _ => {}
        }
    }
}
