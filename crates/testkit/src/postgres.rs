//! A private Postgres for a test process.
//!
//! The first use in a process copies a cached, freshly initialised cluster and starts a server on the copy
//! (about 0.2 s; `initdb` runs once per machine). Whatever way the process ends, a small watchdog that waits
//! on a pipe held by it stops the server and removes the files.

use anyhow::{Context, Result, ensure};
use cli::postgres::{Binaries, Cluster, DATABASE, Durability, Lifetime, Settings, USER};
use nix::unistd::geteuid;
use service::{Env, ExposeSecret};
use std::{
    fs::{self, File},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::OnceCell;

/// Changes when the way clusters are made does, so that an old template is not used.
const TEMPLATE: &str = "1";

/// A running cluster of its own, without durability.
#[derive(Debug)]
pub struct Postgres {
    settings: Settings,
    cluster: Mutex<Cluster>,
    next: AtomicU32,
    watchdog: Child,
    /// Closing it makes the watchdog clean up.
    pipe: Option<ChildStdin>,
}

static SHARED: OnceCell<Postgres> = OnceCell::const_new();

impl Postgres {
    /// The cluster that all tests of this process share.
    pub async fn shared() -> Result<&'static Self> {
        SHARED.get_or_try_init(Self::start).await
    }

    /// URL of a new, empty database in the shared cluster.
    pub async fn database() -> Result<String> {
        Self::shared().await?.create_database().await
    }

    /// A cluster for one test alone, which may crash it.
    pub async fn start() -> Result<Self> {
        tokio::task::spawn_blocking(|| Self::start_below(&root_dir()?)).await?
    }

    /// The same with all its files below `dir`, which must be passable for the user Postgres runs as.
    pub async fn start_in(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || Self::start_below(&dir)).await?
    }

    fn start_below(root: &Path) -> Result<Self> {
        let binaries = Binaries::find(&Env::from_process())?;
        let template = template(&root_dir()?, &binaries)?;
        let dir = tempfile::Builder::new().prefix("run-").tempdir_in(root)?.keep();
        let settings = settings(binaries, &dir);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        // Before the server, so that nothing is left behind however soon this process is killed.
        let (watchdog, pipe) = watchdog(&dir)?;
        // `-a` keeps owner and modes; a reflink makes the copy free where the file system can.
        let copy = if cfg!(target_os = "linux") { &["-a", "--reflink=auto"][..] } else { &["-a"] };
        let copied = Command::new("cp").args(copy).arg(&template).arg(&settings.data_dir).output()?;
        ensure!(copied.status.success(), "cp failed: {}", String::from_utf8_lossy(&copied.stderr));
        let mut cluster = settings.start()?;
        cluster.wait_ready()?;
        Ok(Self { settings, cluster: Mutex::new(cluster), next: AtomicU32::new(0), watchdog, pipe: Some(pipe) })
    }

    /// URL of a new, empty database.
    pub async fn create_database(&self) -> Result<String> {
        let name = format!("t{}", self.next.fetch_add(1, Ordering::Relaxed));
        let url = self.settings.url("postgres");
        let (client, connection) = tokio_postgres::connect(url.expose_secret(), tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        client.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).await?;
        drop(client);
        connection.await??;
        Ok(self.url(&name))
    }

    /// URL of the database `name`.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        self.settings.url(name).expose_secret().to_owned()
    }

    /// The socket it listens on, for a [`crate::fault::Proxy`] before it.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.settings.socket_dir.join(".s.PGSQL.5432")
    }

    /// `url` of one of its databases as reached over TCP at `address`, where a proxy to [`Self::socket`] listens.
    pub fn through(&self, url: &str, address: std::net::SocketAddr) -> Result<String> {
        let database = url.split('?').next().and_then(|url| url.rsplit('/').next());
        let database = database.context("a URL of a database of this cluster")?;
        Ok(format!("postgres://{USER}@{address}/{database}"))
    }

    /// Kills the server as a power failure would, without any cleaning up.
    pub fn crash(&self) {
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        cluster.kill();
    }

    /// Waits until the server serves, and starts it again if it has given up.
    pub fn revive(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
            if cluster.try_exited().is_some() {
                drop(cluster);
                return self.restart();
            }
            // It recovers from a crash of one of its processes by itself.
            if cluster.try_ready()? {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the server neither serves nor ends");
            drop(cluster);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the server again after [`Postgres::crash`].
    pub fn restart(&self) -> Result<()> {
        let mut cluster = self.settings.start()?;
        cluster.wait_ready()?;
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = cluster;
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.pipe.take());
        self.cluster.get_mut().unwrap_or_else(PoisonError::into_inner).wait();
        let _ = self.watchdog.wait();
    }
}

fn settings(binaries: Binaries, dir: &Path) -> Settings {
    Settings {
        binaries,
        data_dir: dir.join("data"),
        socket_dir: dir.join("s"),
        password: None,
        durability: Durability::None,
        lifetime: Lifetime::Free,
        log: dir.join("postgres.log"),
    }
}

/// `/tmp/hone-testkit-{uid}`: short enough for sockets, and passable for the user Postgres runs as.
fn root_dir() -> Result<PathBuf> {
    let uid = geteuid();
    let dir = PathBuf::from(format!("/tmp/hone-testkit-{uid}"));
    match fs::DirBuilder::new().mode(0o711).create(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    let meta = fs::symlink_metadata(&dir)?;
    ensure!(meta.is_dir() && meta.uid() == uid.as_raw(), "{} belongs to someone else; remove it", dir.display());
    Ok(dir)
}

/// A stopped cluster to copy, made by the first process that needs it.
fn template(root: &Path, binaries: &Binaries) -> Result<PathBuf> {
    let dir = root.join(format!("template-{TEMPLATE}-pg{}", binaries.major));
    let lock = File::create(root.join("lock"))?;
    lock.lock()?;
    match fs::DirBuilder::new().mode(0o711).create(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    let settings = settings(binaries.clone(), &dir);
    settings.create().with_context(|| format!("cannot make the database {DATABASE} for tests"))?;
    Ok(settings.data_dir)
}

/// Waits for the end of this process, then stops the server and removes `dir`.
fn watchdog(dir: &Path) -> Result<(Child, ChildStdin)> {
    const SCRIPT: &str = r#"trap '' INT TERM HUP
cat >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
i=0; while [ -e "$1/data/postmaster.pid" ] && [ $i -lt 100 ]; do sleep 0.02; i=$((i+1)); done
rm -rf "$1""#;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh"]).arg(dir).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().context("cannot start sh")?;
    let pipe = child.stdin.take().context("the watchdog has no pipe")?;
    Ok((child, pipe))
}
