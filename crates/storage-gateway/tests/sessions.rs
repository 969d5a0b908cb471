//! Upload sessions over real HTTP.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use chrono::{TimeDelta, Utc};
use reqwest::StatusCode;
use serde_json::{Value, json};
use support::{MIB, Reply, TestGateway, noise, number, sha256};

#[tokio::test]
async fn a_session_uploads_resumes_verifies_and_completes_twice_alike() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.model_key("big"), noise(20 * MIB + 7));
    let session = gateway.open(&key, data.len(), Some(&sha256(&data))).await;
    let parts = session["parts"].as_array().unwrap();
    assert_eq!(parts.iter().map(|p| number(&p["size"])).collect::<Vec<_>>(), [8 * MIB, 8 * MIB, 4 * MIB + 7]);

    gateway.put_part(&parts[0], &data).await.expect(StatusCode::OK);
    gateway.put_part(&parts[2], &data).await.expect(StatusCode::OK);
    let early = gateway.complete(&session, &json!({})).await.expect(StatusCode::CONFLICT);
    assert!(early.problem("CONFLICT").contains("1 of 3 parts"), "{:?}", early.problem("CONFLICT"));
    assert_eq!(gateway.get_object(&key).await.status, StatusCode::NOT_FOUND);

    let path = format!("/uploads/{}", session["id"].as_str().unwrap());
    let resumed = gateway.get(&path).await.expect(StatusCode::OK).json();
    let missing = resumed["parts"].as_array().unwrap();
    assert_eq!(missing.iter().map(|p| number(&p["number"])).collect::<Vec<_>>(), [2]);
    gateway.put_part(&missing[0], &data).await.expect(StatusCode::OK);

    let done = gateway.complete(&session, &json!({})).await.expect(StatusCode::OK).json();
    assert_eq!((number(&done["size"]), done["sha256"].as_str().unwrap()), (data.len(), sha256(&data).as_str()));
    assert!(gateway.get_object(&key).await.expect(StatusCode::OK).body == data);

    let again = gateway.complete(&session, &json!({})).await.expect(StatusCode::OK).json();
    assert_eq!(again["sha256"], done["sha256"]);
    assert_eq!(gateway.get(&path).await.expect(StatusCode::OK).json()["parts"], json!([]));
}

#[tokio::test]
async fn completions_at_the_same_time_agree() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.model_key("raced"), noise(9 * MIB));
    let session = gateway.open(&key, data.len(), Some(&sha256(&data))).await;
    for part in session["parts"].as_array().unwrap() {
        gateway.put_part(part, &data).await.expect(StatusCode::OK);
    }
    let body = json!({});
    let replies = futures::future::join_all((0..4).map(|_| gateway.complete(&session, &body))).await;
    for reply in replies {
        assert_eq!(reply.expect(StatusCode::OK).json()["sha256"], sha256(&data));
    }
    assert!(gateway.get_object(&key).await.expect(StatusCode::OK).body == data);
}

#[tokio::test]
async fn a_wrong_digest_keeps_nothing() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.dataset_key("train.jsonl"), noise(1000));
    let session = gateway.open(&key, data.len(), None).await;
    gateway.put_part(&session["parts"][0], &data).await.expect(StatusCode::OK);
    let other = sha256(b"other");
    let refused = gateway.complete(&session, &json!({ "sha256": other })).await;
    let detail = refused.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("CHECKSUM_MISMATCH");
    assert_eq!(detail, format!("`{key}` has sha256 {}, expected {other}", sha256(&data)));
    assert_eq!(gateway.get_object(&key).await.status, StatusCode::NOT_FOUND);
    let after = gateway.complete(&session, &json!({ "sha256": sha256(&data) })).await;
    assert!(after.expect(StatusCode::NOT_FOUND).problem("NOT_FOUND").contains("open a new one"));
}

#[tokio::test]
async fn a_malformed_completion_does_not_pass_for_one_without_a_digest() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.dataset_key("train.jsonl"), noise(1000));
    let session = gateway.open(&key, data.len(), None).await;
    gateway.put_part(&session["parts"][0], &data).await.expect(StatusCode::OK);
    for body in [json!({ "sha256": 7 }), json!({ "sha265": sha256(&data) }), json!({ "sha256": "abc" })] {
        gateway.complete(&session, &body).await.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("INVALID");
    }
    let path = format!("/uploads/{}/complete", session["id"].as_str().unwrap());
    Reply::of(gateway.request(reqwest::Method::POST, &path)).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn a_part_of_another_size_than_announced_is_refused_by_storage() {
    let gateway = TestGateway::start().await;
    let key = gateway.dataset_key("train.jsonl");
    let session = gateway.open(&key, 1000, None).await;
    let url = session["parts"][0]["url"].as_str().unwrap();
    for size in [999, 1001] {
        let reply = Reply::of(gateway.http.put(url).body(noise(size))).await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{size} bytes");
    }
    let refused = gateway.complete(&session, &json!({})).await.expect(StatusCode::CONFLICT);
    assert!(refused.problem("CONFLICT").contains("1 of 1 parts"));
}

#[tokio::test]
async fn over_the_limit_is_refused_before_a_byte_is_stored() {
    let gateway = TestGateway::with(&[("DATASET_MAX_BYTES", "1000"), ("MODEL_MAX_BYTES", "2000")]).await;
    for (key, kind, size) in [
        (gateway.dataset_key("a"), "dataset", 1001),
        (gateway.model_key("a"), "model", 2001),
        (gateway.job_key("a"), "job", 2001),
    ] {
        let body = json!({ "key": key, "size": size, "kind": kind });
        let refused = gateway.post("/uploads", &body).await.expect(StatusCode::PAYLOAD_TOO_LARGE);
        let detail = refused.problem("TOO_LARGE");
        assert!(detail.contains(&format!("may have {} bytes, this one has {size} bytes", size - 1)), "{detail}");
    }
    // The kind decides the limit, so it cannot be chosen freely.
    let body = json!({ "key": gateway.dataset_key("a"), "size": 1001, "kind": "model" });
    gateway.post("/uploads", &body).await.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("INVALID");
    if !support::outside() {
        let stored = std::fs::read_dir(gateway.data_dir().join("s3")).unwrap();
        let names: Vec<_> = stored.map(|e| e.unwrap().file_name()).filter(|n| n != "lora-datasets").collect();
        assert_eq!(names, ["lora-models"]);
    }
}

#[tokio::test]
async fn urls_that_have_expired_are_issued_again() {
    let gateway = TestGateway::with(&[("SIGNED_URL_SECONDS", "1")]).await;
    let (key, data) = (gateway.model_key("slow"), noise(9 * MIB));
    let session = gateway.open(&key, data.len(), Some(&sha256(&data))).await;
    gateway.put_part(&session["parts"][0], &data).await.expect(StatusCode::OK);
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    // A few bytes: the refusal may come before a body is read, and the connection break under a larger one.
    let late = reqwest::Client::new().put(session["parts"][1]["url"].as_str().unwrap()).body("late").send().await;
    assert_eq!(late.unwrap().status(), StatusCode::FORBIDDEN);
    let path = format!("/uploads/{}", session["id"].as_str().unwrap());
    let resumed = gateway.get(&path).await.expect(StatusCode::OK).json();
    assert_eq!(resumed["parts"].as_array().unwrap().len(), 1, "what has arrived is not asked for again");
    gateway.put_part(&resumed["parts"][0], &data).await.expect(StatusCode::OK);
    gateway.complete(&session, &json!({})).await.expect(StatusCode::OK);
    let signed = gateway.post("/sign", &json!({ "method": "GET", "key": key, "expires_in": 900 })).await.json();
    assert!(signed["url"].as_str().unwrap().contains("X-Amz-Expires=1&"), "no URL lives longer: {signed}");
}

/// A client that loses patience and comes back finds the work done, or joins it.
#[tokio::test]
async fn a_completion_goes_on_without_its_caller() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.model_key("patience"), noise(40 * MIB));
    let session = gateway.open(&key, data.len(), Some(&sha256(&data))).await;
    for part in session["parts"].as_array().unwrap() {
        gateway.put_part(part, &data).await.expect(StatusCode::OK);
    }
    let path = format!("/uploads/{}/complete", session["id"].as_str().unwrap());
    let request =
        gateway.request(reqwest::Method::POST, &path).json(&json!({})).timeout(std::time::Duration::from_millis(20));
    assert!(request.send().await.unwrap_err().is_timeout(), "it was not given up");
    let done = async { while gateway.get_object(&key).await.status != StatusCode::OK {} };
    tokio::time::timeout(std::time::Duration::from_secs(30), done).await.expect("nobody completed it");
    gateway.complete(&session, &json!({})).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn an_aborted_session_is_gone_and_its_urls_are_dead() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.job_key("artifacts/a"), noise(100));
    let session = gateway.open(&key, data.len(), None).await;
    let path = format!("/uploads/{}", session["id"].as_str().unwrap());
    gateway.put_part(&session["parts"][0], &data).await.expect(StatusCode::OK);
    gateway.delete(&path).await.expect(StatusCode::NO_CONTENT);
    gateway.delete(&path).await.expect(StatusCode::NO_CONTENT);
    gateway.get(&path).await.expect(StatusCode::NOT_FOUND);
    gateway.complete(&session, &json!({})).await.expect(StatusCode::NOT_FOUND);
    assert!(!gateway.put_part(&session["parts"][0], &data).await.status.is_success());
    assert_eq!(gateway.get_object(&key).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_empty_object_needs_no_parts() {
    let gateway = TestGateway::start().await;
    let key = gateway.job_key("logs/empty");
    let session = gateway.open(&key, 0, Some(&sha256(b""))).await;
    assert_eq!(session["parts"], json!([]));
    for _ in 0..2 {
        let done = gateway.complete(&session, &json!({})).await.expect(StatusCode::OK).json();
        assert_eq!((number(&done["size"]), done["sha256"].as_str().unwrap()), (0, sha256(b"").as_str()));
    }
    assert_eq!(gateway.get_object(&key).await.expect(StatusCode::OK).body, b"");
}

#[tokio::test]
async fn a_forged_session_id_is_not_found() {
    let gateway = TestGateway::start().await;
    let session = gateway.open(&gateway.job_key("a"), 10, None).await;
    let id = session["id"].as_str().unwrap();
    let forged = format!("{}x", id);
    for id in ["x", "a.b.c", forged.as_str(), support::service_token().as_str()] {
        gateway.get(&format!("/uploads/{id}")).await.expect(StatusCode::NOT_FOUND).problem("NOT_FOUND");
    }
}

#[tokio::test]
async fn another_replica_serves_the_same_session_after_a_crash() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.model_key("big"), noise(9 * MIB));
    let session = gateway.open(&key, data.len(), None).await;
    gateway.put_part(&session["parts"][0], &data).await.expect(StatusCode::OK);
    let dir = gateway.kill();
    let gateway = TestGateway::in_dir(dir, &[]).await;
    let path = format!("/uploads/{}", session["id"].as_str().unwrap());
    let resumed: Value = gateway.get(&path).await.expect(StatusCode::OK).json();
    let missing = resumed["parts"].as_array().unwrap();
    assert_eq!(missing.iter().map(|p| number(&p["number"])).collect::<Vec<_>>(), [2]);
    gateway.put_part(&missing[0], &data).await.expect(StatusCode::OK);
    gateway.complete(&session, &json!({ "sha256": sha256(&data) })).await.expect(StatusCode::OK);
    assert!(gateway.get_object(&key).await.expect(StatusCode::OK).body == data);
}

#[tokio::test]
async fn the_sweeper_removes_only_what_is_older_than_a_session_lives() {
    let library = support::library().await;
    let (gateway, store) = (&library.gateway, &library.gateway.store);
    let key = storage_gateway::keys::Key::parse("models/m/r/f").unwrap();
    let request = serde_json::from_value(json!({ "key": key.as_str(), "size": 5, "kind": "model" })).unwrap();
    let open = storage_gateway::uploads::open(gateway, &key, request).await.unwrap();
    let session = gateway.sessions.open(&open.id).unwrap();
    let staged = gateway.staging(&key, uuid::Uuid::new_v4());
    store.put(&staged, bytes::Bytes::from_static(b"x"), &storage_gateway::store::Metadata::new()).await.unwrap();

    // As a gateway leaves it that dies while it moves a large object under its key.
    let place = gateway.place(&key);
    store.create_multipart(&place, &storage_gateway::store::Metadata::new()).await.unwrap();
    assert_eq!(storage_gateway::sweep::sweep(gateway, Utc::now() + TimeDelta::hours(24)).await.unwrap(), 0);
    storage_gateway::uploads::show(gateway, &key, &session, open.id.clone()).await.unwrap();
    assert_eq!(storage_gateway::sweep::sweep(gateway, Utc::now() + TimeDelta::hours(26)).await.unwrap(), 3);
    assert_eq!(store.list_multiparts(&place.bucket, "models/").await.unwrap(), []);
    assert!(store.head(&staged).await.unwrap_err().is_not_found());
    let gone = storage_gateway::uploads::show(gateway, &key, &session, open.id).await.unwrap_err();
    assert_eq!(gone.problem().status, 404);
}
