//! What is inside: datasets and models.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use support::TestGateway;

#[tokio::test]
async fn a_dataset_is_validated_with_located_errors() {
    let gateway = TestGateway::start().await;
    let key = gateway.dataset_key("train.jsonl");
    let good = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}"#;
    gateway.put(&key, format!("{good}\n{{broken\n{good}\n\u{fffd}\n")).await.expect(StatusCode::OK);
    let report = gateway.post("/datasets/validate", &json!({ "key": key })).await.expect(StatusCode::OK).json();
    assert_eq!(
        (&report["format"], &report["rows"], &report["duplicates"]),
        (&json!("chat_jsonl"), &json!(2), &json!(1))
    );
    let lines: Vec<&Value> = report["errors"].as_array().unwrap().iter().map(|e| &e["line"]).collect();
    assert_eq!(lines, [&json!(2), &json!(4)], "{report}");
    let body = json!({ "key": key, "format": "chat_jsonl", "limit": 1 });
    let preview = gateway.post("/datasets/preview", &body).await.expect(StatusCode::OK).json();
    assert_eq!(preview["rows"], json!([serde_json::from_str::<Value>(good).unwrap()]));
    let missing = json!({ "key": gateway.dataset_key("none") });
    gateway.post("/datasets/validate", &missing).await.expect(StatusCode::NOT_FOUND).problem("NOT_FOUND");
}

#[tokio::test]
async fn a_preview_stops_reading_a_large_file_early() {
    let gateway = TestGateway::start().await;
    let key = gateway.dataset_key("long.txt");
    gateway.put(&key, "one document\n\n".repeat(2_000_000)).await.expect(StatusCode::OK);
    let body = json!({ "key": key, "format": "text", "limit": 1000 });
    let preview = gateway.post("/datasets/preview", &body).await.expect(StatusCode::OK).json();
    assert_eq!(preview["rows"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn rows_are_selected_into_a_new_object() {
    let gateway = TestGateway::start().await;
    let (from, to) = (gateway.dataset_key("all.jsonl"), gateway.dataset_key("part.jsonl"));
    // More than one part of an upload.
    let filling = "x".repeat(1000);
    let lines: Vec<String> = (0..30_000).map(|i| format!("{{\"text\": \"{i} {filling}\", \"label\": 1}}")).collect();
    gateway.put(&from, lines.join("\n")).await.expect(StatusCode::OK);
    let mut both = Vec::new();
    for part in ["chosen", "rest"] {
        let sample = json!({ "rows": lines.len(), "chosen": 27_000, "seed": 7, "part": part });
        let body = json!({ "from": from, "to": to, "format": "labelled_jsonl", "sample": sample });
        let stored = gateway.post("/datasets/select", &body).await.expect(StatusCode::OK).json();
        let content = gateway.get_object(&to).await.expect(StatusCode::OK).body;
        assert_eq!(stored["sha256"], support::sha256(&content));
        both.extend(String::from_utf8(content).unwrap().lines().map(str::to_owned));
    }
    assert_eq!(both.len(), lines.len());
    both.sort();
    let mut lines = lines;
    lines.sort();
    assert!(both == lines, "every row once, with its bytes");

    // What does not fit leaves no object.
    let sample = json!({ "rows": 10, "chosen": 5, "seed": 7, "part": "rest" });
    let (wrong, none) = (gateway.dataset_key("wrong.jsonl"), gateway.dataset_key("none"));
    let body = json!({ "from": from, "to": wrong, "format": "labelled_jsonl", "sample": sample });
    let refused = gateway.post("/datasets/select", &body).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.problem("INVALID").ends_with("there are more than 10 rows"), "{:?}", refused.json());
    gateway.get_object(&wrong).await.expect(StatusCode::NOT_FOUND);
    let body = json!({ "from": none, "to": wrong, "format": "labelled_jsonl", "sample": sample });
    gateway.post("/datasets/select", &body).await.expect(StatusCode::NOT_FOUND).problem("NOT_FOUND");
}

/// A safetensors file of zeros with these tensors.
fn safetensors(tensors: &[(&str, &str, &[u64])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += shape.iter().product::<u64>() * if *dtype == "F32" { 4 } else { 2 };
        header.insert((*name).into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + usize::try_from(end).unwrap(), 0);
    file
}

type Files = BTreeMap<&'static str, Vec<u8>>;

fn model() -> Files {
    let config = json!({ "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "max_position_embeddings": 64 });
    BTreeMap::from([
        ("config.json", config.to_string().into()),
        ("tokenizer.json", br#"{"model": {}}"#.to_vec()),
        ("tokenizer_config.json", br#"{"chat_template": "{{ x }}"}"#.to_vec()),
        ("model.safetensors", safetensors(&[("a", "F32", &[2, 3]), ("b", "BF16", &[2, 2])])),
        ("README.md", b"# A model".to_vec()),
    ])
}

fn sharded() -> Files {
    let mut files = model();
    files.remove("model.safetensors");
    files.insert("model-00001-of-00002.safetensors", safetensors(&[("a", "BF16", &[4])]));
    files.insert("model-00002-of-00002.safetensors", safetensors(&[("b", "BF16", &[8])]));
    let map = json!({ "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors" });
    files.insert("model.safetensors.index.json", json!({ "metadata": {}, "weight_map": map }).to_string().into());
    files
}

async fn inspect(gateway: &TestGateway, name: &str, files: &Files) -> support::Reply {
    let prefix = format!("models/{}/{name}/", gateway.run);
    for (path, bytes) in files {
        gateway.put(&format!("{prefix}{path}"), bytes.clone()).await.expect(StatusCode::OK);
    }
    gateway.post("/models/inspect", &json!({ "prefix": prefix })).await
}

#[tokio::test]
async fn a_sound_model_is_described() {
    let gateway = TestGateway::start().await;
    let info = inspect(&gateway, "one", &model()).await.expect(StatusCode::OK).json();
    let expected = json!({
        "architecture": "LlamaForCausalLM", "parameters": 10, "dtype": "F32", "vocab_size": 32,
        "context_length": 64, "has_chat_template": true,
        "shape": { "layers": 0, "hidden": 0, "parameters": 10, "wide_parameters": 6, "projections": [] },
    });
    assert_eq!(info, expected);
    let info = inspect(&gateway, "shards", &sharded()).await.expect(StatusCode::OK).json();
    assert_eq!((&info["parameters"], &info["dtype"]), (&json!(12), &json!("BF16")));
    let none = gateway.post("/models/inspect", &json!({ "prefix": "models/none/r/" })).await;
    none.expect(StatusCode::NOT_FOUND).problem("NOT_FOUND");
}

fn without(mut files: Files, path: &str) -> Files {
    files.remove(path).unwrap();
    files
}

fn with(mut files: Files, path: &'static str, bytes: &[u8]) -> Files {
    files.insert(path, bytes.to_vec());
    files
}

/// The model with its weights file changed.
fn weights(change: impl FnOnce(&mut Vec<u8>)) -> Files {
    let mut files = model();
    change(files.get_mut("model.safetensors").unwrap());
    files
}

/// What is wrong, the file that must be named, and how the reason begins.
fn defects() -> Vec<(Files, &'static str, &'static str)> {
    const CONFIG: &str = "config.json";
    const TOKENIZER: &str = "tokenizer.json";
    const WEIGHTS: &str = "model.safetensors";
    const SHARD: &str = "model-00002-of-00002.safetensors";
    let other = safetensors(&[("c", "BF16", &[1])]);
    let surplus = safetensors(&[("b", "BF16", &[8]), ("c", "BF16", &[1])]);
    vec![
        (without(model(), CONFIG), CONFIG, "the file is missing"),
        (with(model(), CONFIG, b"{"), CONFIG, "it is not what it should be"),
        (with(model(), CONFIG, b"{}"), CONFIG, "it has no `architectures`"),
        (without(model(), TOKENIZER), TOKENIZER, "the file is missing"),
        (with(model(), TOKENIZER, b"[]"), TOKENIZER, "it is not what it should be"),
        (with(model(), TOKENIZER, b"{}"), TOKENIZER, "it has no `model`"),
        (without(model(), WEIGHTS), WEIGHTS, "the file is missing"),
        (weights(|w| w.truncate(w.len() - 1)), WEIGHTS, "tensor `b`: its bytes 24..32 lie outside the 31 bytes"),
        (weights(|w| w.push(0)), WEIGHTS, "its tensors end at byte 32 of 33"),
        (weights(|w| w.truncate(20)), WEIGHTS, "its header claims"),
        (weights(|w| w.truncate(5)), WEIGHTS, "the file has 5 bytes"),
        (weights(|w| w[7] = 0x7f), WEIGHTS, "its header claims"),
        (weights(|w| w[8] ^= 1), WEIGHTS, "its header is not valid"),
        (with(model(), WEIGHTS, b"PK\x03\x04 and so on"), WEIGHTS, "this is a pickle"),
        (with(model(), "pytorch_model.bin", b"x"), "pytorch_model.bin", "files of this kind can run code"),
        (without(sharded(), SHARD), SHARD, "model.safetensors.index.json names this file"),
        (with(sharded(), SHARD, &other), SHARD, "model.safetensors.index.json says it holds tensor `b`"),
        (with(sharded(), SHARD, &surplus), SHARD, "it holds tensor `c`, which model.safetensors.index.json"),
    ]
}

#[tokio::test]
async fn every_defect_is_refused_naming_file_and_reason() {
    let gateway = TestGateway::start().await;
    for (i, (files, path, reason)) in defects().into_iter().enumerate() {
        let refused = inspect(&gateway, &i.to_string(), &files).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        let detail = refused.problem("MODEL_CORRUPT");
        let error = &refused.json()["errors"][0];
        assert_eq!(error["path"], path, "{detail}");
        assert!(error["message"].as_str().unwrap().starts_with(reason), "{path} {reason}: {error}");
        assert!(detail.contains(path) && detail.contains(reason), "{path} {reason}: {detail}");
    }
}

#[tokio::test]
async fn each_kind_of_unsafe_file_is_refused_and_all_are_named() {
    let gateway = TestGateway::start().await;
    let mut files = model();
    for path in ["a.pt", "b.pth", "c.PKL", "sub/d.ckpt", "e.bin"] {
        files.insert(path, b"x".to_vec());
    }
    let refused = inspect(&gateway, "unsafe", &files).await.expect(StatusCode::UNPROCESSABLE_ENTITY).json();
    let paths: Vec<&str> = refused["errors"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["a.pt", "b.pth", "c.PKL", "e.bin", "sub/d.ckpt"]);
}
