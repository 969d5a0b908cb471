//! Trainers as child processes on this machine, each under a supervisor that survives the backend.
//!
//! Everything known of an attempt lies in its record directory `RUN_DIR/attempts/ft-{job}-a{attempt}`.

use super::{Handle, LaunchError, LaunchSpec, Launcher, Leftover, RehearsalError, rehearsal};
use crate::jobs::{
    decide::Runtime,
    supervisor::{
        self, log, procfs,
        record::{self, ExitRecord, State},
    },
    verdict::{Ending, Exit},
};
use futures::{FutureExt, future::BoxFuture};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use service::Env;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use wire::{JobId, estimate::Estimate, job_env, layout};

/// How many record directories of ended attempts stay for a look.
const KEEP: usize = 20;
/// Lines of the trainer's log that a failure shows.
const TAIL_LINES: usize = 15;
/// What a trainer inherits. Nothing else: no storage keys, no database URL.
const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "LOG_FORMAT",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LIB_DIR",
    "HONE_DEVICE",
    "HONE_THREADS",
    "SSL_CERT_FILE",
];
const INHERITED_PREFIXES: [&str; 4] = ["OTEL_", "CALLBACK_RETR", "STORAGE_RETR", "STORAGE_TIMEOUT_"];

#[derive(Debug, Clone)]
pub struct SubprocessConfig {
    pub trainer: PathBuf,
    /// Arguments of the trainer.
    pub arguments: Vec<String>,
    /// The program that understands `supervise`: this one, except in tests.
    pub supervisor: PathBuf,
    pub run_dir: PathBuf,
    /// What a trainer inherits from this process's environment.
    pub inherited: BTreeMap<String, String>,
    /// Bytes a trainer may have; those of the machine when absent.
    pub memory: Option<u64>,
}

/// Picks from `env` what a trainer may inherit.
#[must_use]
pub fn inheritable(env: &Env) -> BTreeMap<String, String> {
    let allowed = |name: &str| INHERITED.contains(&name) || INHERITED_PREFIXES.iter().any(|p| name.starts_with(p));
    env.iter().filter(|(name, _)| allowed(name)).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[derive(Debug)]
pub struct Subprocess {
    config: SubprocessConfig,
    host: String,
    /// Held by the one rehearsal that runs.
    rehearsing: tokio::sync::Mutex<()>,
}

impl Subprocess {
    pub fn new(mut config: SubprocessConfig) -> io::Result<Self> {
        let explain =
            |e: io::Error| io::Error::new(e.kind(), format!("cannot use RUN_DIR {}: {e}", config.run_dir.display()));
        fs::create_dir_all(config.run_dir.join("attempts")).map_err(explain)?;
        fs::create_dir_all(config.run_dir.join("scratch")).map_err(explain)?;
        // The supervisor runs in another directory.
        config.run_dir = config.run_dir.canonicalize()?;
        Ok(Self { config, host: procfs::host_name(), rehearsing: tokio::sync::Mutex::default() })
    }

    fn dir(&self, job: JobId, attempt: u32) -> PathBuf {
        self.config.run_dir.join("attempts").join(layout::workload_name(job, attempt))
    }

    /// None when the attempt belongs to another machine.
    fn dir_of(&self, handle: &Handle) -> Option<PathBuf> {
        let text = |key: &str| handle.runtime.get(key).and_then(Value::as_str);
        match (text("host"), text("dir")) {
            (Some(host), Some(dir)) => (host == self.host).then(|| dir.into()),
            _ => Some(self.dir(handle.job, handle.attempt)),
        }
    }

    /// Runs file work off the async threads; a failure to look means that nothing is known.
    async fn look(&self, handle: &Handle, work: impl FnOnce(&Path) -> io::Result<Runtime> + Send + 'static) -> Runtime {
        let Some(dir) = self.dir_of(handle) else { return Runtime::Unknown };
        blocking(move || work(&dir)).await.unwrap_or_else(|error| {
            let name = layout::workload_name(handle.job, handle.attempt);
            tracing::warn!(%error, "cannot read the record of {name}");
            Runtime::Unknown
        })
    }

    fn prepare(&self, spec: &LaunchSpec) -> io::Result<PathBuf> {
        let dir = self.dir(spec.spec.job_id, spec.spec.attempt);
        write_contract(&dir, spec)?;
        Ok(dir)
    }

    async fn estimate(&self, spec: &LaunchSpec) -> Result<Estimate, RehearsalError> {
        let Ok(_turn) = self.rehearsing.try_lock() else { return Err(RehearsalError::Busy) };
        let dir = self.config.run_dir.join("rehearsal");
        let failed = |e: io::Error| RehearsalError::Unavailable(format!("cannot write below RUN_DIR: {e}"));
        write_contract(&dir, spec).map_err(failed)?;
        let mut command = tokio::process::Command::new(&self.config.trainer);
        command.args(["estimate", "--json"]).env_clear().envs(self.environment(spec, &dir)).current_dir(&dir);
        let result = rehearsal::run(command).await;
        // It holds a token; what cannot be removed is replaced by the next rehearsal.
        let _ = fs::remove_dir_all(&dir);
        result
    }

    /// The trainer's whole environment.
    fn environment(&self, spec: &LaunchSpec, dir: &Path) -> BTreeMap<String, String> {
        let path = |name: &str| dir.join(name).display().to_string();
        let mut all = self.config.inherited.clone();
        all.extend(spec.traceparent.clone().map(|t| ("TRACEPARENT".to_owned(), t)));
        let contract = [
            (job_env::JOB_ID, spec.spec.job_id.to_string()),
            (job_env::ATTEMPT, spec.spec.attempt.to_string()),
            (job_env::JOB_SPEC_FILE, path(record::SPEC)),
            (job_env::CALLBACK_URL, spec.callback_url.clone()),
            (job_env::STORAGE_GATEWAY_URL, spec.storage_gateway_url.clone()),
            (job_env::JOB_TOKEN_FILE, path(record::TOKEN)),
            (job_env::SCRATCH_DIR, self.config.run_dir.join("scratch").display().to_string()),
        ];
        all.extend(contract.map(|(k, v)| (k.to_owned(), v)));
        all
    }

    async fn start(&self, spec: &LaunchSpec) -> Result<(), LaunchError> {
        let trainer = &self.config.trainer;
        if trainer.components().count() > 1 && !procfs::is_executable(trainer) {
            return Err(LaunchError::Fatal(format!(
                "there is no executable trainer at {}; set TRAINER_BIN to the hone-trainer program",
                trainer.display()
            )));
        }
        let failed = |what: &str, e: io::Error| LaunchError::Fatal(format!("{what}: {e}"));
        let dir = self.prepare(spec).map_err(|e| failed("cannot write the attempt's files below RUN_DIR", e))?;
        let status = tokio::process::Command::new(&self.config.supervisor)
            .arg(supervisor::SUBCOMMAND)
            .arg("--record")
            .arg(&dir)
            .arg("--")
            .arg(trainer)
            .args(&self.config.arguments)
            .env_clear()
            .envs(self.environment(spec, &dir))
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // The first stage only starts the second one.
        match tokio::time::timeout(Duration::from_secs(10), status).await {
            Ok(Ok(status)) if status.success() => {
                claimed(&dir).await;
                Ok(())
            }
            Ok(Ok(status)) => Err(LaunchError::Transient(format!("the supervisor ended with {status}"))),
            Ok(Err(e)) => Err(failed(&format!("cannot run the supervisor {}", self.config.supervisor.display()), e)),
            Err(_) => Err(LaunchError::Transient("the supervisor did not detach within 10 s".into())),
        }
    }
}

/// Waits a moment for the supervisor to take the attempt up, so that it is not launched again meanwhile.
async fn claimed(dir: &Path) {
    let record = dir.join(record::RECORD);
    for _ in 0..100 {
        if tokio::fs::try_exists(&record).await.unwrap_or(false) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes what a trainer gets as files, for this user only.
fn write_contract(dir: &Path, spec: &LaunchSpec) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    record::replace(dir, record::SPEC, &serde_json::to_vec_pretty(&spec.spec)?)?;
    record::replace(dir, record::TOKEN, spec.token.expose_secret().as_bytes())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn runtime(dir: &Path, state: State) -> Runtime {
    match state {
        State::Unclaimed => Runtime::NotStarted,
        State::Alive { .. } => Runtime::Alive,
        State::Ended(ExitRecord { ending, peak_memory, .. }) => {
            Runtime::Gone(Exit { log_tail: log::tail(dir, TAIL_LINES), peak_memory, ..Exit::new(ending) })
        }
    }
}

impl Launcher for Subprocess {
    fn describe(&self, job: JobId, attempt: u32) -> Value {
        json!({"kind": "subprocess", "host": self.host, "dir": self.dir(job, attempt)})
    }

    fn launch<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<(), LaunchError>> {
        self.start(spec).boxed()
    }

    fn observe<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Runtime> {
        self.look(handle, |dir| record::observe(dir).map(|state| runtime(dir, state))).boxed()
    }

    fn stop<'a>(&'a self, handle: &'a Handle, grace: Duration) -> BoxFuture<'a, Runtime> {
        let (job, attempt) = (handle.job, handle.attempt);
        self.look(handle, move |dir| {
            record::withdraw(dir, job, attempt, Ending::Withdrawn)?;
            supervisor::stop_step(dir, grace).map(|state| runtime(dir, state))
        })
        .boxed()
    }

    fn refuse<'a>(&'a self, handle: &'a Handle, reason: &'a str) -> BoxFuture<'a, Runtime> {
        let (job, attempt, reason) = (handle.job, handle.attempt, reason.to_owned());
        self.look(handle, move |dir| {
            record::withdraw(dir, job, attempt, Ending::StartFailed { reason })?;
            record::observe(dir).map(|state| runtime(dir, state))
        })
        .boxed()
    }

    fn memory(&self) -> BoxFuture<'_, Option<u64>> {
        let known = self.config.memory.or_else(service::memory::of_trainers);
        std::future::ready(known).boxed()
    }

    fn rehearse<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Estimate, RehearsalError>> {
        self.estimate(spec).boxed()
    }

    fn leftovers(&self) -> BoxFuture<'_, Vec<Leftover>> {
        let (root, host) = (self.config.run_dir.join("attempts"), self.host.clone());
        async move {
            blocking(move || list(&root, &host)).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot list the attempts below RUN_DIR");
                Vec::new()
            })
        }
        .boxed()
    }

    fn log<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Option<Vec<u8>>> {
        async move {
            let dir = self.dir_of(handle)?;
            let bytes = blocking(move || log::read_all(&dir)).await.ok()?;
            (!bytes.is_empty()).then_some(bytes)
        }
        .boxed()
    }

    fn log_kept<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, ()> {
        async move {
            let Some(dir) = self.dir_of(handle) else { return };
            if let Err(error) = blocking(move || fs::write(dir.join(record::LOG_KEPT), [])).await {
                tracing::warn!(%error, "cannot mark a log as kept");
            }
        }
        .boxed()
    }

    fn tidy(&self) -> BoxFuture<'_, ()> {
        let root = self.config.run_dir.join("attempts");
        async move {
            if let Err(error) = blocking(move || remove_old(&root, KEEP)).await {
                tracing::warn!(%error, "cannot remove old attempts below RUN_DIR");
            }
        }
        .boxed()
    }
}

fn log_due(dir: &Path) -> bool {
    dir.join(record::LOG).exists() && !dir.join(record::LOG_KEPT).exists()
}

fn list(root: &Path, host: &str) -> io::Result<Vec<Leftover>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root)? {
        let dir = entry?.path();
        // A directory without a record is one that is being prepared.
        let Ok(Some(found)) = record::read::<record::Record>(&dir, record::RECORD) else { continue };
        let alive = matches!(record::observe(&dir)?, State::Alive { .. });
        let log_due = !alive && log_due(&dir);
        let runtime = json!({"kind": "subprocess", "host": host, "dir": dir});
        let handle = Handle { job: found.job, attempt: found.attempt, runtime };
        all.push(Leftover { handle, alive, log_due, held: false });
    }
    Ok(all)
}

/// Removes ended attempts except the newest `keep` and those whose log still waits for storage.
fn remove_old(root: &Path, keep: usize) -> io::Result<()> {
    let mut ended = Vec::new();
    for entry in fs::read_dir(root)? {
        let dir = entry?.path();
        let Ok(Some(found)) = record::read::<record::Record>(&dir, record::RECORD) else { continue };
        if !log_due(&dir) && matches!(record::observe(&dir)?, State::Ended(_)) {
            ended.push((found.created_at, dir));
        }
    }
    ended.sort();
    let excess = ended.len().saturating_sub(keep);
    ended.into_iter().take(excess).try_for_each(|(_, dir)| fs::remove_dir_all(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_ended_attempts_are_kept() {
        let root = std::env::temp_dir().join(format!("hone-tidy-{}", uuid::Uuid::new_v4()));
        let dirs: Vec<PathBuf> = (0..5).map(|n| root.join(format!("a{n}"))).collect();
        for dir in &dirs {
            record::withdraw(dir, JobId::random(), 1, Ending::Withdrawn).unwrap();
        }
        fs::write(dirs[0].join(record::LOG), "not in storage yet").unwrap();
        remove_old(&root, 2).unwrap();
        let left: Vec<bool> = dirs.iter().map(|d| d.exists()).collect();
        assert_eq!(left, [true, false, false, true, true]);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_trainer_inherits_only_what_is_listed() {
        let env: Env = [
            ("PATH", "/bin"),
            ("OTEL_SERVICE_NAME", "x"),
            ("CALLBACK_RETRIES", "3"),
            ("CALLBACK_SECRET", "s"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("DATABASE_URL", "s"),
            ("TOKEN_SIGNING_KEY", "s"),
            ("HONE_BOOTSTRAP_KEY", "s"),
        ]
        .into_iter()
        .collect();
        assert_eq!(
            inheritable(&env).into_keys().collect::<Vec<_>>(),
            ["CALLBACK_RETRIES", "OTEL_SERVICE_NAME", "PATH"]
        );
    }
}
