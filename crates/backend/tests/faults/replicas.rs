//! Row 28: two backends on one database. One leads; when it dies or freezes, the other takes over.

use crate::{
    oracle, seeds,
    world::{Backend, KEY, PATIENCE, Setup, World},
};
use futures::StreamExt;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use testkit::fault::Target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_tungstenite::tungstenite;
use wire::{
    JobId, JobState,
    event::{StreamBody, StreamMessage},
};

async fn metrics(url: &str) -> String {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
    let Ok(reply) = http.get(format!("{url}/metrics")).bearer_auth(KEY).send().await else { return String::new() };
    reply.text().await.unwrap_or_default()
}

async fn leads(url: &str) -> bool {
    metrics(url).await.lines().any(|line| line == "backend_leader 1")
}

async fn until_leads(url: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !leads(url).await {
        assert!(Instant::now() < deadline, "{url} does not lead");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where outgoing webhooks go: ids of messages as they came.
async fn receiver() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://localhost:{}/hook", listener.local_addr().unwrap().port());
    let got: Arc<Mutex<Vec<String>>> = Arc::default();
    let shared = Arc::clone(&got);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let got = Arc::clone(&shared);
            tokio::spawn(async move {
                let (mut text, mut buffer) = (String::new(), vec![0; 64 << 10]);
                // One piece is enough: messages are small, and the id is in the head.
                while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                    text.push_str(&String::from_utf8_lossy(&buffer[..n]));
                    let Some(line) = text.lines().find(|l| l.to_ascii_lowercase().starts_with("webhook-id:")) else {
                        continue;
                    };
                    let kind = text.split("\"type\":\"").nth(1).and_then(|rest| rest.split('"').next());
                    let Some(kind) = kind else { continue };
                    got.lock().unwrap().push(format!("{kind} {line}"));
                    let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
                    return;
                }
            });
        }
    });
    (url, got)
}

fn script() -> Value {
    let paced = json!({"op": "paced", "from": 1, "to": 80, "ms": 40});
    json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": 80}]})
}

/// Follows a job over whatever backend answers, each time from the last id it has.
async fn follow(job: JobId, urls: [String; 2]) -> Vec<StreamMessage> {
    let (mut seen, mut last) = (Vec::new(), 0);
    let deadline = Instant::now() + PATIENCE;
    for url in urls.iter().cycle() {
        assert!(Instant::now() < deadline, "the stream does not end");
        let url = format!("{}/ws/training/{job}?after={last}&token={KEY}", url.replace("http", "ws"));
        let connected = tokio::time::timeout(Duration::from_secs(2), tokio_tungstenite::connect_async(url)).await;
        let Ok(Ok((mut socket, _))) = connected else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // A frozen backend says nothing; a client goes elsewhere after a while.
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(Duration::from_secs(2), socket.next()).await {
            let tungstenite::Message::Text(text) = frame else { continue };
            let message: StreamMessage = serde_json::from_str(&text).unwrap();
            last = message.id;
            let over = matches!(&message.body, StreamBody::State { state, .. } if state.is_terminal());
            seen.push(message);
            if over {
                return seen;
            }
        }
    }
    seen
}

/// What the user's clients saw of a job whose leading backend went away, and who leads afterwards.
async fn survives(world: &World, job: JobId, seen: Vec<StreamMessage>, seed: u64) {
    let view = oracle::check(world, job).await;
    let noticed = (view.state, view.attempt, &view.failure);
    assert_eq!(noticed, (JobState::Succeeded, 1, &None), "seed {seed}: the user noticed\n{}", world.log());
    let log = world.get(&format!("/training/jobs/{job}/events?limit=1000")).await;
    let log: Vec<StreamMessage> = serde_json::from_value(log["items"].clone()).unwrap();
    assert_eq!(seen, log[..seen.len()], "seed {seed}: the stream lost or repeated something");
}

fn direct(backend: &Backend) -> Target {
    Target::Tcp(backend.url.trim_start_matches("http://").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn row_28_the_leader_dies_or_freezes_and_the_other_takes_over() {
    for seed in seeds() {
        let frozen = seed % 2 == 0;
        let mut world = Setup::seed(seed).short_lease().with("OUTGOING_ALLOW", "localhost,127.0.0.0/8").start().await;
        let (hook, got) = receiver().await;
        let body = json!({"url": hook, "events": ["training.job.succeeded"]});
        let made = world.request(reqwest::Method::POST, "/api/webhooks").json(&body).send().await.unwrap();
        assert!(made.status().is_success(), "seed {seed}: {}", made.text().await.unwrap());
        until_leads(&world.backend.url).await;
        let second = world.another("second", &[]);
        let job = world.job(script()).await;
        let (first_url, second_url) = (world.backend.url.clone(), second.url.clone());
        let watching = tokio::spawn(follow(job, [first_url.clone(), second_url.clone()]));
        world.until(job, "a few steps", |view| view.progress.step >= 2 + seed % 10).await;
        assert!(leads(&first_url).await && !leads(&second_url).await, "seed {seed}: exactly one leads");
        let mut first = std::mem::replace(&mut world.backend, second);
        if frozen {
            first.process.freeze().unwrap();
        } else {
            first.process.kill().unwrap();
        }
        // As a load balancer would.
        world.callbacks.retarget(direct(&world.backend));
        world.callbacks.link(testkit::fault::Link::way(testkit::fault::Way::Refuse));
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.callbacks.link(testkit::fault::Link::default());
        until_leads(&second_url).await;
        if frozen {
            first.process.wake().unwrap();
        }
        let seen = watching.await.unwrap();
        survives(&world, job, seen, seed).await;
        if frozen {
            assert!(!leads(&first_url).await, "seed {seed}: a former leader that woke up leads beside the new one");
        }
        let deadline = Instant::now() + PATIENCE;
        while got.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "seed {seed}: no webhook");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        let messages = got.lock().unwrap().clone();
        assert_eq!(messages.len(), 1, "seed {seed}: {messages:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_28_a_backend_that_ends_politely_hands_the_lead_over_at_once() {
    let world = Setup::seed(1).with("LEADER_SECONDS", 60).start().await;
    until_leads(&world.backend.url).await;
    let second = world.another("second", &[("LEADER_SECONDS", "3")]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!leads(&second.url).await);
    let asked = Instant::now();
    world.backend.process.terminate().unwrap();
    until_leads(&second.url).await;
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
}
