//! Who may do what, and which keys are refused.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{Reply, TestGateway, job_token, object_path, sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn without_a_valid_token_nothing_answers() {
    let gateway = TestGateway::start().await;
    let key = object_path(&gateway.job_key("a"));
    let routes = [
        (Method::POST, "/uploads"),
        (Method::GET, "/uploads/x"),
        (Method::POST, "/uploads/x/complete"),
        (Method::DELETE, "/uploads/x"),
        (Method::PUT, key.as_str()),
        (Method::GET, key.as_str()),
        (Method::DELETE, key.as_str()),
        (Method::GET, "/objects?prefix="),
        (Method::DELETE, "/objects?prefix=jobs/a/"),
        (Method::POST, "/sign"),
        (Method::POST, "/verify"),
        (Method::POST, "/datasets/validate"),
        (Method::POST, "/datasets/preview"),
        (Method::POST, "/models/inspect"),
    ];
    for (method, path) in routes {
        let request = || gateway.anonymous(method.clone(), path).json(&json!({}));
        Reply::of(request()).await.expect(StatusCode::UNAUTHORIZED).problem("UNAUTHORIZED");
        Reply::of(request().bearer_auth("nonsense")).await.expect(StatusCode::UNAUTHORIZED).problem("UNAUTHORIZED");
    }
    for path in ["/health", "/ready", "/metrics"] {
        Reply::of(gateway.anonymous(Method::GET, path)).await.expect(StatusCode::OK);
    }
}

#[tokio::test]
async fn a_job_token_reaches_its_prefixes_and_nothing_else() {
    let gateway = TestGateway::start().await;
    let (mine, input, other) = (gateway.job_key("out"), gateway.model_key("config.json"), gateway.dataset_key("d"));
    for key in [&mine, &input, &other] {
        gateway.put(key, "{}").await.expect(StatusCode::OK);
    }
    let token = job_token(&[&gateway.model_key("")], &[&gateway.job_key("")]);
    let send = async |method: Method, path: String, body: Value| {
        Reply::of(gateway.anonymous(method, &path).bearer_auth(&token).json(&body)).await.status
    };
    let (ok, no) = (StatusCode::OK, StatusCode::FORBIDDEN);
    for (key, read, write) in [(&mine, ok, ok), (&input, ok, no), (&other, no, no)] {
        assert_eq!(send(Method::GET, object_path(key), Value::Null).await, read, "{key}");
        assert_eq!(send(Method::PUT, object_path(key), Value::Null).await, write, "{key}");
        let sign =
            async |method: &str| send(Method::POST, "/sign".into(), json!({ "method": method, "key": key })).await;
        assert_eq!(sign("GET").await, read, "{key}");
        assert_eq!(sign("PUT").await, write, "{key}");
        let prefix = key.rsplit_once('/').unwrap().0;
        assert_eq!(send(Method::GET, format!("/objects?prefix={prefix}/"), Value::Null).await, read, "{key}");
        let file = json!({ "files": [{ "key": key, "size": 4, "sha256": sha256(b"null") }] });
        let verified = send(Method::POST, "/verify".into(), file).await;
        assert_eq!(verified == no, read == no, "{key}: {verified}");
    }
    let session = json!({ "key": other, "size": 1, "kind": "dataset" });
    assert_eq!(send(Method::POST, "/uploads".into(), session).await, no);
    assert_eq!(send(Method::GET, "/objects?prefix=".into(), Value::Null).await, no);
    assert_eq!(send(Method::DELETE, format!("/objects?prefix={}", gateway.model_key("")), Value::Null).await, no);
    assert_eq!(send(Method::POST, "/datasets/validate".into(), json!({ "key": other })).await, no);
    let prefix = gateway.dataset_key("");
    assert_eq!(send(Method::POST, "/models/inspect".into(), json!({ "prefix": prefix })).await, no);
    // Somebody else's session is of no use either.
    let foreign = gateway.open(&other, 1, None).await;
    let path = format!("/uploads/{}", foreign["id"].as_str().unwrap());
    assert_eq!(send(Method::GET, path.clone(), Value::Null).await, no);
    assert_eq!(send(Method::POST, format!("{path}/complete"), json!({})).await, no);
    assert_eq!(send(Method::DELETE, path, Value::Null).await, no);
    assert_eq!(send(Method::DELETE, object_path(&mine), Value::Null).await, StatusCode::NO_CONTENT);
}

/// A GET whose path no client library has tidied up.
async fn raw_get(gateway: &TestGateway, path: &str) -> String {
    let address = gateway.url.strip_prefix("http://").unwrap();
    let token = support::service_token();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn poison_keys_are_refused_on_every_way_in() {
    let gateway = TestGateway::start().await;
    let long = format!("jobs/{}", "x".repeat(600));
    let keys = [
        "",
        "/etc/passwd",
        "jobs/../models/a",
        "../jobs/a",
        "jobs//a",
        "jobs/a/",
        "jobs/./a",
        "jobs/a\nb",
        "jobs/\u{7f}",
        "_staging/a/object",
        "other/a",
        "jobs",
        long.as_str(),
    ];
    for key in keys {
        let body = json!({ "key": key, "size": 1, "kind": "job" });
        gateway.post("/uploads", &body).await.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("INVALID");
        let body = json!({ "method": "GET", "key": key });
        gateway.post("/sign", &body).await.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("INVALID");
    }
    for path in [
        "/objects/",
        "/objects/%2Fetc%2Fpasswd",
        "/objects/jobs/../models/a",
        "/objects/jobs/%2E%2E/models/a",
        "/objects/jobs%2F..%2Fmodels%2Fa",
        "/objects/jobs/a%0Ab",
        "/objects/jobs/%00",
        "/objects/jobs/%FF",
        "/objects/_staging/a/object",
        "/objects/jobs//a",
    ] {
        let reply = raw_get(&gateway, path).await;
        assert!(reply.starts_with("HTTP/1.1 422 "), "{path}: {reply}");
        assert!(reply.contains("cannot be a key"), "{path}: {reply}");
    }
    for prefix in ["_staging/", "jobs/../", "/", "other/"] {
        gateway.get(&format!("/objects?prefix={prefix}")).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    }
}
