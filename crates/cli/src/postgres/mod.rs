//! A private Postgres cluster in a directory: made by `initdb`, started as a child, reached through a unix
//! socket in a directory only we can enter. It never listens on a network address.
//!
//! Invariant: a cluster directory is complete or absent (`initdb` works beside it and is renamed into place).
//! Everything here blocks; starting takes about 0.3 s, making a cluster about 2 s.

mod account;
mod binaries;
mod error;

pub use account::Account;
pub use binaries::Binaries;
pub use error::PostgresError;

use crate::{
    api::percent_encode,
    proc::{self, ProcessId},
};
use nix::sys::signal::Signal;
use secrecy::{ExposeSecret, SecretString};
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Superuser and owner of everything in the cluster.
pub const USER: &str = "hone";
/// Database that `create` makes besides the usual ones.
pub const DATABASE: &str = "hone";
/// Room for the socket's own name in the 104 to 108 bytes a socket path may have.
const LONGEST_SOCKET_DIR: usize = 80;
/// Crash recovery may have to replay a lot.
pub const START_TIMEOUT: Duration = Duration::from_secs(120);

/// What survives a crash of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Everything that was committed.
    Full,
    /// Nothing: for tests, where speed is all.
    None,
}

/// What ends the server when whoever started it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The kernel stops it with the thread that called [`Settings::start`] (Linux only).
    Thread,
    /// It lives on; the next start stops it.
    Free,
}

/// Where a cluster lives and how it is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    pub binaries: Binaries,
    /// The cluster; its parent must exist.
    pub data_dir: PathBuf,
    /// Directory for the socket; made when absent. See [`socket_dir`].
    pub socket_dir: PathBuf,
    /// Asked for by the server when given; otherwise the socket's directory is the only protection.
    pub password: Option<SecretString>,
    pub durability: Durability,
    pub lifetime: Lifetime,
    pub log: PathBuf,
}

/// `preferred` when a socket path fits below it, else a short name under the temporary directory that is the
/// same for the same `preferred`.
#[must_use]
pub fn socket_dir(preferred: &Path) -> PathBuf {
    use sha2::{Digest, Sha256};
    if preferred.as_os_str().len() <= LONGEST_SOCKET_DIR {
        return preferred.to_owned();
    }
    let digest = hex::encode(Sha256::digest(preferred.as_os_str().as_bytes()));
    Path::new("/tmp").join(format!("hone-{}", digest.get(..16).unwrap_or(&digest)))
}

impl Settings {
    /// `postgres://` URL of a database in this cluster. It holds the password.
    #[must_use]
    pub fn url(&self, database: &str) -> SecretString {
        let host = percent_encode(self.socket_dir.as_os_str().as_bytes());
        match &self.password {
            Some(p) => {
                format!("postgres://{USER}:{}@{host}/{database}", percent_encode(p.expose_secret().as_bytes())).into()
            }
            None => format!("postgres://{USER}@{host}/{database}").into(),
        }
    }

    #[must_use]
    pub fn exists(&self) -> bool {
        self.data_dir.join("PG_VERSION").is_file()
    }

    /// Makes the cluster with the database [`DATABASE`] if there is none. Returns the directories that had to
    /// be made traversable for the user Postgres runs as.
    pub fn create(&self) -> Result<Vec<PathBuf>, PostgresError> {
        let account = Account::choose(&self.data_dir)?;
        let opened = account.open_parents(&self.data_dir)?;
        if self.exists() {
            self.check_version()?;
            return Ok(opened);
        }
        let unfinished = self.data_dir.with_extension("unfinished");
        remove_dir(&unfinished)?;
        make_private_dir(&unfinished, account)?;
        let result = self.fill(&unfinished, account);
        if result.is_err() {
            remove_dir(&unfinished)?;
        }
        result?;
        fs::rename(&unfinished, &self.data_dir).map_err(PostgresError::io("create", &self.data_dir))?;
        Ok(opened)
    }

    fn check_version(&self) -> Result<(), PostgresError> {
        let file = self.data_dir.join("PG_VERSION");
        let found = fs::read_to_string(&file).map_err(PostgresError::io("read", file))?.trim().to_owned();
        let installed = self.binaries.major;
        if found == installed.to_string() {
            return Ok(());
        }
        Err(PostgresError::OtherVersion { dir: self.data_dir.clone(), found, installed })
    }

    fn fill(&self, dir: &Path, account: Account) -> Result<(), PostgresError> {
        let mut initdb = Command::new(self.binaries.initdb());
        initdb.arg("--pgdata").arg(dir).args(["--username", USER, "--encoding=UTF8", "--locale=C"]);
        initdb.args(["--auth=trust", "--no-instructions"]);
        if self.durability == Durability::None {
            initdb.args(["--no-sync", "--wal-segsize=1"]);
        }
        run_tool("initdb", initdb, account, "")?;
        let method = if self.password.is_some() { "scram-sha-256" } else { "trust" };
        let hba = dir.join("pg_hba.conf");
        fs::write(&hba, format!("local all all {method}\n")).map_err(PostgresError::io("write", hba))?;
        let mut sql = format!("CREATE DATABASE {DATABASE};\n");
        if let Some(password) = &self.password {
            let quoted = password.expose_secret().replace('\'', "''");
            sql.push_str(&format!("ALTER ROLE {USER} PASSWORD '{quoted}';\n"));
        }
        let mut single = Command::new(self.binaries.postgres());
        single.args(["--single", "-j", "-D"]).arg(dir).arg("-c").arg("log_min_messages=error").arg("postgres");
        // With -j a command ends at a semicolon followed by two newlines.
        run_tool("postgres --single", single, account, &sql.replace(";\n", ";\n\n"))
    }

    /// Starts the server; [`Cluster::wait_ready`] says when it serves. A server that an earlier, killed
    /// `hone` left behind is stopped first.
    pub fn start(&self) -> Result<Cluster, PostgresError> {
        stop_leftover(&self.data_dir)?;
        self.spawn()
    }

    fn spawn(&self) -> Result<Cluster, PostgresError> {
        let account = Account::choose(&self.data_dir)?;
        make_private_dir(&self.socket_dir, account)?;
        let log = open_log(&self.log)?;
        let log_start = log.metadata().map_or(0, |m| m.len());
        let mut command = Command::new(self.binaries.postgres());
        command.arg("-D").arg(&self.data_dir).arg("-k").arg(&self.socket_dir).args(self.options());
        command.current_dir("/").env_clear().env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(PostgresError::io("write", &self.log))?).stderr(log);
        // A group of its own: Ctrl-C in the terminal must reach only `hone`, which stops things in order.
        command.process_group(0);
        account.apply(&mut command);
        if self.lifetime == Lifetime::Thread {
            die_with_thread(&mut command, Signal::SIGINT);
        }
        let child = command.spawn().map_err(PostgresError::io("start", self.binaries.postgres()))?;
        let id = ProcessId::of(child.id());
        Ok(Cluster { settings: self.clone(), child, id, log_start, respawns: 0 })
    }

    /// Sized for one person's laptop: about 20 MB when idle.
    fn options(&self) -> Vec<String> {
        let mut options = vec![
            "listen_addresses=",
            "unix_socket_permissions=0700",
            "max_connections=64",
            "shared_buffers=32MB",
            "maintenance_work_mem=32MB",
            "wal_level=minimal",
            "max_wal_senders=0",
            // A checkpoint makes the next change of every page a whole page of log, so a busy database should not make one
            // every few seconds. In exchange it may need seconds after a crash.
            "max_wal_size=1GB",
            "jit=off",
            "max_parallel_workers_per_gather=0",
            "autovacuum_max_workers=1",
            "log_timezone=UTC",
            "timezone=UTC",
            "log_line_prefix=%m [%p] ",
            "logging_collector=off",
            "password_encryption=scram-sha-256",
        ];
        if self.durability == Durability::None {
            options.extend(["fsync=off", "full_page_writes=off", "autovacuum=off"]);
            // Or min_wal_size and the segment size of tests do not fit.
            options.extend(["min_wal_size=2MB", "max_connections=100", "log_min_messages=warning"]);
        }
        options.into_iter().flat_map(|o| ["-c".to_owned(), o.to_owned()]).collect()
    }
}

/// A running server. Dropping it does not stop it.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    child: Child,
    id: Option<ProcessId>,
    log_start: u64,
    respawns: u32,
}

impl Cluster {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it serves. An error when it died.
    pub fn try_ready(&mut self) -> Result<bool, PostgresError> {
        if let Some(status) = self.try_exited() {
            let reason = self.last_words().unwrap_or_else(|| format!("it ended with {status}"));
            // After kill -9 of a server its orphaned workers hold the shared memory for a moment.
            if reason.contains("pre-existing shared memory") && self.respawns < 50 {
                std::thread::sleep(Duration::from_millis(100));
                let respawns = self.respawns.saturating_add(1);
                *self = Self { respawns, ..self.settings.spawn()? };
                return Ok(false);
            }
            return Err(PostgresError::Start { reason, log: self.settings.log.clone() });
        }
        let pid = self.child.id().to_string();
        let lock = fs::read_to_string(self.settings.data_dir.join("postmaster.pid")).unwrap_or_default();
        let mut lines = lock.lines();
        // Line 1 is the pid, line 8 the status; the same test pg_ctl makes.
        Ok(lines.next() == Some(pid.as_str()) && lines.nth(6).is_some_and(|status| status.trim() == "ready"))
    }

    /// Blocks until it serves.
    pub fn wait_ready(&mut self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.try_ready()? {
            if Instant::now() >= deadline {
                let reason = format!("it was not ready within {} s", START_TIMEOUT.as_secs());
                return Err(PostgresError::Start { reason, log: self.settings.log.clone() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// How it ended, if it did.
    pub fn try_exited(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Stops it cleanly: open transactions are rolled back, everything is on disk.
    pub fn stop(&mut self) {
        if let Some(id) = &self.id {
            id.signal(Signal::SIGINT);
            if !id.wait_gone(Duration::from_secs(20)) {
                id.stop(Signal::SIGQUIT, Duration::from_secs(5));
            }
        }
        let _ = self.child.wait();
    }

    /// Blocks until it ended for a reason of its own.
    pub fn wait(&mut self) {
        let _ = self.child.wait();
    }

    /// Ends it at once, as a failing machine would. For tests.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The lines of this run's log that say why it ended.
    fn last_words(&self) -> Option<String> {
        let mut file = File::open(&self.settings.log).ok()?;
        file.seek(SeekFrom::Start(self.log_start)).ok()?;
        let mut text = Vec::new();
        file.take(1 << 20).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let telling = |l: &&str| ["FATAL:", "PANIC:", "HINT:"].iter().any(|w| l.contains(w));
        let lines: Vec<&str> = text.lines().filter(telling).collect();
        let from = lines.len().saturating_sub(4);
        let words: Vec<&str> = lines.iter().skip(from).map(|l| strip_prefix(l)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

/// The message of a log line without time and pid.
fn strip_prefix(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, rest)| rest).trim()
}

fn make_private_dir(dir: &Path, account: Account) -> Result<(), PostgresError> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.map_err(PostgresError::io("create", dir))?,
    }
    account.own(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(PostgresError::io("protect", dir))
}

fn remove_dir(dir: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PostgresError::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Opened by us and passed on, so that Postgres needs no right to the log directory.
fn open_log(path: &Path) -> Result<File, PostgresError> {
    OpenOptions::new().create(true).append(true).open(path).map_err(PostgresError::io("write", path))
}

fn run_tool(program: &'static str, mut command: Command, account: Account, input: &str) -> Result<(), PostgresError> {
    let path = PathBuf::from(command.get_program());
    let failed = || PostgresError::io("run", path.clone());
    command.current_dir("/").env_clear().env("LC_ALL", "C").env("TZ", "UTC").env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    account.apply(&mut command);
    let mut child = command.spawn().map_err(failed())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that died has its reason on stderr, which is worth more than EPIPE.
        let _ = stdin.write_all(input.as_bytes());
    }
    let out = child.wait_with_output().map_err(failed())?;
    let errors = String::from_utf8_lossy(&out.stderr);
    let telling = |l: &&str| ["error:", "ERROR:", "FATAL:", "PANIC:"].iter().any(|w| l.contains(w));
    let found: Vec<&str> = errors.lines().filter(telling).map(str::trim).collect();
    // Single-user mode reports a failed statement only on stderr and still ends with 0.
    if out.status.success() && found.is_empty() {
        return Ok(());
    }
    let output = if found.is_empty() { errors.trim().to_owned() } else { found.join("; ") };
    Err(PostgresError::Tool { program, output })
}

/// Stops the server an earlier `hone` left running, and removes a lock file that names another program.
fn stop_leftover(data_dir: &Path) -> Result<(), PostgresError> {
    let lock = data_dir.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&lock) else { return Ok(()) };
    let pid = text.lines().next().and_then(|l| l.trim().parse::<u32>().ok());
    // Its command line names the directory; the pid alone may by now belong to another cluster's server.
    let ours = |p: u32| proc::command_line(p).is_some_and(|line| line.contains(&*data_dir.to_string_lossy()));
    let postgres = pid.filter(|p| proc::name(*p).is_some_and(|n| n == "postgres" || n == "postmaster") && ours(*p));
    match postgres.and_then(ProcessId::of) {
        Some(old) => {
            old.signal(Signal::SIGINT);
            if !old.wait_gone(Duration::from_secs(10)) {
                old.stop(Signal::SIGQUIT, Duration::from_secs(5));
            }
            Ok(())
        }
        // Postgres itself refuses to start when the pid was reused by any live process.
        None => match fs::remove_file(&lock) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PostgresError::io("remove", lock)(e)),
            _ => Ok(()),
        },
    }
}

/// Has the kernel send `signal` to the child when the thread that starts it ends (Linux only; elsewhere a
/// leftover is stopped by the next start).
pub fn die_with_thread(command: &mut Command, signal: Signal) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: prctl is async-signal-safe and touches no memory of ours. It runs after the change of
        // user, which would clear the setting.
        #[expect(unsafe_code, reason = "pre_exec is the only way to set it in the child")]
        unsafe {
            command.pre_exec(move || nix::sys::prctl::set_pdeathsig(signal).map_err(Into::into));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (command, signal);
}
