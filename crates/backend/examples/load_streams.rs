//! Many WebSocket clients on one job, for `scripts/bench_callbacks.py`.
//!
//! Reads a specification (JSON, see [`Spec`]) from standard input, connects all clients, reports one event after the
//! other as the job's trainer, and prints how long each took from the moment it was sent until each client had it.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_tungstenite::tungstenite::Message;

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    /// `host:port` of the backend.
    address: String,
    api_key: String,
    job: String,
    job_token: String,
    clients: usize,
    /// Events to report, and how many per second.
    events: u64,
    rate: f64,
}

#[derive(Debug, Serialize)]
struct Seen {
    clients: usize,
    events: u64,
    messages: usize,
    connected_seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "its result is what it prints")]
async fn main() -> Result<()> {
    let spec: Arc<Spec> =
        Arc::new(serde_json::from_reader(std::io::stdin()).context("no specification on standard input")?);
    let begin = Instant::now();
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..=spec.events).map(|_| AtomicU64::new(0)).collect());
    let (ready, turn) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(64)));
    let mut clients = JoinSet::new();
    for _ in 0..spec.clients {
        clients.spawn(watch(Arc::clone(&spec), begin, Arc::clone(&sent), Arc::clone(&ready), Arc::clone(&turn)));
    }
    let all = u32::try_from(spec.clients)?;
    tokio::time::timeout(Duration::from_secs(120), ready.acquire_many(all))
        .await
        .context("clients do not connect")??
        .forget();
    let connected_seconds = begin.elapsed().as_secs_f64();
    let http = reqwest::Client::new();
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / spec.rate));
    for seq in 1..=spec.events {
        tick.tick().await;
        let event = serde_json::json!({"seq": seq, "at": chrono::Utc::now(), "type": "metrics", "step": seq, "epoch": 0.5,
            "values": {"train_loss": 1.5, "learning_rate": 0.001, "grad_norm": 0.5, "tokens_per_second": 1000.0}});
        let batch = serde_json::json!({"job_id": spec.job, "attempt": 1,
            "instance_id": "00000000-0000-4000-8000-000000000000", "events": [event]});
        let slot = sent.get(usize::try_from(seq)?).context("no such event")?;
        slot.store(nanos(begin), Ordering::Release);
        let url = format!("http://{}/training/jobs/{}/callback", spec.address, spec.job);
        http.post(url).bearer_auth(&spec.job_token).json(&batch).send().await?.error_for_status()?;
    }
    let mut latencies = Vec::new();
    let last = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(done) = clients.join_next().await {
            latencies.extend(done??);
        }
        anyhow::Ok(())
    });
    last.await.context("not every client got every event")??;
    latencies.sort_unstable();
    let quantile = |percent: usize| {
        let at = latencies.get((latencies.len() * percent / 100).min(latencies.len().saturating_sub(1)));
        at.map_or(0.0, |d: &Duration| d.as_secs_f64() * 1e3)
    };
    let seen = Seen {
        clients: spec.clients,
        events: spec.events,
        messages: latencies.len(),
        connected_seconds,
        p50_ms: quantile(50),
        p99_ms: quantile(99),
        max_ms: quantile(100),
    };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

fn nanos(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Until the last event. Every event must come, once and in order.
async fn watch(
    spec: Arc<Spec>,
    begin: Instant,
    sent: Arc<Vec<AtomicU64>>,
    ready: Arc<Semaphore>,
    turn: Arc<Semaphore>,
) -> Result<Vec<Duration>> {
    let url = format!("ws://{}/ws/training/{}?token={}", spec.address, spec.job, spec.api_key);
    let place = turn.acquire().await?;
    let (mut stream, _) = tokio_tungstenite::connect_async(url).await.context("cannot connect")?;
    drop(place);
    ready.add_permits(1);
    let mut latencies = Vec::new();
    let mut expected = 1;
    while expected <= spec.events {
        let message = stream.next().await.context("the stream ended early")??;
        let Message::Text(text) = message else { continue };
        // Changes of the job's state come along.
        let Some((_, rest)) = text.split_once("\"seq\":") else { continue };
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let seq: u64 = digits.parse().context("an event without seq")?;
        ensure!(seq == expected, "event {seq} came instead of {expected}");
        let slot = sent.get(usize::try_from(seq)?).context("an unknown event")?;
        latencies.push(begin.elapsed().saturating_sub(Duration::from_nanos(slot.load(Ordering::Acquire))));
        expected += 1;
    }
    Ok(latencies)
}
