//! A database that was filled by an earlier build keeps its data.

use crate::{database::plain_login, schema::lines};
use backend::db::{Db, DbConfig, Direction, MIGRATIONS, migrate};
use diesel_async::{AsyncConnection, AsyncMigrationHarness, AsyncPgConnection, SimpleAsyncConnection};
use diesel_migrations::MigrationHarness;
use secrecy::ExposeSecret;
use testkit::Postgres;

/// Applies the first `count` migrations.
async fn migrate_part(config: &DbConfig, count: usize) {
    let conn = AsyncPgConnection::establish(config.url.expose_secret()).await.unwrap();
    let work = move || {
        let mut harness = AsyncMigrationHarness::new(conn);
        for _ in 0..count {
            harness.run_next_migration(MIGRATIONS).unwrap();
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

/// A user with a key, a dataset of two files, and a job with points; one point belongs to an id that is no time.
const FILL: &str = r#"
SET ROLE hone_system;
INSERT INTO users (id, name) VALUES ('00000000-0000-0000-0000-00000000000a', 'alice');
INSERT INTO api_keys (id, user_id, name, prefix, key_hash)
    VALUES ('00000000-0000-0000-0000-00000000000b', '00000000-0000-0000-0000-00000000000a', 'k', 'hone_sk_', '\x00');
INSERT INTO datasets (id, user_id, name, status, format, row_count, updated_at, files)
    VALUES ('00000000-0000-0000-0000-00000000000c', '00000000-0000-0000-0000-00000000000a', 'words', 'ready', 'text', 12,
    '2026-01-02T03:04:05Z',
    '[{"split": "train", "report": {"rows": 10, "duplicates": 2, "tokens": {"total": 100}}},
      {"split": "validation", "report": {"rows": 2, "duplicates": 0, "tokens": {"total": 20}}}]');
INSERT INTO datasets (id, user_id, name, status)
    VALUES ('00000000-0000-0000-0000-00000000000d', '00000000-0000-0000-0000-00000000000a', 'half', 'uploading');
INSERT INTO models (name, revision, user_id, status)
    VALUES ('tiny', 'r1', '00000000-0000-0000-0000-00000000000a', 'ready');
INSERT INTO training_jobs (id, user_id, name, state, config, model_name, model_revision, dataset_id, dataset_name, spec)
    SELECT id, '00000000-0000-0000-0000-00000000000a', 'job', 'succeeded', '{}', 'tiny', 'r1',
        '00000000-0000-0000-0000-00000000000c', 'words', '{}'
    FROM unnest(ARRAY['00000000-0000-0000-0000-000000000001',
        (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000000000000001')]::uuid[]) id;
INSERT INTO metrics_points (job_id, attempt, step, name, user_id, epoch, value, at)
    SELECT id, 1, step, 'loss', user_id, 0.5, 1.0 / step, now() FROM training_jobs, generate_series(1, 3) step;
RESET ROLE;
"#;

const KEPT: &str = "
SELECT name || ' ' || role || ' ' || coalesce(issuer, '-') AS line FROM users
UNION ALL SELECT name || ' ' || array_to_string(scopes, ',') FROM api_keys
UNION ALL SELECT concat_ws(' ', name, row_count, train_rows, validation_rows, duplicate_rows, coalesce(token_count::text, '-'),
    storage_path, to_char(validated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), CASE WHEN status = 'ready' THEN updated_at = validated_at END)
    FROM datasets
UNION ALL SELECT state || ' ' || coalesce(version_id::text, '-') FROM training_jobs
UNION ALL SELECT concat_ws(' ', tableoid::regclass = 'metrics_points_other'::regclass, step, round(value::numeric, 2))
    FROM metrics_points
ORDER BY 1";

/// As the least of logins: without superuser rights the owner is under row security too.
#[tokio::test(flavor = "multi_thread")]
async fn a_filled_database_of_the_second_migration_keeps_its_data() {
    let postgres = Postgres::start().await.unwrap();
    let config = plain_login(&postgres, "CREATEROLE").await;
    migrate_part(&config, 2).await;
    let mut conn = AsyncPgConnection::establish(config.url.expose_secret()).await.unwrap();
    conn.batch_execute(FILL).await.unwrap();
    drop(conn);

    assert!(migrate(&config, Direction::Up).await.unwrap() > 0);
    let db = Db::new(&config).unwrap();
    insta::assert_snapshot!(lines(&db, KEPT).await.join("\n"), @r"
    alice user -
    f 1 1.00
    f 2 0.50
    f 3 0.33
    half 0 0 0 0 - datasets/00000000-0000-0000-0000-00000000000a/00000000-0000-0000-0000-00000000000d/
    k *
    succeeded -
    succeeded -
    t 1 1.00
    t 2 0.50
    t 3 0.33
    words 12 10 2 2 120 datasets/00000000-0000-0000-0000-00000000000a/00000000-0000-0000-0000-00000000000c/ 2026-01-02 t
    ");

    // And back: what the old schema can hold is still there.
    migrate_down_to(&config, 2).await;
    let old = "SELECT concat_ws(' ', name, row_count, (SELECT count(*) FROM metrics_points)) AS line FROM datasets ORDER BY 1";
    assert_eq!(lines(&db, old).await, ["half 0 6", "words 12 6"]);
}

/// Reverts until only the first `left` migrations are applied.
async fn migrate_down_to(config: &DbConfig, left: usize) {
    let conn = AsyncPgConnection::establish(config.url.expose_secret()).await.unwrap();
    let work = move || {
        let mut harness = AsyncMigrationHarness::new(conn);
        while harness.applied_migrations().unwrap().len() > left {
            harness.revert_last_migration(MIGRATIONS).unwrap();
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}
