//! A proxy that breaks what passes it, to stand before a service, a database or a store.
//!
//! What it does is a list of [`Rule`]s for requests and a [`Link`] for bytes, both changed at any time. Which request
//! a rule hits follows from the seed, the rule's place and the request's number alone, so that a run can be
//! repeated; everything that was really done is counted.

mod http;
mod link;
mod raw;
mod rule;

pub use link::{Link, Way};
pub use rule::{Fault, Rule};

use rule::Hit;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{Notify, watch},
    task::JoinHandle,
};

/// Where the proxy forwards to.
#[derive(Debug, Clone)]
pub enum Target {
    /// `host:port`
    Tcp(String),
    /// A socket such as that of a private Postgres.
    Unix(PathBuf),
}

/// What passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    /// Every piece that a client sends counts as a request.
    Raw,
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// It listens on a port of this machine until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    protocol: Protocol,
    seed: u64,
    target: Mutex<Target>,
    link: watch::Sender<Link>,
    rules: Mutex<Vec<Rule>>,
    requests: AtomicU64,
    injected: Mutex<BTreeMap<&'static str, u64>>,
    /// A request was answered; those that wait for their turn to change look up.
    answered: Notify,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        // Connections that are open end with it.
        self.shared.link.send_modify(|link| link.way = Way::Refuse);
    }
}

impl Proxy {
    /// Understands HTTP/1.1, so that rules can be about requests.
    pub async fn http(target: Target, seed: u64) -> io::Result<Self> {
        Self::start(target, seed, Protocol::Http).await
    }

    /// Knows only bytes.
    pub async fn raw(target: Target, seed: u64) -> io::Result<Self> {
        Self::start(target, seed, Protocol::Raw).await
    }

    async fn start(target: Target, seed: u64, protocol: Protocol) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            protocol,
            seed,
            target: Mutex::new(target),
            link: watch::Sender::new(Link::default()),
            rules: Mutex::default(),
            requests: AtomicU64::new(0),
            injected: Mutex::default(),
            answered: Notify::new(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:…`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Replaces the rules; an empty list heals.
    pub fn rules(&self, rules: impl IntoIterator<Item = Rule>) {
        *lock(&self.shared.rules) = rules.into_iter().collect();
    }

    /// Replaces the properties of the line; open connections notice at once.
    pub fn link(&self, link: Link) {
        self.shared.link.send_replace(link);
    }

    /// Forwards new connections elsewhere.
    pub fn retarget(&self, target: Target) {
        *lock(&self.shared.target) = target;
    }

    /// How often `fault` really happened, by its name ([`Fault::name`]).
    #[must_use]
    pub fn injected(&self, fault: &str) -> u64 {
        lock(&self.shared.injected).get(fault).copied().unwrap_or(0)
    }

    /// Requests seen so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _ = client.set_nodelay(true);
            let mut link = shared.link.subscribe();
            let refused = async { link.wait_for(|l| l.way == Way::Refuse).await.map(drop) };
            tokio::select! {
                biased;
                _ = refused => {}
                _ = serve(client, &shared) => {}
            }
        });
    }
}

async fn serve(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    match shared.protocol {
        Protocol::Http => http::serve(client, shared).await,
        Protocol::Raw => raw::serve(client, shared).await,
    }
}

impl Shared {
    async fn connect(&self) -> io::Result<(Reader, Writer)> {
        let target = lock(&self.target).clone();
        match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Ok((Box::new(reader), Box::new(writer)))
            }
            Target::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                Ok((Box::new(reader), Box::new(writer)))
            }
        }
    }

    /// The fault for the next request, which starts with `head`.
    fn next(&self, head: &[u8]) -> Option<Hit> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        rule::pick(&lock(&self.rules), self.seed, number, head)
    }

    /// Notes that `hit` happens now; false when its rule is used up.
    fn happens(&self, hit: &Hit) -> bool {
        let happens = hit.take();
        if happens {
            let mut injected = lock(&self.injected);
            let count = injected.entry(hit.fault.name()).or_default();
            *count = count.saturating_add(1);
        }
        happens
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
