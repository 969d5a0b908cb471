//! What the database itself guarantees about packages, versions, the audit log and metric partitions.

use crate::{
    database::{fresh, user},
    schema::lines,
};
use backend::db::{Conn, Db};
use diesel_async::SimpleAsyncConnection;
use uuid::Uuid;
use wire::UserId;

/// Runs statements of a tenant; what Postgres says when it refuses.
async fn tenant(db: &Db, user: UserId, sql: String) -> Result<(), String> {
    let work = async move |conn: &mut Conn| Ok(conn.batch_execute(&sql).await?);
    db.tenant(user, work).await.map_err(|e| service::error::chain(&e))
}

async fn system(db: &Db, sql: String) -> Result<(), String> {
    let work = async move |conn: &mut Conn| Ok(conn.batch_execute(&sql).await?);
    db.system(work).await.map_err(|e| service::error::chain(&e))
}

/// A package of `user` with `drafts` drafts; their ids.
async fn package(db: &Db, user: UserId, drafts: usize) -> (Uuid, Vec<Uuid>) {
    let id = Uuid::now_v7();
    let name = format!("p-{}", id.simple());
    let mut sql = format!("INSERT INTO training_configs (id, user_id, name) VALUES ('{id}', '{user}', '{name}');");
    let versions: Vec<Uuid> = (0..drafts).map(|_| Uuid::now_v7()).collect();
    for version in &versions {
        sql += &format!(
            "INSERT INTO training_package_versions (id, user_id, package_id, name, created_by)
             VALUES ('{version}', '{user}', '{id}', 'x-v1-draft-20260101', '{user}');"
        );
    }
    tenant(db, user, sql).await.unwrap();
    (id, versions)
}

fn publish(version: Uuid) -> String {
    format!("UPDATE training_package_versions SET status = 'published' WHERE id = '{version}';")
}

const VERSIONS: &str = "SELECT concat_ws(' ', status, version_number, revision, training_status) AS line
    FROM training_package_versions ORDER BY version_number NULLS LAST";
const PACKAGES: &str = "SELECT version_count || ' ' || latest_published_version AS line FROM training_configs";

#[tokio::test(flavor = "multi_thread")]
async fn a_published_version_cannot_be_changed_or_removed_by_anyone() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    let (_, versions) = package(&db, alice, 2).await;
    let (published, draft) = (versions[0], versions[1]);
    tenant(&db, alice, publish(published)).await.unwrap();

    // The application role does not reach the row.
    let change = format!("UPDATE training_package_versions SET name = 'changed' WHERE id = '{published}'");
    tenant(&db, alice, change.clone()).await.unwrap();
    tenant(&db, alice, format!("DELETE FROM training_package_versions WHERE id = '{published}'")).await.unwrap();
    assert_eq!(lines(&db, VERSIONS).await, ["published 1 2", "draft 1"]);
    let named = "SELECT name AS line FROM training_package_versions WHERE name = 'changed'";
    assert!(lines(&db, named).await.is_empty());

    // The trigger stops those who do.
    let refused = "a published version never changes";
    for sql in [
        change,
        format!("DELETE FROM training_package_versions WHERE id = '{published}'"),
        format!(
            "UPDATE training_package_versions SET status = 'draft', version_number = NULL WHERE id = '{published}'"
        ),
        format!("UPDATE training_package_versions SET config_snapshot = '{{\"a\": 1}}' WHERE id = '{published}'"),
        format!("UPDATE training_package_versions SET version_number = 7 WHERE id = '{published}'"),
        format!("UPDATE training_package_versions SET deploy_snapshot = '{{\"a\": 1}}' WHERE id = '{published}'"),
        format!("UPDATE training_package_versions SET budget_limit = 1 WHERE id = '{published}'"),
    ] {
        let error = system(&db, sql.clone()).await.unwrap_err();
        assert!(error.contains(refused), "{sql}: {error}");
    }
    // What becomes of it may be told, and a draft may go.
    let told = format!(
        "UPDATE training_package_versions SET is_deployed = true, training_status = 'running', estimated_cost = 1
         WHERE id = '{published}'"
    );
    system(&db, told).await.unwrap();
    tenant(&db, alice, format!("DELETE FROM training_package_versions WHERE id = '{draft}'")).await.unwrap();
    assert_eq!(lines(&db, VERSIONS).await, ["published 1 3 running"]);
    assert_eq!(lines(&db, PACKAGES).await, ["1 1"]);

    // Archived is the end.
    tenant(&db, alice, format!("SELECT hone_archive_version('{published}')")).await.unwrap();
    assert_eq!(lines(&db, VERSIONS).await, ["archived 1 4 running"]);
    assert_eq!(lines(&db, PACKAGES).await, ["1 0"]);
    let error = system(&db, publish(published)).await.unwrap_err();
    assert!(error.contains(refused), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_born_as_a_draft_without_a_number() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    let (package, _) = package(&db, alice, 0).await;
    let insert = |status: &str, number: &str| {
        format!(
            "INSERT INTO training_package_versions (id, user_id, package_id, name, created_by, status, version_number, published_at)
             VALUES ('{}', '{alice}', '{package}', 'x', '{alice}', '{status}', {number}, now())",
            Uuid::now_v7()
        )
    };
    let error = tenant(&db, alice, insert("published", "1")).await.unwrap_err();
    assert!(error.contains("row-level security"), "{error}");
    let error = tenant(&db, alice, insert("draft", "1")).await.unwrap_err();
    assert!(error.contains("check constraint"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_archives_publishes_or_points_at_a_version_of_another_tenant() {
    let (_, db) = fresh().await;
    let (alice, bob) = (user(&db, "alice").await, user(&db, "bob").await);
    let (package_of_alice, versions) = package(&db, alice, 2).await;
    tenant(&db, alice, publish(versions[0])).await.unwrap();
    tenant(&db, bob, format!("SELECT hone_archive_version('{}')", versions[0])).await.unwrap();
    tenant(&db, bob, publish(versions[1])).await.unwrap();
    // Without a tenant there is nothing to archive either.
    system(&db, format!("SELECT hone_archive_version('{}')", versions[0])).await.unwrap();
    assert_eq!(lines(&db, VERSIONS).await, ["published 1 2", "draft 1"]);

    let id = Uuid::now_v7();
    let foreign = format!(
        "INSERT INTO training_package_versions (id, user_id, package_id, name, created_by)
         VALUES ('{id}', '{bob}', '{package_of_alice}', 'x', '{bob}')"
    );
    let error = tenant(&db, bob, foreign).await.unwrap_err();
    assert!(error.contains("foreign key"), "{error}");
    // The view shows a tenant its own.
    let seen = async |conn: &mut Conn| {
        let query = diesel::sql_query("SELECT version_id FROM latest_published_versions");
        Ok(diesel_async::RunQueryDsl::execute(query, conn).await?)
    };
    assert_eq!((db.tenant(alice, seen).await.unwrap(), db.tenant(bob, seen).await.unwrap()), (1, 0));
    let views =
        "SELECT relname::text AS line FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace
         AND NOT coalesce('security_invoker=true' = ANY(reloptions), false)";
    assert!(lines(&db, views).await.is_empty(), "views that are not security_invoker");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_publishers_at_once_get_fifty_numbers_without_a_gap() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    let (_, versions) = package(&db, alice, 50).await;
    let publishers: Vec<_> = versions
        .into_iter()
        .map(|version| {
            let db = db.clone();
            tokio::spawn(async move { tenant(&db, alice, publish(version)).await })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap().unwrap();
    }
    let numbers = "SELECT version_number::text AS line FROM training_package_versions ORDER BY version_number";
    let wanted: Vec<String> = (1..=50).map(|n| n.to_string()).collect();
    assert_eq!(lines(&db, numbers).await, wanted);
    assert_eq!(lines(&db, PACKAGES).await, ["50 50"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_shows_how_its_newest_job_goes() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    let (_, versions) = package(&db, alice, 1).await;
    tenant(&db, alice, publish(versions[0])).await.unwrap();
    let dataset = Uuid::now_v7();
    system(
        &db,
        format!(
            "INSERT INTO models (name, revision, user_id, status) VALUES ('m', 'r', '{alice}', 'ready');
             INSERT INTO datasets (id, user_id, name, status, storage_path) VALUES ('{dataset}', '{alice}', 'd', 'ready', 'x')"
        ),
    )
    .await
    .unwrap();
    let job = |id: Uuid, age: u32| {
        format!(
            "INSERT INTO training_jobs (id, user_id, name, state, config, model_name, model_revision, dataset_id,
                dataset_name, spec, version_id, created_at)
             VALUES ('{id}', '{alice}', 'j', 'queued', '{{}}', 'm', 'r', '{dataset}', 'd', '{{}}', '{}',
                now() - interval '{age} minutes')",
            versions[0]
        )
    };
    let status = async || lines(&db, "SELECT training_status AS line FROM training_package_versions").await;
    let (older, newer) = (Uuid::now_v7(), Uuid::now_v7());
    let set = |id: Uuid, state: &str| format!("UPDATE training_jobs SET state = '{state}' WHERE id = '{id}'");
    // As the tenant, who may not change the version directly.
    tenant(&db, alice, job(older, 2)).await.unwrap();
    assert_eq!(status().await, ["pending"]);
    system(&db, set(older, "running")).await.unwrap();
    assert_eq!(status().await, ["running"]);
    tenant(&db, alice, job(newer, 1)).await.unwrap();
    assert_eq!(status().await, ["pending"]);
    system(&db, set(older, "failed")).await.unwrap();
    assert_eq!(status().await, ["pending"], "an older job says nothing any more");
    tenant(&db, alice, set(newer, "cancelled")).await.unwrap();
    assert_eq!(status().await, ["cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_only_grows() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    let add = format!(
        "INSERT INTO audit_log (user_id, actor, action, resource_kind) VALUES ('{alice}', 'user', 'create_job', 'job')"
    );
    tenant(&db, alice, add.clone()).await.unwrap();
    system(&db, add).await.unwrap();
    for sql in ["UPDATE audit_log SET action = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"] {
        for error in [tenant(&db, alice, sql.into()).await, system(&db, sql.into()).await] {
            assert!(error.unwrap_err().contains("permission denied"), "{sql}");
        }
        // The owner, a superuser here, has every right and is stopped by the trigger.
        let (client, connection) = db.postgres().connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(error.as_db_error().and_then(|e| e.constraint()), Some("audit_log_append_only"), "{sql}");
    }
    assert_eq!(lines(&db, "SELECT action AS line FROM audit_log").await, ["create_job", "create_job"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn metric_points_lie_in_the_partition_of_their_job_and_nobody_reads_partitions() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    let (job, dataset) = (Uuid::now_v7(), Uuid::now_v7());
    system(
        &db,
        format!(
            "INSERT INTO models (name, revision, user_id, status) VALUES ('m', 'r', '{alice}', 'ready');
             INSERT INTO datasets (id, user_id, name, status, storage_path) VALUES ('{dataset}', '{alice}', 'd', 'ready', 'x');
             INSERT INTO training_jobs (id, user_id, name, state, config, model_name, model_revision, dataset_id,
                dataset_name, spec) VALUES ('{job}', '{alice}', 'j', 'queued', '{{}}', 'm', 'r', '{dataset}', 'd', '{{}}');
             INSERT INTO metrics_points (job_id, attempt, step, name, user_id, epoch, value, at)
                VALUES ('{job}', 1, 1, 'loss', '{alice}', 0, 1, now())"
        ),
    )
    .await
    .unwrap();
    let place = "SELECT CASE WHEN tableoid::regclass::text = to_char(now() AT TIME ZONE 'UTC', '\"metrics_points_\"YYYY\"_\"MM')
         THEN 'this month' ELSE tableoid::regclass::text END AS line FROM metrics_points";
    assert_eq!(lines(&db, place).await, ["this month"]);
    // A query about one job is planned for one partition.
    let pruned = format!("EXPLAIN (COSTS off) SELECT * FROM metrics_points WHERE job_id = '{job}' AND step > 5");
    let work = async move |conn: &mut Conn| {
        use diesel::{QueryableByName, sql_types::Text};
        #[derive(QueryableByName)]
        struct Plan {
            #[diesel(sql_type = Text, column_name = "QUERY PLAN")]
            line: String,
        }
        Ok(diesel_async::RunQueryDsl::load::<Plan>(diesel::sql_query(pruned), conn).await?)
    };
    let plan: Vec<String> = db.system(work).await.unwrap().into_iter().map(|p| p.line).collect();
    assert_eq!(plan.iter().filter(|l| l.contains(" on metrics_points")).count(), 1, "{plan:#?}");
    for (role, error) in [
        ("tenant", tenant(&db, alice, "SELECT * FROM metrics_points_other".into()).await),
        ("system", system(&db, "SELECT * FROM metrics_points_other".into()).await),
    ] {
        assert!(error.unwrap_err().contains("permission denied"), "{role}");
    }
    // The sweeper's call: three months are there already; two more can be asked for.
    assert_eq!(lines(&db, "SELECT hone_metric_partitions(2)::text AS line").await, ["0"]);
    assert_eq!(lines(&db, "SELECT hone_metric_partitions(4)::text AS line").await, ["2"]);
    let open =
        "SELECT relname::text AS line FROM pg_class WHERE relispartition AND relkind = 'r' AND NOT relforcerowsecurity";
    assert!(lines(&db, open).await.is_empty());
}
