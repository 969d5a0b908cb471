//! The live stream of notifications.

use crate::app::TestApp;
use backend::{
    db::Conn,
    notifications::{Kind, News, Severity},
};
use futures::{Stream, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use std::{pin::Pin, time::Duration};
use wire::UserId;

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000002";

fn news(user: UserId, title: &str) -> News {
    News {
        user,
        kind: Kind::DatasetInvalid,
        severity: Severity::Info,
        title: title.to_owned(),
        body: String::new(),
        data: json!({}),
        job: None,
        key: title.to_owned(),
    }
}

async fn tell(app: &TestApp, user: UserId, title: &str) {
    let news = news(user, title);
    app.db.system(async move |conn: &mut Conn| news.raise(conn).await).await.unwrap();
}

/// A client of the stream.
struct Client {
    chunks: Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    text: String,
}

impl Client {
    async fn open(app: &TestApp, key: &str, last: Option<i64>) -> Self {
        let mut request = app.anonymous(Method::GET, "/api/notifications/stream").bearer_auth(key);
        request = request.header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let reply = request.send().await.unwrap();
        assert_eq!(reply.status().as_u16(), 200);
        Self { chunks: Box::pin(reply.bytes_stream()), text: String::new() }
    }

    /// Id and title of the next event; the first one has no title.
    async fn next(&mut self) -> (i64, Option<String>) {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
                let Some(id) = field("id: ") else { continue };
                let data: Value = serde_json::from_str(&field("data: ").unwrap()).unwrap();
                let title = data["notification"]["title"].as_str().map(str::to_owned);
                assert_eq!(title.is_none(), event.contains("event: begin"), "{event}");
                return (id.parse().unwrap(), title);
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.chunks.next()).await;
            self.text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap().unwrap()).unwrap());
        }
    }

    async fn titles(&mut self, count: usize) -> Vec<String> {
        let mut titles = Vec::new();
        while titles.len() < count {
            titles.extend(self.next().await.1);
        }
        titles
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_goes_on_behind_the_last_one_got() {
    let app = TestApp::new().await;
    tell(&app, app.user, "old").await;
    let mut first = Client::open(&app, crate::app::KEY, None).await;
    assert_eq!(first.next().await, (1, None), "it begins behind what there is");
    tell(&app, app.user, "a").await;
    tell(&app, app.user, "b").await;
    let other = app.add_user("other", OTHER_KEY).await;
    tell(&app, other, "not yours").await;
    assert_eq!(first.next().await, (2, Some("a".into())));
    drop(first);
    tell(&app, app.user, "c").await;
    let mut second = Client::open(&app, crate::app::KEY, Some(2)).await;
    assert_eq!(second.next().await, (2, None));
    assert_eq!(second.titles(2).await, ["b", "c"]);
    let mut theirs = Client::open(&app, OTHER_KEY, Some(0)).await;
    assert_eq!(theirs.titles(1).await, ["not yours"]);

    // Deleted ones are left out; the same as a list.
    let all = app.get("/api/notifications/stream").await.expect(200);
    let id = all["items"][0]["notification"]["id"].as_str().unwrap();
    app.delete(&format!("/api/notifications/{id}")).await.expect(204);
    let page = app.get("/api/notifications/stream?limit=2").await.expect(200);
    let places: Vec<&Value> = page["items"].as_array().unwrap().iter().map(|n| &n["position"]).collect();
    assert_eq!((places, &page["next_cursor"]), (vec![&json!(2), &json!(3)], &json!("3")));
    let rest = app.get("/api/notifications/stream?after=3").await.expect(200);
    assert_eq!((&rest["items"][0]["notification"]["title"], &rest["next_cursor"]), (&json!("c"), &Value::Null));
    app.get("/api/notifications/stream?after=-1").await.expect(422);
    // Reading is no change: the log has the deletion only.
    let log = app.get("/api/audit?action=stream_notifications").await.expect(200);
    assert_eq!(log["items"], json!([]));
}

/// What is written first may become visible last: nothing that a reader has passed may appear behind its back.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_overtake_each_other_lose_nothing() {
    let app = TestApp::new().await;
    let mut client = Client::open(&app, crate::app::KEY, None).await;
    client.next().await;
    let (slow, user) = (news(app.user, "slow"), app.user);
    let (written, was_written) = tokio::sync::oneshot::channel();
    let (commit, may_commit) = tokio::sync::oneshot::channel();
    let db = app.db.clone();
    let holder = tokio::spawn(async move {
        db.system(async move |conn: &mut Conn| {
            slow.raise(conn).await?;
            written.send(()).unwrap();
            may_commit.await.unwrap();
            Ok(())
        })
        .await
    });
    was_written.await.unwrap();
    tell(&app, user, "fast").await;
    assert_eq!(client.next().await, (1, Some("fast".into())));
    commit.send(()).unwrap();
    holder.await.unwrap().unwrap();
    assert_eq!(client.next().await, (2, Some("slow".into())));

    // Many writers and readers at once: every reader gets everything, once, in the same order.
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(Client::open(&app, crate::app::KEY, Some(2)).await);
    }
    let writes = (0..60).map(|i| {
        let (db, news) = (app.db.clone(), news(user, &format!("n{i}")));
        tokio::spawn(async move { db.system(async move |conn: &mut Conn| news.raise(conn).await).await.unwrap() })
    });
    futures::future::join_all(writes.collect::<Vec<_>>()).await;
    let mut orders = Vec::new();
    for reader in &mut readers {
        orders.push(reader.titles(60).await);
    }
    let mut sorted = orders[0].clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), 60);
    assert!(orders.iter().all(|order| *order == orders[0]));
}
