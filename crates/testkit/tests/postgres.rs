//! The private Postgres of the tests.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use testkit::Postgres;
use tokio_postgres::NoTls;

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn every_database_is_empty_and_apart_from_the_others() {
    let (a, b) = (Postgres::database().await.unwrap(), Postgres::database().await.unwrap());
    assert_ne!(a, b);
    connect(&a).await.batch_execute("CREATE TABLE only_here (x int)").await.unwrap();
    let there = connect(&b).await.query("SELECT * FROM only_here", &[]).await.unwrap_err();
    assert!(there.to_string().contains("db error"), "{there}");
}

#[tokio::test]
async fn it_listens_on_no_network_address() {
    let client = connect(&Postgres::database().await.unwrap()).await;
    let row = client.query_one("SHOW listen_addresses", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "");
}

#[tokio::test]
async fn committed_rows_survive_a_crash_of_the_server() {
    let postgres = Postgres::start().await.unwrap();
    let url = postgres.create_database().await.unwrap();
    connect(&url).await.batch_execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)").await.unwrap();
    postgres.crash();
    assert!(tokio_postgres::connect(&url, NoTls).await.is_err());
    postgres.restart().unwrap();
    let row = connect(&url).await.query_one("SELECT x FROM kept", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
}

#[tokio::test]
async fn the_server_and_its_files_are_gone_after_drop() {
    let postgres = Postgres::start().await.unwrap();
    let url = postgres.create_database().await.unwrap();
    connect(&url).await;
    drop(postgres);
    assert!(tokio_postgres::connect(&url, NoTls).await.is_err());
}
