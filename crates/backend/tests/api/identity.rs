//! Keys, users, the audit log, and limits.

use crate::app::{KEY, Reply, TestApp, chat_rows, send};
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};
use wire::account::Scope;

const CLERK: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000c1e";

impl TestApp {
    async fn as_key(&self, key: &str, method: Method, path: &str, body: Value) -> Reply {
        send(self.anonymous(method, path).bearer_auth(key).json(&body)).await
    }

    async fn patch(&self, path: &str, body: Value) -> Reply {
        self.as_key(KEY, Method::PATCH, path, body).await
    }

    /// The newest entry of the log about an operation.
    async fn noted(&self, action: &str) -> Value {
        let entries = self.get(&format!("/api/audit?action={action}&limit=1")).await.expect(200);
        entries["items"][0].clone()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn a_key_is_shown_once_works_within_its_scopes_and_stops_when_revoked() {
    let app = TestApp::new().await;
    let body = json!({"name": " ci ", "scopes": ["jobs:read", "datasets:read", "jobs:read"], "expires_in": 3600});
    let made = app.post("/api/keys", &body).await.expect(201);
    let (key, id) = (text(&made["key"]).to_owned(), text(&made["id"]).to_owned());
    assert!(key.starts_with("hone_sk_") && key.len() == 8 + 64, "256 bits");
    assert_eq!((&made["name"], &made["scopes"]), (&json!("ci"), &json!(["jobs:read", "datasets:read"])));
    assert_eq!((text(&made["prefix"]), &made["user_id"]), (&key[..12], &json!(app.user)));
    assert!(made["expires_at"].is_string());
    let with = async |path: &str| app.as_key(&key, Method::GET, path, Value::Null).await.status.as_u16();
    assert_eq!((with("/training/jobs").await, with("/datasets").await, with("/api/keys").await), (200, 200, 403));
    assert_eq!(app.as_key(&key, Method::GET, "/api/me", Value::Null).await.expect(200)["scopes"], made["scopes"]);

    let path = format!("/api/keys/{id}");
    let shown = app.get(&path).await.expect(200);
    assert!(shown["last_used_at"].is_string() && shown["key"].is_null());
    assert_eq!(app.patch(&path, json!({"name": "build"})).await.expect(200)["name"], "build");
    assert_snapshot!(app.patch(&path, json!({"name": " "})).await.problem(), @"422 INVALID: name: must have 1 to 100 characters and no control characters");
    let list = app.get("/api/keys?limit=1").await.expect(200);
    assert_eq!(list["items"][0]["name"], "build");
    let next = app.get(&format!("/api/keys?cursor={}", text(&list["next_cursor"]))).await.expect(200);
    assert_eq!((next["items"].as_array().unwrap().len(), &next["items"][0]["name"]), (1, &json!("bootstrap")));
    let all = app.get("/api/keys").await.expect(200).to_string() + &app.log();
    assert!(!all.contains(&key[8..]), "the key is in a list or in the log");

    app.delete(&path).await.expect(204);
    assert_eq!(with("/training/jobs").await, 401);
    let revoked = app.get(&path).await.expect(200)["revoked_at"].clone();
    app.delete(&path).await.expect(204);
    assert_eq!((app.get(&path).await.expect(200)["revoked_at"].clone(), revoked.is_string()), (revoked, true));
}

#[tokio::test]
async fn a_key_grants_at_most_what_its_maker_has() {
    let app = TestApp::new().await;
    let clerk = app.add_user("clerk", CLERK).await;
    app.add_key(clerk, "hone_sk_narrow", &[Scope::KeysWrite, Scope::JobsRead]).await;
    let make = async |key: &str, body: Value| app.as_key(key, Method::POST, "/api/keys", body).await;
    let narrow = make("hone_sk_narrow", json!({"name": "same"})).await.expect(201);
    assert_eq!(narrow["scopes"], json!(["jobs:read", "keys:write"]), "as much as the maker's");
    for scope in ["*", "jobs:write", "admin"] {
        let refused = make("hone_sk_narrow", json!({"name": "more", "scopes": ["jobs:read", scope]})).await.problem();
        assert!(refused.starts_with(&format!("403 FORBIDDEN: scopes: `{scope}` is not among")), "{refused}");
    }
    let foreign = make(CLERK, json!({"name": "spy", "user_id": app.user})).await;
    assert_snapshot!(foreign.problem(), @"403 FORBIDDEN: user_id: only administrators make keys for others");
    assert_snapshot!(make(CLERK, json!({"name": "x", "expires_at": "2001-01-01T00:00:00Z"})).await.problem(), @"422 INVALID: expires_at: is in the past");
    assert_snapshot!(make(CLERK, json!({"name": "x", "expires_in": 0})).await.problem(), @"422 INVALID: expires_in: must be at least 1 second");
    make(CLERK, json!({"name": "x", "scopes": ["jobs"]})).await.expect(422);
    // Keys of others do not exist.
    let mine = format!("/api/keys/{}", text(&app.get("/api/keys").await.expect(200)["items"][0]["id"]));
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        app.as_key(CLERK, method, &mine, json!({"name": "x"})).await.expect(404);
    }
    app.get("/api/me").await.expect(200);
}

#[tokio::test]
async fn an_administrator_adds_changes_and_deletes_users() {
    let app = TestApp::new().await;
    let me = app.get("/api/me").await.expect(200);
    assert_eq!((&me["role"], &me["scopes"]), (&json!("admin"), &json!(["*"])));
    let ann = app.post("/api/users", &json!({"name": "ann", "email": "ann@example.org"})).await.expect(201);
    assert_eq!((&ann["role"], &ann["email"]), (&json!("user"), &json!("ann@example.org")));
    assert_snapshot!(app.post("/api/users", &json!({"name": "ann"})).await.problem(), @"409 CONFLICT: a user of this name exists");
    assert_snapshot!(app.post("/api/users", &json!({"name": "bob", "email": "bob"})).await.problem(), @"422 INVALID: email: must be an address such as name@example.org");
    let key = app.post("/api/keys", &json!({"name": "hers", "user_id": ann["id"]})).await.expect(201);
    let key = text(&key["key"]).to_owned();
    let her = async |method: Method, path: &str, body: Value| app.as_key(&key, method, path, body).await;
    let seen = her(Method::GET, "/api/me", Value::Null).await.expect(200);
    assert_eq!((&seen["id"], &seen["email"], &seen["role"]), (&ann["id"], &ann["email"], &json!("user")));
    assert_snapshot!(her(Method::GET, "/api/users", Value::Null).await.problem(), @"403 FORBIDDEN: `list_users` is for administrators");

    let path = format!("/api/users/{}", text(&ann["id"]));
    let change = json!({"name": "anne", "email": "", "role": "admin"});
    let changed = app.patch(&path, change).await.expect(200);
    assert_eq!(
        (&changed["name"], &changed["email"], &changed["role"]),
        (&json!("anne"), &json!(null), &json!("admin"))
    );
    assert_eq!(her(Method::GET, "/api/users", Value::Null).await.expect(200)["items"].as_array().unwrap().len(), 2);
    let own = format!("/api/users/{}", app.user);
    assert_snapshot!(app.patch(&own, json!({"role": "user"})).await.problem(), @"409 CONFLICT: role: another administrator has to change yours");
    assert_snapshot!(app.delete(&own).await.problem(), @"409 CONFLICT: another administrator has to delete you");
    app.delete(&path).await.expect(204);
    her(Method::GET, "/api/me", Value::Null).await.expect(401);
    app.delete(&path).await.expect(404);
    app.patch(&path, json!({"name": "x"})).await.expect(404);
    app.post("/api/keys", &json!({"name": "late", "user_id": ann["id"]})).await.expect(404);
    assert_eq!(app.get("/api/users").await.expect(200)["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_log_says_who_did_what_to_what_and_whose_it_is() {
    let app = TestApp::new().await;
    let clerk = app.add_user("clerk", CLERK).await;
    app.add_key(clerk, "hone_sk_reader", &[Scope::DatasetsRead, Scope::AuditRead]).await;
    let dataset = app.upload("words", chat_rows(3)).await.expect(201);
    let entry = app.noted("upload_dataset").await;
    assert_eq!((&entry["user_id"], &entry["actor_id"]), (&json!(app.user), &json!(app.user)));
    assert_eq!((&entry["resource_kind"], &entry["resource_id"]), (&json!("dataset"), &dataset["id"]));
    assert_eq!((&entry["actor"], &entry["outcome"]), (&json!("user"), &json!("done")));
    assert_eq!((&entry["key_prefix"], &entry["ip"]), (&json!("hone_sk_0000"), &json!("127.0.0.1")));
    assert_eq!(text(&entry["trace_id"]).len(), 32);

    // Reading leaves no row, nor does what failed without changing anything; being refused does.
    let id = text(&dataset["id"]).to_owned();
    app.get(&format!("/datasets/{id}")).await.expect(200);
    app.delete("/datasets/none").await.expect(404);
    let refused = app.as_key("hone_sk_reader", Method::DELETE, &format!("/datasets/{id}"), Value::Null).await;
    refused.expect(403);
    let entries = app.get("/api/audit").await.expect(200);
    let told = |e: &Value| format!("{} {} {}", text(&e["action"]), text(&e["outcome"]), text(&e["actor"]));
    let list: Vec<String> = entries["items"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(list, ["delete_dataset refused user", "upload_dataset done user"]);
    assert_eq!((&entries["items"][0]["user_id"], &entries["items"][0]["resource_id"]), (&json!(clerk), &json!(id)));

    // Users see their own entries, and what administrators did to them.
    app.patch(&format!("/api/users/{clerk}"), json!({"email": "c@example.org"})).await.expect(200);
    let own = app.as_key("hone_sk_reader", Method::GET, "/api/audit", Value::Null).await.expect(200);
    let list: Vec<String> = own["items"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(list, ["update_user done admin", "delete_dataset refused user"]);
    assert_eq!(own["items"][0]["actor_id"], json!(app.user));
    let other = format!("/api/audit?user_id={}", app.user);
    app.as_key("hone_sk_reader", Method::GET, &other, Value::Null).await.expect(403);
    assert_eq!(app.get(&other).await.expect(200)["items"].as_array().unwrap().len(), 1);
    let page = app.get("/api/audit?limit=2").await.expect(200);
    let rest = app.get(&format!("/api/audit?cursor={}", text(&page["next_cursor"]))).await.expect(200);
    assert_eq!(rest["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_written_to_the_log_is_not_done() {
    let app = TestApp::new().await;
    let (client, connection) = app.db.postgres().connect(tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute("REVOKE INSERT ON audit_log FROM hone_app, hone_system").await.unwrap();
    app.post("/api/training/packages", &json!({"name": "demo"})).await.expect(500);
    app.upload("words", chat_rows(3)).await.expect(500);
    assert_eq!(app.get("/api/training/packages").await.expect(200)["items"], json!([]));
    assert_eq!(app.get("/datasets").await.expect(200)["items"], json!([]));
    client.batch_execute("GRANT INSERT ON audit_log TO hone_app, hone_system").await.unwrap();
    app.post("/api/training/packages", &json!({"name": "demo"})).await.expect(201);
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_key_that_asks_too_often_is_told_when_to_go_on() {
    let app = TestApp::new().await;
    let slow = app.sibling(&[("RATE_LIMIT_PER_MINUTE", "6"), ("RATE_LIMIT_BURST", "3")]).await;
    app.add_key(app.user, CLERK, &[Scope::All]).await;
    for _ in 0..3 {
        slow.get("/api/me").await.expect(200);
    }
    let reply = slow.request(Method::GET, "/api/me").send().await.unwrap();
    assert_eq!(reply.status(), 429);
    let seconds: u64 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((5..=10).contains(&seconds), "{seconds}");
    assert_eq!(reply.json::<Value>().await.unwrap()["code"], "RATE_LIMITED");
    let reply = slow.request(Method::GET, "/v1/models").send().await.unwrap();
    assert_eq!(reply.status(), 429);
    let millis: u64 = reply.headers()["retry-after-ms"].to_str().unwrap().parse().unwrap();
    assert!((4000..=10_000).contains(&millis), "{millis}");
    let error = reply.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
    // Another key has its own bucket, and trainers are not limited: theirs is another refusal.
    slow.as_key(CLERK, Method::GET, "/api/me", Value::Null).await.expect(200);
    let callback = format!("/training/jobs/{}/callback", uuid::Uuid::nil());
    for _ in 0..10 {
        slow.as_key(KEY, Method::POST, &callback, json!({})).await.expect(401);
    }
}

#[tokio::test]
async fn an_address_that_fails_to_sign_in_is_stopped_behind_the_trusted_proxy() {
    let app = TestApp::new().await;
    let settings = [("AUTH_FAILURES_PER_MINUTE", "3"), ("TRUSTED_PROXIES", "1")];
    let strict = app.sibling(&settings).await;
    let from = async |address: &str, key: &str| {
        let request = strict.anonymous(Method::GET, "/api/me").header("x-forwarded-for", address);
        send(request.bearer_auth(key)).await
    };
    from("192.0.2.1", KEY).await.expect(200);
    for _ in 0..3 {
        from("192.0.2.1", "hone_sk_guess").await.expect(401);
    }
    // What a client writes into the header itself stands before what the proxy adds.
    let told = from("192.0.2.9, 192.0.2.1", "hone_sk_guess").await.problem();
    assert!(
        told.starts_with("429 RATE_LIMITED: too many failed attempts to sign in from this address; go on in"),
        "{told}"
    );
    from("192.0.2.1", KEY).await.expect(200);
    from("192.0.2.2", "hone_sk_guess").await.expect(401);
}

#[tokio::test]
async fn a_user_has_so_many_keys_that_work() {
    let app = TestApp::set(&[("KEYS_PER_USER", "3")]).await;
    let make = async |body: Value| app.post("/api/keys", &body).await;
    // The one of this test is the first.
    let second = make(json!({"name": "a"})).await.expect(201);
    make(json!({"name": "b", "expires_in": 1})).await.expect(201);
    assert_snapshot!(make(json!({"name": "c"})).await.problem(), @"409 CONFLICT: there are 3 keys, and 3 are allowed; revoke one that is not needed any more first");
    // Neither what is over nor what is revoked counts, and others have their own.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    make(json!({"name": "c"})).await.expect(201);
    make(json!({"name": "d"})).await.expect(409);
    app.delete(&format!("/api/keys/{}", text(&second["id"]))).await.expect(204);
    make(json!({"name": "d"})).await.expect(201);
    let other = app.add_user("clerk", CLERK).await;
    make(json!({"name": "theirs", "user_id": other})).await.expect(201);
}
