//! What must be true of the schema as a whole, read from Postgres' own catalogue.

use crate::database::fresh;
use backend::db::{Conn, Db, DbConfig, Direction, migrate};
use cli::postgres::Binaries;
use diesel::{QueryableByName, sql_types::Text};
use diesel_async::RunQueryDsl;
use secrecy::ExposeSecret;
use std::{collections::BTreeMap, process::Command};
use testkit::Postgres;

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

/// Rows of a query with one text column `line`.
pub async fn lines(db: &Db, query: impl Into<String>) -> Vec<String> {
    let query = query.into();
    let read = async move |conn: &mut Conn| Ok(diesel::sql_query(query).load::<Line>(conn).await?);
    db.system(read).await.unwrap().into_iter().map(|l| l.line).collect()
}

fn dump(config: &DbConfig) -> String {
    let binaries = Binaries::find(&service::Env::from_process()).unwrap();
    // The server may be found through a link; its tools lie beside the real one.
    let program = std::fs::canonicalize(binaries.postgres()).unwrap().with_file_name("pg_dump");
    let output = Command::new(&program)
        .args(["--schema-only", "--no-owner", "--exclude-table=__diesel_schema_migrations"])
        .arg(config.url.expose_secret())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Newer versions fence the script with a random word.
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_up_down_up_give_the_same_schema() {
    let config = DbConfig::new(Postgres::database().await.unwrap().into());
    let empty = dump(&config);
    let applied = migrate(&config, Direction::Up).await.unwrap();
    assert!(applied > 0);
    let up = dump(&config);
    assert!(up.contains("CREATE POLICY") && up.contains("CREATE TRIGGER"));
    assert_eq!(migrate(&config, Direction::Down).await.unwrap(), applied);
    assert_eq!(dump(&config), empty, "down leaves something behind");
    assert_eq!(migrate(&config, Direction::Up).await.unwrap(), applied);
    assert_eq!(dump(&config), up);
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_that_start_together_migrate_once() {
    let config = DbConfig::new(Postgres::database().await.unwrap().into());
    let starts = (0..4).map(|_| {
        let config = config.clone();
        tokio::spawn(async move { migrate(&config, Direction::Up).await.unwrap() })
    });
    let mut applied: Vec<usize> = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        applied.push(start.await.unwrap());
    }
    assert_eq!(applied.iter().filter(|n| **n > 0).count(), 1, "{applied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tenant_table_forces_row_security_on_its_tenant() {
    let (_, db) = fresh().await;
    let tenant_tables = "SELECT c.relname::text AS line FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
         WHERE c.relkind IN ('r', 'p') AND c.relname <> '__diesel_schema_migrations' ORDER BY 1";
    let tables = lines(&db, tenant_tables).await;
    assert!(tables.contains(&"training_jobs".to_owned()) && tables.len() >= 10, "{tables:?}");
    let forced = "SELECT c.relname::text AS line FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
         WHERE c.relrowsecurity AND c.relforcerowsecurity ORDER BY 1";
    assert_eq!(lines(&db, forced).await, tables, "tables without FORCE ROW LEVEL SECURITY");

    // What a tenant may see and write is its own; of versions only drafts may be written; models are a registry that
    // all may read.
    let policies = "SELECT DISTINCT coalesce(qual, '-') || ' / ' || coalesce(with_check, '-')
             || CASE WHEN cmd = 'ALL' THEN '' ELSE ' for ' || cmd END AS line
         FROM pg_policies WHERE schemaname = 'public' AND 'hone_app' = ANY(roles) ORDER BY 1";
    insta::assert_snapshot!(lines(&db, policies).await.join("\n"), @r"
    ((user_id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid) AND (status = 'draft'::text)) / (user_id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid) for UPDATE
    ((user_id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid) AND (status = 'draft'::text)) / - for DELETE
    (id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid) / -
    (user_id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid) / (user_id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid)
    (user_id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid) / - for SELECT
    - / ((user_id = (NULLIF(current_setting('app.user_id'::text, true), ''::text))::uuid) AND (status = 'draft'::text)) for INSERT
    true / - for SELECT
    ");
    let open = "SELECT tablename || ' ' || policyname AS line FROM pg_policies
         WHERE 'hone_app' = ANY(roles) AND qual = 'true' ORDER BY 1";
    assert_eq!(lines(&db, open).await, ["models registry"]);
    let strangers = "SELECT DISTINCT tablename || ' ' || array_to_string(roles, ',') AS line FROM pg_policies
         WHERE NOT roles <@ ARRAY['hone_app', 'hone_system']::name[] ORDER BY 1";
    assert!(lines(&db, strangers).await.is_empty());
    let without = "SELECT c.relname::text AS line FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
         WHERE c.relkind = 'r' AND c.relname NOT IN ('__diesel_schema_migrations', 'users', 'leaders')
         AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'user_id' AND a.attnotnull)";
    assert!(lines(&db, without).await.is_empty(), "tables without user_id NOT NULL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_may_write_only_what_requests_of_users_change() {
    let (_, db) = fresh().await;
    let grants = "SELECT c.relname || ': ' || string_agg(acl.privilege_type, ' ' ORDER BY acl.privilege_type) AS line
         FROM pg_class c, aclexplode(c.relacl) acl WHERE acl.grantee = 'hone_app'::regrole GROUP BY c.relname ORDER BY 1";
    insta::assert_snapshot!(lines(&db, grants).await.join("\n"), @r"
    api_keys: INSERT SELECT UPDATE
    audit_log: INSERT SELECT
    cost_records: SELECT
    datasets: DELETE INSERT SELECT UPDATE
    dead_letters: SELECT
    deployments: INSERT SELECT UPDATE
    estimates: INSERT SELECT
    idempotency_keys: INSERT SELECT UPDATE
    job_attempts: SELECT
    job_events: INSERT SELECT
    latest_published_versions: SELECT
    metrics_points: SELECT
    mlflow_runs: SELECT
    model_artifacts: SELECT UPDATE
    model_pulls: INSERT SELECT UPDATE
    models: DELETE INSERT SELECT UPDATE
    notifications: INSERT SELECT UPDATE
    openai_files: INSERT SELECT UPDATE
    openai_jobs: INSERT SELECT UPDATE
    openai_upload_parts: INSERT SELECT
    openai_uploads: INSERT SELECT UPDATE
    training_configs: INSERT SELECT UPDATE
    training_jobs: INSERT SELECT UPDATE
    training_package_versions: DELETE INSERT SELECT UPDATE
    users: SELECT
    webhook_deliveries: INSERT SELECT UPDATE
    webhook_endpoints: INSERT SELECT UPDATE
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn references_between_tenant_tables_carry_the_tenant() {
    let (_, db) = fresh().await;
    // Foreign keys are checked past row security, so a bare id would let one tenant point at another's row.
    let query = "SELECT conname || ' ' || pg_get_constraintdef(oid) AS line FROM pg_constraint
         WHERE contype = 'f' AND confrelid NOT IN ('users'::regclass, 'models'::regclass)
         AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = conrelid AND a.attnum = ANY(conkey) AND a.attname = 'user_id')";
    assert_eq!(lines(&db, query).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_foreign_key_has_an_index() {
    let (_, db) = fresh().await;
    // The first column of some index is a column of the key; for a composite key one that is not the tenant.
    let query = "SELECT conrelid::regclass || ' ' || conname AS line FROM pg_constraint f
         WHERE contype = 'f' AND NOT EXISTS (
             SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
             WHERE i.indrelid = f.conrelid AND i.indpred IS NULL AND a.attnum = ANY(f.conkey)
             AND (cardinality(f.conkey) = 1 OR a.attname <> 'user_id')
         ) ORDER BY 1";
    assert_eq!(lines(&db, query).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_diesel_schema_is_the_database_schema() {
    let (_, db) = fresh().await;
    let query = "SELECT table_name || '.' || column_name || ' ' || udt_name
             || CASE WHEN is_nullable = 'YES' THEN ' null' ELSE '' END AS line
         FROM information_schema.columns
         JOIN pg_class c ON c.relname = table_name AND c.relnamespace = 'public'::regnamespace
         WHERE table_schema = 'public' AND table_name <> '__diesel_schema_migrations'
         AND c.relkind IN ('r', 'p') AND NOT c.relispartition
         ORDER BY table_name, ordinal_position";
    let mut wanted = lines(&db, query).await;
    wanted.sort();
    let mut have = parse_schema(include_str!("../../src/schema.rs"));
    have.sort();
    assert_eq!(have, wanted);
}

/// `table.column type[ null]` of every column in diesel's notation.
fn parse_schema(text: &str) -> Vec<String> {
    let types: BTreeMap<&str, &str> = [
        ("Uuid", "uuid"),
        ("Text", "text"),
        ("Timestamptz", "timestamptz"),
        ("Bytea", "bytea"),
        ("Jsonb", "jsonb"),
        ("BigInt", "int8"),
        ("Integer", "int4"),
        ("SmallInt", "int2"),
        ("Double", "float8"),
        ("Bool", "bool"),
        ("Numeric", "numeric"),
        ("Array<Text>", "_text"),
    ]
    .into();
    let (mut table, mut columns) = ("", Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some((name, _)) = line.split_once(" (").filter(|_| line.ends_with(") {")) {
            table = name;
        }
        if let Some((name, kind)) = line.trim_end_matches(',').split_once(" -> ") {
            let inner = kind.strip_prefix("Nullable<").and_then(|k| k.strip_suffix('>'));
            let null = if inner.is_some() { " null" } else { "" };
            columns.push(format!("{table}.{name} {}{null}", types[inner.unwrap_or(kind)]));
        }
    }
    columns
}
