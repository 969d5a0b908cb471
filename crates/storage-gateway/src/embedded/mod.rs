//! The S3 service of the laptop tier: objects as files below `DATA_DIR/s3`, served over HTTP with SigV4 by
//! this very process. The gateway itself reaches it as it reaches any other S3.

mod assembly;
mod files;
mod local;

use anyhow::Context;
use futures::FutureExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use local::LocalS3;
use rand::{Rng, distr::Alphanumeric};
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

/// A running embedded S3; dropping it stops it and frees the data directory.
#[derive(Debug)]
pub struct EmbeddedS3 {
    pub address: SocketAddr,
    pub access_key: String,
    pub secret_key: SecretString,
    server: JoinHandle<()>,
    _lock: File,
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl EmbeddedS3 {
    /// Opens (or creates) the store in `data_dir` and serves it on `listen`.
    pub async fn start(data_dir: &Path, listen: SocketAddr) -> anyhow::Result<Self> {
        let root = data_dir.join("s3");
        std::fs::create_dir_all(&root)
            .with_context(|| format!("cannot create {}; check DATA_DIR and its permissions", root.display()))?;
        let lock = lock(data_dir)?;
        let keys = Keys::load_or_create(&data_dir.join("s3-credentials.json"))?;
        let store = LocalS3::open(&root).with_context(|| format!("cannot open the store in {}", root.display()))?;
        let mut service = S3ServiceBuilder::new(store);
        service.set_auth(SimpleAuth::from_single(keys.access_key.as_str(), keys.secret_key.as_str()));
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on {listen}; choose another S3_LISTEN, port 0 takes any free one")
        })?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(serve(listener, service.build()));
        tracing::info!(%address, root = %root.display(), "embedded S3 is listening");
        Ok(Self { address, access_key: keys.access_key, secret_key: keys.secret_key.into(), server, _lock: lock })
    }
}

/// One gateway per data directory: two would use the same temporary names.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("s3.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("{} is in use by another hone; stop it or choose another directory", data_dir.display())
        }
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // Small replies must not wait for an acknowledgement.
                let _ = socket.set_nodelay(true);
                let connection = builder.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
                // A connection that ends early is the client's business. Why no subscriber: see `LocalS3::log`.
                tokio::spawn(connection.map(drop).with_subscriber(NoSubscriber::default()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to be freed.
                tracing::warn!(%error, "embedded S3 cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The key pair of the embedded S3, made on the first start.
#[derive(Serialize, Deserialize)]
struct Keys {
    access_key: String,
    secret_key: String,
}

impl Keys {
    fn load_or_create(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged; delete it to have new keys made", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let keys = Self { access_key: format!("HONE{}", letters(16)), secret_key: letters(40) };
                keys.save(path).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(keys)
            }
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn save(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    }
}

fn letters(n: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(n).map(char::from).collect()
}
