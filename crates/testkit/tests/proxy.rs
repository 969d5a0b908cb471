//! What the proxy breaks, seen from a client and from a server.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use testkit::{
    Postgres,
    fault::{Fault, Link, Proxy, Rule, Target, Way},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// Echoes bodies and remembers them.
struct Echo {
    address: String,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream, Arc::clone(&shared)));
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|body| String::from_utf8_lossy(body).into_owned()).collect()
    }
}

async fn echo(stream: TcpStream, seen: Arc<Mutex<Vec<Vec<u8>>>>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let (mut length, mut chunked) = (0, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.trim().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(("x-chunked", _)) => chunked = true,
                _ if line.trim().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await?;
        seen.lock().unwrap().push(body.clone());
        let head = if chunked {
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len())
        } else {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())
        };
        writer.write_all(head.as_bytes()).await?;
        writer.write_all(&body).await?;
        if chunked {
            writer.write_all(b"\r\n0\r\n\r\n").await?;
        }
    }
}

struct Pair {
    echo: Echo,
    proxy: Proxy,
    http: reqwest::Client,
}

impl Pair {
    async fn start(seed: u64) -> Self {
        let echo = Echo::start().await;
        let proxy = Proxy::http(Target::Tcp(echo.address.clone()), seed).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        Self { echo, proxy, http }
    }

    async fn send(&self, body: impl Into<reqwest::Body>) -> reqwest::Result<Vec<u8>> {
        let reply = self.http.post(format!("{}/a", self.proxy.url())).body(body).send().await?;
        Ok(reply.error_for_status()?.bytes().await?.to_vec())
    }
}

#[tokio::test]
async fn without_rules_everything_passes_unchanged() {
    let pair = Pair::start(1).await;
    let large: Vec<u8> = (0..1_000_003_u32).map(|n| n.to_le_bytes()[0]).collect();
    assert_eq!(pair.send(large.clone()).await.unwrap(), large);
    assert_eq!(pair.send("").await.unwrap(), b"");
    let chunked = pair.http.post(pair.proxy.url()).header("x-chunked", "yes").body(large.clone()).send().await.unwrap();
    assert_eq!(chunked.bytes().await.unwrap(), large);
    assert_eq!(pair.proxy.requests(), 3);
}

#[tokio::test]
async fn a_lost_request_did_not_happen_and_a_lost_reply_did() {
    let pair = Pair::start(1).await;
    pair.proxy.rules([Rule::new(Fault::LoseRequest).on("POST /a").times(1), Rule::new(Fault::LoseReply).times(1)]);
    assert!(pair.send("lost").await.is_err());
    assert!(pair.send("done").await.is_err());
    assert_eq!(pair.send("after").await.unwrap(), b"after");
    assert_eq!(pair.echo.seen(), ["done", "after"]);
    assert_eq!((pair.proxy.injected("lose_request"), pair.proxy.injected("lose_reply")), (1, 1));
}

#[tokio::test]
async fn a_duplicate_arrives_twice_and_is_answered_once() {
    let pair = Pair::start(1).await;
    pair.proxy.rules([Rule::new(Fault::Duplicate).times(1)]);
    assert_eq!(pair.send("twice").await.unwrap(), b"twice");
    while pair.echo.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(pair.echo.seen(), ["twice", "twice"]);
}

#[tokio::test]
async fn a_reordered_request_is_overtaken() {
    let pair = Pair::start(1).await;
    pair.proxy.rules([Rule::new(Fault::Reorder).times(1)]);
    let first = pair.send("first");
    let second = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        pair.send("second").await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap(), second.unwrap()), (b"first".to_vec(), b"second".to_vec()));
    assert_eq!(pair.echo.seen(), ["second", "first"]);
}

#[tokio::test]
async fn an_answer_in_the_servers_place_keeps_the_connection_usable() {
    let pair = Pair::start(1).await;
    pair.proxy.rules([Rule::new(Fault::Answer(503, "{\"code\":\"SlowDown\"}".into())).times(2)]);
    for _ in 0..2 {
        let refused = pair.send("refused").await.unwrap_err();
        assert_eq!(refused.status().unwrap(), 503);
    }
    assert_eq!(pair.send("fine").await.unwrap(), b"fine");
    assert_eq!(pair.echo.seen(), ["fine"]);
}

#[tokio::test]
async fn cuts_come_after_the_given_bytes_and_spare_what_is_shorter() {
    let pair = Pair::start(1).await;
    pair.proxy.rules([Rule::new(Fault::CutReply(1000)).times(1)]);
    assert_eq!(pair.send(vec![1; 1000]).await.unwrap().len(), 1000);
    assert!(pair.send(vec![1; 1001]).await.is_err());
    pair.proxy.rules([Rule::new(Fault::CutRequest(500)).times(1)]);
    assert!(pair.send(vec![2; 100_000]).await.is_err());
    assert_eq!(pair.send(vec![3; 100_000]).await.unwrap().len(), 100_000);
    assert_eq!(pair.echo.seen().len(), 3, "the request that was cut did not arrive");
    assert_eq!((pair.proxy.injected("cut_reply"), pair.proxy.injected("cut_request")), (1, 1));
}

#[tokio::test]
async fn one_bit_is_wrong() {
    let pair = Pair::start(7).await;
    let data = vec![0_u8; 5000];
    let ones = |bytes: &[u8]| bytes.iter().map(|b| b.count_ones()).sum::<u32>();
    for fault in [Fault::FlipRequest, Fault::FlipReply] {
        pair.proxy.rules([Rule::new(fault.clone()).times(1)]);
        let reply = pair.send(data.clone()).await.unwrap();
        assert_eq!((reply.len(), ones(&reply)), (5000, 1), "{fault:?}");
    }
    assert_eq!(ones(&pair.echo.seen.lock().unwrap().concat()), 1, "the second one was right until the way back");
}

#[tokio::test]
async fn delays_and_bandwidth_take_their_time() {
    let pair = Pair::start(1).await;
    pair.proxy.rules([Rule::new(Fault::Delay(Duration::from_millis(300))).times(1)]);
    let started = Instant::now();
    pair.send("late").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300));
    pair.proxy.link(Link::slow(20_000));
    let started = Instant::now();
    pair.send(vec![0; 10_000]).await.unwrap();
    let took = started.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_partition_holds_everything_and_loses_nothing() {
    let pair = Pair::start(1).await;
    pair.send("before").await.unwrap();
    pair.proxy.link(Link::way(Way::Hold));
    let held = pair.send("held");
    let heal = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(pair.echo.seen(), ["before"]);
        pair.proxy.link(Link::default());
    };
    assert_eq!(tokio::join!(held, heal).0.unwrap(), b"held");

    pair.proxy.link(Link::way(Way::HoldReplies));
    let held = pair.send("one way");
    let heal = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(pair.echo.seen(), ["before", "held", "one way"]);
        pair.proxy.link(Link::default());
    };
    assert_eq!(tokio::join!(held, heal).0.unwrap(), b"one way");
}

#[tokio::test]
async fn a_refusing_line_ends_connections_and_makes_none_until_it_is_healed() {
    let pair = Pair::start(1).await;
    pair.proxy.rules([Rule::new(Fault::Hang).times(1)]);
    let hanging = pair.send("hangs");
    let refuse = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        pair.proxy.link(Link::way(Way::Refuse));
    };
    assert!(tokio::join!(hanging, refuse).0.is_err());
    assert!(pair.send("refused").await.is_err());
    pair.proxy.link(Link::default());
    assert_eq!(pair.send("again").await.unwrap(), b"again");
    assert_eq!(pair.echo.seen(), ["again"]);
}

#[tokio::test]
async fn the_same_seed_breaks_the_same_requests() {
    let mut outcomes = Vec::new();
    for seed in [5, 5, 6] {
        let pair = Pair::start(seed).await;
        pair.proxy.rules([Rule::new(Fault::LoseReply).chance(0.3), Rule::new(Fault::LoseRequest).chance(0.3)]);
        let mut outcome = Vec::new();
        for _ in 0..40 {
            outcome.push(pair.send("x").await.is_ok());
        }
        outcomes.push((outcome, pair.proxy.injected("lose_reply"), pair.proxy.injected("lose_request")));
    }
    let [first, same, other] = outcomes.try_into().unwrap();
    assert_eq!(first, same);
    assert_ne!(first, other);
}

#[tokio::test]
async fn the_reply_to_a_commit_is_lost_and_the_rows_are_there() {
    let postgres = Postgres::start().await.unwrap();
    let url = postgres.create_database().await.unwrap();
    let proxy = Proxy::raw(Target::Unix(postgres.socket()), 1).await.unwrap();
    let through = postgres.through(&url, proxy.address()).unwrap();
    let connect = async |url: &str| {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let client = connect(&through).await;
    client.batch_execute("CREATE TABLE t (x int)").await.unwrap();
    proxy.rules([Rule::new(Fault::LoseReply).on("COMMIT").times(1)]);
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    assert!(client.batch_execute("COMMIT").await.is_err());
    assert_eq!(proxy.injected("lose_reply"), 1);
    let client = connect(&through).await;
    let row = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}
