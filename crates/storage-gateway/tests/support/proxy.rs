//! A TCP proxy that breaks connections, to stand between the gateway and its store.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub struct Proxy {
    pub address: String,
    cuts: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Forwards to `target`.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cuts = Arc::new(AtomicU32::new(0));
        let shared = Arc::clone(&cuts);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, target.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, cuts, task }
    }

    /// Cuts connections as soon as they have answered with a megabyte, `times` times.
    pub fn cut_answers(&self, times: u32) {
        self.cuts.store(times, Ordering::SeqCst);
    }

    /// Cuts that have not happened yet.
    pub fn cuts_left(&self) -> u32 {
        self.cuts.load(Ordering::SeqCst)
    }
}

async fn forward(client: TcpStream, target: String, cuts: Arc<AtomicU32>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut buffer = vec![0; 64 << 10];
    let mut sent = 0;
    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
        if to_client.write_all(&buffer[..n]).await.is_err() {
            break;
        }
        sent += n;
        let take = |left: u32| left.checked_sub(1);
        if sent > 1 << 20 && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            break;
        }
    }
    requests.abort();
}
