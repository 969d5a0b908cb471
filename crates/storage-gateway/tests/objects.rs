//! Objects over real HTTP: streaming, ranges, listings, deletion, signed URLs, verification.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use futures::{StreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::time::Duration;
use support::{MIB, Reply, TestGateway, noise, number, object_path, sha256};

#[tokio::test]
async fn an_object_comes_back_as_it_was_put() {
    let gateway = TestGateway::start().await;
    for (name, len) in [("empty", 0), ("one", 1), ("part", 8 * MIB), ("parts", 8 * MIB + 1)] {
        let (key, data) = (gateway.job_key(name), noise(len));
        let put = gateway.put(&key, data.clone()).await.expect(StatusCode::OK).json();
        assert_eq!((put["key"].as_str().unwrap(), number(&put["size"])), (key.as_str(), len));
        assert_eq!(put["sha256"], sha256(&data));
        let got = gateway.get_object(&key).await.expect(StatusCode::OK);
        assert!(got.body == data, "{name} differs");
        assert_eq!(got.headers["content-length"], len.to_string());
        let head = Reply::of(gateway.request(Method::HEAD, &object_path(&key))).await.expect(StatusCode::OK);
        assert_eq!(head.headers["content-length"], len.to_string());
        assert_eq!(head.headers["x-content-sha256"], sha256(&data));
    }
}

#[tokio::test]
async fn putting_again_replaces_the_object() {
    let gateway = TestGateway::start().await;
    let key = gateway.job_key("a");
    for body in ["first and longer", "second"] {
        gateway.put(&key, body).await.expect(StatusCode::OK);
        let got = gateway.get_object(&key).await.expect(StatusCode::OK);
        assert_eq!(got.body, body.as_bytes());
        assert_eq!(got.headers["x-content-sha256"], sha256(body.as_bytes()));
    }
}

#[tokio::test]
async fn odd_but_legal_names_survive_every_operation() {
    let gateway = TestGateway::start().await;
    for name in ["a b+c%20&d=e?f#g", "ü漢字🙂", "x;y,z:'\"()*!~@$", "%2e%2e", "..a"] {
        let key = gateway.dataset_key(name);
        gateway.put(&key, name).await.expect(StatusCode::OK);
        assert_eq!(gateway.get_object(&key).await.expect(StatusCode::OK).body, name.as_bytes());
        let signed = gateway.post("/sign", &json!({ "method": "GET", "key": key })).await.expect(StatusCode::OK).json();
        let direct = Reply::of(gateway.http.get(signed["url"].as_str().unwrap())).await;
        assert_eq!(direct.expect(StatusCode::OK).body, name.as_bytes());
        let session = gateway.open(&format!("{key}.2"), 3, None).await;
        gateway.put_part(&session["parts"][0], b"abc").await.expect(StatusCode::OK);
        gateway.complete(&session, &json!({})).await.expect(StatusCode::OK);
        let listed = gateway.keys(&format!("datasets/{}/", gateway.run)).await;
        assert_eq!(listed, [key.clone(), format!("{key}.2")]);
        for key in listed {
            gateway.delete(&object_path(&key)).await.expect(StatusCode::NO_CONTENT);
        }
    }
}

#[tokio::test]
async fn a_wrong_digest_in_the_header_stores_nothing() {
    let gateway = TestGateway::start().await;
    for len in [10, 9 * MIB] {
        let (key, data) = (gateway.job_key("a"), noise(len));
        let put = |digest: String| {
            gateway.request(Method::PUT, &object_path(&key)).header("x-content-sha256", digest).body(data.clone())
        };
        let refused = Reply::of(put(sha256(b"other"))).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        let detail = refused.problem("CHECKSUM_MISMATCH");
        assert!(detail.contains(&sha256(&data)) && detail.contains(&sha256(b"other")), "{detail}");
        assert_eq!(gateway.get_object(&key).await.status, StatusCode::NOT_FOUND);
        Reply::of(put("xyz".into())).await.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("INVALID");
        Reply::of(put(sha256(&data).to_uppercase())).await.expect(StatusCode::OK);
        gateway.delete(&object_path(&key)).await.expect(StatusCode::NO_CONTENT);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whether_announced_or_not() {
    let limit = 9 * MIB;
    let gateway = TestGateway::with(&[("DATASET_MAX_BYTES", &limit.to_string())]).await;
    let key = gateway.dataset_key("a");
    let announced = gateway.put(&key, noise(limit + 1)).await.expect(StatusCode::PAYLOAD_TOO_LARGE);
    assert!(announced.problem("TOO_LARGE").contains("nothing was stored"));
    let endless = stream::iter(0..64).map(|_| Ok::<_, std::io::Error>(noise(MIB)));
    let unannounced = gateway.put(&key, reqwest::Body::wrap_stream(endless)).await;
    unannounced.expect(StatusCode::PAYLOAD_TOO_LARGE).problem("TOO_LARGE");
    assert_eq!(gateway.get_object(&key).await.status, StatusCode::NOT_FOUND);
    gateway.put(&key, noise(limit)).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn ranges_are_honoured() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.job_key("a"), noise(1000));
    gateway.put(&key, data.clone()).await.expect(StatusCode::OK);
    let get = |range: &str| Reply::of(gateway.request(Method::GET, &object_path(&key)).header("range", range));
    for (range, expected, bounds) in [
        ("bytes=0-0", &data[0..1], "bytes 0-0/1000"),
        ("bytes=10-19", &data[10..20], "bytes 10-19/1000"),
        ("bytes=990-2000", &data[990..], "bytes 990-999/1000"),
        ("bytes=900-", &data[900..], "bytes 900-999/1000"),
        ("bytes=-7", &data[993..], "bytes 993-999/1000"),
    ] {
        let reply = get(range).await.expect(StatusCode::PARTIAL_CONTENT);
        assert_eq!((reply.body.as_slice(), reply.headers["content-range"].to_str().unwrap()), (expected, bounds));
    }
    assert!(get("bytes=0-1,5-6").await.expect(StatusCode::OK).body == data);
    let outside = get("bytes=1000-").await.expect(StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(outside.headers["content-range"], "bytes */1000");
    assert_eq!(outside.problem("INVALID"), format!("`{key}` has 1000 bytes, the range lies outside"));
}

#[tokio::test]
async fn listings_page_in_key_order_across_buckets_without_the_staging_area() {
    let gateway = TestGateway::start().await;
    let mut keys = Vec::new();
    for name in ["b", "a/2", "a/1", "a-"] {
        keys.push(gateway.job_key(name));
    }
    for key in &keys {
        gateway.put(key, "x").await.expect(StatusCode::OK);
    }
    keys.sort();
    let _open = gateway.open(&gateway.job_key("pending"), 10, None).await;
    let prefix = gateway.job_key("");
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = gateway.get(&format!("/objects?prefix={prefix}&limit=3&after={after}")).await.json();
        let objects = page["objects"].as_array().unwrap();
        assert!(objects.len() <= 3 && objects.iter().all(|o| o["size"] == 1 && o["last_modified"].is_string()));
        seen.extend(objects.iter().map(|o| o["key"].as_str().unwrap().to_owned()));
        match page["next_after"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, keys);
    assert_eq!(gateway.keys(&format!("{prefix}a/")).await, keys[1..3]);
    gateway.put(&gateway.dataset_key("d"), "x").await.expect(StatusCode::OK);
    let all = gateway.keys("").await;
    assert!(all.is_sorted() && all.iter().all(|key| !key.starts_with('_')), "{all:?}");
    if !support::outside() {
        assert_eq!(all.len(), 5);
    }
}

#[tokio::test]
async fn deleting_a_prefix_takes_exactly_what_is_below_it() {
    let gateway = TestGateway::start().await;
    for name in ["a/1", "a/2", "a/b/3", "ab"] {
        gateway.put(&gateway.job_key(name), "x").await.expect(StatusCode::OK);
    }
    let delete = async |prefix: String| gateway.delete(&format!("/objects?prefix={prefix}")).await;
    let deleted = delete(gateway.job_key("a/")).await.expect(StatusCode::OK).json();
    assert_eq!(deleted, json!({ "deleted": 3 }));
    assert_eq!(gateway.keys(&gateway.job_key("")).await, [gateway.job_key("ab")]);
    assert_eq!(delete(gateway.job_key("a/")).await.expect(StatusCode::OK).json(), json!({ "deleted": 0 }));
    for prefix in ["", "jobs/", "jobs", "_staging/"] {
        delete(prefix.into()).await.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("INVALID");
    }
    gateway.delete(&object_path(&gateway.job_key("never-there"))).await.expect(StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn signed_urls_allow_one_method_on_one_key_until_they_expire() {
    let gateway = TestGateway::start().await;
    let key = gateway.job_key("events/1.json");
    let sign = async |method: &str, seconds: u32| {
        let body = json!({ "method": method, "key": key, "expires_in": seconds });
        let signed = gateway.post("/sign", &body).await.expect(StatusCode::OK).json();
        signed["url"].as_str().unwrap().to_owned()
    };
    let put = sign("PUT", 900).await;
    Reply::of(gateway.http.put(&put).body("[]")).await.expect(StatusCode::OK);
    let get = sign("GET", 900).await;
    assert_eq!(Reply::of(gateway.http.get(&get)).await.expect(StatusCode::OK).body, b"[]");

    let tampered = [
        get.replace("events/1.json", "events/2.json"),
        get.replace("X-Amz-Expires=900", "X-Amz-Expires=9000"),
        get.replace("X-Amz-Signature=", "X-Amz-Signature=0"),
    ];
    for url in tampered {
        assert_eq!(Reply::of(gateway.http.get(&url)).await.status.as_u16() / 100, 4, "{url}");
    }
    assert_eq!(Reply::of(gateway.http.put(&get).body("x")).await.status, StatusCode::FORBIDDEN);
    assert_eq!(Reply::of(gateway.http.delete(&put)).await.status, StatusCode::FORBIDDEN);

    let short = sign("GET", 1).await;
    let expired = async {
        while Reply::of(gateway.http.get(&short)).await.status == StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Reply::of(gateway.http.get(&short)).await.status
    };
    let status = tokio::time::timeout(Duration::from_secs(10), expired).await.expect("the URL never expires");
    assert_eq!(status, StatusCode::FORBIDDEN);

    for seconds in [0, 901] {
        let body = json!({ "method": "GET", "key": key, "expires_in": seconds });
        gateway.post("/sign", &body).await.expect(StatusCode::UNPROCESSABLE_ENTITY).problem("INVALID");
    }
}

#[tokio::test]
async fn verification_names_the_key_with_expected_and_actual() {
    let gateway = TestGateway::start().await;
    let (key, data) = (gateway.job_key("artifacts/a"), noise(3 * MIB));
    gateway.put(&key, data.clone()).await.expect(StatusCode::OK);
    let verify = async |size: usize, digest: String, key: &str| {
        let body = json!({ "files": [{ "key": key, "size": size, "sha256": digest }] });
        gateway.post("/verify", &body).await
    };
    verify(data.len(), sha256(&data), &key).await.expect(StatusCode::OK);
    let wrong = verify(data.len(), sha256(b"x"), &key).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        wrong.problem("CHECKSUM_MISMATCH"),
        format!("`{key}` has sha256 {}, expected {}", sha256(&data), sha256(b"x"))
    );
    assert_eq!(wrong.json()["errors"][0]["path"], key);
    let short = verify(7, sha256(&data), &key).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(short.problem("CHECKSUM_MISMATCH"), format!("`{key}` has size {}, expected 7", data.len()));
    let missing = gateway.job_key("artifacts/b");
    let absent = verify(1, sha256(b"x"), &missing).await.expect(StatusCode::NOT_FOUND);
    assert_eq!(absent.problem("NOT_FOUND"), format!("there is no object `{missing}`"));
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_leaves_nothing() {
    let gateway = TestGateway::start().await;
    let key = gateway.model_key("a");
    let broken = stream::iter(0..20)
        .map(|i| if i < 10 { Ok(noise(MIB)) } else { Err(std::io::Error::other("the client gives up")) });
    let request = gateway.request(Method::PUT, &object_path(&key)).body(reqwest::Body::wrap_stream(broken));
    assert!(request.send().await.is_err());
    assert_eq!(gateway.get_object(&key).await.status, StatusCode::NOT_FOUND);
    if support::outside() {
        return;
    }
    // The abort runs after the connection is gone; wait for its effect.
    let empty = async {
        loop {
            let entries = std::fs::read_dir(gateway.data_dir().join("s3")).unwrap();
            let files = entries.filter(|e| e.as_ref().unwrap().file_type().unwrap().is_file()).count();
            if files == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), empty).await.expect("parts were left behind");
}

/// Copies above the limit go part by part inside the store.
#[tokio::test]
async fn large_objects_are_copied_in_parts() {
    let library = support::library().await;
    let mut access = library.access();
    access.copy_limit = 6 << 20;
    let store = storage_gateway::s3::S3Store::new(access).unwrap();
    let place = |key: &str| storage_gateway::store::Place {
        bucket: library.settings.buckets.models.clone(),
        key: key.to_owned(),
    };
    let data = noise(13 * MIB + 5);
    let metadata = storage_gateway::store::Metadata::from([("sha256".into(), sha256(&data))]);
    use storage_gateway::store::ObjectStore;
    store.put(&place("_staging/x/object"), data.clone().into(), &Default::default()).await.unwrap();
    let size = u64::try_from(data.len()).unwrap();
    store.copy(&place("_staging/x/object"), &place("models/m/r/f"), size, &metadata).await.unwrap();
    let copied = store.get(&place("models/m/r/f"), None).await.unwrap();
    assert_eq!(copied.head.metadata, metadata);
    let chunks: Vec<_> = copied.body.map(|chunk| chunk.unwrap()).collect().await;
    assert!(chunks.concat() == data);
    assert_eq!(store.list_multiparts(&place("").bucket, "").await.unwrap(), []);
}
