//! Webhooks with a real receiver, which verifies signatures with the library that receivers use.

use crate::world::{PATIENCE, Settings, World};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// One request as it came.
#[derive(Debug, Clone)]
struct Got {
    headers: HashMap<String, String>,
    body: String,
}

impl Got {
    fn verify(&self, secret: &str) -> bool {
        let headers: reqwest::header::HeaderMap = self
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("webhook-"))
            .map(|(name, value)| (name.parse::<reqwest::header::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        Webhook::new(secret).unwrap().verify(self.body.as_bytes(), &headers).is_ok()
    }

    fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver on this machine that answers as it is told.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<Got>>>,
    /// The response head, without the blank line; empty: none comes.
    answer: Arc<Mutex<String>>,
}

impl Receiver {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/hook?token=t", listener.local_addr().unwrap().port());
        let me = Self { url, got: Arc::default(), answer: Arc::new(Mutex::new("204 No Content".into())) };
        let (got, answer) = (Arc::clone(&me.got), Arc::clone(&me.answer));
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (got, answer) = (Arc::clone(&got), Arc::clone(&answer));
                tokio::spawn(async move { serve(socket, &got, &answer).await });
            }
        });
        me
    }

    fn answers(&self, head: &str) {
        head.clone_into(&mut self.answer.lock().unwrap());
    }

    fn all(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    async fn wait(&self, count: usize) -> Vec<Got> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = self.all();
            if all.len() >= count {
                return all;
            }
            assert!(Instant::now() < deadline, "waited for {count} messages: {all:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn serve(mut socket: TcpStream, got: &Mutex<Vec<Got>>, answer: &Mutex<String>) {
    let mut bytes = Vec::new();
    let head_end = loop {
        let mut chunk = [0; 4096];
        let n = socket.read(&mut chunk).await.unwrap_or(0);
        if n == 0 {
            return;
        }
        bytes.extend_from_slice(&chunk[..n]);
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let headers: HashMap<String, String> = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers["content-length"].parse().unwrap();
    while bytes.len() < head_end + length {
        let mut chunk = [0; 4096];
        let n = socket.read(&mut chunk).await.unwrap();
        bytes.extend_from_slice(&chunk[..n]);
    }
    let body = String::from_utf8(bytes[head_end..].to_vec()).unwrap();
    got.lock().unwrap().push(Got { headers, body });
    let head = answer.lock().unwrap().clone();
    if head.is_empty() {
        // Until the other side has waited long enough.
        let _ = socket.read(&mut [0]).await;
        return;
    }
    let reply = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = socket.write_all(reply.as_bytes()).await;
}

fn local() -> Settings {
    Settings::default().with("OUTGOING_ALLOW", "localhost")
}

async fn send(world: &World, method: reqwest::Method, path: &str, body: Value) -> (u16, Value) {
    let reply = world.request(method, path).json(&body).send().await.unwrap();
    (reply.status().as_u16(), reply.json().await.unwrap_or_default())
}

/// Path and secret of a new webhook.
async fn hook(world: &World, url: &str) -> (String, String) {
    let (status, made) = send(world, reqwest::Method::POST, "/api/webhooks", json!({"url": url})).await;
    assert_eq!(status, 201, "{made:#}");
    let path = format!("/api/webhooks/{}", made["webhook"]["id"].as_str().unwrap());
    (path, made["secret"].as_str().unwrap().to_owned())
}

async fn deliveries(world: &World, hook: &str) -> Value {
    world.get(&format!("{hook}/deliveries")).await["items"].clone()
}

/// Waits until the newest delivery is as wanted.
async fn until(world: &World, hook: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let newest = deliveries(world, hook).await[0].clone();
        if done(&newest) {
            return newest;
        }
        assert!(Instant::now() < deadline, "waited for {what}: {newest:#}\n{}", world.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Makes what waits due now.
async fn hurry(world: &World) {
    world
        .db
        .execute("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE status = 'pending'", &[])
        .await
        .unwrap();
}

async fn cancelled_job(world: &World) -> wire::JobId {
    let job = world.insert(json!({}), 3, "paused").await;
    assert_eq!(world.post(&format!("/training/jobs/{job}/cancel")).await.0, 200);
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_signed_as_the_standard_says_also_during_a_rotation() {
    let (world, receiver) = (World::with(local()).await, Receiver::new().await);
    let (path, old) = hook(&world, &receiver.url).await;
    assert!(old.starts_with("whsec_"));
    assert!(!world.get("/api/webhooks").await.to_string().contains("whsec_"), "the secret is told once");
    let job = cancelled_job(&world).await;
    let got = receiver.wait(1).await[0].clone();
    assert!(got.verify(&old), "{got:#?}");
    let payload = got.json();
    assert_eq!((&payload["type"], &payload["data"]["job_id"]), (&json!("training.job.cancelled"), &json!(job)));
    assert!(payload["timestamp"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().is_ok());
    let mut forged = got.clone();
    forged.body = forged.body.replace("cancelled", "succeeded");
    assert!(!forged.verify(&old));

    let (_, rotated) = send(&world, reqwest::Method::POST, &format!("{path}/rotate"), json!({})).await;
    let new = rotated["secret"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    world.post(&format!("{path}/test")).await;
    let got = receiver.wait(2).await[1].clone();
    assert_eq!(got.headers["webhook-signature"].split(' ').count(), 2);
    assert!(got.verify(&old) && got.verify(&new));
    assert_eq!(got.json()["type"], "webhook.test");
    // A day later.
    world.db.execute("UPDATE webhook_endpoints SET previous_secret_until = now()", &[]).await.unwrap();
    world.post(&format!("{path}/test")).await;
    let got = receiver.wait(3).await[2].clone();
    assert!(got.verify(&new) && !got.verify(&old));
    let shown = until(&world, &path, "the delivery", |d| d["status"] == "delivered").await;
    assert_eq!((&shown["attempts"], &shown["response_status"]), (&json!(1), &json!(204)));
    assert!(!world.log().contains("token=t"), "URLs of users may hold secrets");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_taken_is_sent_by_the_schedule_until_it_is_given_up() {
    let (world, receiver) = (World::with(local()).await, Receiver::new().await);
    receiver.answers("503 Service Unavailable");
    let (path, secret) = hook(&world, &receiver.url).await;
    world.post(&format!("{path}/test")).await;
    let waits = [5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0];
    for (attempt, wait) in (1_i64..).zip(waits) {
        until(&world, &path, "a failed attempt", |d| {
            d["attempts"] == attempt && !d["last_error"].is_null() && d["response_status"] == 503
        })
        .await;
        let query = "SELECT extract(epoch FROM next_attempt_at - clock_timestamp())::float8 FROM webhook_deliveries
            WHERE attempts = $1 AND status = 'pending'";
        // A claimed row carries its lease for a moment; by now the outcome is noted.
        let left: f64 = world.db.query_one(query, &[&i32::try_from(attempt).unwrap()]).await.unwrap().get(0);
        assert!(left > wait - 5.0 && left <= wait * 1.1, "attempt {attempt} waits {left} s, not {wait}");
        world
            .db
            .execute("UPDATE webhook_deliveries SET last_error = NULL, next_attempt_at = now()", &[])
            .await
            .unwrap();
    }
    let failed = until(&world, &path, "the end", |d| d["status"] == "failed").await;
    assert_eq!(failed["attempts"], 10);
    let all = receiver.all();
    assert_eq!(all.len(), 10);
    assert!(all.iter().all(|got| got.id() == all[0].id() && got.verify(&secret)), "one webhook-id for all attempts");
    let shown = world.get(&path).await;
    assert_eq!((&shown["enabled"], &shown["failures"]), (&json!(false), &json!(10)), "{shown:#}");
    assert!(shown["disabled_reason"].as_str().unwrap().contains("three days"));

    // Mended, enabled, and delivered after all.
    assert_eq!(world.post(&format!("{path}/deliveries/{}/redeliver", failed["id"].as_str().unwrap())).await.0, 409);
    receiver.answers("200 OK");
    send(&world, reqwest::Method::PATCH, &path, json!({"enabled": true})).await;
    let (status, _) = world.post(&format!("{path}/deliveries/{}/redeliver", failed["id"].as_str().unwrap())).await;
    assert_eq!(status, 202);
    until(&world, &path, "the delivery", |d| d["status"] == "delivered").await;
    assert_eq!(receiver.all()[10].id(), all[0].id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_is_disabled_and_its_owner_told() {
    let (world, receiver) = (World::with(local()).await, Receiver::new().await);
    let (path, _) = hook(&world, &receiver.url).await;
    receiver.answers("410 Gone");
    world.post(&format!("{path}/test")).await;
    let failed = until(&world, &path, "the end", |d| d["status"] == "failed").await;
    assert_eq!((&failed["attempts"], &failed["response_status"]), (&json!(1), &json!(410)));
    let shown = world.get(&path).await;
    assert_eq!((&shown["enabled"], &shown["disabled_reason"]), (&json!(false), &json!("it answered 410 Gone")));
    let told = world.get("/api/notifications?kind=webhook.disabled").await;
    assert_eq!(told["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.post(&format!("{path}/test")).await.0, 409);
    cancelled_job(&world).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(receiver.all().len(), 1, "nothing is sent to it any more");
    let body = json!({});
    assert_eq!(send(&world, reqwest::Method::DELETE, &path, body.clone()).await.0, 204);
    assert_eq!(send(&world, reqwest::Method::DELETE, &path, body).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_failures_and_events_are_chosen() {
    let (world, receiver, target) = (World::with(local()).await, Receiver::new().await, Receiver::new().await);
    receiver.answers(&format!("307 Temporary Redirect\r\nlocation: {}", target.url));
    let (path, _) = hook(&world, &receiver.url).await;
    let only = json!({"url": target.url, "events": ["training.job.failed"]});
    let (_, chosen) = send(&world, reqwest::Method::POST, "/api/webhooks", only).await;
    cancelled_job(&world).await;
    let noted = until(&world, &path, "a failed attempt", |d| !d["last_error"].is_null()).await;
    assert_eq!(noted["status"], "pending");
    assert!(noted["last_error"].as_str().unwrap().contains("redirects are not followed"), "{noted:#}");
    assert!(target.all().is_empty());
    let path = format!("/api/webhooks/{}/deliveries", chosen["webhook"]["id"].as_str().unwrap());
    assert_eq!(world.get(&path).await["items"], json!([]));
    let wrong = json!({"url": target.url, "events": ["training.job.flew"]});
    let (status, problem) = send(&world, reqwest::Method::POST, "/api/webhooks", wrong).await;
    assert_eq!((status, &problem["errors"][0]["path"]), (422, &json!("events")));
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_not_public_are_refused_when_written_and_when_resolved() {
    let world = World::new().await;
    for url in [
        "http://example.com/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0251.0376.0251.0376/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://100.64.1.1/",
        "https://[fd00::1]/",
        "https://user:password@example.com/",
        "ftp://example.com/",
        "nonsense",
    ] {
        let (status, problem) = send(&world, reqwest::Method::POST, "/api/webhooks", json!({"url": url})).await;
        assert_eq!((status, &problem["errors"][0]["path"]), (422, &json!("url")), "{url}: {problem:#}");
    }
    // A name is looked up when it is connected to, and may have changed since it was stored.
    let (path, _) = hook(&world, "https://localhost:1/").await;
    world.post(&format!("{path}/test")).await;
    let noted = until(&world, &path, "a failed attempt", |d| !d["last_error"].is_null()).await;
    assert!(noted["last_error"].as_str().unwrap().contains("has no address that may be reached"), "{noted:#}");
    let (status, _) = send(&world, reqwest::Method::PATCH, &path, json!({"url": "https://10.0.0.1/"})).await;
    assert_eq!(status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_sent_after_a_crash_under_the_same_id() {
    let (mut world, receiver) = (World::with(local()).await, Receiver::new().await);
    let (path, secret) = hook(&world, &receiver.url).await;
    receiver.answers("500 Internal Server Error");
    cancelled_job(&world).await;
    let first = receiver.wait(1).await[0].clone();
    world.kill_backend();
    // As if it had died between claim and outcome: the lease is all that is left of the attempt.
    hurry(&world).await;
    receiver.answers("200 OK");
    world.start_backend().await;
    let again = receiver.wait(2).await[1].clone();
    assert_eq!((first.id(), first.json()), (again.id(), again.json()));
    assert!(again.verify(&secret));
    until(&world, &path, "the delivery", |d| d["status"] == "delivered").await;

    // Committed while no backend runs.
    world.kill_backend();
    let insert = "INSERT INTO webhook_deliveries (id, user_id, endpoint_id, event_type, payload)
        SELECT gen_random_uuid(), user_id, id, 'webhook.test', '{\"type\": \"webhook.test\"}' FROM webhook_endpoints";
    world.db.batch_execute(insert).await.unwrap();
    world.start_backend().await;
    assert_eq!(receiver.wait(3).await[2].json()["type"], "webhook.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_receivers_hold_up_nobody_else() {
    let world = World::with(local()).await;
    let (slow, fast) = (Receiver::new().await, Receiver::new().await);
    slow.answers("");
    let (slow_path, _) = hook(&world, &slow.url).await;
    let (fast_path, _) = hook(&world, &fast.url).await;
    // More than there are candidates for a turn, all due before the others.
    let insert = "INSERT INTO webhook_deliveries (id, user_id, endpoint_id, event_type, payload, next_attempt_at)
        SELECT gen_random_uuid(), user_id, id, 'webhook.test', '{\"type\": \"slow\"}', now() - interval '1 minute'
        FROM webhook_endpoints, generate_series(1, 400) WHERE id::text = $1";
    let id = slow_path.rsplit('/').next().unwrap();
    world.db.execute(insert, &[&id]).await.unwrap();
    slow.wait(4).await;
    let begun = Instant::now();
    for _ in 0..20 {
        world.post(&format!("{fast_path}/test")).await;
    }
    fast.wait(20).await;
    let took = begun.elapsed();
    eprintln!("20 messages beside a receiver that never answers: {took:?}");
    assert!(took < Duration::from_secs(10), "a request may take 15 s, and nobody waited for one: {took:?}");
    assert_eq!(slow.all().len(), 4, "the places one address may have");
    let waits = "SELECT count(*) FROM webhook_deliveries WHERE endpoint_id::text = $1 AND attempts = 0";
    let waits: i64 = world.db.query_one(waits, &[&id]).await.unwrap().get(0);
    assert_eq!(waits, 396, "nothing is claimed that is not sent");
}
