//! Two tenants who own a row of every kind, and how each operation is called.

use crate::{
    app::{Reply, TestApp, chat_rows, file, form, send},
    models::tiny,
};
use diesel_async::SimpleAsyncConnection;
use reqwest::{Method, multipart::Form};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use testkit::hub::Hub;
use uuid::Uuid;
use wire::{UserId, account::Scope, storage::UploadSession};

/// Who owns what. `marker` is in the text of every row, and in no request of anyone else.
pub struct Tenant {
    pub user: UserId,
    pub key: String,
    pub marker: String,
    /// Kind of thing to its id, as paths have it.
    pub ids: BTreeMap<&'static str, String>,
}

/// What an operation is sent.
#[derive(Clone, Copy)]
pub enum Body {
    None,
    /// May name things of the tenant.
    Json(fn(&Tenant) -> Value),
    /// A dataset as a form.
    Dataset,
    /// A file as a form.
    File,
    /// A part of an upload as a form.
    Part,
}

use Body::{Dataset, File, Json, None as Empty, Part};

/// A row for every operation that users may call: the operation, the kind of thing that `{id}` in its path is (a key of
/// [`Tenant::ids`]; empty when the path names nothing that belongs to a tenant), and a body that would be good.
///
/// To add an operation, add a row; the tests take the rest from the OpenAPI document. A new kind of thing gets a row of
/// each tenant in [`Tenant::new`] (through the API) or in [`Tenant::fill`] (by SQL), with the marker in its text. Rows
/// that change something stand in an order in which each of them succeeds.
pub const CALLS: &[(&str, &str, Body)] = &[
    ("get_me", "", Empty),
    ("list_audit", "", Empty),
    // Datasets
    ("list_datasets", "", Empty),
    ("get_dataset", "dataset", Empty),
    ("preview_dataset", "dataset", Empty),
    ("upload_dataset", "", Dataset),
    ("create_dataset", "", Json(|_| json!({"name": fresh("open"), "files": files("train", 10)}))),
    ("complete_dataset", "open_dataset", Empty),
    ("dataset_uploads", "open_dataset", Empty),
    ("get_dataset_statistics", "dataset", Empty),
    ("get_dataset_usage", "dataset", Empty),
    ("split_dataset", "dataset", Json(|_| json!({"train_name": fresh("a"), "validation_name": fresh("b")}))),
    ("update_dataset", "dataset", Json(|_| json!({"description": "another"}))),
    ("delete_dataset", "spare_dataset", Empty),
    // Models: a registry that all may read
    ("list_models", "", Empty),
    ("get_model", "", Empty),
    ("download_model", "", Empty),
    ("create_model", "", Json(|_| json!({"name": "other", "files": crate::models::describe(&tiny())}))),
    ("complete_model", "", Empty),
    ("search_models", "", Empty),
    ("list_popular_models", "", Empty),
    ("list_cached_models", "", Empty),
    ("pull_model", "", Json(|_| json!({"id": "o/m"}))),
    ("list_model_pulls", "", Empty),
    ("get_model_pull", "pull", Empty),
    ("cancel_model_pull", "pull", Empty),
    ("list_openai_models", "", Empty),
    ("get_openai_model", "model", Empty),
    ("delete_openai_model", "model", Empty),
    // Jobs
    ("list_presets", "", Empty),
    ("list_gpu_configs", "", Empty),
    ("create_job", "", Json(|t| json!({"config": config(t)}))),
    ("estimate_job", "", Json(|t| json!({"config": config(t)}))),
    ("list_jobs", "", Empty),
    ("get_job", "job", Empty),
    ("list_metrics", "job", Empty),
    ("list_checkpoints", "job", Empty),
    ("list_artifacts", "job", Empty),
    ("list_events", "job", Empty),
    ("list_dead_letters", "job", Empty),
    ("replay_dead_letters", "job", Json(|_| json!({}))),
    ("get_logs", "job", Empty),
    ("watch_job", "job", Empty),
    ("update_job", "job", Json(|_| json!({"budget_limit": 5.0}))),
    ("pause_job", "job", Empty),
    ("resume_job", "job", Empty),
    ("start_job", "job", Empty),
    ("cancel_job", "job", Empty),
    ("delete_job", "job", Empty),
    ("list_model_artifacts", "", Empty),
    ("get_model_artifact", "artifact", Empty),
    // Costs, notifications, webhooks
    ("list_costs", "", Empty),
    ("summarize_costs", "", Empty),
    ("list_notifications", "", Empty),
    ("stream_notifications", "", Empty),
    ("count_unread_notifications", "", Empty),
    ("read_notifications", "", Empty),
    ("read_notification", "notification", Empty),
    ("delete_notification", "notification", Empty),
    ("create_webhook", "", Json(|_| json!({"url": "https://example.org/hook"}))),
    ("list_webhooks", "", Empty),
    ("get_webhook", "endpoint", Empty),
    ("update_webhook", "endpoint", Json(|_| json!({"description": "another"}))),
    ("rotate_webhook", "endpoint", Empty),
    ("test_webhook", "endpoint", Empty),
    ("list_webhook_deliveries", "endpoint", Empty),
    ("redeliver_webhook", "endpoint", Empty),
    ("delete_webhook", "endpoint", Empty),
    ("download_model_artifact", "artifact", Empty),
    ("get_artifact_lineage", "artifact", Empty),
    ("delete_model_artifact", "artifact", Empty),
    // Packages
    ("create_package", "", Json(|_| json!({"name": fresh("package")}))),
    ("list_packages", "", Empty),
    ("get_package", "package", Empty),
    ("update_package", "package", Json(|_| json!({"description": "another"}))),
    ("get_latest_version", "package", Empty),
    ("list_versions", "", Empty),
    ("get_version", "version", Empty),
    ("compare_versions", "version", Empty),
    ("create_version", "", Json(|t| json!({"package_id": t.ids["package"], "draft": {"steps": {}}}))),
    ("save_version", "", Json(|t| json!({"package_id": t.ids["package"], "draft": {"steps": {}}}))),
    ("update_version", "draft", Json(|_| json!({"steps": {}}))),
    ("delete_version", "draft", Empty),
    ("publish_version", "ripe", Json(|_| json!({}))),
    ("restore_version", "version", Json(|_| json!({}))),
    ("fork_version", "version", Json(|_| json!({"package_name": fresh("fork")}))),
    ("get_version_estimate", "version", Empty),
    ("launch_version", "version", Json(|_| json!({}))),
    ("deploy_version", "version", Json(|_| json!({}))),
    ("archive_version", "version", Empty),
    ("delete_package", "package", Empty),
    // OpenAI's API
    ("create_file", "", File),
    ("list_files", "", Empty),
    ("get_file", "file", Empty),
    ("get_file_content", "file", Empty),
    ("create_fine_tuning_job", "", Json(|t| json!({"model": "tiny", "training_file": t.ids["file"]}))),
    ("list_fine_tuning_jobs", "", Empty),
    ("get_fine_tuning_job", "tuning", Empty),
    ("list_fine_tuning_events", "tuning", Empty),
    ("list_fine_tuning_checkpoints", "tuning", Empty),
    ("pause_fine_tuning_job", "tuning", Empty),
    ("resume_fine_tuning_job", "tuning", Empty),
    ("cancel_fine_tuning_job", "tuning", Empty),
    ("create_upload", "", Json(|_| upload())),
    ("complete_upload", "full_upload", Json(|t| json!({"part_ids": [t.ids["part"]]}))),
    ("add_upload_part", "upload", Part),
    ("cancel_upload", "upload", Empty),
    ("delete_file", "file", Empty),
    // Keys
    ("create_key", "", Json(|_| json!({"name": "another"}))),
    ("list_keys", "", Empty),
    ("get_key", "key", Empty),
    ("update_key", "key", Json(|_| json!({"name": "renamed"}))),
    ("delete_key", "key", Empty),
    // Users, for administrators
    ("list_users", "", Empty),
    ("create_user", "", Json(|_| json!({"name": fresh("user")}))),
    ("update_user", "user", Json(|_| json!({"email": "u@example.org"}))),
    ("delete_user", "user", Empty),
];

/// Rows by SQL of what only trainers and background tasks make, as `hone_system`. `{user}`, `{job}`, `{marker}` and so
/// on are filled in; every `{uuid}` is a new id.
const FILL: &str = "
    -- First, as the backend does: it may be starting the job.
    SELECT FROM training_jobs WHERE id = '{job}' FOR UPDATE;
    INSERT INTO job_attempts (job_id, attempt, user_id, epoch, runtime) VALUES ('{job}', 1, '{user}', 1, '{\"name\": \"{marker}\"}')
        ON CONFLICT DO NOTHING;
    INSERT INTO metrics_points (job_id, attempt, step, name, user_id, epoch, value, at)
        VALUES ('{job}', 1, 1, '{marker}', '{user}', 0, 1, now());
    INSERT INTO dead_letters (job_id, user_id, attempt, reason, body) VALUES ('{job}', '{user}', 1, '{marker}', '{}');
    INSERT INTO model_artifacts (id, user_id, job_id, attempt, name, kind, base_model, base_revision, storage_path)
        VALUES ('{artifact}', '{user}', '{job}', 1, '{marker}', 'adapter', 'tiny', 'r', 'jobs/{marker}/');
    INSERT INTO model_pulls (id, user_id, repo, revision, name, status)
        VALUES ('{pull}', '{user}', '{marker}', 'main', '{marker}', 'failed');
    INSERT INTO cost_records (id, user_id, job_id, attempt, gpu_config, seconds, price_per_hour, amount, started_at)
        VALUES ('{uuid}', '{user}', '{job}', 1, '{marker}', 1, 1, 1, now());
    INSERT INTO estimates (id, user_id, job_id, next_try_at, error) VALUES ('{uuid}', '{user}', '{job}', NULL, '{marker}');
    INSERT INTO mlflow_runs (job_id, user_id, run_id) VALUES ('{job}', '{user}', '{marker}');
    INSERT INTO notifications (id, user_id, kind, title) VALUES ('{notification}', '{user}', 'training.job.failed', '{marker}');
    INSERT INTO webhook_endpoints (id, user_id, url, secret) VALUES ('{endpoint}', '{user}', 'https://{marker}.example.org', 'x');
    INSERT INTO webhook_deliveries (id, user_id, endpoint_id, event_type, payload, status)
        VALUES ('{delivery}', '{user}', '{endpoint}', 'test', '{\"text\": \"{marker}\"}', 'delivered');
    INSERT INTO deployments (id, user_id, version_id, target) VALUES ('{uuid}', '{user}', '{version}', 'hf_space');
";

fn fresh(name: &str) -> String {
    format!("{name}-{}", Uuid::new_v4().simple())
}

fn files(split: &str, rows: usize) -> Value {
    json!([{"split": split, "filename": "train.jsonl", "size": chat_rows(rows).len()}])
}

fn upload() -> Value {
    json!({"bytes": chat_rows(4).len(), "filename": "u.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"})
}

fn config(tenant: &Tenant) -> Value {
    json!({"name": "another", "model": "tiny", "dataset": tenant.ids["dataset"], "training": {"max_steps": 3}})
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

impl Tenant {
    /// A user who owns something of every kind.
    pub async fn new(app: &TestApp, name: &str, user: UserId, key: &str) -> Self {
        let marker = format!("mark-{name}-{}", Uuid::new_v4().simple());
        let mut this = Self { user, key: key.to_owned(), marker, ids: BTreeMap::new() };
        let m = this.marker.clone();
        let rows = chat_rows(4).replace("word", &m);
        let post = async |path: &str, body: Value| {
            let reply = send(app.anonymous(Method::POST, path).bearer_auth(key).json(&body)).await;
            assert!(reply.status.is_success(), "{path}: {:#}", reply.body);
            reply.body
        };
        let put = async |path: &str, form: Form| {
            let reply = send(app.anonymous(Method::POST, path).bearer_auth(key).multipart(form)).await;
            assert!(reply.status.is_success(), "{path}: {:#}", reply.body);
            text(&reply.body["id"])
        };
        this.ids.insert("dataset", put("/datasets/upload", form(&format!("{m}-d"), rows.clone())).await);
        this.ids.insert("spare_dataset", put("/datasets/upload", form(&format!("{m}-s"), rows.clone())).await);
        let open = post("/datasets", json!({"name": format!("{m}-o"), "files": files("train", 10)})).await;
        let sessions: Vec<UploadSession> = serde_json::from_value(open["uploads"].clone()).unwrap();
        app.put_parts(&sessions[0], chat_rows(10).as_bytes()).await;
        this.ids.insert("open_dataset", text(&open["dataset"]["id"]));

        let package = post("/api/training/packages", json!({"name": m, "description": m})).await;
        this.ids.insert("package", text(&package["id"]));
        let steps = json!({
            "model": {"name": "tiny"},
            "config": {"training": {"max_steps": 3}},
            "dataset": {"datasets": [{"id": this.ids["dataset"]}], "train_split": 90.0},
            "deploy": {"target": "local"},
        });
        for kind in ["version", "ripe", "draft"] {
            let draft = json!({"steps": steps, "change_summary": m});
            let version = post("/api/training/versions", json!({"package_id": package["id"], "draft": draft})).await;
            this.ids.insert(kind, text(&version["id"]));
        }
        post(&format!("/api/training/versions/{}/publish", this.ids["version"]), json!({})).await;

        let mut config = config(&this);
        config["name"] = json!(m);
        let job = app.anonymous(Method::POST, "/training/jobs").bearer_auth(key).header("idempotency-key", "once");
        let job = send(job.json(&json!({"config": config}))).await.expect(201);
        this.ids.insert("job", text(&job["id"]));
        let rows_file =
            || Form::new().text("purpose", "fine-tune").part("file", file(&format!("{m}.jsonl"), rows.clone()));
        this.ids.insert("file", put("/v1/files", rows_file()).await);
        let tuning =
            json!({"model": "tiny", "training_file": this.ids["file"], "suffix": "mine", "metadata": {"m": m}});
        this.ids.insert("tuning", text(&post("/v1/fine_tuning/jobs", tuning).await["id"]));
        for kind in ["upload", "full_upload"] {
            this.ids.insert(kind, text(&post("/v1/uploads", upload()).await["id"]));
        }
        let part = Form::new().part("data", file("upload", chat_rows(4)));
        this.ids.insert("part", put(&format!("/v1/uploads/{}/parts", this.ids["full_upload"]), part).await);
        this.ids.insert("key", text(&post("/api/keys", json!({"name": m, "scopes": ["jobs:read"]})).await["id"]));
        this.ids.insert("user", app.add_user(&format!("{m}-victim"), &fresh("hone_sk")).await.to_string());
        this.ids.insert("artifact", Uuid::new_v4().to_string());
        this.ids.insert("pull", Uuid::new_v4().to_string());
        this.ids.insert("endpoint", Uuid::new_v4().to_string());
        this.ids.insert("notification", Uuid::new_v4().to_string());
        this.ids.insert("delivery", Uuid::new_v4().to_string());
        this.ids.insert("model", "tiny".to_owned());
        this.fill(app).await;
        this.rest(app).await;
        this
    }

    /// The rows of [`FILL`].
    async fn fill(&self, app: &TestApp) {
        let mut sql = FILL.replace("{user}", &self.user.to_string()).replace("{marker}", &self.marker);
        for (kind, id) in &self.ids {
            sql = sql.replace(&format!("{{{kind}}}"), id);
        }
        while sql.contains("{uuid}") {
            sql = sql.replacen("{uuid}", &Uuid::new_v4().to_string(), 1);
        }
        app.db.system(async move |conn| Ok(conn.batch_execute(&sql).await?)).await.unwrap();
    }

    /// Puts the jobs where nothing happens to them by itself.
    pub async fn rest(&self, app: &TestApp) {
        let sql =
            format!("UPDATE training_jobs SET state = 'paused', finished_at = NULL WHERE user_id = '{}'", self.user);
        app.db.system(async move |conn| Ok(conn.batch_execute(&sql).await?)).await.unwrap();
    }

    /// The path of an operation on a thing of this tenant.
    pub fn path(&self, template: &str, kind: &str, revision: &str) -> String {
        let id = self.ids.get(kind).cloned().unwrap_or_default();
        let delivery = self.ids.get("delivery").cloned().unwrap_or_default();
        let path =
            template.replace("{delivery_id}", &delivery).replace("{id}", &id).replace("{a}", &id).replace("{b}", &id);
        path.replace("{name}", "tiny").replace("{revision}", revision)
    }

    /// A request on things of this tenant, with whatever key.
    pub fn request(&self, app: &TestApp, method: Method, path: &str, body: Body) -> reqwest::RequestBuilder {
        let request = app.anonymous(method, path).header("if-match", "\"1\"");
        match body {
            Empty => request,
            Json(make) => request.json(&make(self)),
            Dataset => request.multipart(form(&fresh("dataset"), chat_rows(2))),
            File => {
                request.multipart(Form::new().text("purpose", "fine-tune").part("file", file("f.jsonl", chat_rows(3))))
            }
            Part => request.multipart(Form::new().part("data", file("upload", "some bytes"))),
        }
    }

    /// Words of this tenant that a reply to someone else has, when the request had not.
    pub fn leaks(&self, reply: &Reply, asked: &str) -> Vec<String> {
        let body = reply.body.to_string();
        let words = self.ids.values().filter(|id| *id != "tiny").chain([&self.marker]);
        let mut found: Vec<String> = words.filter(|w| body.contains(*w) && !asked.contains(*w)).cloned().collect();
        if body.contains(&self.user.to_string()) && !asked.contains(&self.user.to_string()) {
            found.push(format!("the user {}", self.user));
        }
        found
    }
}

/// An administrator and two users, who own the same kinds of things, and the revision of the model `tiny`, which an
/// administrator has brought.
pub struct World {
    pub app: TestApp,
    pub tenants: Vec<Tenant>,
    pub revision: String,
    /// Where models are searched and pulled from.
    _hub: Hub,
}

impl World {
    pub async fn new() -> Self {
        let hub = Hub::start();
        let app = TestApp::set(&hub.environment()).await;
        let revision = app.import_model("tiny", &tiny()).await.revision;
        let mut tenants = Vec::new();
        for name in ["ann", "bob"] {
            let key = fresh("hone_sk");
            let user = app.add_user(name, &key).await;
            tenants.push(Tenant::new(&app, name, user, &key).await);
        }
        Self { app, tenants, revision, _hub: hub }
    }

    /// A key of the tenant with these scopes.
    pub async fn key(&self, tenant: usize, scopes: &[Scope]) -> String {
        let key = fresh("hone_sk");
        self.app.add_key(self.tenants[tenant].user, &key, scopes).await;
        key
    }
}
