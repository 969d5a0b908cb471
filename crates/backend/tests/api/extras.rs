//! Datasets after their upload: pages, statistics, usage, names, quotas. And artifacts: where they come from, downloads,
//! deletion.

use crate::app::{TestApp, chat_rows, form, send};
use backend::{db::Conn, schema};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wire::{artifact::Lineage, dataset::DatasetUsage, model::ModelView};

impl TestApp {
    pub async fn change(&self, path: &str, body: Value) -> crate::app::Reply {
        send(self.request(Method::PATCH, path).json(&body)).await
    }

    async fn state(&self, job: &str, state: &'static str) {
        let id: uuid::Uuid = job.parse().unwrap();
        let set = async move |conn: &mut Conn| {
            let this = diesel::update(schema::training_jobs::table.find(id));
            this.set(schema::training_jobs::state.eq(state)).execute(conn).await?;
            Ok(())
        };
        self.db.system(set).await.unwrap();
    }
}

#[tokio::test]
async fn rows_come_in_pages() {
    let app = TestApp::new().await;
    app.upload("words", chat_rows(7)).await.expect(201);
    let asked = async |query: &str| {
        let page = app.get(&format!("/datasets/words/preview?{query}")).await.expect(200);
        let rows = page["rows"].as_array().unwrap().iter();
        rows.map(|r| r["messages"][0]["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(asked("limit=2&offset=5").await, ["What is word 5?", "What is word 6?"]);
    assert_eq!(asked("limit=2&offset=6").await, ["What is word 6?"]);
    assert!(asked("offset=7").await.is_empty());
}

#[tokio::test]
async fn statistics_are_those_of_validation() {
    let app = TestApp::new().await;
    let row =
        |text: &str| json!({"messages": [{"role": "user", "content": "ü"}, {"role": "assistant", "content": text}]});
    let rows = [row("a"), row("a"), row("abcdefg")].map(|r| r.to_string() + "\n").concat();
    app.upload("words", rows).await.expect(201);
    let told = app.get("/datasets/words/statistics").await.expect(200);
    assert_eq!((&told["rows"], &told["duplicates"]), (&json!(3), &json!(1)));
    let file = &told["files"][0];
    assert_eq!(file["statistics"]["roles"], json!({"assistant": 3, "user": 3}));
    let lengths = &file["statistics"]["characters"];
    assert_eq!(
        (&lengths["total"], &lengths["min"], &lengths["p50"], &lengths["max"]),
        (&json!(12), &json!(2), &json!(2), &json!(8))
    );
    assert_eq!(lengths["histogram"], json!([{"up_to": 2, "rows": 2}, {"up_to": 8, "rows": 1}]));
}

#[tokio::test]
async fn a_dataset_gets_another_name_and_a_description() {
    let app = TestApp::new().await;
    app.upload("words", chat_rows(2)).await.expect(201);
    app.upload("others", chat_rows(2)).await.expect(201);
    let view =
        app.change("/datasets/words", json!({"name": "terms", "description": "Words and what they mean."})).await;
    let view = view.expect(200);
    assert_eq!((&view["name"], &view["description"]), (&json!("terms"), &json!("Words and what they mean.")));
    assert_eq!(app.get("/datasets/terms").await.expect(200), view);
    assert_eq!(app.get("/datasets/words").await.status, 404);
    assert_snapshot!(app.change("/datasets/terms", json!({"name": "others"})).await.problem(), @"409 CONFLICT: a dataset of this name exists; choose another name or delete it");
    assert_eq!(app.change("/datasets/terms", json!({"name": "a/b"})).await.status, 422);
    assert_eq!(app.change("/datasets/terms", json!({"description": "x".repeat(2001)})).await.status, 422);
    assert_eq!(app.change("/datasets/terms", json!({})).await.expect(200)["name"], "terms");
}

#[tokio::test]
async fn usage_names_jobs_and_versions_and_drafts_hold_a_dataset() {
    let app = TestApp::ready_to_train().await;
    let dataset = app.get("/datasets/words").await.expect(200)["id"].clone();
    let job = app.post("/training/jobs", &json!({"config": {"model": "tiny", "dataset": "words"}})).await.expect(201);
    let draft = json!({"package_name": "mine", "draft": {"steps": {"dataset": {"datasets": [{"id": dataset}]}}}});
    let draft = app.post("/api/training/versions/auto-save", &draft).await;
    assert!(draft.status.is_success(), "{:?}", draft.body);
    let usage: DatasetUsage = serde_json::from_value(app.get("/datasets/words/usage").await.expect(200)).unwrap();
    assert_eq!((usage.jobs.len(), usage.jobs[0].blocks_deletion), (1, true));
    assert_eq!((usage.versions.len(), usage.versions[0].blocks_deletion), (1, true));
    assert_eq!(usage.versions[0].id.to_string(), draft.body["id"].as_str().unwrap());
    app.state(job["id"].as_str().unwrap(), "failed").await;
    let refused = app.delete("/datasets/words").await.problem().replace(&usage.versions[0].name, "DRAFT");
    assert_snapshot!(refused, @"409 CONFLICT: unfinished jobs or drafts use this dataset; cancel or change them first: draft DRAFT");
    app.delete(&format!("/api/training/versions/{}", usage.versions[0].id)).await.expect(204);
    assert_eq!(app.delete("/datasets/words").await.status, 204);
}

#[tokio::test]
async fn a_user_has_so_many_datasets_and_bytes() {
    let app = TestApp::set(&[("DATASETS_PER_USER", "2"), ("DATASET_BYTES_PER_USER", "2000")]).await;
    let rows = chat_rows(5);
    app.upload("one", rows.clone()).await.expect(201);
    let create = json!({"name": "big", "files": [{"split": "train", "filename": "t.jsonl", "size": 1900}]});
    let refused = app.post("/datasets", &create).await.problem().replace(&rows.len().to_string(), "BYTES");
    assert_snapshot!(refused, @"413 TOO_LARGE: your datasets have BYTES bytes, this one would add 1900, and 2000 are allowed; delete some first");
    app.upload("two", rows.clone()).await.expect(201);
    assert_snapshot!(app.upload_form(form("three", rows.clone())).await.problem(), @"429 OVERLOADED: you have 2 datasets, and 2 are allowed; delete some first");
    app.delete("/datasets/one").await.expect(204);
    app.upload("three", rows).await.expect(201);
}

#[tokio::test]
async fn an_artifact_tells_where_it_comes_from_and_is_held_by_a_job_that_goes_on_from_it() {
    let app = TestApp::ready_to_train().await;
    let create = async |config: Value| app.post("/training/jobs", &json!({"config": config})).await;
    let job = create(json!({"model": "tiny", "dataset": "words"})).await.expect(201)["id"].as_str().unwrap().to_owned();
    let (user, id): (_, uuid::Uuid) = (app.user.0, job.parse().unwrap());
    let model: ModelView = serde_json::from_value(app.get("/api/models/tiny").await.expect(200)).unwrap();
    let prefix = format!("jobs/{user}/{job}/attempt-9/artifacts/");
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    let digest = hex::encode(Sha256::digest(b"x"));
    let stored = json!(files.map(|f| json!({"path": f, "size": 1, "sha256": digest})));
    let manifest = json!(files.map(|f| json!({"key": format!("{prefix}{f}"), "size": 1, "sha256": digest})));
    let (name, revision) = (model.name.clone(), model.revision.clone());
    let artifact = uuid::Uuid::now_v7();
    let store = async move |conn: &mut Conn| {
        use schema::{job_attempts as t, model_artifacts as a};
        let row =
            (t::job_id.eq(id), t::user_id.eq(user), t::attempt.eq(9), t::epoch.eq(9_i64), t::manifest.eq(manifest));
        diesel::insert_into(t::table).values(row).execute(conn).await?;
        let row = (
            a::id.eq(artifact),
            a::user_id.eq(user),
            a::job_id.eq(id),
            a::attempt.eq(9),
            a::name.eq("one"),
            a::kind.eq("adapter"),
            a::base_model.eq(name),
            a::base_revision.eq(revision),
            a::storage_path.eq(prefix),
            a::size.eq(2_i64),
            a::files.eq(stored),
            a::metrics.eq(json!({})),
        );
        diesel::insert_into(a::table).values(row).execute(conn).await?;
        Ok(())
    };
    app.db.system(store).await.unwrap();
    app.state(&job, "succeeded").await;

    let path = format!("/api/artifacts/{artifact}");
    let lineage: Lineage = serde_json::from_value(app.get(&format!("{path}/lineage")).await.expect(200)).unwrap();
    assert_eq!((lineage.job.id.to_string(), lineage.version, lineage.continued_from), (job.clone(), None, None));
    assert_eq!((lineage.base_model.revision, lineage.base_model.files), (model.revision, model.files));
    let data = app.get("/datasets/words").await.expect(200);
    assert_eq!(json!(lineage.datasets[0].sha256), data["files"][0]["sha256"]);
    assert_eq!(lineage.files.len(), 2);
    let download = app.post(&format!("{path}/download"), &json!({})).await.expect(200);
    assert_eq!(download["files"].as_array().unwrap().len(), 2);
    assert!(download["files"][0]["url"].as_str().unwrap().starts_with("http"));

    let next = create(json!({"model": "tiny", "dataset": "words", "lora": {"init_from": job}})).await.expect(201);
    let next = next["id"].as_str().unwrap();
    app.state(next, "paused").await;
    let refused = app.delete(&path).await.problem().replace(next, "JOB");
    assert_snapshot!(refused, @"409 CONFLICT: unfinished jobs or versions continue from this adapter; cancel, change or archive them first: job JOB");
    app.state(next, "cancelled").await;
    let draft = json!({"package_name": "on", "draft": {"steps": {"config": {"lora": {"init_from": job}}}}});
    let draft = app.post("/api/training/versions/auto-save", &draft).await.expect(200);
    let (name, draft) = (draft["name"].as_str().unwrap(), draft["id"].as_str().unwrap());
    assert!(app.delete(&path).await.problem().ends_with(&format!("archive them first: version {name}")));
    app.delete(&format!("/api/training/versions/{draft}")).await.expect(204);

    // Deleting hides it at once; the sweeper frees its storage once nobody can be reading it any more.
    let sweeper = crate::sweep::state(&app).await;
    let below = format!("jobs/{user}/{job}/");
    let prefix = format!("{below}attempt-9/artifacts/");
    for name in ["adapter_config.json", "adapter_model.safetensors", "manifest.json"] {
        sweeper.gateway.put_bytes(&format!("{prefix}{name}"), "x".into()).await.unwrap();
    }
    sweeper.gateway.put_bytes(&format!("{below}attempt-9/logs/trainer.log"), "x".into()).await.unwrap();
    app.delete(&path).await.expect(204);
    backend::sweep::sweep(&sweeper).await.unwrap();
    assert_eq!(app.objects(&below).await.len(), 4, "download URLs are still good");
    backdate(&app).await;
    // A job that began to continue from it at the last moment.
    app.state(next, "paused").await;
    backend::sweep::sweep(&sweeper).await.unwrap();
    assert_eq!(app.objects(&below).await.len(), 4, "a job needs it");
    app.state(next, "failed").await;
    backend::sweep::sweep(&sweeper).await.unwrap();
    assert_eq!(
        app.objects(&below).await,
        [format!("{below}attempt-9/logs/trainer.log")],
        "and nothing but its objects"
    );
    let purged = async |conn: &mut Conn| {
        Ok(schema::model_artifacts::table
            .select(schema::model_artifacts::purged_at.is_not_null())
            .load::<bool>(conn)
            .await?)
    };
    assert_eq!(app.db.system(purged).await.unwrap(), [true], "and not looked at again");
    assert_eq!(app.get(&path).await.status, 404);
    assert_eq!(app.get(&format!("/training/jobs/{job}/artifacts")).await.expect(200), json!([]));
    let refused = create(json!({"model": "tiny", "dataset": "words", "lora": {"init_from": job}})).await.problem();
    assert!(refused.contains("was deleted"), "{refused}");
}

/// As if the artifacts had been deleted an hour ago.
async fn backdate(app: &TestApp) {
    let work = async |conn: &mut Conn| {
        let set = schema::model_artifacts::deleted_at.eq(chrono::Utc::now() - chrono::TimeDelta::hours(1));
        Ok(diesel::update(schema::model_artifacts::table).set(set).execute(conn).await?)
    };
    assert_eq!(app.db.system(work).await.unwrap(), 1);
}
