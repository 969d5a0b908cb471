//! Refused datasets: listed with their report, of no use, in nobody's way, and forgotten in the end.

use crate::{
    app::{TestApp, chat_rows},
    models::tiny,
    sweep::{age, state},
};
use backend::{db::Conn, schema::datasets, sweep};
use chrono::{TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use serde_json::json;

const WRONG: &str = "{\"messages\": []}\n";

async fn rows(app: &TestApp) -> Vec<(String, bool)> {
    let read = async |conn: &mut Conn| {
        let columns = (datasets::name, datasets::purged_at.is_not_null());
        Ok(datasets::table.select(columns).order(datasets::name).load(conn).await?)
    };
    app.db.system(read).await.unwrap()
}

#[tokio::test]
async fn a_refused_dataset_cannot_be_used_and_makes_way_for_the_next_upload() {
    let app = TestApp::new().await;
    app.upload("words", WRONG).await.expect(422);
    let first = app.get("/datasets/words").await.expect(200);
    assert_eq!((&first["status"], &first["rows"]), (&json!("invalid"), &json!(0)));
    assert_eq!(first["files"][0]["report"]["errors"][0]["line"], 1);
    assert_snapshot!(app.get("/datasets/words/preview").await.problem(), @"409 CONFLICT: the rows of the dataset `words` were refused and not kept; its report says why");
    assert_snapshot!(app.post("/datasets/words/split", &json!({})).await.problem(), @"409 CONFLICT: the dataset `words` is not ready, so it cannot be split");
    app.import_model("tiny", &tiny()).await;
    let job = json!({"config": {"model": "tiny", "dataset": "words"}});
    assert_snapshot!(app.post("/training/jobs", &job).await.problem(), @"409 CONFLICT: the dataset `words` is invalid: its rows were refused and not kept; upload it again, corrected");
    let steps = json!({"model": {"name": "tiny"}, "dataset": {"datasets": [{"id": first["id"]}]}});
    let draft = json!({"package_name": "p", "draft": {"steps": steps}});
    let saved = app.post("/api/training/versions/auto-save", &draft).await.expect(200);
    let errors = saved["validation"]["errors"].as_array().unwrap();
    let told = errors.iter().find(|e| e["path"] == "dataset.datasets.0").unwrap();
    assert_eq!(told["message"], "the dataset `words` is invalid; upload it again, corrected");

    // Wrong again: the report is that of the last upload.
    app.upload("words", format!("{}{WRONG}", chat_rows(3))).await.expect(422);
    let second = app.get("/datasets/words").await.expect(200);
    assert_ne!(second["id"], first["id"]);
    assert_eq!(second["files"][0]["report"]["errors"][0]["line"], 4);
    assert_eq!(app.get("/datasets").await.expect(200)["items"].as_array().unwrap().len(), 1);
    // Right at last, also straight to storage.
    let content = chat_rows(2);
    let file = json!({"split": "train", "filename": "t.jsonl", "size": content.len()});
    let open = app.post("/datasets", &json!({"name": "words", "files": [file]})).await.expect(201);
    let open: wire::dataset::CreatedDataset = serde_json::from_value(open).unwrap();
    app.put_parts(&open.uploads[0], content.as_bytes()).await;
    app.post(&format!("/datasets/{}/complete", open.dataset.id), &json!(null)).await.expect(200);
    assert_eq!(rows(&app).await, [("words".to_owned(), false)], "and nothing is left of the refused ones");
    // Each refusal was told.
    let news = app.get("/api/notifications?kind=dataset.invalid").await.expect(200);
    assert_eq!(news["items"].as_array().unwrap().len(), 2);

    app.upload("bad", WRONG).await.expect(422);
    app.delete("/datasets/bad").await.expect(204);
    assert_eq!(rows(&app).await.len(), 1);
}

#[tokio::test]
async fn the_report_stays_for_a_month_and_objects_that_could_not_be_deleted_go_later() {
    let app = TestApp::new().await;
    app.upload("words", WRONG).await.expect(422);
    // As if storage had been away at that moment.
    let forget = async |conn: &mut Conn| {
        Ok(diesel::update(datasets::table)
            .set(datasets::purged_at.eq(None::<chrono::DateTime<Utc>>))
            .execute(conn)
            .await?)
    };
    app.db.system(forget).await.unwrap();
    let state = state(&app).await;
    let id = app.get("/datasets/words").await.expect(200)["id"].as_str().unwrap().to_owned();
    let key = format!("datasets/{}/{id}/train.jsonl", app.user);
    state.gateway.put_bytes(&key, "left".into()).await.unwrap();
    age(&app, Utc::now() - TimeDelta::hours(1)).await;
    sweep::sweep(&state).await.unwrap();
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await, Vec::<String>::new());
    assert_eq!(rows(&app).await, [("words".to_owned(), true)]);
    assert_eq!(app.get("/datasets/words").await.expect(200)["status"], "invalid");

    let backdate = async |conn: &mut Conn| {
        let set = datasets::validated_at.eq(Utc::now() - TimeDelta::days(31));
        Ok(diesel::update(datasets::table).set(set).execute(conn).await?)
    };
    app.db.system(backdate).await.unwrap();
    sweep::sweep(&state).await.unwrap();
    assert_eq!(rows(&app).await, []);
}
