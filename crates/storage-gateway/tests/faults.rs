//! The store breaks, the gateway crashes: nothing is lost or half there.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use support::{MIB, TestGateway, noise, sha256};
use testkit::fault::{Fault, Proxy, Rule, Target};

/// A gateway whose embedded store another one uses from outside, through a proxy.
struct Pair {
    inner: TestGateway,
    proxy: Proxy,
    outer: TestGateway,
}

impl Pair {
    async fn start() -> Self {
        let inner = TestGateway::with(&[("S3_ENDPOINT", "")]).await;
        let signed = inner.post("/sign", &json!({ "method": "GET", "key": "jobs/a" })).await.json();
        let url = url::Url::parse(signed["url"].as_str().unwrap()).unwrap();
        let proxy = Proxy::http(Target::Tcp(url.authority().to_owned()), 1).await.unwrap();
        let keys = std::fs::read(inner.data_dir().join("s3-credentials.json")).unwrap();
        let keys: Value = serde_json::from_slice(&keys).unwrap();
        let outer = TestGateway::with(&[
            ("S3_ENDPOINT", &proxy.url()),
            ("AWS_ACCESS_KEY_ID", keys["access_key"].as_str().unwrap()),
            ("AWS_SECRET_ACCESS_KEY", keys["secret_key"].as_str().unwrap()),
        ])
        .await;
        Self { inner, proxy, outer }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_while_reading_is_picked_up_where_it_broke() {
    let pair = Pair::start().await;
    let (key, data) = (pair.outer.model_key("a"), noise(12 * MIB));
    pair.outer.put(&key, data.clone()).await.expect(StatusCode::OK);
    pair.proxy.rules([Rule::new(Fault::CutReply(1 << 20)).times(3)]);
    let verify = json!({ "files": [{ "key": key, "size": data.len(), "sha256": sha256(&data) }] });
    pair.outer.post("/verify", &verify).await.expect(StatusCode::OK);
    assert_eq!(pair.proxy.injected("cut_reply"), 3);
    let metrics = String::from_utf8(pair.outer.get("/metrics").await.body).unwrap();
    assert!(metrics.contains("store_retries_total{op=\"resume read\"} 3"), "{metrics}");
}

#[tokio::test]
async fn a_download_cut_short_is_an_error_and_not_a_short_file() {
    let pair = Pair::start().await;
    let key = pair.outer.model_key("a");
    pair.outer.put(&key, noise(12 * MIB)).await.expect(StatusCode::OK);
    pair.proxy.rules([Rule::new(Fault::CutReply(1 << 20)).times(1)]);
    let reply = pair.outer.request(reqwest::Method::GET, &support::object_path(&key)).send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(reply.bytes().await.is_err());
}

#[tokio::test]
async fn a_store_that_is_down_makes_the_gateway_unready_until_it_is_back() {
    let pair = Pair::start().await;
    pair.outer.get("/ready").await.expect(StatusCode::OK);
    drop(pair.inner);
    let unready = pair.outer.get("/ready").await.expect(StatusCode::SERVICE_UNAVAILABLE);
    assert!(unready.problem("UNAVAILABLE").contains("storage does not answer"));
    pair.outer.get("/health").await.expect(StatusCode::OK);
    let refused = pair.outer.get_object("jobs/a").await.expect(StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.problem("UNAVAILABLE").contains("try again in a moment"));
}

/// Kills the gateway at different moments of a completion. Afterwards the same call must end well, and
/// before that the object must not be there in part.
#[tokio::test]
async fn a_completion_that_a_crash_interrupts_can_be_repeated() {
    let mut gateway = TestGateway::start().await;
    let data = noise(40 * MIB);
    for delay in [0, 3, 10, 25, 50, 100, 200, 400] {
        let key = gateway.model_key("a");
        let session = gateway.open(&key, data.len(), Some(&sha256(&data))).await;
        for part in session["parts"].as_array().unwrap() {
            gateway.put_part(part, &data).await.expect(StatusCode::OK);
        }
        let path = format!("/uploads/{}/complete", session["id"].as_str().unwrap());
        let request = gateway.request(reqwest::Method::POST, &path).json(&json!({}));
        let _ = tokio::time::timeout(Duration::from_millis(delay), request.send()).await;
        let run = gateway.run.clone();
        gateway = TestGateway::in_dir(gateway.kill(), &[]).await;
        gateway.run = run;

        let found = gateway.get_object(&key).await;
        assert!(found.status == StatusCode::NOT_FOUND || found.body == data, "half an object after {delay} ms");
        gateway.complete(&session, &json!({})).await.expect(StatusCode::OK);
        assert!(gateway.get_object(&key).await.expect(StatusCode::OK).body == data);
        gateway.delete(&support::object_path(&key)).await.expect(StatusCode::NO_CONTENT);
    }
}

#[tokio::test]
async fn a_key_the_store_cannot_hold_is_refused_with_the_reason() {
    let gateway = TestGateway::with(&[("S3_ENDPOINT", "")]).await;
    let long = gateway.job_key(&"x".repeat(200));
    let refused = gateway.put(&long, "x").await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.problem("INVALID").contains("keys of about 150 bytes"), "{:?}", refused.json());
    gateway.put(&gateway.job_key("file"), "x").await.expect(StatusCode::OK);
    let below = gateway.put(&gateway.job_key("file/below"), "x").await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(below.problem("INVALID").contains("another object"));
    gateway.put(&gateway.job_key("dir/file"), "x").await.expect(StatusCode::OK);
    let above = gateway.put(&gateway.job_key("dir"), "x").await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(above.problem("INVALID").contains("directory of other keys"));
    assert_eq!(gateway.get_object(&gateway.job_key("dir")).await.status, StatusCode::NOT_FOUND);
    assert!(!gateway.log().contains("ERROR"), "{}", gateway.log());
}

/// The data directory is a file system of 16 MiB, mounted where only the gateway sees it.
#[tokio::test]
async fn a_full_disk_is_explained_and_leaves_nothing_half_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let gateway = support::command(dir.path(), &[("S3_ENDPOINT", "")]);
    let mut command = std::process::Command::new("unshare");
    let mount = "mount -t tmpfs -o size=16m tmpfs \"$DATA_DIR\" && exec \"$0\"";
    command.args(["--map-root-user", "--mount", "sh", "-c", mount]).arg(gateway.get_program()).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command.envs(gateway.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let gateway = TestGateway::spawn(dir, command).await;

    let key = gateway.model_key("a");
    for _ in 0..2 {
        let full = gateway.put(&key, noise(30 * MIB)).await.expect(StatusCode::SERVICE_UNAVAILABLE);
        let detail = full.problem("UNAVAILABLE");
        assert!(detail.contains("the disk of the data directory is full; free some space"), "{detail}");
        assert_eq!(gateway.get_object(&key).await.status, StatusCode::NOT_FOUND);
    }
    // What was refused has been cleaned up, so that something smaller fits; the cleaning may take a moment.
    let fits = async { while gateway.put(&key, noise(8 * MIB - 1)).await.status != StatusCode::OK {} };
    tokio::time::timeout(Duration::from_secs(30), fits).await.expect("the refused parts still fill the disk");
}
