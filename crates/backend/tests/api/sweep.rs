//! What a backend that dies in mid-upload leaves is removed later.

use crate::app::{TestApp, chat_rows};
use backend::{
    AppState, config::Config, db::Conn, gateway::Gateway, hub::HubClient, limits::Limits, schema, store::Dataset, sweep,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::{prelude::*, sql_types::Timestamptz};
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use serde_json::{Value, json};
use service::Env;
use std::sync::Arc;
use wire::{
    dataset::{CreatedDataset, DatasetStatus},
    layout,
};

/// The state of a backend in this process, beside the one that serves.
pub async fn state(app: &TestApp) -> AppState {
    let env: Env = [
        ("DATABASE_URL", app.database_url.as_str()),
        ("STORAGE_GATEWAY_URL", app.gateway_url()),
        ("TOKEN_SIGNING_KEY", crate::app::SIGNING_KEY),
        ("TRAINING_MODE", "http"),
        ("TRAINER_SERVICE_URL", "http://127.0.0.1:9"),
    ]
    .into_iter()
    .collect();
    let config = Config::from_env(&env).unwrap();
    AppState {
        db: app.db.clone(),
        gateway: Gateway::new(&config.gateway_url, &config.token_key).unwrap(),
        hub: HubClient::new(&config.hub).unwrap(),
        launcher: backend::jobs::launcher(&config).await.unwrap(),
        outgoing: backend::webhooks::client(config.outgoing.clone()).unwrap(),
        base_url: app.url.clone(),
        limits: Arc::new(Limits::new(&config.limits)),
        oidc: None,
        leader: backend::leader::Leadership::new(config.leader_lease),
        config: Arc::new(config),
    }
}

/// Makes every row look as old as `at`; the trigger that touches rows is off meanwhile.
pub async fn age(app: &TestApp, at: DateTime<Utc>) {
    // Only the owner may turn triggers off.
    let (client, connection) = app.db.postgres().connect(tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    for table in ["datasets", "models"] {
        let sql = format!(
            "ALTER TABLE {table} DISABLE TRIGGER touch; UPDATE {table} SET updated_at = '{}'; ALTER TABLE {table} ENABLE TRIGGER touch",
            at.to_rfc3339()
        );
        client.batch_execute(&sql).await.unwrap();
    }
    drop(client);
    connection.await.unwrap().unwrap();
}

async fn rows(app: &TestApp) -> (i64, i64) {
    let count = async |conn: &mut Conn| {
        let datasets = schema::datasets::table.count().get_result(conn).await?;
        Ok((datasets, schema::models::table.count().get_result(conn).await?))
    };
    app.db.system(count).await.unwrap()
}

#[tokio::test]
async fn abandoned_uploads_are_removed_when_they_are_old_and_ready_ones_stay() {
    let app = TestApp::new().await;
    app.upload("ready", chat_rows(2)).await.expect(201);
    let file = json!({"split": "train", "filename": "t.jsonl", "size": 5});
    app.post("/datasets", &json!({"name": "session", "files": [file]})).await.expect(201);
    let model = json!({"name": "tiny", "files": [
        {"path": "config.json", "size": 1, "sha256": "0".repeat(64)},
        {"path": "model.safetensors", "size": 1, "sha256": "1".repeat(64)},
    ]});
    app.post("/api/models", &model).await.expect(201);
    // A stream whose backend died: a row without sessions, and perhaps an object.
    let user = app.user;
    let orphan = async move |conn: &mut Conn| {
        backend::store::Dataset::insert(conn, user, wire::DatasetId::random(), "orphan").await.map(|d| d.prefix())
    };
    let prefix = app.db.tenant(user, orphan).await.unwrap();
    let state = state(&app).await;
    state.gateway.put_bytes(&format!("{prefix}train.jsonl"), "half".into()).await.unwrap();

    sweep::sweep(&state).await.unwrap();
    assert_eq!(rows(&app).await, (3, 1), "fresh uploads are left alone");
    age(&app, Utc::now() - TimeDelta::hours(1)).await;
    sweep::sweep(&state).await.unwrap();
    assert_eq!(rows(&app).await, (2, 1), "a stream that is silent for an hour is dead, a session is not");
    assert_eq!(app.objects(&prefix).await, Vec::<String>::new());
    age(&app, Utc::now() - TimeDelta::hours(25)).await;
    sweep::sweep(&state).await.unwrap();
    assert_eq!(rows(&app).await, (1, 0));
    assert_eq!(app.get("/datasets/ready").await.expect(200)["rows"], 2);
}

#[tokio::test]
async fn a_validation_whose_backend_died_can_be_started_again() {
    let app = TestApp::new().await;
    let rows = chat_rows(3);
    let file = json!({"split": "train", "filename": "t.jsonl", "size": rows.len()});
    let created = app.post("/datasets", &json!({"name": "words", "files": [file]})).await.expect(201);
    let created: CreatedDataset = serde_json::from_value(created).unwrap();
    app.put_parts(&created.uploads[0], rows.as_bytes()).await;
    let (id, complete) = (created.dataset.id, format!("/datasets/{}/complete", created.dataset.id));
    let die = async move |conn: &mut Conn| {
        Dataset::advance(conn, id, DatasetStatus::Uploading, DatasetStatus::Validating).await
    };
    assert!(app.db.tenant(app.user, die).await.unwrap());
    assert_snapshot!(app.post(&complete, &Value::Null).await.problem(), @"409 CONFLICT: another request is validating this dataset; ask for it in a moment");
    age(&app, Utc::now() - TimeDelta::minutes(10)).await;
    assert_eq!(app.post(&complete, &Value::Null).await.expect(200)["status"], "ready");
}

#[tokio::test]
async fn objects_that_could_not_be_deleted_are_deleted_later() {
    let app = TestApp::new().await;
    app.upload("words", chat_rows(2)).await.expect(201);
    let lost = app.sibling(&[("STORAGE_GATEWAY_URL", "http://127.0.0.1:1")]).await;
    lost.delete("/datasets/words").await.expect(204);
    app.get("/datasets/words").await.expect(404);
    let prefix = format!("datasets/{}/", app.user);
    assert_eq!(app.objects(&prefix).await.len(), 1);

    let hour_ago = Utc::now() - TimeDelta::hours(1);
    let backdate = async move |conn: &mut Conn| {
        let sql = diesel::sql_query("UPDATE datasets SET deleted_at = $1").bind::<Timestamptz, _>(hour_ago);
        Ok(sql.execute(conn).await?)
    };
    assert_eq!(app.db.system(backdate).await.unwrap(), 1);
    let state = state(&app).await;
    sweep::sweep(&state).await.unwrap();
    assert_eq!(app.objects(&prefix).await, Vec::<String>::new());
    let purged = async |conn: &mut Conn| {
        Ok(schema::datasets::table.select(schema::datasets::purged_at.is_not_null()).load::<bool>(conn).await?)
    };
    assert_eq!(app.db.system(purged).await.unwrap(), [true], "and not looked at again");
    assert_eq!(app.get("/datasets").await.expect(200)["items"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn what_ended_attempts_left_half_done_is_removed_after_an_hour_and_whole_things_stay() {
    let app = TestApp::new().await;
    let (user, job) = (app.user, wire::JobId::random());
    app.sql(format!(
        "INSERT INTO models (name, revision, user_id, status) VALUES ('m', 'r', '{user}', 'ready');
         INSERT INTO datasets (id, user_id, name, status, storage_path) VALUES ('{user}', '{user}', 'd', 'ready', 'datasets/');
         INSERT INTO training_jobs (id, user_id, name, state, config, model_name, model_revision, dataset_id, dataset_name, spec)
            VALUES ('{job}', '{user}', 'job', 'running', '{{}}', 'm', 'r', '{user}', 'd', '{{}}');
         INSERT INTO job_attempts (job_id, attempt, user_id, epoch, outcome, finished_at, manifest) VALUES
            ('{job}', 1, '{user}', 1, 'failed', now() - interval '61 minutes', NULL),
            ('{job}', 2, '{user}', 2, 'succeeded', now() - interval '61 minutes', '[]'),
            ('{job}', 3, '{user}', 3, 'failed', now() - interval '59 minutes', NULL),
            ('{job}', 4, '{user}', 4, NULL, NULL, NULL)"
    ))
    .await;
    let state = state(&app).await;
    let whole = [
        "checkpoints/checkpoint-5/manifest.json",
        "checkpoints/checkpoint-5/optimizer.safetensors",
        "logs/trainer.log",
    ];
    let half = ["artifacts/adapter_model.safetensors", "checkpoints/checkpoint-9/optimizer.safetensors"];
    for attempt in 1..=4 {
        for name in whole.iter().chain(&half) {
            let key = format!("{}{name}", layout::attempt_prefix(user, job, attempt));
            state.gateway.put_bytes(&key, "x".into()).await.unwrap();
        }
    }
    sweep::sweep(&state).await.unwrap();
    let left = async |attempt| {
        let prefix = layout::attempt_prefix(user, job, attempt);
        let keys = app.objects(&prefix).await;
        keys.iter().map(|key| key.strip_prefix(&prefix).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(left(1).await, whole, "an attempt that failed");
    let results = [&half[..1], &whole].concat();
    assert_eq!(left(2).await, results, "one that left results");
    let all = [&half[..1], &whole[..2], &half[1..], &whole[2..]].concat();
    assert_eq!(left(3).await, all, "one that ended a moment ago");
    assert_eq!(left(4).await, all, "one that runs");
}
