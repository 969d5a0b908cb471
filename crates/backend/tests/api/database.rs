//! The pool and the two ways to a connection.

use backend::{
    Error,
    db::{Conn, Db, DbConfig, DbError, Direction, migrate},
    schema::{datasets, users},
};
use diesel::prelude::*;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use std::time::{Duration, Instant};
use testkit::Postgres;
use uuid::Uuid;
use wire::{DatasetId, UserId, problem::Code};

/// A migrated database of its own.
pub async fn fresh() -> (DbConfig, Db) {
    let config = DbConfig::new(Postgres::database().await.unwrap().into());
    migrate(&config, Direction::Up).await.unwrap();
    let db = Db::new(&config).unwrap();
    (config, db)
}

pub async fn user(db: &Db, name: &str) -> UserId {
    let (id, name) = (UserId::random(), name.to_owned());
    let insert = async move |conn: &mut Conn| {
        let row = (users::id.eq(id.0), users::name.eq(name));
        diesel::insert_into(users::table).values(row).execute(conn).await?;
        Ok(())
    };
    db.system(insert).await.unwrap();
    id
}

async fn insert_dataset(conn: &mut Conn, owner: UserId, name: &str) -> backend::Result<()> {
    backend::store::Dataset::insert(conn, owner, DatasetId::random(), name).await.map(drop)
}

async fn names(conn: &mut Conn) -> backend::Result<Vec<String>> {
    Ok(datasets::table.select(datasets::name).order(datasets::name).load(conn).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_and_writes_only_what_is_its_own() {
    let (_, db) = fresh().await;
    let (alice, bob) = (user(&db, "alice").await, user(&db, "bob").await);
    db.tenant(alice, async move |conn| insert_dataset(conn, alice, "hers").await).await.unwrap();
    db.tenant(bob, async move |conn| insert_dataset(conn, bob, "his").await).await.unwrap();

    assert_eq!(db.tenant(alice, names_of).await.unwrap(), ["hers"]);
    assert_eq!(db.tenant(bob, names_of).await.unwrap(), ["his"]);
    assert_eq!(db.system(names_of).await.unwrap(), ["hers", "his"]);

    let forged = db.tenant(bob, async move |conn| insert_dataset(conn, alice, "forged").await).await.unwrap_err();
    assert!(matches!(forged, Error::Query(_)), "row security refuses it: {forged:?}");
    let stolen = async |conn: &mut Conn| {
        Ok(diesel::update(datasets::table).set(datasets::name.eq("stolen")).execute(conn).await?)
    };
    assert_eq!(db.tenant(bob, stolen).await.unwrap(), 1, "an UPDATE without WHERE reaches only one's own row");
    assert_eq!(db.tenant(alice, names_of).await.unwrap(), ["hers"]);
}

async fn names_of(conn: &mut Conn) -> backend::Result<Vec<String>> {
    names(conn).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tenant_the_application_role_sees_nothing() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    db.tenant(alice, async move |conn| insert_dataset(conn, alice, "hers").await).await.unwrap();
    // The setting is '' and not NULL on a connection that had a tenant before.
    let look = async |conn: &mut Conn| {
        conn.batch_execute("SET LOCAL ROLE hone_app").await?;
        names(conn).await
    };
    for _ in 0..20 {
        assert_eq!(db.system(look).await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_roles_own_nothing_and_cannot_bypass_row_security() {
    let (_, db) = fresh().await;
    let read = async |conn: &mut Conn| {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            count: i64,
        }
        let query = "SELECT count(*) AS count FROM pg_roles r WHERE rolname IN ('hone_app', 'hone_system')
             AND NOT rolsuper AND NOT rolbypassrls AND NOT rolcanlogin
             AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid)";
        Ok(diesel::sql_query(query).get_result::<Count>(conn).await?.count)
    };
    assert_eq!(db.system(read).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_transaction_leaves_nothing_behind() {
    let (_, db) = fresh().await;
    let alice = user(&db, "alice").await;
    let work = async move |conn: &mut Conn| {
        insert_dataset(conn, alice, "half").await?;
        Err::<(), _>(Error::refused(Code::Conflict, "changed my mind"))
    };
    assert_eq!(db.tenant(alice, work).await.unwrap_err().to_string(), "changed my mind");
    assert!(db.tenant(alice, names_of).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_dropped_in_mid_transaction_takes_its_connection_with_it() {
    let (config, _) = fresh().await;
    let db = Db::new(&DbConfig { pool_size: 1, ..config }).unwrap();
    let alice = user(&db, "alice").await;
    let (inside, reached) = tokio::sync::oneshot::channel();
    let hang = {
        let db = db.clone();
        tokio::spawn(async move {
            let work = async move |conn: &mut Conn| {
                insert_dataset(conn, alice, "never").await?;
                let _ = inside.send(());
                std::future::pending::<backend::Result<()>>().await
            };
            db.tenant(alice, work).await
        })
    };
    reached.await.unwrap();
    hang.abort();
    assert!(hang.await.unwrap_err().is_cancelled());
    // The only slot of the pool is free again, without the row and without the tenant of before.
    assert!(db.tenant(alice, names_of).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_pool_is_unavailable_soon() {
    let (config, _) = fresh().await;
    let wait = Duration::from_millis(200);
    let db = Db::new(&DbConfig { pool_size: 1, wait_timeout: wait, ..config }).unwrap();
    let (inside, reached) = tokio::sync::oneshot::channel();
    let holder = {
        let db = db.clone();
        tokio::spawn(async move {
            let work = async move |_: &mut Conn| {
                let _ = inside.send(());
                std::future::pending::<backend::Result<()>>().await
            };
            db.system(work).await
        })
    };
    reached.await.unwrap();
    let started = Instant::now();
    let error = db.ping().await.unwrap_err();
    assert!(matches!(error, Error::DatabaseDown(_)), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(2));
    holder.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_statement_is_cut_off() {
    let (config, _) = fresh().await;
    let db = Db::new(&DbConfig { statement_timeout: Duration::from_millis(100), ..config }).unwrap();
    let slow = async |conn: &mut Conn| Ok(conn.batch_execute("SELECT pg_sleep(60)").await?);
    let error = db.system(slow).await.unwrap_err();
    assert!(matches!(error, Error::DatabaseDown(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_recovers_when_postgres_comes_back() {
    let postgres = Postgres::start().await.unwrap();
    let config = DbConfig::new(postgres.create_database().await.unwrap().into());
    migrate(&config, Direction::Up).await.unwrap();
    let db = Db::new(&config).unwrap();
    db.ping().await.unwrap();
    postgres.crash();
    // A server process may answer once more before it notices that its parent is gone.
    let error = loop {
        match db.ping().await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::DatabaseDown(_)), "{error:?}");
    postgres.restart().unwrap();
    db.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_database_says_what_to_check() {
    let config = DbConfig::new("postgres://nobody@127.0.0.1:1/none".to_owned().into());
    let error = migrate(&config, Direction::Up).await.unwrap_err();
    insta::assert_snapshot!(error, @"cannot connect to Postgres; check that it runs and that DATABASE_URL is right");
    assert!(matches!(error, DbError::Connect(_)));
}

/// A login without any privileges, with a database of its own.
pub async fn plain_login(postgres: &Postgres, role_options: &str) -> DbConfig {
    let name = format!("login_{}", Uuid::new_v4().simple());
    let admin = Db::new(&DbConfig::new(postgres.url("postgres").into())).unwrap();
    let (client, connection) = admin.postgres().connect(tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(&format!("CREATE ROLE {name} LOGIN {role_options}")).await.unwrap();
    client.batch_execute(&format!("CREATE DATABASE {name} OWNER {name} TEMPLATE template0")).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
    let mut url = url::Url::parse(&postgres.url(&name)).unwrap();
    let query: Vec<(String, String)> =
        url.query_pairs().filter(|(k, _)| k != "user").map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
    url.query_pairs_mut().clear().extend_pairs(query).append_pair("user", &name);
    if url.has_host() {
        url.set_username(&name).unwrap();
    }
    DbConfig::new(url.to_string().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_not_create_roles_is_told_what_to_run() {
    // A server of its own: roles belong to the server, and other tests create these.
    let postgres = Postgres::start().await.unwrap();
    let config = plain_login(&postgres, "").await;
    let error = migrate(&config, Direction::Up).await.unwrap_err();
    let chain = service::error::chain(&error);
    assert!(chain.contains("the role hone_app does not exist"), "{chain}");
    assert!(chain.contains("CREATE ROLE hone_app NOLOGIN; GRANT hone_app TO login_"), "{chain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_superuser_rights_can_run_everything() {
    let postgres = Postgres::start().await.unwrap();
    let config = plain_login(&postgres, "CREATEROLE").await;
    migrate(&config, Direction::Up).await.unwrap();
    let db = Db::new(&config).unwrap();
    let alice = user(&db, "alice").await;
    db.tenant(alice, async move |conn| insert_dataset(conn, alice, "hers").await).await.unwrap();
    assert_eq!(db.tenant(alice, names_of).await.unwrap(), ["hers"]);
}
