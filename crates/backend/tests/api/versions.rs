//! Versions: drafts, publishing, copies, comparison, jobs and deployments.

use crate::{
    app::{Reply, TestApp, chat_rows, form, send},
    schema::lines,
};
use futures::future::join_all;
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000004";
const PACKAGES: &str = "/api/training/packages";
const VERSIONS: &str = "/api/training/versions";

fn path(version: &Value) -> String {
    format!("{VERSIONS}/{}", version["id"].as_str().unwrap())
}

/// What a published name is, and a draft's without its date.
fn name(version: &Value) -> String {
    let name = version["name"].as_str().unwrap();
    match name.rsplit_once("-draft-") {
        Some((base, date)) => {
            assert!(date.len() == 8 && date.parse::<u32>().unwrap() > 20_250_000, "{name}");
            format!("{base}-draft-DATE")
        }
        None => name.to_owned(),
    }
}

impl TestApp {
    async fn package(&self, name: &str) -> Value {
        self.post(PACKAGES, &json!({"name": name})).await.expect(201)["id"].clone()
    }

    /// Steps that can be published.
    async fn good_steps(&self) -> Value {
        let dataset = self.get("/datasets/words").await.expect(200)["id"].clone();
        json!({
            "model": {"name": "tiny"},
            "config": {"training": {"max_steps": 3}},
            "dataset": {"datasets": [{"id": dataset}], "train_split": 90.0},
            "deploy": {"target": "local"},
        })
    }

    async fn draft(&self, package: &Value, steps: &Value) -> Value {
        self.post(VERSIONS, &json!({"package_id": package, "draft": {"steps": steps}})).await.expect(201)
    }

    /// A draft that can be published, in a new package.
    async fn good_draft(&self) -> Value {
        let package = self.package("demo").await;
        self.draft(&package, &self.good_steps().await).await
    }

    async fn act(&self, version: &Value, verb: &str, body: Value) -> Reply {
        self.post(&format!("{}/{verb}", path(version)), &body).await
    }

    async fn published(&self) -> Value {
        let draft = self.good_draft().await;
        self.act(&draft, "publish", json!({})).await.expect(200)
    }

    async fn save(&self, version: &Value, revision: &str, draft: Value) -> Reply {
        send(self.request(Method::PUT, &path(version)).header("if-match", revision).json(&draft)).await
    }
}

#[tokio::test]
async fn a_draft_is_saved_at_the_revision_that_was_read() {
    let app = TestApp::new().await;
    let package = app.package("demo").await;
    let draft = app.draft(&package, &json!({})).await;
    assert_eq!((name(&draft).as_str(), &draft["revision"]), ("demo-v1-draft-DATE", &json!(1)));
    assert_eq!((&draft["status"], &draft["version_number"]), (&json!("draft"), &Value::Null));
    let shown = app.get(&format!("{PACKAGES}/demo")).await.expect(200);
    assert_eq!((&shown["current_version_id"], &shown["version_count"]), (&draft["id"], &json!(1)));

    let steps = json!({"model": {"name": "tiny"}});
    let saved = app.save(&draft, "\"1\"", json!({"change_summary": "a model", "steps": steps})).await.expect(200);
    assert_eq!((&saved["revision"], &saved["steps"], &saved["name"]), (&json!(2), &steps, &draft["name"]));

    let stale = app.save(&draft, "\"1\"", json!({})).await;
    assert_eq!(stale.body["current"], saved, "the newer draft is in the reply");
    assert_snapshot!(stale.problem(), @"412 PRECONDITION_FAILED: the draft was saved by someone else and is at revision 2; merge your changes into `current` and send its revision");
    let blind = send(app.request(Method::PUT, &path(&draft)).json(&json!({}))).await;
    assert_snapshot!(blind.problem(), @r#"428 PRECONDITION_REQUIRED: saving a draft needs `If-Match` with the revision that was edited, such as `"3"`"#);
    app.save(&draft, "W/\"2\"", json!({})).await.expect(412);
    app.save(&draft, "\"1\", \"2\"", json!({"name": "mine", "steps": {}})).await.expect(200);
    let cleared = app.save(&draft, "*", json!({})).await.expect(200);
    assert_eq!(
        (&cleared["name"], &cleared["steps"], &cleared["change_summary"]),
        (&json!("mine"), &json!({}), &Value::Null)
    );

    let get = app.request(Method::GET, &path(&draft));
    let reply = get.try_clone().unwrap().send().await.unwrap();
    assert_eq!(reply.headers()["etag"], "\"4\"");
    assert_eq!(send(get.try_clone().unwrap().header("if-none-match", "\"4\"")).await.status.as_u16(), 304);
    assert_eq!(send(get.header("if-none-match", "\"3\"")).await.status.as_u16(), 200);

    app.delete(&path(&draft)).await.expect(204);
    app.get(&path(&draft)).await.expect(404);
    let shown = app.get(&format!("{PACKAGES}/demo")).await.expect(200);
    assert_eq!((&shown["current_version_id"], &shown["version_count"]), (&Value::Null, &json!(0)));
}

#[tokio::test]
async fn one_of_many_who_save_the_same_revision_wins() {
    let app = TestApp::new().await;
    let package = app.package("demo").await;
    let draft = app.draft(&package, &json!({})).await;
    let save = |n: usize| app.save(&draft, "\"1\"", json!({"change_summary": n.to_string()}));
    let replies = join_all((0..10).map(save)).await;
    let won: Vec<&Reply> = replies.iter().filter(|r| r.status.as_u16() == 200).collect();
    assert_eq!(won.len(), 1);
    for lost in replies.iter().filter(|r| r.status.as_u16() != 200) {
        assert_eq!((lost.status.as_u16(), &lost.body["current"]), (412, &won[0].body));
    }
}

#[tokio::test]
async fn auto_save_makes_the_package_and_the_draft_and_then_saves_it() {
    let app = TestApp::new().await;
    let auto = format!("{VERSIONS}/auto-save");
    let first = app.post(&auto, &json!({"package_name": "demo", "draft": {}})).await.expect(200);
    assert_eq!(name(&first), "demo-v1-draft-DATE");
    let body = json!({"version_id": first["id"], "draft": {"steps": {"model": {"name": "tiny"}}}});
    app.post(&auto, &body).await.expect(428);
    let with =
        |revision: &str| send(app.request(Method::POST, &auto).header("if-match", revision.to_owned()).json(&body));
    let second = with("\"1\"").await.expect(200);
    assert_eq!((&second["id"], &second["revision"]), (&first["id"], &json!(2)));
    assert_eq!(with("\"1\"").await.expect(412)["current"], second);
    // A second draft of the same package, by name.
    let other = app.post(&auto, &json!({"package_name": "demo"})).await.expect(200);
    assert_eq!((&other["package_id"], other["id"] == first["id"]), (&first["package_id"], false));
    assert_snapshot!(app.post(&auto, &json!({})).await.problem(), @r"
    422 INVALID: package_id: a new draft needs either `package_id` or `package_name`
    - package_id: a new draft needs either `package_id` or `package_name`
    ");
}

#[tokio::test]
async fn the_rules_of_the_steps_say_what_is_missing_and_what_is_unusual() {
    let app = TestApp::ready_to_train().await;
    let package = app.package("demo").await;
    let of = async |steps: Value| {
        let validation = app.draft(&package, &steps).await["validation"].clone();
        let line = |e: &Value| format!("{}: {}", e["path"].as_str().unwrap(), e["message"].as_str().unwrap());
        let all = |list: &str| validation[list].as_array().unwrap().iter().map(line).collect::<Vec<_>>();
        let warnings = all("warnings").into_iter().map(|w| format!("(warning) {w}"));
        all("errors").into_iter().chain(warnings).collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(of(json!({})).await, @r"
    model: is required: choose a base model
    dataset: is required: choose at least one dataset
    config: is required: choose a preset or write a training configuration
    deploy.target: is required: choose `local` or `hf_space`
    ");
    let good = app.good_steps().await;
    assert_eq!(of(good.clone()).await, "");
    let with = |path: &str, value: Value| {
        let mut steps = good.clone();
        *steps.pointer_mut(path).unwrap() = value;
        steps
    };
    assert_snapshot!(of(with("/model/name", json!("tinny"))).await, @"model: no model named `tinny`; did you mean tiny?");
    assert_snapshot!(of(with("/dataset/train_split", json!(49.5))).await, @"(warning) dataset.train_split: is 49.5 per cent; between 50 and 95 is usual");
    assert_snapshot!(of(with("/dataset/train_split", json!(96.0))).await, @"(warning) dataset.train_split: is 96 per cent; between 50 and 95 is usual");
    assert_eq!(of(with("/dataset/train_split", json!(95.0))).await, "");
    assert_eq!(of(with("/dataset/train_split", json!(50.0))).await, "");
    assert_snapshot!(of(with("/dataset/train_split", json!(0.0))).await, @"dataset.train_split: must be above 0 and at most 100 per cent, not 0");
    assert_snapshot!(of(with("/dataset/datasets", json!([{"id": uuid::Uuid::nil()}]))).await, @"dataset.datasets.0: there is no dataset 00000000-0000-0000-0000-000000000000");
    assert_snapshot!(of(with("/config", json!({"lora": {"r": 0}, "method": "sft", "dataset": "x"}))).await, @"config.dataset: belongs to the dataset step");
    assert_snapshot!(of(with("/config", json!({"lora": {"r": 0}, "training": {"warmup_ratio": 2}}))).await, @r"
    config.lora.r: must be between 1 and 1024, not 0
    config.training.warmup_ratio: must be at least 0 and below 1, not 2
    ");
    assert_snapshot!(of(with("/config", json!({"method": "dpo"}))).await, @"config.method: `dpo` needs preference pairs, and this dataset has none");
    assert_snapshot!(of(with("/deploy", json!({"target": "hf_space"}))).await, @r"
    deploy.gpu_config: is required for a Space: choose its hardware
    deploy.space_name: is required for a Space: `owner/name`
    (warning) deploy.budget_limit: is not set; a Space costs until it is stopped
    ");
    let space = json!({"target": "hf_space", "gpu_config": "a10g-small", "space_name": "me/bot", "budget_limit": 20});
    assert_eq!(of(with("/deploy", space)).await, "");
    assert_snapshot!(of(with("/deploy", json!({"target": "local", "gpu_config": "x", "space_name": "me/bot", "budget_limit": 0}))).await, @r"
    deploy.gpu_config: there is no GPU configuration `x`; see /api/gpu-configs
    deploy.space_name: is for the target `hf_space` only
    deploy.budget_limit: must be at least 0.01 and below 100 million, not 0
    ");
    // A model above 10 GB is a warning; the registry's size counts.
    let grow = async |conn: &mut backend::db::Conn| {
        let grow = diesel::sql_query("UPDATE models SET size = 10100000000");
        Ok(diesel_async::RunQueryDsl::execute(grow, conn).await?)
    };
    app.db.system(grow).await.unwrap();
    assert_snapshot!(of(good).await, @"(warning) model: has 10.1 GB; above 10 GB staging is slow and needs much memory");
}

#[tokio::test]
async fn a_published_version_is_numbered_pinned_and_final() {
    let app = TestApp::ready_to_train().await;
    let draft = app.good_draft().await;
    let stale = send(app.request(Method::POST, &format!("{}/publish", path(&draft))).header("if-match", "\"7\"")).await;
    stale.expect(412);
    let published = app.act(&draft, "publish", json!({"change_summary": "first"})).await.expect(200);
    assert_eq!((name(&published).as_str(), &published["version_number"]), ("demo-v1", &json!(1)));
    assert_eq!((&published["status"], &published["change_summary"]), (&json!("published"), &json!("first")));
    let model = app.get("/api/models/tiny").await.expect(200);
    assert_eq!(published["steps"]["model"]["revision"], model["revision"]);
    let chosen = &published["steps"]["dataset"]["datasets"][0];
    assert_eq!((&chosen["name"], &chosen["rows"]), (&json!("words"), &json!(7)));

    assert_snapshot!(app.act(&draft, "publish", json!({})).await.problem(), @"409 CONFLICT: `demo-v1` is published and never changes; restore or fork it as a new draft");
    assert_snapshot!(app.save(&draft, "*", json!({})).await.problem(), @"409 CONFLICT: `demo-v1` is published and never changes; restore or fork it as a new draft");
    assert_snapshot!(app.delete(&path(&draft)).await.problem(), @"409 CONFLICT: `demo-v1` is published and is kept; archive it to hide it");
    let kept = app.get(&path(&draft)).await.expect(200);
    assert_eq!((&kept["steps"], &kept["name"]), (&published["steps"], &published["name"]));

    let unknown = app.act(&draft, "publish", json!({"sumary": "x"})).await;
    assert_eq!(unknown.status.as_u16(), 422, "a body that cannot be read is not ignored");
    let package = &published["package_id"];
    let incomplete = app.draft(package, &json!({"model": {"name": "tiny"}})).await;
    assert_eq!(name(&incomplete), "demo-v2-draft-DATE");
    let refused = app.act(&incomplete, "publish", json!({})).await;
    assert_eq!(refused.body["errors"].as_array().map(Vec::len), Some(3));
    assert!(refused.problem().starts_with("422 INVALID: `demo-v2-draft-"), "{}", refused.problem());
}

#[tokio::test]
async fn fifty_publishers_at_once_get_the_numbers_one_to_fifty() {
    let app = TestApp::ready_to_train().await;
    let package = app.package("demo").await;
    let steps = app.good_steps().await;
    let drafts = join_all((0..50).map(|_| app.draft(&package, &steps))).await;
    assert_eq!(drafts.iter().filter(|d| name(d) == "demo-v1-draft-DATE").count(), 50);
    let published = join_all(drafts.iter().map(|d| app.act(d, "publish", json!({})))).await;
    let mut numbers: Vec<u64> = Vec::new();
    for version in published {
        let version = version.expect(200);
        let number = version["version_number"].as_u64().unwrap();
        assert_eq!(name(&version), format!("demo-v{number}"));
        numbers.push(number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<u64>>());
    let shown = app.get(&format!("{PACKAGES}/demo")).await.expect(200);
    assert_eq!((&shown["latest_published_version"], &shown["version_count"]), (&json!(50), &json!(50)));
}

#[tokio::test]
async fn versions_are_archived_restored_forked_and_compared() {
    let app = TestApp::ready_to_train().await;
    let first = app.published().await;
    let latest = async || app.get(&format!("{PACKAGES}/demo/latest")).await;
    assert_eq!(latest().await.expect(200)["id"], first["id"]);

    let restored = app.act(&first, "restore", json!({})).await.expect(201);
    assert_eq!((name(&restored).as_str(), &restored["change_summary"]), ("demo-v2-draft-DATE", &json!("from demo-v1")));
    assert_eq!((&restored["parent_version_id"], &restored["steps"]), (&first["id"], &first["steps"]));
    assert_snapshot!(app.act(&restored, "fork", json!({})).await.problem().split("` ").last().unwrap(), @"is a draft, which may still change; publish it first");

    let mut steps = restored["steps"].clone();
    steps["config"] = json!({"training": {"max_steps": 5}, "lora": {"r": 4}});
    app.save(&restored, "\"1\"", json!({"name": restored["name"], "steps": steps})).await.expect(200);
    let compare = format!("{}/compare/{}", path(&first), restored["id"].as_str().unwrap());
    let comparison = app.get(&compare).await.expect(200);
    assert_eq!(
        comparison["changes"],
        json!([
            {"path": "config.lora.r", "before": null, "after": 4},
            {"path": "config.training.max_steps", "before": 3, "after": 5},
        ])
    );
    assert_eq!((&comparison["a"]["version_number"], &comparison["b"]["status"]), (&json!(1), &json!("draft")));
    let itself = app.get(&format!("{}/compare/{}", path(&first), first["id"].as_str().unwrap())).await.expect(200);
    assert_eq!(itself["changes"], json!([]));

    let second = app.act(&restored, "publish", json!({})).await.expect(200);
    assert_eq!(latest().await.expect(200)["id"], second["id"]);
    let archived = app.act(&second, "archive", json!({})).await.expect(200);
    assert_eq!((&archived["status"], archived["archived_at"].is_string()), (&json!("archived"), true));
    assert_eq!(app.act(&second, "archive", json!({})).await.expect(200), archived, "repeating it changes nothing");
    assert_eq!(latest().await.expect(200)["id"], first["id"]);
    app.act(&second, "publish", json!({})).await.expect(409);

    let forked = app.act(&second, "fork", json!({"package_name": "other"})).await.expect(201);
    assert_eq!((name(&forked).as_str(), &forked["parent_version_id"]), ("other-v1-draft-DATE", &second["id"]));
    assert_snapshot!(app.act(&forked, "archive", json!({})).await.problem().split("` ").last().unwrap(), @"is a draft: publish it or delete it");
    app.act(&first, "archive", json!({})).await.expect(200);
    assert_snapshot!(latest().await.problem(), @"404 NOT_FOUND: the package `demo` has no published version; publish a draft");
}

#[tokio::test]
async fn versions_are_listed_by_package_status_model_and_parent() {
    let app = TestApp::ready_to_train().await;
    let first = app.published().await;
    let fork = app.act(&first, "fork", json!({"package_name": "other"})).await.expect(201);
    let list = async |query: String| {
        let page = app.get(&format!("{VERSIONS}{query}")).await.expect(200);
        page["items"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(list(String::new()).await, ["other-v1-draft-DATE", "demo-v1"]);
    assert_eq!(list(format!("?package_id={}", first["package_id"].as_str().unwrap())).await, ["demo-v1"]);
    assert_eq!(list("?status=draft".into()).await, ["other-v1-draft-DATE"]);
    assert_eq!(list("?model=tiny&sort=created_at".into()).await, ["demo-v1", "other-v1-draft-DATE"]);
    assert!(list("?model=other".into()).await.is_empty());
    assert_eq!(list(format!("?parent_version_id={}", first["id"].as_str().unwrap())).await, ["other-v1-draft-DATE"]);
    assert!(list("?deployed=true".into()).await.is_empty());
    app.delete(&format!("{PACKAGES}/other")).await.expect(204);
    assert_eq!(list(String::new()).await, ["demo-v1"], "a deleted package takes its versions along");
    app.save(&fork, "*", json!({})).await.expect(404);
}

#[tokio::test]
async fn a_published_version_is_trained_and_shows_how_that_goes() {
    let app = TestApp::ready_to_train().await;
    let draft = app.good_draft().await;
    let refused = app.act(&draft, "launch", json!({})).await.problem();
    assert!(refused.ends_with("is draft; only published versions can be trained"), "{refused}");
    let version = app.act(&draft, "publish", json!({})).await.expect(200);
    let launch = |key: &str| {
        let request = app.request(Method::POST, &format!("{}/launch", path(&version)));
        send(request.header("idempotency-key", key.to_owned()).json(&json!({"max_attempts": 1})))
    };
    let job = launch("k").await.expect(201);
    assert_eq!(launch("k").await.expect(201), job);
    assert_eq!((&job["name"], &job["version_id"]), (&json!("demo-v1"), &version["id"]));
    assert_eq!((&job["dataset"], &job["config"]["training"]["val_set_size"]), (&json!("words"), &json!(0.1)));
    assert_eq!(job["model_revision"], version["steps"]["model"]["revision"]);
    // These tests have no trainer: the attempt fails, or has not started yet.
    let status = async || app.get(&path(&version)).await.expect(200)["training"]["status"].clone();
    app.post(&format!("/training/jobs/{}/cancel", job["id"].as_str().unwrap()), &json!({})).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !matches!(status().await.as_str(), Some("cancelled" | "failed")) {
        assert!(tokio::time::Instant::now() < deadline, "{}", status().await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let job = app.get(&format!("/training/jobs/{}", job["id"].as_str().unwrap())).await.expect(200);
    assert_eq!(status().await, job["state"]);

    app.upload_form(form("more", chat_rows(3))).await.expect(201);
    let more = app.get("/datasets/more").await.expect(200)["id"].clone();
    let mut steps = app.good_steps().await;
    steps["dataset"]["datasets"].as_array_mut().unwrap().push(json!({"id": more}));
    let both = app.draft(&version["package_id"], &steps).await;
    let both = app.act(&both, "publish", json!({})).await.expect(200);
    assert_snapshot!(app.act(&both, "launch", json!({})).await.problem(), @r"
    422 INVALID: dataset.datasets: a job trains on one dataset, and this version has several; publish one that has a single one
    - dataset.datasets: a job trains on one dataset, and this version has several; publish one that has a single one
    ");
}

#[tokio::test]
async fn a_deployment_is_noted_once_and_honestly_not_served() {
    let app = TestApp::ready_to_train().await;
    let version = app.published().await;
    app.act(&version, "deploy", json!({})).await.expect(501);
    assert_snapshot!(app.act(&version, "deploy", json!({})).await.problem(), @"501 TARGET_NOT_SERVED: the wish to deploy to `local` is noted, but this installation does not serve that target yet; `hone chat` and the job's artifacts give you the model now");
    app.act(&version, "deploy", json!({"target": "hf_space"})).await.expect(501);
    let noted = "SELECT target || ' ' || status AS line FROM deployments ORDER BY 1";
    assert_eq!(lines(&app.db, noted).await, ["hf_space requested", "local requested"]);
    let shown = app.get(&path(&version)).await.expect(200);
    assert_eq!(shown["deployment"]["is_deployed"], json!(false));
}

#[tokio::test]
async fn versions_of_others_do_not_exist() {
    let app = TestApp::ready_to_train().await;
    let version = app.published().await;
    app.add_user("other", OTHER_KEY).await;
    let theirs = |method: Method, path: &str| app.anonymous(method, path).bearer_auth(OTHER_KEY);
    let at = path(&version);
    send(theirs(Method::GET, &at)).await.expect(404);
    send(theirs(Method::DELETE, &at)).await.expect(404);
    send(theirs(Method::PUT, &at).header("if-match", "*").json(&json!({}))).await.expect(404);
    for verb in ["publish", "archive", "restore", "fork", "launch", "deploy"] {
        send(theirs(Method::POST, &format!("{at}/{verb}"))).await.expect(404);
    }
    send(theirs(Method::GET, &format!("{at}/compare/{}", version["id"].as_str().unwrap()))).await.expect(404);
    let into = json!({"package_id": version["package_id"]});
    send(theirs(Method::POST, VERSIONS).json(&into)).await.expect(404);
    let listed = send(theirs(Method::GET, VERSIONS)).await.expect(200);
    assert_eq!(listed["items"], json!([]));
}

#[tokio::test]
async fn fifty_concurrent_creates_with_one_key_make_one_draft() {
    let app = TestApp::new().await;
    let package = app.package("demo").await;
    let create = |_| {
        let request = app.request(Method::POST, VERSIONS).header("idempotency-key", "k");
        send(request.json(&json!({"package_id": package})))
    };
    let mut replies: Vec<Value> = Vec::new();
    for reply in join_all((0..50).map(create)).await {
        replies.push(reply.expect(201));
    }
    assert!(replies.iter().all(|r| *r == replies[0]));
    assert_eq!(app.get(&format!("{PACKAGES}/demo")).await.expect(200)["version_count"], json!(1));
}

#[tokio::test]
async fn publishing_is_told_and_refuses_what_the_method_cannot_train() {
    let app = TestApp::ready_to_train().await;
    let published = app.published().await;
    let told = app.get("/api/notifications?kind=package.version.published").await.expect(200);
    let [news] = told["items"].as_array().unwrap().as_slice() else { panic!("{told:#}") };
    assert_eq!((&news["title"], &news["data"]["version_id"]), (&json!("`demo-v1` is published"), &published["id"]));
    assert_eq!((&news["data"]["package"], &news["data"]["version_number"]), (&json!("demo"), &json!(1)));

    let labelled: String = (0..5).map(|i| format!("{}\n", json!({"text": format!("t {i}"), "label": i % 2}))).collect();
    let labels = app.upload("labels", labelled).await.expect(201)["id"].clone();
    let mut steps = app.good_steps().await;
    steps["dataset"] = json!({"datasets": [{"id": labels}]});
    steps["config"] = json!({"method": "classification"});
    let draft = app.draft(&published["package_id"], &steps).await;
    let path = &draft["validation"]["errors"][0]["path"];
    assert_eq!(path, "config.method", "a draft shows it already: {draft:#}");
    let refused = app.act(&draft, "publish", json!({})).await.problem();
    assert!(refused.starts_with("422 UNSUPPORTED: `demo-v2-draft-"), "{refused}");
    assert!(refused.contains("`classification` needs an encoder, and `LlamaForCausalLM` predicts tokens"), "{refused}");

    // Rows of one version are read in one way.
    let words = app.get("/datasets/words").await.expect(200)["id"].clone();
    steps["dataset"] = json!({"datasets": [{"id": words}, {"id": labels}]});
    steps["config"] = json!({});
    let draft = app.draft(&published["package_id"], &steps).await;
    assert_eq!(
        draft["validation"]["errors"][0]["message"],
        "the dataset `labels` has another format than the first one"
    );
    assert_eq!(app.get("/api/notifications?kind=package.version.published").await.expect(200), told);
}
