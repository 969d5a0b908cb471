//! A TCP proxy that cuts connections: the first ones end after a number of bytes from the server.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub struct Proxy {
    pub url: String,
    /// Bytes the server sent through.
    pub bytes: Arc<AtomicU64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Cuts each of the first `cuts` connections after `limit` bytes.
    pub async fn start(target: &str, cuts: u64, limit: u64) -> Self {
        let target: SocketAddr = target.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        let accepting = tokio::spawn(async move {
            // Dropping the set, when this task is aborted, ends the connections.
            let mut relays = tokio::task::JoinSet::new();
            for number in 0_u64.. {
                let (client, _) = listener.accept().await.unwrap();
                let limit = if number < cuts { limit } else { u64::MAX };
                relays.spawn(relay(client, target, limit, Arc::clone(&counter)));
            }
        });
        Self { url, bytes, accepting }
    }

    /// From now on nobody answers at this address.
    pub fn stop(&self) {
        self.accepting.abort();
    }
}

async fn relay(client: TcpStream, target: SocketAddr, limit: u64, counter: Arc<AtomicU64>) {
    let server = TcpStream::connect(target).await.unwrap();
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let up = async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let down = async move {
        let (mut buffer, mut left) = (vec![0; 16 << 10], limit);
        while left > 0 {
            let Ok(read @ 1..) = from_server.read(&mut buffer).await else { return };
            let take = usize::try_from(left).map_or(read, |left| read.min(left));
            left -= u64::try_from(take).unwrap();
            counter.fetch_add(u64::try_from(take).unwrap(), Ordering::Relaxed);
            if to_client.write_all(&buffer[..take]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
