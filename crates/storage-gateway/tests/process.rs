//! The process: start-up, the data directory, memory.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use futures::{StreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::{net::TcpListener, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use support::{MIB, Reply, TestGateway, noise, object_path, outside, sha256};

/// Runs a gateway that cannot start and returns what it says.
fn failure(dir: &Path, vars: &[(&str, &str)]) -> String {
    let output = support::command(dir, vars).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn start_up_errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("HONE_LISTEN", &address)], "another program uses this port"),
        (&[("TOKEN_SIGNING_KEY", "short")], "TOKEN_SIGNING_KEY must have at least 32 characters"),
        (&[("DATASET_MAX_BYTES", "many")], "DATASET_MAX_BYTES is set to `many`, which is not valid"),
        (&[("S3_ENDPOINT", "s3.example.org")], "S3_ENDPOINT is set to `s3.example.org`, which is not valid"),
        (
            &[("S3_ENDPOINT", "http://127.0.0.1:9"), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")],
            "cannot use bucket `lora-datasets` at http://127.0.0.1:9; check S3_ENDPOINT",
        ),
        (&[("S3_ENDPOINT", ""), ("DATA_DIR", "/dev/null/x")], "cannot create /dev/null/x/s3; check DATA_DIR"),
    ];
    for (vars, expected) in cases {
        let text = failure(dir.path(), vars);
        assert!(text.contains(expected), "{vars:?}: {text}");
    }
}

#[tokio::test]
async fn the_data_directory_belongs_to_one_gateway_and_its_keys_to_the_owner() {
    let gateway = TestGateway::with(&[("S3_ENDPOINT", "")]).await;
    let mode = gateway.data_dir().join("s3-credentials.json").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = failure(gateway.dir.path(), &[("S3_ENDPOINT", "")]);
    assert!(text.contains("is in use by another hone; stop it or choose another directory"), "{text}");
}

#[tokio::test]
async fn objects_and_keys_outlive_a_crash() {
    let gateway = TestGateway::start().await;
    let key = gateway.job_key("a");
    gateway.put(&key, "kept").await.expect(StatusCode::OK);
    let url = gateway.post("/sign", &json!({ "method": "GET", "key": key })).await.json();
    let dir = gateway.kill();
    let gateway = TestGateway::in_dir(dir, &[]).await;
    assert_eq!(gateway.get_object(&key).await.expect(StatusCode::OK).body, b"kept");
    let again = gateway.post("/sign", &json!({ "method": "GET", "key": key })).await.json();
    let access_key =
        |v: &serde_json::Value| v["url"].as_str().unwrap().split("Credential=").nth(1).unwrap()[..20].to_owned();
    assert_eq!(access_key(&url), access_key(&again));
}

#[tokio::test]
async fn presigned_urls_carry_the_public_host() {
    let gateway = TestGateway::with(&[("S3_PUBLIC_ENDPOINT", "https://s3.example.org:8443")]).await;
    let signed = gateway.post("/sign", &json!({ "method": "GET", "key": gateway.job_key("a") })).await.json();
    assert!(signed["url"].as_str().unwrap().starts_with("https://s3.example.org:8443/lora-models/jobs/"));
}

#[tokio::test]
async fn the_embedded_store_wants_signatures() {
    if outside() {
        return;
    }
    let gateway = TestGateway::start().await;
    let key = gateway.job_key("a");
    gateway.put(&key, "secret").await.expect(StatusCode::OK);
    let signed = gateway.post("/sign", &json!({ "method": "GET", "key": key })).await.json();
    let (bare, _) = signed["url"].as_str().unwrap().split_once('?').unwrap();
    for request in [gateway.http.get(bare), gateway.http.put(bare).body("x"), gateway.http.delete(bare)] {
        assert_eq!(Reply::of(request).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(gateway.get_object(&key).await.body, b"secret");
}

#[tokio::test]
async fn metrics_count_bytes_and_store_calls() {
    let gateway = TestGateway::start().await;
    let key = gateway.job_key("a");
    gateway.put(&key, noise(1000)).await.expect(StatusCode::OK);
    gateway.get_object(&key).await.expect(StatusCode::OK);
    let text = String::from_utf8(gateway.get("/metrics").await.body).unwrap();
    for line in [
        "gateway_upload_bytes_total 1000",
        "gateway_download_bytes_total 1000",
        "store_call_seconds_count{op=\"write object\",outcome=\"ok\"} 1",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}

/// Largest resident set so far in MiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// The embedded S3 runs in the same process, so this bounds both of them.
#[tokio::test]
async fn memory_stays_bounded_while_300_mb_stream_in_and_out() {
    const CHUNKS: usize = 300;
    let gateway = TestGateway::start().await;
    let chunk = bytes::Bytes::from(noise(MIB));
    let whole = sha256(&chunk.repeat(CHUNKS));
    let key = gateway.model_key("large");
    let body = stream::iter(0..CHUNKS).map({
        let chunk = chunk.clone();
        move |_| Ok::<_, std::io::Error>(chunk.clone())
    });
    let put = gateway.request(Method::PUT, &object_path(&key)).body(reqwest::Body::wrap_stream(body));
    assert_eq!(Reply::of(put).await.expect(StatusCode::OK).json()["sha256"], whole);

    let mut received = 0;
    let mut download = gateway.request(Method::GET, &object_path(&key)).send().await.unwrap();
    while let Some(bytes) = download.chunk().await.unwrap() {
        received += bytes.len();
    }
    assert_eq!(received, CHUNKS * MIB);
    let verify = json!({ "files": [{ "key": key, "size": CHUNKS * MIB, "sha256": whole }] });
    gateway.post("/verify", &verify).await.expect(StatusCode::OK);
    let peak = peak_memory(gateway.pid());
    println!("peak memory: {peak} MiB");
    assert!(peak <= 64, "{peak} MiB");
}

#[tokio::test]
async fn sigterm_stops_the_gateway_cleanly() {
    let gateway = TestGateway::start().await;
    let pid = i32::try_from(gateway.pid()).unwrap();
    std::process::Command::new("kill").arg(pid.to_string()).status().unwrap();
    let gone = async {
        while gateway.anonymous(Method::GET, "/health").send().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it still answers");
}
