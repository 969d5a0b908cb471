//! Who may call what, and that keys stay secret.

use crate::app::{KEY, Reply, TestApp, chat_rows, command, key, send};
use backend::{
    api::authz::{Access, MATRIX},
    auth,
    db::Conn,
    schema::api_keys,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::TcpListener};
use wire::{
    account::{Role, Scope},
    problem::Code,
};

const ROTATED: &str = "hone_sk_00000000000000000000000000000000000000000000000000000000000000ff";

/// (operation id, method, path) of the document.
pub fn operations(document: &Value) -> Vec<(String, Method, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = method.to_uppercase().parse().unwrap();
            let id = operation["operationId"].as_str().unwrap().to_owned();
            found.push((id, method, path.clone(), operation.clone()));
        }
    }
    found
}

#[tokio::test]
async fn the_document_can_be_read_in_a_browser() {
    let app = TestApp::new().await;
    let page = async |path: &str| {
        let reply = reqwest::get(format!("{}{path}", app.url)).await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        (reply.headers()["content-type"].to_str().unwrap().to_owned(), reply.text().await.unwrap())
    };
    let (kind, start) = page("/docs").await;
    assert!(kind.starts_with("text/html") && start.contains("swagger-ui-bundle.js"), "{start}");
    assert!(page("/docs/swagger-initializer.js").await.1.contains("/openapi.json"));
    assert!(page("/docs/swagger-ui-bundle.js").await.1.len() > 500_000);
    let errors = page("/docs/errors").await.1;
    for code in Code::ALL {
        assert!(errors.contains(&format!("id=\"{}\"", code.name())), "{code:?}");
        assert!(!code.meaning().is_empty());
    }
}

#[tokio::test]
async fn a_method_that_a_path_does_not_take_is_told_those_it_takes() {
    let app = TestApp::new().await;
    let client = reqwest::Client::new();
    for (method, path, status, allowed) in [
        (Method::PUT, "/training/jobs", 405, Some("GET, POST")),
        (Method::DELETE, "/api/training/versions/auto-save", 405, Some("POST")),
        (Method::TRACE, "/v1/fine_tuning/jobs", 405, Some("GET, POST")),
        (Method::PATCH, "/openai/v1/files", 405, Some("GET, POST")),
        (Method::PUT, "/training/job", 404, None),
    ] {
        let reply = client.request(method.clone(), format!("{}{path}", app.url)).bearer_auth(KEY).send().await.unwrap();
        let allow = reply.headers().get("allow").map(|v| v.to_str().unwrap().to_owned());
        assert_eq!((reply.status().as_u16(), allow.as_deref()), (status, allowed), "{method} {path}");
    }
}

/// A path of the document with names that nothing has.
fn concrete(path: &str) -> String {
    let filled = path.split('/').map(|part| match part {
        "{name}" | "{revision}" => "x".to_owned(),
        part if part.starts_with('{') => uuid::Uuid::nil().to_string(),
        part => part.to_owned(),
    });
    filled.collect::<Vec<_>>().join("/")
}

pub fn document() -> Value {
    serde_json::from_str(&backend::api::openapi::document().to_json().unwrap()).unwrap()
}

#[test]
fn the_openapi_document_is_the_one_checked_in() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let have = backend::api::openapi::document().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &have).unwrap();
    }
    let wanted = std::fs::read_to_string(path).unwrap_or_default();
    assert!(have == wanted, "docs/openapi.json is stale; run this test with UPDATE_OPENAPI=1 and commit the file");
    assert!(document()["openapi"].as_str().unwrap().starts_with("3.1"));
}

/// Programs that make clients from the document stop at one that leads nowhere.
#[test]
fn every_reference_in_the_openapi_document_leads_somewhere() {
    fn references<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(map) => {
                found.extend(map.get("$ref").and_then(|target| target.as_str()));
                map.values().for_each(|value| references(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100);
    let lost: Vec<&str> =
        found.into_iter().filter(|target| document.pointer(target.trim_start_matches('#')).is_none()).collect();
    assert!(lost.is_empty(), "these lead nowhere: {lost:?}");
}

#[test]
fn every_operation_is_in_the_authorisation_matrix_and_named_by_rule() {
    let document = document();
    let mut names: Vec<String> = operations(&document).into_iter().map(|(id, ..)| id).collect();
    names.sort();
    let matrix: Vec<&str> = MATRIX.iter().map(|(id, _)| *id).collect();
    assert_eq!(names, matrix);
    for name in names {
        let (verb, resource) = name.split_once('_').unwrap_or_default();
        assert!(!verb.is_empty() && !resource.is_empty(), "`{name}` is not `verb_resource`");
    }
}

#[tokio::test]
async fn every_operation_demands_the_credentials_of_the_matrix() {
    let app = TestApp::new().await;
    let access: BTreeMap<&str, Access> = MATRIX.iter().copied().collect();
    for (operation, method, path, _) in operations(&document()) {
        let path = concrete(&path);
        let reply = send(app.anonymous(method.clone(), &path)).await;
        let status = reply.status.as_u16();
        match access[operation.as_str()] {
            Access::Anyone => assert_eq!(status, 200, "{operation}"),
            Access::Caller | Access::User(_) | Access::Admin | Access::Job => {
                assert_eq!(status, 401, "{operation}: {:?}", reply.body)
            }
        }
        if access[operation.as_str()] == Access::Job {
            let reply = send(app.request(method, &path)).await;
            assert!(matches!(reply.status.as_u16(), 401 | 403), "{operation} takes an API key: {:?}", reply.body);
        }
    }
}

/// Message and code of either kind of error, the kind told by the path.
fn refusal(reply: &Reply) -> (String, String) {
    let error = if reply.body["error"].is_object() { &reply.body["error"] } else { &reply.body };
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("code"), text("message") + &text("detail"))
}

#[tokio::test]
async fn an_operation_demands_its_scope_and_no_other() {
    let app = TestApp::new().await;
    let access: BTreeMap<&str, Access> = MATRIX.iter().copied().collect();
    let user = app.add_user("clerk", "hone_sk_of the clerk, who may do everything, but").await;
    let (only, but) = (|s: Scope| format!("hone_sk_only_{s}"), |s: Scope| format!("hone_sk_all_but_{s}"));
    for scope in Scope::ALL {
        app.add_key(user, &only(scope), &[scope]).await;
        let others: Vec<Scope> = Scope::ALL.into_iter().filter(|s| *s != Scope::All && *s != scope).collect();
        app.add_key(user, &but(scope), &others).await;
    }
    app.add_key(user, "hone_sk_worth_nothing", &[]).await;
    app.add_key(app.user, "hone_sk_an admin's, for jobs", &[Scope::JobsRead]).await;
    app.add_key(app.user, "hone_sk_an admin's, for that", &[Scope::Admin]).await;
    for (operation, method, path, _) in operations(&document()) {
        let path = concrete(&path);
        let with = async |key: &str| send(app.anonymous(method.clone(), &path).bearer_auth(key)).await;
        let passes = async |key: &str| {
            let reply = with(key).await;
            assert!(!matches!(reply.status.as_u16(), 401 | 403), "{operation} with {key}: {:?}", reply.body);
        };
        match access[operation.as_str()] {
            Access::Anyone | Access::Job => {}
            Access::Caller => passes("hone_sk_worth_nothing").await,
            Access::User(scope) => {
                passes(&only(scope)).await;
                passes(&only(Scope::All)).await;
                let reply = with(&but(scope)).await;
                assert_eq!(reply.status, 403, "{operation}: {:?}", reply.body);
                let (code, text) = refusal(&reply);
                let wanted = if path.starts_with("/v1/") { "missing_scope" } else { "INSUFFICIENT_SCOPE" };
                assert_eq!(code, wanted, "{operation}");
                assert!(text.contains(&format!("the scope `{scope}`")), "{operation}: {text}");
            }
            Access::Admin => {
                assert_eq!(refusal(&with(&only(Scope::All)).await).0, "FORBIDDEN", "{operation}");
                assert_eq!(refusal(&with(&only(Scope::Admin)).await).0, "FORBIDDEN", "{operation}");
                assert_eq!(refusal(&with("hone_sk_an admin's, for jobs").await).0, "INSUFFICIENT_SCOPE", "{operation}");
                passes("hone_sk_an admin's, for that").await;
            }
        }
    }
}

#[tokio::test]
async fn the_missing_scope_is_told_in_words_and_in_the_header_of_the_standard() {
    let app = TestApp::new().await;
    app.add_key(app.user, "hone_sk_for jobs", &[Scope::JobsRead]).await;
    let reply = app.anonymous(Method::GET, "/datasets").bearer_auth("hone_sk_for jobs").send().await.unwrap();
    assert_eq!(reply.headers()["www-authenticate"], "Bearer error=\"insufficient_scope\", scope=\"datasets:read\"");
    let native = send(app.anonymous(Method::GET, "/datasets").bearer_auth("hone_sk_for jobs")).await.problem();
    assert_snapshot!(native, @"403 INSUFFICIENT_SCOPE: `list_datasets` needs the scope `datasets:read`, which this key does not have; use a key with it");
    for base in ["/v1", "/openai", "/openai/v1"] {
        let files =
            app.anonymous(Method::GET, &format!("{base}/files?api-version=1")).header("api-key", "hone_sk_for jobs");
        let reply = send(files).await.expect(403);
        assert_eq!(reply["error"]["type"], "invalid_request_error");
        let message = "`list_files` needs the scope `datasets:read`, which this key does not have; use a key with it";
        assert_eq!(reply["error"]["message"], message);
    }
    send(app.anonymous(Method::GET, "/datasets").header("api-key", KEY)).await.expect(401);
}

#[tokio::test]
async fn a_key_that_is_missing_unknown_revoked_or_expired_is_refused_in_the_same_words() {
    let app = TestApp::new().await;
    let with = async |key: &str| send(app.anonymous(Method::GET, "/api/me").bearer_auth(key)).await.problem();
    let missing = send(app.anonymous(Method::GET, "/api/me")).await.problem();
    assert_snapshot!(missing, @"401 UNAUTHORIZED: no valid API key; send `Authorization: Bearer hone_sk_…`");
    assert_eq!(with("hone_sk_unknown").await, missing);
    assert_eq!(with("").await, missing);

    let me = app.get("/api/me").await.expect(200);
    assert_eq!((&me["name"], &me["key_prefix"]), (&json!("local"), &json!("hone_sk_0000")));

    let change = |expires: Option<DateTime<Utc>>, revoked: Option<DateTime<Utc>>| {
        app.db.system(async move |conn: &mut Conn| {
            let set = (api_keys::expires_at.eq(expires), api_keys::revoked_at.eq(revoked));
            diesel::update(api_keys::table).set(set).execute(conn).await?;
            Ok(())
        })
    };
    change(Some(Utc::now() - TimeDelta::seconds(1)), None).await.unwrap();
    assert_eq!(with(KEY).await, missing);
    change(Some(Utc::now() + TimeDelta::hours(1)), None).await.unwrap();
    app.get("/api/me").await.expect(200);
    change(None, Some(Utc::now())).await.unwrap();
    assert_eq!(with(KEY).await, missing);
}

#[tokio::test]
async fn a_key_in_the_query_string_counts_for_nothing_but_the_websocket() {
    let app = TestApp::new().await;
    send(app.anonymous(Method::GET, &format!("/api/me?token={KEY}"))).await.expect(401);
    send(app.anonymous(Method::GET, &format!("/training/jobs?token={KEY}"))).await.expect(401);
}

#[tokio::test]
async fn the_use_of_a_key_is_noted_once_a_minute() {
    let app = TestApp::new().await;
    let used = || {
        app.db.system(async |conn: &mut Conn| {
            Ok(api_keys::table.select(api_keys::last_used_at).first::<Option<DateTime<Utc>>>(conn).await?)
        })
    };
    assert_eq!(used().await.unwrap(), None);
    app.get("/api/me").await.expect(200);
    let first = used().await.unwrap().unwrap();
    app.get("/api/me").await.expect(200);
    assert_eq!(used().await.unwrap(), Some(first));
    let long_ago = first - TimeDelta::minutes(2);
    let age = async move |conn: &mut Conn| {
        diesel::update(api_keys::table).set(api_keys::last_used_at.eq(long_ago)).execute(conn).await?;
        Ok(())
    };
    app.db.system(age).await.unwrap();
    app.get("/api/me").await.expect(200);
    assert!(used().await.unwrap().unwrap() >= first);
}

#[tokio::test]
async fn a_new_bootstrap_key_replaces_the_old_one() {
    let app = TestApp::new().await;
    let sibling = app.sibling(&[("HONE_BOOTSTRAP_KEY", ROTATED)]).await;
    let with = async |key: &str| send(sibling.anonymous(Method::GET, "/api/me").bearer_auth(key)).await.status.as_u16();
    // The harness stores its own key again when a sibling starts; so the order is fixed here.
    let rotate =
        async |conn: &mut Conn| auth::bootstrap(conn, "local", Role::Admin, &SecretString::from(ROTATED)).await;
    app.db.system(rotate).await.unwrap();
    assert_eq!((with(KEY).await, with(ROTATED).await), (401, 200));
    let back = async |conn: &mut Conn| auth::bootstrap(conn, "local", Role::Admin, &key()).await;
    app.db.system(back).await.unwrap();
    assert_eq!((with(KEY).await, with(ROTATED).await), (200, 401));
}

#[tokio::test]
async fn only_the_hash_of_a_key_is_stored() {
    use sha2::Digest;
    let app = TestApp::new().await;
    let read = async |conn: &mut Conn| {
        Ok(api_keys::table.select((api_keys::prefix, api_keys::key_hash)).load::<(String, Vec<u8>)>(conn).await?)
    };
    let rows = app.db.system(read).await.unwrap();
    assert_eq!(rows, [("hone_sk_0000".to_owned(), sha2::Sha256::digest(KEY).to_vec())]);
}

#[tokio::test]
async fn no_secret_gets_into_the_log() {
    let app = TestApp::new().await;
    app.get("/api/me").await.expect(200);
    app.upload("words", chat_rows(3)).await.expect(201);
    app.upload("bad", "{").await.expect(422);
    send(app.anonymous(Method::GET, &format!("/api/me?token={KEY}"))).await.expect(401);
    send(app.anonymous(Method::GET, &format!("/ws/training/{}?token={KEY}", uuid::Uuid::nil()))).await;
    app.post("/training/jobs", &json!({"config": KEY})).await.expect(422);
    let log = app.log();
    assert!(log.contains("POST /datasets/upload"), "the log is at level debug");
    assert!(!log.contains(KEY) && !log.contains(&KEY[8..]), "the API key is in the log");
    assert!(!log.contains(crate::app::SIGNING_KEY), "the signing key is in the log");
    assert!(!log.contains("eyJ"), "a token is in the log");
}

#[tokio::test]
async fn an_unknown_route_is_a_problem_too() {
    let app = TestApp::new().await;
    assert_snapshot!(app.get("/trainig/jobs").await.problem(), @"404 NOT_FOUND: there is no GET /trainig/jobs");
}

/// Runs a backend that cannot start and gives what it says.
fn failure(database: &str, changes: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(dir.path(), database, "http://127.0.0.1:1");
    let output = command.envs(changes.iter().copied()).stderr(std::process::Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_taken_port_a_missing_postgres_and_a_bad_setting_are_told_in_a_sentence() {
    let database = "postgres://nobody@127.0.0.1:1/none";
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let port = failure(database, &[("HONE_LISTEN", &address)]).replace(&address, "ADDRESS");
    assert_snapshot!(port, @"Error: cannot listen on ADDRESS: Address already in use (os error 98); another program uses this port; choose another one or 0 for any free port");
    let postgres = failure(database, &[]);
    assert!(
        postgres.contains("cannot connect to Postgres; check that it runs and that DATABASE_URL is right"),
        "{postgres}"
    );
    assert_snapshot!(failure(database, &[("TRAINING_MODE", "kubernetes")]), @"Error: TRAINER_IMAGE is not set; give the image of hone-trainer, such as ghcr.io/hone-ml/hone-trainer:TAG");
    assert_snapshot!(failure(database, &[("TOKEN_SIGNING_KEY", "")]), @"Error: TOKEN_SIGNING_KEY is not set; give the same random text of 32 characters or more to backend and gateway");
}

#[tokio::test]
async fn a_backend_is_ready_only_with_database_and_gateway() {
    let app = TestApp::new().await;
    send(app.anonymous(Method::GET, "/ready")).await.expect(200);
    let lost = app.sibling(&[("STORAGE_GATEWAY_URL", "http://127.0.0.1:1")]).await;
    send(lost.anonymous(Method::GET, "/health")).await.expect(200);
    assert_snapshot!(send(lost.anonymous(Method::GET, "/ready")).await.problem(), @"503 UNAVAILABLE: not ready: cannot reach the storage gateway: error sending request for url (http://127.0.0.1:1/health): client error (Connect): tcp connect error: Connection refused (os error 111)");
    assert_snapshot!(lost.upload("words", chat_rows(1)).await.problem(), @"503 UNAVAILABLE: cannot reach the storage gateway; try again in a moment");
    // The row of the upload that failed is hidden at once, so that the name is free.
    assert_eq!(lost.get("/datasets").await.expect(200)["items"], json!([]));
    app.upload("words", chat_rows(1)).await.expect(201);
}
