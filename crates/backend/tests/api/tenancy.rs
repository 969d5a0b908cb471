//! Nobody sees or changes what belongs to another: over every operation of the OpenAPI document, over random requests,
//! and in SQL over every table of the catalogue. Operations get their parameters from [`CALLS`].

use crate::{
    access::{document, operations},
    app::{Reply, TestApp, send},
    schema::lines,
    tenants::{Body, CALLS, Tenant, World},
};
use backend::{
    api::authz::{Access, MATRIX},
    db::Conn,
};
use diesel_async::RunQueryDsl;
use futures::{StreamExt, stream};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::{Client, Transaction, error::SqlState};
use wire::{
    UserId,
    account::{Role, Scope},
};

struct Operation {
    id: String,
    method: Method,
    template: String,
    access: Access,
    kind: &'static str,
    body: Body,
}

/// The operations that users call, in the order of [`CALLS`].
fn callable() -> Vec<Operation> {
    let access: BTreeMap<&str, Access> = MATRIX.iter().copied().collect();
    let mut known: BTreeMap<String, (Method, String)> =
        operations(&document()).into_iter().map(|(id, method, path, _)| (id, (method, path))).collect();
    known.retain(|id, _| !matches!(access[id.as_str()], Access::Anyone | Access::Job));
    let named: BTreeSet<&str> = CALLS.iter().map(|c| c.0).collect();
    let document: BTreeSet<&str> = known.keys().map(String::as_str).collect();
    assert_eq!(named, document, "every operation needs a row in `CALLS`, and every row an operation");
    let operation = |(id, kind, body): &(&'static str, &'static str, Body)| {
        let (method, template) = known[*id].clone();
        Operation { id: (*id).to_owned(), method, template, access: access[id], kind, body: *body }
    };
    CALLS.iter().map(operation).collect()
}

impl World {
    /// Calls an operation on what belongs to `owner`.
    async fn call(&self, operation: &Operation, owner: &Tenant, key: Option<&str>) -> Reply {
        let path = owner.path(&operation.template, operation.kind, &self.revision);
        let request = owner.request(&self.app, operation.method.clone(), &path, operation.body);
        send(match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
        .await
    }

    /// What `caller` gets to see of `owner` by asking for it.
    async fn seen(&self, operation: &Operation, caller: &Tenant, owner: &Tenant) -> (u16, Vec<String>) {
        let asked = owner.path(&operation.template, operation.kind, &self.revision);
        let reply = self.call(operation, owner, Some(&caller.key)).await;
        // A body names what it is about.
        let named = if let Body::Json(make) = operation.body { make(owner).to_string() } else { String::new() };
        (reply.status.as_u16(), owner.leaks(&reply, &(asked + &named)))
    }
}

/// Makes a key that is no more, by a change of its row.
async fn spoil(app: &TestApp, key: &str, column: &'static str) {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(key).to_vec();
    let change = async move |conn: &mut Conn| {
        let sql = format!("UPDATE api_keys SET {column} = now() - interval '1 second' WHERE key_hash = $1");
        Ok(diesel::sql_query(sql).bind::<diesel::sql_types::Bytea, _>(hash).execute(conn).await?)
    };
    assert_eq!(app.db.system(change).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_shows_and_changes_only_what_is_the_callers() {
    let world = World::new().await;
    let [ann, bob] = &world.tenants[..] else { unreachable!() };
    let (expired, revoked) = (world.key(0, &[Scope::All]).await, world.key(0, &[Scope::All]).await);
    spoil(&world.app, &expired, "expires_at").await;
    spoil(&world.app, &revoked, "revoked_at").await;
    let (before, mut own) = (world.rows_of(ann.user).await, 0);
    for op in &callable() {
        let name = &op.id;
        for key in [None, Some("hone_sk_unknown"), Some(expired.as_str()), Some(revoked.as_str())] {
            assert_eq!(world.call(op, ann, key).await.status, 401, "{name} with {key:?}");
        }
        if let Access::User(scope) = op.access {
            let others: Vec<Scope> = Scope::ALL.into_iter().filter(|s| *s != Scope::All && *s != scope).collect();
            let wrong = world.key(0, &others).await;
            assert_eq!(world.call(op, ann, Some(&wrong)).await.status, 403, "{name} without {scope}");
        }
        let (status, leaks) = world.seen(op, bob, ann).await;
        assert!(leaks.is_empty(), "{name} shows another tenant {leaks:?}");
        match op.access {
            Access::Admin => assert_eq!(status, 403, "{name}"),
            _ if op.kind == "model" => {}
            _ if !op.kind.is_empty() => assert_eq!(status, 404, "{name} on what is another's"),
            _ => assert!(status < 500, "{name}: {status}"),
        }
        // The same request is good for the owner: it is the tenant that is refused, not the request.
        if op.method == Method::GET && op.id != "watch_job" && op.access != Access::Admin {
            let reply = world.call(op, ann, Some(&ann.key)).await;
            assert!(reply.status.is_success(), "{name} of one's own: {:#}", reply.body);
            own += usize::from(reply.body.to_string().contains(&ann.marker));
        }
    }
    assert!(own >= 15, "only {own} replies had the owner's marker; the oracle looks for what is not there");
    assert_eq!(world.rows_of(ann.user).await, before, "another tenant has changed something");
}

impl World {
    /// Digest of every row of a tenant, but for what its own requests leave behind: the log, the last use of keys, and
    /// places in the stream of notifications.
    async fn rows_of(&self, user: UserId) -> Vec<String> {
        let mut found = Vec::new();
        for table in tenant_tables(&self.app).await {
            if matches!(table.as_str(), "audit_log" | "users") {
                continue;
            }
            let sql = format!(
                "SELECT '{table} ' || count(*) || ' ' || coalesce(md5(string_agg(md5((to_jsonb(t) - 'last_used_at' - 'updated_at' - 'position')::text), '' ORDER BY md5((to_jsonb(t) - 'last_used_at' - 'updated_at' - 'position')::text))), '-') AS line
                 FROM {table} t WHERE user_id = '{user}' {}",
                if table == "api_keys" { "AND name NOT LIKE '________-____-____-____-____________'" } else { "" }
            );
            found.extend(lines(&self.app.db, sql).await);
        }
        found
    }
}

/// Tables and views with a tenant, without partitions, as the catalogue has them.
async fn tenant_tables(app: &TestApp) -> Vec<String> {
    let query = "SELECT c.relname::text AS line FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
         WHERE c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition AND c.relname NOT IN ('__diesel_schema_migrations', 'leaders') ORDER BY 1";
    lines(&app.db, query).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_random_requests_show_no_foreign_row() {
    const REQUESTS: usize = 10_000;
    let world = World::new().await;
    // Requests without an id would only add rows to the caller's own.
    let operations: Vec<Operation> =
        callable().into_iter().filter(|op| op.method == Method::GET || !op.kind.is_empty()).collect();
    let kinds: Vec<&str> = world.tenants[0].ids.keys().copied().collect();
    let mut random = StdRng::seed_from_u64(0x7e4a);
    let requests: Vec<(usize, usize, usize, &str, String)> = (0..REQUESTS)
        .map(|_| {
            let operation = random.random_range(0..operations.len());
            let caller = random.random_range(0..world.tenants.len());
            let owner = random.random_range(0..world.tenants.len());
            let kind =
                if random.random_bool(0.7) { operations[operation].kind } else { kinds.choose(&mut random).unwrap() };
            let limit = random.random_range(0..300);
            let query = ["", "?limit=", "?after="][random.random_range(0..3)];
            let query = if query.is_empty() { String::new() } else { format!("{query}{limit}") };
            // What changes something is only tried on others: one's own world has to last.
            let caller = if operations[operation].method == Method::GET { caller } else { 1 - owner };
            (operation, caller, owner, kind, query)
        })
        .collect();
    let ask = async |(operation, caller, owner, kind, query): (usize, usize, usize, &str, String)| {
        let (op, owner, caller) = (&operations[operation], &world.tenants[owner], &world.tenants[caller]);
        let path = owner.path(&op.template, kind, &world.revision) + &query;
        let request = owner.request(&world.app, op.method.clone(), &path, op.body).bearer_auth(&caller.key);
        let reply = send(request).await;
        let named = if let Body::Json(make) = op.body { make(owner).to_string() } else { String::new() };
        let asked = path.clone() + &named;
        let others = world.tenants.iter().filter(|t| t.user != caller.user);
        let mut leaks: Vec<String> = others.flat_map(|other| other.leaks(&reply, &asked)).collect();
        if op.id == "list_audit" {
            // One's own log repeats the ids that one has asked for.
            leaks.retain(|word| word.starts_with("mark-") || word.starts_with("the user"));
        }
        assert!(leaks.is_empty(), "{} {path} shows {leaks:?}", op.method);
        assert!(reply.status.as_u16() < 500 || reply.status == 501, "{} {path}: {:#}", op.method, reply.body);
        (reply.status.is_success(), reply.body.to_string().contains(&caller.marker))
    };
    let done: Vec<(bool, bool)> = stream::iter(requests).map(ask).buffer_unordered(16).collect().await;
    let (good, marked) = (done.iter().filter(|d| d.0).count(), done.iter().filter(|d| d.1).count());
    assert_eq!(done.len(), REQUESTS);
    assert!(good > REQUESTS / 10 && marked > REQUESTS / 20, "{good} succeeded, {marked} showed the caller's own rows");
}

/// What a tenant, or nobody (None), can reach of others' rows under the role of requests.
async fn reachable(client: &mut Client, tables: &[String], tenant: Option<UserId>) -> Vec<String> {
    let mut found = Vec::new();
    for table in tables {
        let owner = if table == "users" { "id" } else { "user_id" };
        let foreign = tenant.map_or("true".to_owned(), |id| format!("{owner} <> '{id}'"));
        let attempts = [
            ("SELECT", format!("SELECT 1 FROM {table} WHERE {foreign}")),
            ("UPDATE", format!("UPDATE {table} SET {owner} = {owner} WHERE {foreign}")),
            ("DELETE", format!("DELETE FROM {table} WHERE {foreign}")),
        ];
        for (verb, sql) in attempts {
            // The registry of models is for all to read, and the view only for reading.
            let (registry, view) = (table == "models", table == "latest_published_versions");
            if (registry && verb == "SELECT") || (view && verb != "SELECT") {
                continue;
            }
            let transaction = client.transaction().await.unwrap();
            transaction.batch_execute("SET LOCAL ROLE hone_app").await.unwrap();
            if let Some(id) = tenant {
                let set = format!("SELECT set_config('app.user_id', '{id}', true)");
                transaction.batch_execute(&set).await.unwrap();
            }
            match Transaction::execute(&transaction, &sql, &[]).await {
                Ok(0) => {}
                Ok(rows) => found.push(format!("{verb} {table}: {rows} rows")),
                Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
                // A trigger speaks before a row is found.
                Err(e) if verb != "SELECT" => found.push(format!("{verb} {table}: {e}")),
                Err(e) => panic!("{sql}: {e}"),
            }
            transaction.rollback().await.unwrap();
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_table_gives_up_a_foreign_row_in_sql() {
    let world = World::new().await;
    let tables = tenant_tables(&world.app).await;
    for tenant in &world.tenants {
        for table in tables.iter().filter(|t| *t != "models") {
            let owner = if table == "users" { "id" } else { "user_id" };
            let sql = format!("SELECT count(*)::text AS line FROM {table} WHERE {owner} = '{}'", tenant.user);
            let rows = lines(&world.app.db, sql).await;
            assert_ne!(rows, ["0"], "{table} has no row of a tenant: make one in `Tenant::new` or `FILL`");
        }
    }
    let (mut client, connection) = world.app.db.postgres().connect(tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    for tenant in [None, Some(world.tenants[0].user), Some(world.tenants[1].user)] {
        assert_eq!(reachable(&mut client, &tables, tenant).await, Vec::<String>::new(), "{tenant:?}");
    }

    // The oracles see what they look for: one table without its policy.
    client.batch_execute("ALTER TABLE datasets DISABLE ROW LEVEL SECURITY").await.unwrap();
    let [ann, bob] = &world.tenants[..] else { unreachable!() };
    let found = reachable(&mut client, &tables, Some(bob.user)).await.join("; ");
    assert!(found.contains("SELECT datasets: ") && found.contains("UPDATE datasets: "), "{found}");
    assert!(reachable(&mut client, &tables, None).await.iter().any(|f| f.starts_with("SELECT datasets: ")));
    let operations = callable();
    for id in ["list_datasets", "get_dataset"] {
        let op = operations.iter().find(|op| op.id == id).unwrap();
        let (status, leaks) = world.seen(op, bob, ann).await;
        assert!(status == 200 && leaks.contains(&ann.marker), "{id}: {status} {leaks:?}");
    }
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_that_changes_something_is_in_the_audit_log() {
    let mut world = World::new().await;
    let admin = world.app.user;
    let name = format!("hone_sk_{}", "a".repeat(64));
    world.app.add_key(admin, &name, &[Scope::All]).await;
    world.tenants = vec![Tenant::new(&world.app, "adm", admin, &name).await];
    let tenant = &world.tenants[0];
    assert_eq!(world.app.get("/api/me").await.expect(200)["role"], json!(Role::Admin));
    for op in callable().iter().filter(|op| op.method != Method::GET) {
        if matches!(op.kind, "job" | "tuning") {
            tenant.rest(&world.app).await;
        }
        let reply = world.call(op, tenant, Some(&tenant.key)).await;
        let outcome = match (op.id.as_str(), reply.status.as_u16()) {
            // A base model cannot be deleted; deploying is noted, and served later.
            ("delete_openai_model", 403) => "refused",
            ("deploy_version", 501) => "done",
            (_, status) => {
                assert!((200..300).contains(&status), "{}: {status} {:#}", op.id, reply.body);
                "done"
            }
        };
        let entries = world.app.get(&format!("/api/audit?action={}", op.id)).await.expect(200);
        let entry = &entries["items"][0];
        let told = (&entry["actor_id"], &entry["outcome"], &entry["key_prefix"]);
        assert_eq!(told, (&json!(admin), &json!(outcome), &json!("hone_sk_aaaa")), "{}: {entries:#}", op.id);
        assert!(entry["resource_id"].is_string() || op.id == "estimate_job", "{}: of what? {entry:#}", op.id);
        // What was made is named in the log, by the id that the native API has for it.
        if let (Some(id), "") = (reply.body["id"].as_str(), op.kind) {
            let digits = |text: &str| text.replace('-', "").chars().rev().take(32).collect::<String>();
            assert_eq!(digits(id), digits(entry["resource_id"].as_str().unwrap()), "{}", op.id);
        }
    }
    let log = world.app.get("/api/audit?limit=200").await.expect(200).to_string();
    assert!(!log.contains(&tenant.marker) && !log.contains(&name), "bodies or keys are in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_version_stays_as_it_is_over_the_api() {
    let world = World::new().await;
    let ann = &world.tenants[0];
    let path = format!("/api/training/versions/{}", ann.ids["version"]);
    let call = async |method: Method| {
        let request = ann.request(&world.app, method, &path, Body::Json(|_| json!({"steps": {}})));
        send(request.bearer_auth(&ann.key)).await
    };
    let before: Value = call(Method::GET).await.expect(200);
    let revision = before["revision"].to_string();
    let put =
        world.app.anonymous(Method::PUT, &path).bearer_auth(&ann.key).header("if-match", format!("\"{revision}\""));
    send(put.json(&json!({"steps": {}}))).await.expect(409);
    call(Method::DELETE).await.expect(409);
    assert_eq!(call(Method::GET).await.expect(200), before);
}
