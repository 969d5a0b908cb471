//! Jobs: create, read, list. What happens to them afterwards is tested with the job machinery.

use crate::{
    app::{TestApp, chat_rows, file, send},
    models::{tiny, tiny_with},
};
use backend::{db::Conn, schema};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};
use wire::{JobId, JobView};

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000002";

fn config() -> Value {
    json!({"model": "tiny", "dataset": "words", "training": {"max_steps": 3}})
}

/// `config` with other values at the top.
fn with(changes: Value) -> Value {
    let mut config = config();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

impl TestApp {
    /// With the model `tiny` and the dataset `words`.
    pub async fn ready_to_train() -> Self {
        let app = Self::new().await;
        app.import_model("tiny", &tiny()).await;
        let form = crate::app::form("words", chat_rows(5)).part("validation", file("v.jsonl", chat_rows(2)));
        app.upload_form(form).await.expect(201);
        app
    }

    async fn create_job(&self, config: Value) -> crate::app::Reply {
        self.post("/training/jobs", &json!({"config": config})).await
    }

    async fn a_job(&self) -> JobView {
        serde_json::from_value(self.create_job(config()).await.expect(201)).unwrap()
    }
}

#[tokio::test]
async fn a_created_job_is_queued_with_a_snapshot_of_model_and_dataset() {
    let app = TestApp::ready_to_train().await;
    let model = app.get("/api/models/tiny").await.expect(200);
    let dataset = app.get("/datasets/words").await.expect(200);
    let job = app.a_job().await;
    assert_eq!((job.state.as_str(), job.name.as_str(), job.max_attempts), ("queued", "tiny-words", 3));
    assert_eq!((job.attempt, job.model_revision.as_str()), (0, model["revision"].as_str().unwrap()));
    assert_eq!((job.config.training.max_steps, job.config.lora.r), (3, 16), "defaults are filled in");

    let id = job.id.0;
    let read = async move |conn: &mut Conn| {
        let spec = schema::training_jobs::table.find(id).select(schema::training_jobs::spec);
        let log = schema::job_events::table.filter(schema::job_events::job_id.eq(id));
        let first = log.order(schema::job_events::id).select(schema::job_events::body);
        Ok((spec.first::<Value>(conn).await?, first.first::<Value>(conn).await?))
    };
    let (spec, event) = app.db.system(read).await.unwrap();
    assert_eq!(spec["model"]["prefix"], format!("models/tiny/{}/", job.model_revision));
    assert_eq!(spec["model"]["files"], model["files"]);
    assert_eq!(spec["dataset"]["train"]["key"], dataset["files"][0]["key"]);
    assert_eq!(spec["dataset"]["validation"]["sha256"], dataset["files"][1]["sha256"]);
    assert_eq!((&event["stream"], &event["state"]), (&json!("state"), &json!("queued")));
}

#[tokio::test]
async fn every_error_of_a_configuration_is_reported_with_its_path() {
    let app = TestApp::ready_to_train().await;
    let create = async |config: Value| app.create_job(config).await.problem();
    assert_snapshot!(create(with(json!({"training": {"learning_rat": 1e-4}, "loar": {}}))).await, @r"
    422 INVALID: training configuration: loar: is not a configuration key (did you mean `lora`?) (and 1 more)
    - loar: is not a configuration key (did you mean `lora`?)
    - training.learning_rat: is not a configuration key (did you mean `training.learning_rate`?)
    ");
    assert_snapshot!(create(with(json!({"lora": {"r": 0}, "training": {"learning_rate": -1, "warmup_ratio": 2}}))).await, @r"
    422 INVALID: training configuration: lora.r: must be between 1 and 1024, not 0 (and 2 more)
    - lora.r: must be between 1 and 1024, not 0
    - training.learning_rate: must be a positive number, not -1
    - training.warmup_ratio: must be at least 0 and below 1, not 2
    ");
    assert_snapshot!(create(with(json!({"training": {"max_steps": "many"}}))).await, @r#"
    422 INVALID: training configuration: training.max_steps: invalid type: string "many", expected i64
    - training.max_steps: invalid type: string "many", expected i64
    "#);
    assert_snapshot!(create(json!({})).await, @r"
    422 INVALID: training configuration: model: is required: the name of a base model (and 1 more)
    - model: is required: the name of a base model
    - dataset: is required: the name of a dataset
    ");
    assert_snapshot!(create(with(json!({"method": "grpo"}))).await, @r"
    422 INVALID: training configuration: method: unknown variant `grpo`, expected one of `sft`, `full`, `pretrain`, `dpo`, `classification`
    - method: unknown variant `grpo`, expected one of `sft`, `full`, `pretrain`, `dpo`, `classification`
    ");
    assert_snapshot!(create(with(json!({"method": "dpo"}))).await, @r"
    422 INVALID: training configuration: method: `dpo` needs preference pairs, and this dataset has none; use a dataset with `prompt`, `chosen` and `rejected`
    - method: `dpo` needs preference pairs, and this dataset has none (use a dataset with `prompt`, `chosen` and `rejected`)
    ");
    assert_snapshot!(create(with(json!({"name": "n".repeat(300)}))).await, @"422 INVALID: name: must have at most 200 characters");
    let unknown = app.post("/training/jobs", &json!({"config": config(), "priority": 1})).await;
    assert_snapshot!(unknown.problem(), @r"
    422 INVALID: request body: priority: unknown field `priority`, expected one of `config`, `max_attempts`, `gpu_config`, `budget_limit`, `trainer`
    - priority: unknown field `priority`, expected one of `config`, `max_attempts`, `gpu_config`, `budget_limit`, `trainer`
    ");
    let attempts = app.post("/training/jobs", &json!({"config": config(), "max_attempts": 0})).await;
    assert_snapshot!(attempts.problem(), @"422 INVALID: max_attempts: must be between 1 and 20, not 0");
    let broken = send(app.request(Method::POST, "/training/jobs").body("{\"config\": ")).await;
    assert_snapshot!(broken.problem(), @"422 INVALID: request body: Json deserialize error: EOF while parsing a value at line 1 column 11");
    assert_eq!(app.get("/training/jobs").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn unknown_models_and_datasets_are_answered_with_near_names() {
    let app = TestApp::ready_to_train().await;
    let create = async |changes: Value| app.create_job(with(changes)).await.problem();
    assert_snapshot!(create(json!({"model": "tinny"})).await, @"404 NOT_FOUND: no model named `tinny`; did you mean tiny?");
    assert_snapshot!(create(json!({"model": "llama-3"})).await, @"404 NOT_FOUND: no model named `llama-3`; known: tiny");
    assert_snapshot!(create(json!({"dataset": "wrods"})).await, @"404 NOT_FOUND: no dataset named `wrods`; did you mean words?");
    let revision = create(json!({"model": "tiny@0000000000000000"})).await;
    assert!(revision.starts_with("404 NOT_FOUND: no revision of tiny named `0000000000000000`"), "{revision}");
}

#[tokio::test]
async fn a_revision_can_be_pinned() {
    let app = TestApp::ready_to_train().await;
    let first = app.get("/api/models/tiny").await.expect(200)["revision"].as_str().unwrap().to_owned();
    let second = app.import_model("tiny", &tiny_with(1)).await.revision;
    let job = app.create_job(with(json!({"model": format!("tiny@{first}")}))).await.expect(201);
    assert_eq!(job["model_revision"], first);
    assert_eq!(app.a_job().await.model_revision, second);
}

#[tokio::test]
async fn a_dataset_that_is_not_ready_or_does_not_fit_is_refused() {
    let app = TestApp::ready_to_train().await;
    let file = json!({"split": "train", "filename": "t.jsonl", "size": 10});
    app.post("/datasets", &json!({"name": "later", "files": [file]})).await.expect(201);
    let prose = crate::app::form("prose", "Once upon a time.\n\nThere was a word.\n");
    app.upload_form(prose).await.expect(201);
    let rows = "{\"instruction\": \"say it\", \"output\": \"it\"}\n";
    app.upload("orders", rows).await.expect(201);
    let create = async |changes: Value| app.create_job(with(changes)).await.problem();
    assert_snapshot!(create(json!({"dataset": "later"})).await, @"409 CONFLICT: the dataset `later` is still being uploaded; train when it is ready");
    assert_snapshot!(create(json!({"dataset": "prose"})).await, @r"
    422 INVALID: training configuration: method: needs rows with answers to learn, and this dataset is plain text; use `pretrain`
    - method: needs rows with answers to learn, and this dataset is plain text (use `pretrain`)
    ");
    assert_snapshot!(create(json!({"dataset": "orders", "method": "pretrain"})).await, @r"
    422 INVALID: training configuration: method: `pretrain` needs a text or chat dataset, and this one holds instructions; use `sft` or `full`
    - method: `pretrain` needs a text or chat dataset, and this one holds instructions (use `sft` or `full`)
    ");
    app.create_job(with(json!({"dataset": "prose", "method": "pretrain"}))).await.expect(201);
    app.create_job(with(json!({"dataset": "orders", "method": "full"}))).await.expect(201);
    app.create_job(with(json!({"dataset": "words", "method": "pretrain"}))).await.expect(201);
}

async fn create_with_key(app: &TestApp, key: &str, body: &Value) -> crate::app::Reply {
    send(app.request(Method::POST, "/training/jobs").header("idempotency-key", key).json(body)).await
}

#[tokio::test]
async fn the_same_request_with_one_key_is_answered_once_and_replayed() {
    let app = TestApp::ready_to_train().await;
    let body = json!({"config": config()});
    let first = create_with_key(&app, "k1", &body).await.expect(201);
    let reordered = json!({"config": {"training": {"max_steps": 3}, "dataset": "words", "model": "tiny"}});
    assert_eq!(create_with_key(&app, "k1", &reordered).await.expect(201), first, "as it was, not as it is now");
    let other = create_with_key(&app, "k1", &json!({"config": config(), "max_attempts": 1})).await;
    assert_snapshot!(other.problem(), @"409 CONFLICT: this Idempotency-Key was used for a request with another body; use a new key");
    let package = app.request(Method::POST, "/api/training/packages").header("idempotency-key", "k1");
    let of_another_kind = send(package.json(&json!({"name": "p"}))).await;
    assert_snapshot!(of_another_kind.problem(), @"409 CONFLICT: this Idempotency-Key was used for a request with another body; use a new key");
    assert_snapshot!(create_with_key(&app, "", &body).await.problem(), @"422 INVALID: Idempotency-Key: must have 1 to 200 characters");
    assert_ne!(create_with_key(&app, "k2", &body).await.expect(201)["id"], first["id"]);
    // A refused request leaves its key unused.
    create_with_key(&app, "k3", &json!({"config": with(json!({"model": "none"}))})).await.expect(404);
    create_with_key(&app, "k3", &body).await.expect(201);
    // Another user's keys are their own.
    app.add_user("other", OTHER_KEY).await;
    let request = app.anonymous(Method::POST, "/training/jobs").bearer_auth(OTHER_KEY).header("idempotency-key", "k1");
    send(request.json(&body)).await.expect(404);
}

#[tokio::test]
async fn fifty_concurrent_requests_with_one_key_make_one_job() {
    let app = TestApp::ready_to_train().await;
    let body = json!({"config": config()});
    let replies = futures::future::join_all((0..50).map(|_| create_with_key(&app, "k", &body))).await;
    let mut ids: Vec<String> = replies.into_iter().map(|r| r.expect(201)["id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(app.get("/training/jobs").await.expect(200)["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn jobs_are_listed_newest_first_and_by_state() {
    let app = TestApp::ready_to_train().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(app.a_job().await.id.to_string());
    }
    ids.reverse();
    let first = app.get("/training/jobs?limit=2").await.expect(200);
    let second = app.get(&format!("/training/jobs?limit=2&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    let second = second.expect(200);
    let listed: Vec<&str> = [&first, &second]
        .iter()
        .flat_map(|p| p["items"].as_array().unwrap())
        .map(|j| j["id"].as_str().unwrap())
        .collect();
    assert_eq!((listed, second.get("next_cursor")), (ids.iter().map(String::as_str).collect(), None));
    assert_eq!(app.get("/training/jobs?state=paused").await.expect(200)["items"], json!([]));
    assert_snapshot!(app.get("/training/jobs?state=done").await.problem(), @"422 INVALID: query string: Query deserialize error: unknown variant `done`, expected one of `validating`, `queued`, `starting`, `running`, `finalizing`, `retry_wait`, `pausing`, `paused`, `cancelling`, `succeeded`, `failed`, `cancelled`");
}

/// Metric rows (attempt, step, name, value) of a job, as its trainer's reports leave them.
pub async fn store_metrics(app: &TestApp, job: JobId, rows: &[(i32, i64, &str, f64)]) {
    use schema::metrics_points as m;
    let user = app.user.0;
    let rows: Vec<(i32, i64, String, f64)> = rows.iter().map(|(a, s, n, v)| (*a, *s, (*n).to_owned(), *v)).collect();
    let insert = async move |conn: &mut Conn| {
        for (attempt, step, name, value) in rows {
            let row = (
                m::job_id.eq(job.0),
                m::user_id.eq(user),
                m::attempt.eq(attempt),
                m::step.eq(step),
                m::name.eq(name),
                m::epoch.eq(0.5),
                m::value.eq(value),
                m::at.eq(chrono::Utc::now()),
            );
            diesel::insert_into(m::table).values(row).execute(conn).await?;
        }
        Ok(())
    };
    app.db.system(insert).await.unwrap();
}

#[tokio::test]
async fn metrics_are_one_point_per_step_over_all_attempts() {
    let app = TestApp::ready_to_train().await;
    let job = app.a_job().await.id;
    let rows = [
        (1, 0, "eval_loss", 9.0),
        (1, 1, "train_loss", 8.0),
        (1, 1, "learning_rate", 0.1),
        (1, 2, "train_loss", 7.0),
        (1, 2, "eval_loss", 6.5),
        (1, 3, "train_loss", 6.0),
        // The second attempt went on from the checkpoint of step 2: it evaluated again, and repeated step 3.
        (2, 2, "eval_loss", 6.4),
        (2, 3, "train_loss", 5.9),
        (2, 4, "train_loss", 5.0),
    ];
    store_metrics(&app, job, &rows).await;
    let points = async |query: &str| {
        let page = app.get(&format!("/training/jobs/{job}/metrics{query}")).await.expect(200);
        let line = |p: &Value| format!("{} {} {}", p["attempt"], p["step"], p["values"]);
        let lines: Vec<String> = page["items"].as_array().unwrap().iter().map(line).collect();
        (lines.join("\n"), page["next_cursor"].as_str().map(str::to_owned))
    };
    let (all, cursor) = points("").await;
    assert_snapshot!(all, @r#"
    1 0 {"eval_loss":9.0}
    1 1 {"learning_rate":0.1,"train_loss":8.0}
    2 2 {"eval_loss":6.4,"train_loss":7.0}
    2 3 {"train_loss":5.9}
    2 4 {"train_loss":5.0}
    "#);
    assert_eq!(cursor, None);
    assert_eq!(points("?limit=2").await.1.as_deref(), Some("1"));
    assert_snapshot!(points("?limit=2&cursor=1").await.0, @r#"
    2 2 {"eval_loss":6.4,"train_loss":7.0}
    2 3 {"train_loss":5.9}
    "#);
    assert_snapshot!(points("?attempt=1&after_step=2").await.0, @r#"1 3 {"train_loss":6.0}"#);
    assert_snapshot!(app.get(&format!("/training/jobs/{job}/metrics?limit=0")).await.problem(), @"422 INVALID: limit: must be between 1 and 10000, not 0");

    // The whole curve in two points: steps 0 to 2, and 3 to 4, of the newest attempt that has them.
    assert_snapshot!(points("?points=2").await.0, @r#"
    2 2 {"eval_loss":7.7,"learning_rate":0.1,"train_loss":7.5}
    2 4 {"train_loss":5.45}
    "#);
    assert_snapshot!(points("?points=2&attempt=1").await.0, @r#"
    1 2 {"eval_loss":7.75,"learning_rate":0.1,"train_loss":7.5}
    1 3 {"train_loss":6.0}
    "#);
    // More points than steps: every step as it is.
    assert_eq!(points("?points=9").await, points("").await);
    assert_snapshot!(app.get(&format!("/training/jobs/{job}/metrics?points=2&limit=3")).await.problem(), @"422 INVALID: points: is the whole curve; leave out `limit` and `after_step`");
}

#[tokio::test]
async fn checkpoints_and_artifacts_are_those_the_trainer_reported() {
    let app = TestApp::ready_to_train().await;
    let job = app.a_job().await.id;
    assert_eq!(app.get(&format!("/training/jobs/{job}/artifacts")).await.expect(200), json!([]));
    // The reconciler of the running backend makes attempt 1 by itself.
    let prefix = format!("jobs/{}/{job}/attempt-2/", app.user);
    let user = app.user.0;
    let checkpoint = json!({"stream": "event", "event": {"seq": 1, "at": "2026-01-01T00:00:00Z", "type": "checkpoint",
        "step": 50, "prefix": format!("{prefix}checkpoints/checkpoint-50/"), "size": 7}});
    let manifest = json!([{"key": format!("{prefix}artifacts/adapter_config.json"), "size": 2, "sha256": "ab"}]);
    let store = async move |conn: &mut Conn| {
        use schema::{job_attempts as a, job_events as e};
        let row =
            (e::job_id.eq(job.0), e::user_id.eq(user), e::attempt.eq(2), e::seq.eq(1_i64), e::body.eq(checkpoint));
        diesel::insert_into(e::table).values(row).execute(conn).await?;
        let row =
            (a::job_id.eq(job.0), a::user_id.eq(user), a::attempt.eq(2), a::epoch.eq(1_i64), a::manifest.eq(manifest));
        diesel::insert_into(a::table).values(row).execute(conn).await?;
        Ok(())
    };
    app.db.system(store).await.unwrap();
    let checkpoints = app.get(&format!("/training/jobs/{job}/checkpoints")).await.expect(200);
    assert_eq!((&checkpoints[0]["step"], &checkpoints[0]["attempt"]), (&json!(50), &json!(2)));
    let artifacts = app.get(&format!("/training/jobs/{job}/artifacts")).await.expect(200);
    assert_eq!((&artifacts[0]["path"], &artifacts[0]["size"]), (&json!("adapter_config.json"), &json!(2)));
    assert!(artifacts[0]["url"].as_str().unwrap().starts_with("http"));
}

#[tokio::test]
async fn a_dataset_that_an_unfinished_job_uses_cannot_be_deleted() {
    let app = TestApp::ready_to_train().await;
    let job = app.a_job().await.id;
    let pause = async move |conn: &mut Conn| {
        let this = diesel::update(schema::training_jobs::table.find(job.0));
        this.set(schema::training_jobs::state.eq("paused")).execute(conn).await?;
        Ok(())
    };
    app.db.system(pause).await.unwrap();
    let refused = app.delete("/datasets/words").await.problem().replace(&job.to_string(), "JOB");
    assert_snapshot!(refused, @"409 CONFLICT: unfinished jobs or drafts use this dataset; cancel or change them first: job JOB");
}

#[tokio::test]
async fn another_user_sees_nothing_of_a_job() {
    let app = TestApp::ready_to_train().await;
    let job = app.a_job().await.id;
    app.add_user("other", OTHER_KEY).await;
    let other = async |path: &str| send(app.anonymous(Method::GET, path).bearer_auth(OTHER_KEY)).await;
    assert_eq!(other("/training/jobs").await.expect(200)["items"], json!([]));
    for path in ["", "/metrics", "/checkpoints", "/artifacts"] {
        other(&format!("/training/jobs/{job}{path}")).await.expect(404);
    }
    let missing = other(&format!("/training/jobs/{job}")).await.problem().replace(&job.to_string(), "JOB");
    assert_snapshot!(missing, @"404 NOT_FOUND: no job JOB; `GET /training/jobs` lists yours");
    other("/training/jobs/not-an-id").await.expect(404);
}

#[tokio::test]
async fn rows_of_another_dataset_can_be_held_out() {
    let app = TestApp::ready_to_train().await;
    app.upload("held-out", chat_rows(2)).await.expect(201);
    app.upload_form(crate::app::form("prose", "Once upon a time.\n")).await.expect(201);
    let job = app.create_job(with(json!({"validation_dataset": "held-out"}))).await.expect(201);
    assert_eq!(job["config"]["validation_dataset"], "held-out");
    let refused = app.create_job(with(json!({"validation_dataset": "prose"}))).await.problem();
    assert_snapshot!(refused, @r"
    422 INVALID: training configuration: validation_dataset: must be of the same format as `dataset`
    - validation_dataset: must be of the same format as `dataset`
    ");
    let unknown = app.create_job(with(json!({"validation_dataset": "heldout"}))).await.problem();
    assert_snapshot!(unknown, @"404 NOT_FOUND: no dataset named `heldout`; did you mean held-out?");
}
