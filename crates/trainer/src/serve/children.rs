//! The attempts of a trainer service: child processes, started, watched and stopped.

use super::ServeConfig;
use chrono::Utc;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{process::Command, sync::watch};
use wire::{
    JobId,
    job::{StartTraining, TrainerRun, TrainerRunState},
    job_env,
};

type Key = (JobId, u32);

/// How many ended attempts are remembered.
const REMEMBERED: usize = 1000;
/// The child needs none of the service's own settings and secrets.
const OWN_SETTINGS: [&str; 7] = [
    "TRAINER_SERVICE_TOKEN",
    "TRAINER_SERVICE_TOKEN_FILE",
    "TOKEN_SIGNING_KEY",
    "TOKEN_SIGNING_KEY_FILE",
    "HONE_LISTEN",
    "HONE_READY_FILE",
    "MAX_CONCURRENT_JOBS",
];

#[derive(Debug)]
struct Child {
    state: watch::Receiver<TrainerRun>,
    stopping: bool,
}

#[derive(Debug)]
pub struct Children {
    pub config: ServeConfig,
    /// Drives and reaps the children. The HTTP workers' runtimes end before the children do.
    runtime: tokio::runtime::Handle,
    known: Mutex<HashMap<Key, Child>>,
    /// Held by the one pre-flight that runs.
    estimating: tokio::sync::Mutex<()>,
}

/// What starting an attempt led to.
#[derive(Debug)]
pub enum Started {
    New(TrainerRun),
    Known(TrainerRun),
    /// As many attempts run as may.
    Full,
}

impl Children {
    /// Call inside the runtime that outlives the server.
    #[must_use]
    pub fn new(config: ServeConfig) -> Self {
        Self {
            config,
            runtime: tokio::runtime::Handle::current(),
            known: Mutex::default(),
            estimating: tokio::sync::Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Child>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn running(&self) -> usize {
        self.lock().values().filter(|c| c.state.borrow().state == TrainerRunState::Running).count()
    }

    #[must_use]
    pub fn get(&self, job: JobId, attempt: u32) -> Option<TrainerRun> {
        self.lock().get(&(job, attempt)).map(|c| c.state.borrow().clone())
    }

    /// Starts an attempt once, however often it is asked to.
    ///
    /// # Errors
    /// The child cannot be started.
    pub fn start(&self, request: &StartTraining) -> io::Result<Started> {
        let key = (request.job_id, request.attempt);
        let mut known = self.lock();
        if let Some(child) = known.get(&key) {
            return Ok(Started::Known(child.state.borrow().clone()));
        }
        let running = known.values().filter(|c| c.state.borrow().state == TrainerRunState::Running).count();
        if running >= self.config.capacity {
            return Ok(Started::Full);
        }
        let dir = self.config.scratch.join("serve").join(wire::layout::workload_name(request.job_id, request.attempt));
        let _entered = self.runtime.enter();
        let process = self.command(&["run"], request, &dir)?.spawn()?;
        let run = TrainerRun {
            job_id: request.job_id,
            attempt: request.attempt,
            state: TrainerRunState::Running,
            pid: process.id().unwrap_or(0),
            exit_code: None,
            signal: None,
            started_at: Utc::now(),
            finished_at: None,
        };
        tracing::info!(job.id = %run.job_id, pid = run.pid, "started attempt {}", run.attempt);
        let (report, state) = watch::channel(run.clone());
        tokio::spawn(reap(process, report, dir));
        forget_oldest(&mut known);
        known.insert(key, Child { state, stopping: false });
        metrics::counter!("trainer_attempts_started_total").increment(1);
        Ok(Started::New(run))
    }

    /// `verb` with the same contract a launcher gives, secrets in files only this user can read.
    fn command(&self, verb: &[&str], request: &StartTraining, dir: &Path) -> io::Result<Command> {
        fs::create_dir_all(dir)?;
        let (spec, token) = (dir.join("spec.json"), dir.join("token"));
        write_private(&spec, &serde_json::to_vec(&request.spec)?)?;
        write_private(&token, request.job_token.as_bytes())?;
        let mut command = Command::new(&self.config.program);
        command
            .args(verb)
            .env(job_env::JOB_ID, request.job_id.to_string())
            .env(job_env::ATTEMPT, request.attempt.to_string())
            .env(job_env::JOB_SPEC_FILE, &spec)
            .env(job_env::JOB_TOKEN_FILE, &token)
            .env(job_env::CALLBACK_URL, &request.callback_url)
            .env(job_env::STORAGE_GATEWAY_URL, &request.storage_gateway_url)
            .env(job_env::SCRATCH_DIR, &self.config.scratch)
            .env_remove(job_env::JOB_SPEC)
            .env_remove(job_env::JOB_TOKEN)
            .stdin(Stdio::null())
            // Stopping the service stops its attempts in order, not by the terminal's signal.
            .process_group(0);
        for name in OWN_SETTINGS {
            command.env_remove(name);
        }
        if let Some(parent) = service::telemetry::current_traceparent() {
            command.env("TRACEPARENT", parent);
        }
        Ok(command)
    }

    /// Runs the pre-flight of an attempt in a process of its own, and waits for what it prints; `None` while another
    /// one runs.
    ///
    /// # Errors
    /// The child cannot be started.
    pub async fn estimate(&self, request: &StartTraining) -> io::Result<Option<Output>> {
        let Ok(_turn) = self.estimating.try_lock() else { return Ok(None) };
        let name = wire::layout::workload_name(request.job_id, request.attempt);
        let dir = self.config.scratch.join("serve").join(format!("{name}-estimate"));
        let mut command = self.command(&["estimate", "--json"], request, &dir)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = self.runtime.spawn(async move { command.output().await }).await;
        // Holds the token; a failed removal is reported by the next attempt's.
        let _ = fs::remove_dir_all(&dir);
        output.map_err(io::Error::other)?.map(Some)
    }

    /// Asks an attempt to stop: SIGTERM now, SIGKILL when it takes too long.
    #[must_use]
    pub fn stop(&self, job: JobId, attempt: u32) -> Option<TrainerRun> {
        let mut known = self.lock();
        let child = known.get_mut(&(job, attempt))?;
        let run = child.state.borrow().clone();
        if run.state == TrainerRunState::Running && !std::mem::replace(&mut child.stopping, true) {
            tracing::info!(job.id = %job, "stopping attempt {attempt}");
            self.runtime.spawn(terminate(child.state.clone(), self.config.kill_after));
        }
        Some(run)
    }

    /// Stops every attempt and waits until they are gone.
    pub async fn stop_all(&self) {
        let states: Vec<_> = self.lock().values().map(|c| c.state.clone()).collect();
        let all = states.into_iter().map(|state| terminate(state, self.config.kill_after));
        futures::future::join_all(all).await;
    }
}

/// Waits for the child, which makes its process id free: nothing signals it afterwards.
async fn reap(mut process: tokio::process::Child, report: watch::Sender<TrainerRun>, dir: PathBuf) {
    let status = process.wait().await;
    report.send_modify(|run| {
        run.state = TrainerRunState::Exited;
        run.finished_at = Some(Utc::now());
        run.exit_code = status.as_ref().ok().and_then(std::process::ExitStatus::code);
        run.signal = status.as_ref().ok().and_then(ExitStatusExt::signal);
    });
    let run = report.borrow().clone();
    tracing::info!(job.id = %run.job_id, code = run.exit_code, signal = run.signal, "attempt {} ended", run.attempt);
    metrics::counter!("trainer_attempts_ended_total").increment(1);
    if let Err(error) = fs::remove_dir_all(&dir) {
        tracing::warn!(%error, dir = %dir.display(), "cannot remove the attempt's specification and token");
    }
}

async fn terminate(mut state: watch::Receiver<TrainerRun>, kill_after: Duration) {
    for (signal, patience) in [(Signal::SIGTERM, kill_after), (Signal::SIGKILL, Duration::from_secs(5))] {
        {
            // Under the watch's lock the child cannot be reaped, so the id is still its own.
            let run = state.borrow();
            if run.state == TrainerRunState::Exited {
                return;
            }
            if let Ok(pid) = i32::try_from(run.pid) {
                // A child that is gone already will be reaped in a moment.
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        let gone = state.wait_for(|run| run.state == TrainerRunState::Exited);
        if tokio::time::timeout(patience, gone).await.is_ok() {
            return;
        }
    }
}

/// Keeps the table bounded.
fn forget_oldest(known: &mut HashMap<Key, Child>) {
    if known.len() < REMEMBERED {
        return;
    }
    let ended = known.iter().filter_map(|(key, child)| Some((child.state.borrow().finished_at?, *key)));
    if let Some((_, key)) = ended.min() {
        known.remove(&key);
    }
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?.write_all(content)
}
