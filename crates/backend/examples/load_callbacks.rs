//! Load for `scripts/bench_callbacks.py`: many trainers that report, or many browsers that watch one job.
//!
//! Reads a specification (JSON, see [`Spec`]) from standard input and prints what it saw as JSON. Each client has one
//! connection and one request under way, as a trainer has; HTTP/1.1 is written by hand, because the load shares its
//! processors with what it measures.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    /// `host:port` of the backend.
    address: String,
    seconds: f64,
    /// Events per request.
    events: u64,
    /// Values per event.
    values: u64,
    /// Requests per second of all clients together; as many as go when absent.
    rate: Option<f64>,
    /// One client each.
    jobs: Vec<Job>,
}

#[derive(Debug, Clone, Deserialize)]
struct Job {
    id: String,
    token: String,
    /// Acknowledged before.
    seq: u64,
}

#[derive(Debug, Default, Serialize)]
struct Seen {
    requests: u64,
    events: u64,
    seconds: f64,
    /// Milliseconds from when a request was due (or, without a rate, sent) to its whole reply.
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Requests that were sent again because the connection broke or the status was 5xx.
    again: u64,
    /// Longest time without any acknowledgement, in milliseconds.
    longest_silence_ms: f64,
    /// The last acknowledged seq by job.
    acked: Vec<u64>,
}

/// What one client saw.
#[derive(Debug, Default)]
struct Client {
    latencies: Vec<Duration>,
    at: Vec<Instant>,
    acked: u64,
    again: u64,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "its result is what it prints")]
async fn main() -> Result<()> {
    let spec: Spec = serde_json::from_reader(std::io::stdin()).context("no specification on standard input")?;
    let spec = Arc::new(spec);
    let mut clients = JoinSet::new();
    let started = Instant::now();
    for number in 0..spec.jobs.len() {
        let spec = Arc::clone(&spec);
        clients.spawn(async move { Ok::<_, anyhow::Error>((number, client(&spec, number, started).await?)) });
    }
    let mut seen = Seen { acked: vec![0; spec.jobs.len()], ..Seen::default() };
    let (mut latencies, mut times) = (Vec::new(), vec![started]);
    while let Some(done) = clients.join_next().await {
        let (number, client) = done??;
        seen.again += client.again;
        if let Some(acked) = seen.acked.get_mut(number) {
            *acked = client.acked;
        }
        latencies.extend(client.latencies);
        times.extend(client.at);
    }
    seen.seconds = started.elapsed().as_secs_f64();
    seen.requests = u64::try_from(latencies.len())?;
    seen.events = seen.requests * spec.events;
    latencies.sort_unstable();
    times.sort_unstable();
    let quantile = |percent: usize| latencies.get((latencies.len() * percent / 100).min(latencies.len() - 1));
    let ms = |d: Option<&Duration>| d.map_or(0.0, |d| d.as_secs_f64() * 1e3);
    (seen.p50_ms, seen.p99_ms, seen.max_ms) = (ms(quantile(50)), ms(quantile(99)), ms(latencies.last()));
    let silence = times.iter().zip(times.iter().skip(1)).map(|(before, after)| *after - *before).max();
    seen.longest_silence_ms = ms(silence.as_ref());
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

async fn client(spec: &Spec, number: usize, started: Instant) -> Result<Client> {
    let job = spec.jobs.get(number).context("no such job")?;
    let mut seen = Client { acked: job.seq, ..Client::default() };
    let end = started + Duration::from_secs_f64(spec.seconds);
    // Clients take turns, so that requests are due one after the other.
    let clients = f64::from(u32::try_from(spec.jobs.len())?);
    let period = spec.rate.map(|rate| Duration::from_secs_f64(clients / rate));
    let share = f64::from(u32::try_from(number)?) / clients;
    let mut due = started + period.map_or(Duration::ZERO, |period| period.mul_f64(share));
    let mut stream = None;
    loop {
        if period.is_some() {
            tokio::time::sleep_until(due.into()).await;
        } else {
            due = Instant::now();
        }
        if Instant::now() >= end {
            return Ok(seen);
        }
        let request = request(spec, job, number, seen.acked);
        loop {
            match send(&mut stream, &spec.address, &request).await {
                Ok(200) => break,
                Ok(status) if status < 500 => bail!("job {} got status {status}", job.id),
                Ok(_) | Err(_) if Instant::now() > end + Duration::from_secs(30) => {
                    bail!("no acknowledgement within 30 s of the end")
                }
                Ok(_) => {}
                Err(_) => stream = None,
            }
            seen.again += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        seen.acked += spec.events;
        seen.latencies.push(due.elapsed());
        seen.at.push(Instant::now());
        due += period.unwrap_or_default();
    }
}

/// Metrics of `events` steps.
fn request(spec: &Spec, job: &Job, number: usize, acked: u64) -> Vec<u8> {
    const NAMES: [&str; 12] = [
        "train_loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "step_seconds",
        "data_seconds",
        "forward_seconds",
        "backward_seconds",
        "optimizer_seconds",
        "stall_seconds",
        "memory_bytes",
        "tokens_seen",
    ];
    let mut body = format!(
        r#"{{"job_id":"{}","attempt":1,"instance_id":"00000000-0000-4000-8000-{number:012}","events":["#,
        job.id
    );
    let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    for seq in acked + 1..=acked + spec.events {
        let comma = if seq == acked + 1 { "" } else { "," };
        let _ =
            write!(body, r#"{comma}{{"seq":{seq},"at":"{at}","type":"metrics","step":{seq},"epoch":0.5,"values":{{"#);
        for (i, name) in NAMES.iter().take(usize::try_from(spec.values).unwrap_or(usize::MAX)).enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(body, r#"{comma}"{name}":{}.25"#, seq % 1000);
        }
        body.push_str("}}");
    }
    body.push_str("]}");
    let mut request = format!(
        "POST /training/jobs/{}/callback HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        job.id,
        spec.address,
        job.token,
        body.len()
    );
    request.push_str(&body);
    request.into_bytes()
}

/// Returns the status once the whole reply is there.
async fn send(stream: &mut Option<TcpStream>, address: &str, request: &[u8]) -> Result<u16> {
    let stream = match stream {
        Some(stream) => stream,
        None => {
            let made = TcpStream::connect(address).await?;
            made.set_nodelay(true)?;
            stream.insert(made)
        }
    };
    let exchange = async {
        stream.write_all(request).await?;
        let mut reply = Vec::with_capacity(1024);
        loop {
            if stream.read_buf(&mut reply).await? == 0 {
                bail!("the connection was closed");
            }
            if let Some(status) = complete(&reply)? {
                return Ok(status);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await?
}

/// The status, when the head and as many bytes as it announces are there.
fn complete(reply: &[u8]) -> Result<Option<u16>> {
    let Some(end) = reply.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(reply.get(..end).unwrap_or_default())?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.context("no content-length")?.1.parse()?;
    Ok((reply.len() >= end + 4 + length).then_some(status))
}
