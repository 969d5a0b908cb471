//! Costs and notifications as users see them.

use crate::app::{TestApp, chat_rows};
use backend::db::Conn;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use reqwest::Method;
use serde_json::{Value, json};
use wire::UserId;

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000002";

impl TestApp {
    pub async fn sql(&self, statements: String) {
        self.db.system(async move |conn: &mut Conn| Ok(conn.batch_execute(&statements).await?)).await.unwrap();
    }

    /// A job that is over, with `attempts` cost records of odd amounts, on consecutive days.
    async fn costly_job(&self, user: UserId, gpu: &str, attempts: u32) -> String {
        let id = wire::JobId::random();
        self.sql(format!(
            "INSERT INTO models (name, revision, user_id, status) VALUES ('m', 'r', '{user}', 'ready') ON CONFLICT DO NOTHING;
             INSERT INTO datasets (id, user_id, name, status, storage_path) VALUES ('{user}', '{user}', 'd', 'ready', 'datasets/') ON CONFLICT DO NOTHING;
             INSERT INTO training_jobs (id, user_id, name, state, config, model_name, model_revision, dataset_id, dataset_name, spec)
                VALUES ('{id}', '{user}', 'costly', 'succeeded', '{{}}', 'm', 'r', '{user}', 'd', '{{}}');
             INSERT INTO cost_records (id, user_id, job_id, attempt, gpu_config, seconds, price_per_hour, amount, currency, started_at)
                SELECT gen_random_uuid(), '{user}', '{id}', n, '{gpu}', n * 1.1, 0.1, n * 0.012345, 'USD',
                    '2026-01-01T23:59:59Z'::timestamptz + make_interval(days => n - 1)
                FROM generate_series(1, {attempts}) n;"
        ))
        .await;
        id.to_string()
    }
}

/// Chat rows, the fourth of which is none.
fn broken() -> String {
    chat_rows(3) + "{\"messages\": [}\n"
}

fn amounts(rows: &Value) -> f64 {
    rows.as_array().unwrap().iter().map(|r| r["amount"].as_f64().unwrap()).sum()
}

#[tokio::test]
async fn sums_are_the_sums_of_the_records_for_every_grouping_and_filter() {
    let app = TestApp::new().await;
    let first = app.costly_job(app.user, "a10g-small", 7).await;
    app.costly_job(app.user, "local", 4).await;
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = app.get(&format!("/api/costs?limit=3{cursor}")).await.expect(200);
        all.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(all.len(), 11);
    let whole = amounts(&json!(all));
    assert!((whole - 0.012345 * f64::from(7 * 8 / 2 + 4 * 5 / 2)).abs() < 1e-9, "{whole}");
    for group in ["day", "package", "user", "gpu_config"] {
        let summary = app.get(&format!("/api/costs/summary?group_by={group}")).await.expect(200);
        assert!((amounts(&summary["groups"]) - whole).abs() < 1e-9, "{summary:#}");
        assert!((amounts(&summary["total"]) - whole).abs() < 1e-9, "{summary:#}");
        assert_eq!(summary["total"][0]["jobs"], 2);
    }
    let by_day = app.get("/api/costs/summary").await.expect(200);
    assert_eq!((&by_day["groups"][0]["key"], &by_day["groups"][0]["jobs"]), (&json!("2026-01-01"), &json!(2)));
    let by_gpu = app.get("/api/costs/summary?group_by=gpu_config").await.expect(200);
    assert_eq!(
        by_gpu["groups"].as_array().unwrap().iter().map(|g| &g["key"]).collect::<Vec<_>>(),
        ["a10g-small", "local"]
    );

    let window = "from=2026-01-02T00:00:00Z&to=2026-01-04T00:00:00Z";
    let some = app.get(&format!("/api/costs?job_id={first}&{window}")).await.expect(200);
    assert_eq!(some["items"].as_array().unwrap().len(), 2, "{some:#}");
    let summary = app.get(&format!("/api/costs/summary?job_id={first}&{window}")).await.expect(200);
    assert!((amounts(&summary["total"]) - amounts(&some["items"])).abs() < 1e-9);
    let none = app.get("/api/costs/summary?from=2030-01-01T00:00:00Z").await.expect(200);
    assert_eq!((&none["groups"], &none["total"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn costs_of_others_are_seen_by_administrators_only_and_only_by_user() {
    let app = TestApp::new().await;
    app.costly_job(app.user, "local", 1).await;
    let other = app.add_user("other", OTHER_KEY).await;
    app.costly_job(other, "local", 2).await;
    let users = async |key: &str| {
        let request = app.anonymous(Method::GET, "/api/costs/summary?group_by=user").bearer_auth(key);
        let summary = crate::app::send(request).await.expect(200);
        let names = summary["groups"].as_array().unwrap().iter().map(|g| g["label"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    assert_eq!(users(OTHER_KEY).await, ["other"]);
    assert_eq!(users(crate::app::KEY).await, ["local", "other"]);
    app.sql(
        "UPDATE api_keys SET scopes = '{costs:read}' WHERE user_id = (SELECT id FROM users WHERE name = 'local')"
            .into(),
    )
    .await;
    assert_eq!(users(crate::app::KEY).await, ["local"], "a key that is not an administrator's");
    assert_eq!(app.get("/api/costs").await.expect(200)["items"].as_array().unwrap().len(), 1);
    let by_day = app.get("/api/costs/summary").await.expect(200);
    assert_eq!(by_day["total"][0]["jobs"], 1);
}

#[tokio::test]
async fn a_job_keeps_the_price_of_its_hardware_and_refuses_limits_that_mean_nothing() {
    let app = TestApp::ready_to_train().await;
    let create = async |more: Value| {
        let mut body = json!({"config": {"model": "tiny", "dataset": "words", "training": {"max_steps": 3}}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        app.post("/training/jobs", &body).await
    };
    let job = create(json!({"gpu_config": "a10g-small", "budget_limit": 2.5})).await.expect(201);
    assert_eq!(job["gpu_config"], "a10g-small");
    assert_eq!(
        job["cost"],
        json!({"estimated": null, "actual": null, "budget_limit": 2.5, "price_per_hour": 1.0, "currency": "USD"})
    );
    let free = create(json!({})).await.expect(201);
    assert_eq!((&free["cost"]["estimated"], &free["cost"]["price_per_hour"]), (&json!(0.0), &json!(0.0)));
    let unknown = create(json!({"gpu_config": "abacus"})).await;
    assert!(unknown.problem().contains("there is no GPU configuration `abacus`"), "{}", unknown.problem());
    for limit in [0.0, -1.0, 1e9] {
        assert_eq!(create(json!({"budget_limit": limit})).await.status, 422, "{limit}");
    }
}

#[tokio::test]
async fn notifications_are_listed_read_and_deleted_by_their_owner() {
    let app = TestApp::new().await;
    assert_eq!(app.upload("bad", broken()).await.status, 422);
    assert_eq!(app.upload("worse", broken()).await.status, 422);
    let list = app.get("/api/notifications").await.expect(200);
    let titles: Vec<&str> = list["items"].as_array().unwrap().iter().map(|n| n["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["the dataset `worse` cannot be used", "the dataset `bad` cannot be used"]);
    assert_eq!(list["items"][0]["kind"], "dataset.invalid");
    assert!(list["items"][0]["body"].as_str().unwrap().contains("line 4"), "{list:#}");
    let unread = async || app.get("/api/notifications/unread").await.expect(200)["unread"].clone();
    assert_eq!(unread().await, 2);

    let id = list["items"][0]["id"].as_str().unwrap();
    let read = app.post(&format!("/api/notifications/{id}/read"), &json!({})).await.expect(200);
    let again = app.post(&format!("/api/notifications/{id}/read"), &json!({})).await.expect(200);
    assert_eq!(read["read_at"], again["read_at"], "the first time counts");
    assert_eq!(unread().await, 1);
    let page = app.get("/api/notifications?unread=true").await.expect(200);
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    let page = app.get("/api/notifications?kind=training.job.failed").await.expect(200);
    assert_eq!(page["items"], json!([]));
    let first = app.get("/api/notifications?limit=1").await.expect(200);
    let next = first["next_cursor"].as_str().unwrap();
    let second = app.get(&format!("/api/notifications?limit=1&cursor={next}")).await.expect(200);
    assert_eq!(
        (&second["items"][0]["title"], &second["next_cursor"]),
        (&json!("the dataset `bad` cannot be used"), &Value::Null)
    );

    app.add_user("other", OTHER_KEY).await;
    let as_other = |method: Method, path: String| app.anonymous(method, &path).bearer_auth(OTHER_KEY).send();
    let foreign = as_other(Method::POST, format!("/api/notifications/{id}/read")).await.unwrap();
    assert_eq!(foreign.status(), 404);
    assert_eq!(as_other(Method::DELETE, format!("/api/notifications/{id}")).await.unwrap().status(), 404);
    let theirs: Value = as_other(Method::GET, "/api/notifications".into()).await.unwrap().json().await.unwrap();
    assert_eq!(theirs["items"], json!([]));

    app.delete(&format!("/api/notifications/{id}")).await.expect(204);
    assert_eq!(app.delete(&format!("/api/notifications/{id}")).await.status, 404);
    assert_eq!(app.post("/api/notifications/read", &json!({})).await.expect(200)["unread"], 0);
    let left = app.get("/api/notifications").await.expect(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    // Deleted news is not told again.
    let again = "INSERT INTO notifications (id, user_id, kind, title, dedupe_key)
        SELECT gen_random_uuid(), user_id, kind, title, dedupe_key FROM notifications ON CONFLICT DO NOTHING";
    let added = app.db.system(async move |conn: &mut Conn| Ok(diesel::sql_query(again).execute(conn).await?)).await;
    assert_eq!(added.unwrap(), 0);
}
