//! Live streams: replay, follow, resume, end.

use crate::world::{KEY, PATIENCE, Settings, World};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};
use wire::{
    JobId, JobState,
    event::{StreamBody, StreamMessage},
};

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn connect(world: &World, job: JobId, after: i64) -> Socket {
    let url = format!("{}/ws/training/{job}?after={after}&token={KEY}", world.url.replace("http", "ws"));
    tokio_tungstenite::connect_async(url).await.unwrap().0
}

/// The next message; None when the server closed the socket because the job is over.
async fn next(socket: &mut Socket) -> Option<StreamMessage> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a frame in time")?.unwrap();
        match frame {
            tungstenite::Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
            tungstenite::Message::Close(reason) => {
                assert_eq!(reason.map(|r| r.reason.to_string()).as_deref(), Some("the job is over"));
                return None;
            }
            _ => {}
        }
    }
}

fn script(steps: u64) -> Value {
    let paced = json!({"op": "paced", "from": 1, "to": steps, "ms": 20});
    json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": steps}]})
}

/// The whole log up to the job's last state.
async fn all(world: &World, job: JobId) -> Vec<StreamMessage> {
    let page = world.get(&format!("/training/jobs/{job}/events?limit=1000")).await;
    let messages: Vec<StreamMessage> = serde_json::from_value(page["items"].clone()).unwrap();
    let is_end = |m: &StreamMessage| matches!(&m.body, StreamBody::State { state, .. } if state.is_terminal());
    let end = messages.iter().position(is_end).unwrap();
    messages[..=end].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_keeps_breaking_loses_and_repeats_nothing() {
    let world = World::new().await;
    let job = world.job(script(30)).await;
    let (mut seen, mut after) = (Vec::new(), 0);
    'job: loop {
        let mut socket = connect(&world, job, after).await;
        for _ in 0..7 {
            let Some(message) = next(&mut socket).await else { break 'job };
            after = message.id;
            seen.push(message);
        }
    }
    assert_eq!(seen, all(&world, job).await);
    assert_eq!(world.view(job).await.state, JobState::Succeeded);
    let mut socket = connect(&world, job, after).await;
    assert_eq!(next(&mut socket).await, None, "a client that has everything is told so");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_resume_after_the_last_id() {
    let world = World::new().await;
    let job = world.job(script(10)).await;
    let path = format!("/training/jobs/{job}/events");
    let stream = async |last: Option<i64>| {
        let mut request = world.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let text = request.timeout(PATIENCE).send().await.unwrap().text().await.unwrap();
        assert!(text.ends_with("event: end\ndata: {}\n\n"), "{text}");
        let data = text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|d| *d != "{}");
        data.map(|d| serde_json::from_str(d).unwrap()).collect::<Vec<StreamMessage>>()
    };
    let live = stream(None).await;
    assert_eq!(live, all(&world, job).await);
    let middle = live.len() / 2;
    assert_eq!(stream(Some(live[middle].id)).await, live[middle + 1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_need_a_key_and_a_job() {
    let world = World::new().await;
    let job = world.remote_job().await;
    let url = format!("{}/ws/training/{job}", world.url.replace("http", "ws"));
    let refused = tokio_tungstenite::connect_async(url.clone()).await.unwrap_err();
    assert!(matches!(refused, tungstenite::Error::Http(reply) if reply.status() == 401));
    let mut request = url.replace(&job.to_string(), &JobId::random().to_string()).into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
    let refused = tokio_tungstenite::connect_async(request).await.unwrap_err();
    assert!(matches!(refused, tungstenite::Error::Http(reply) if reply.status() == 404));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_rendered_from_events_until_the_trainers_own_is_there() {
    let world = World::new().await;
    let script = json!({"1": [
        {"op": "started"}, {"op": "metrics", "from": 1, "to": 2}, {"op": "print", "text": "a line"}, {"op": "obey"},
    ]});
    let job = world.job(script).await;
    world.until(job, "two steps", |view| view.progress.step == 2).await;
    let log = async || {
        let reply = world.request(reqwest::Method::GET, &format!("/training/jobs/{job}/logs")).send().await.unwrap();
        reply.text().await.unwrap()
    };
    let text = log().await;
    assert!(text.contains("the job is running"), "{text}");
    assert!(text.contains("step 2 (epoch 0.50): step_seconds 0.100000, train_loss 3.333333"), "{text}");
    world.post(&format!("/training/jobs/{job}/cancel")).await;
    world.wait(job, JobState::Cancelled).await;
    let deadline = Instant::now() + PATIENCE;
    while !log().await.contains("a line") {
        assert!(Instant::now() < deadline, "{}", log().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_dropped_and_the_others_are_not() {
    let world = World::with(Settings::default().with("SLOW_CLIENT_SECONDS", 1)).await;
    let job = world.remote_job().await;
    // More than sockets and buffers hold.
    let body = json!({"stream": "event", "event": {"seq": 1, "at": "2026-01-01T00:00:00Z", "type": "log",
        "level": "info", "message": "x".repeat(60_000)}});
    let fill = "INSERT INTO job_events (job_id, user_id, attempt, body)
        SELECT $1::text::uuid, $2::text::uuid, 1, $3::text::jsonb FROM generate_series(1, 400)";
    let user = world.user.to_string();
    world.db.execute(fill, &[&job.to_string(), &user, &body.to_string()]).await.unwrap();
    let idle = connect(&world, job, 0).await;
    let mut reader = connect(&world, job, 0).await;
    for _ in 0..400 {
        assert!(next(&mut reader).await.is_some());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = world.request(reqwest::Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        if metrics.contains("slow_streams_dropped_total 1") {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(idle);
    world.db.execute(fill, &[&job.to_string(), &user, &body.to_string()]).await.unwrap();
    assert!(next(&mut reader).await.is_some(), "the other client still gets what is new");
}
