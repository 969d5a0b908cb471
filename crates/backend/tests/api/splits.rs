//! Datasets divided into two.

use crate::{
    app::{TestApp, chat_rows, file, form},
    models::tiny,
};
use insta::assert_snapshot;
use serde_json::{Value, json};
use std::collections::BTreeSet;

impl TestApp {
    /// The rows of a dataset's file, as they are stored.
    async fn rows_of(&self, dataset: &Value) -> Vec<String> {
        let key = dataset["files"][0]["key"].as_str().unwrap();
        let content = crate::sweep::state(self).await.gateway.get(key, None).await.unwrap().text().await.unwrap();
        content.lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_split_makes_two_datasets_of_the_same_rows() {
    let app = TestApp::new().await;
    let rows = chat_rows(50);
    let parent = app.upload("words", rows.clone()).await.expect(201);
    let made = app.post("/datasets/words/split", &json!({"ratio": 0.8, "seed": 7})).await.expect(201);
    let (train, rest) = (&made["train"], &made["validation"]);
    assert_eq!(
        (&train["name"], &train["rows"], &train["status"]),
        (&json!("words-train"), &json!(40), &json!("ready"))
    );
    assert_eq!((&rest["name"], &rest["rows"]), (&json!("words-validation"), &json!(10)));
    let origin = json!({"dataset_id": parent["id"], "file": "train", "part": "validation", "ratio": 0.8, "seed": 7});
    assert_eq!(rest["origin"], origin);
    assert_eq!(app.get("/datasets/words-train").await.expect(200)["origin"]["part"], "train");
    assert_eq!(train["files"][0]["report"]["format"], "chat_jsonl");

    // Every row is in one of them, with its bytes, in its order.
    let (a, b) = (app.rows_of(train).await, app.rows_of(rest).await);
    let position = |row: &String| rows.lines().position(|r| r == row).unwrap();
    for part in [&a, &b] {
        assert!(part.iter().map(position).is_sorted());
    }
    let all: BTreeSet<usize> = a.iter().chain(&b).map(position).collect();
    assert_eq!((a.len(), b.len(), all.len()), (40, 10, 50));

    // The same seed and ratio: the same files. Another seed: others.
    let again = json!({"ratio": 0.8, "seed": 7, "train_name": "a", "validation_name": "b"});
    let again = app.post("/datasets/words/split", &again).await.expect(201);
    let digests = |made: &Value| ["train", "validation"].map(|part| made[part]["files"][0]["sha256"].clone());
    assert_eq!(digests(&again), digests(&made));
    let other = json!({"ratio": 0.8, "seed": 8, "train_name": "c", "validation_name": "d"});
    assert_ne!(digests(&app.post("/datasets/words/split", &other).await.expect(201)), digests(&made));

    // The two are what jobs train on and are held against; the parent may go.
    app.import_model("tiny", &tiny()).await;
    let config = json!({"model": "tiny", "dataset": "words-train", "validation_dataset": "words-validation"});
    app.post("/training/jobs", &json!({"config": config})).await.expect(201);
    app.delete("/datasets/words").await.expect(204);
    assert_eq!(app.get("/datasets/words-train").await.expect(200)["origin"]["dataset_id"], parent["id"]);
}

#[tokio::test]
async fn documents_and_held_out_files_are_split_as_well() {
    let app = TestApp::new().await;
    app.upload("prose", "one\nmore\n\ntwo\n\nthree\n\nfour").await.expect(201);
    let made = app.post("/datasets/prose/split", &json!({"ratio": 0.5})).await.expect(201);
    assert_eq!((&made["train"]["rows"], &made["validation"]["rows"]), (&json!(2), &json!(2)));
    assert_eq!((&made["train"]["format"], &made["train"]["origin"]["seed"]), (&json!("text"), &json!(42)));
    app.upload_form(form("both", chat_rows(5)).part("validation", file("v.jsonl", chat_rows(4)))).await.expect(201);
    let made = app.post("/datasets/both/split", &json!({"ratio": 0.01, "file": "validation"})).await.expect(201);
    assert_eq!((&made["train"]["rows"], &made["validation"]["rows"]), (&json!(1), &json!(3)));
}

#[tokio::test]
async fn a_split_that_cannot_be_made_leaves_nothing() {
    let app = TestApp::new().await;
    app.upload("words", chat_rows(5)).await.expect(201);
    app.upload("one", chat_rows(1)).await.expect(201);
    app.upload("words-validation", chat_rows(1)).await.expect(201);
    let refused = async |name: &str, body: Value| app.post(&format!("/datasets/{name}/split"), &body).await.problem();
    assert_snapshot!(refused("words", json!({})).await, @"409 CONFLICT: a dataset named `words-validation` exists; choose another name, or delete it first");
    assert_snapshot!(refused("one", json!({})).await, @"409 CONFLICT: the file has fewer than two rows, so it cannot be split");
    assert_snapshot!(refused("words", json!({"ratio": 1.0})).await, @r"
    422 INVALID: ratio: must be above 0 and below 1
    - ratio: must be above 0 and below 1
    ");
    assert_snapshot!(refused("words", json!({"file": "validation"})).await, @r"
    422 INVALID: file: the dataset `words` has no such file
    - file: the dataset `words` has no such file
    ");
    assert_snapshot!(refused("words", json!({"train_name": "x", "validation_name": "x"})).await, @r"
    422 INVALID: validation_name: must not be the other dataset's
    - validation_name: must not be the other dataset's
    ");
    assert_eq!(
        refused("words", json!({"train_name": "../x"})).await.lines().next().unwrap().split(':').next(),
        Some("422 INVALID")
    );
    assert_eq!(refused("nothing", json!({})).await.split(':').next(), Some("404 NOT_FOUND"));
    // Storage is away: both names are free again.
    let lost = app.sibling(&[("STORAGE_GATEWAY_URL", "http://127.0.0.1:1")]).await;
    let body = json!({"train_name": "x", "validation_name": "y"});
    assert_eq!(lost.post("/datasets/words/split", &body).await.status.as_u16(), 503);
    assert_eq!(app.get("/datasets").await.expect(200)["items"].as_array().unwrap().len(), 3);
    app.post("/datasets/words/split", &body).await.expect(201);
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await.len(), 5);
}
