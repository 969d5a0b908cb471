//! One service as a child process: start, wait until it serves, start again when it dies, stop.

use super::logs;
use crate::{
    error::{CliError, CliResult},
    postgres::die_with_thread,
    proc::ProcessId,
    ui::Ui,
};
use nix::sys::signal::Signal;
use service::server::Ready;
use std::{
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// Migrations of a large database run before the backend is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
/// Wait before a service that died is started again; doubles with each death.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Who lived this long is forgiven earlier deaths.
const FORGIVEN: Duration = Duration::from_secs(60);

/// How to start a service.
#[derive(Debug, Clone)]
pub struct Spec {
    /// As shown to the user and in the name of the log.
    pub name: &'static str,
    pub program: PathBuf,
    /// The whole environment, but for the listening address and the ready file.
    pub env: Vec<(String, String)>,
    pub port: u16,
    pub ready_file: PathBuf,
    pub log: PathBuf,
}

#[derive(Debug)]
pub struct Service {
    pub spec: Spec,
    child: Child,
    process: Option<ProcessId>,
    started: Instant,
    log_start: u64,
    deaths: u32,
    start_again: Option<Instant>,
}

impl Service {
    pub fn start(spec: Spec) -> CliResult<Self> {
        let _ = std::fs::remove_file(&spec.ready_file);
        let log = logs::open(&spec.log).map_err(|e| CliError::io("write", &spec.log, &e))?;
        let log_start = logs::size(&spec.log);
        let mut command = Command::new(&spec.program);
        command.env_clear().envs(spec.env.iter().map(|(k, v)| (k, v)));
        command.env("HONE_LISTEN", format!("127.0.0.1:{}", spec.port)).env("HONE_READY_FILE", &spec.ready_file);
        let errors = log.try_clone().map_err(|e| CliError::io("write", &spec.log, &e))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        // A group of its own: Ctrl-C reaches only `hone`, which stops things in order.
        command.process_group(0);
        die_with_thread(&mut command, Signal::SIGTERM);
        let child = command.spawn().map_err(|e| CliError::io("start", &spec.program, &e))?;
        let process = ProcessId::of(child.id());
        Ok(Self { spec, child, process, started: Instant::now(), log_start, deaths: 0, start_again: None })
    }

    #[must_use]
    pub const fn process(&self) -> Option<&ProcessId> {
        self.process.as_ref()
    }

    /// The address it serves at, once it does.
    pub async fn wait_ready(&mut self) -> CliResult<String> {
        loop {
            if let Some(ready) = self.ready() {
                return Ok(ready.url);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failure(&format!("did not start: it ended with {}", describe(status))));
            }
            if self.started.elapsed() > READY_TIMEOUT {
                return Err(self.failure(&format!("was not ready within {} s", READY_TIMEOUT.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn ready(&self) -> Option<Ready> {
        let bytes = std::fs::read(&self.spec.ready_file).ok()?;
        let ready: Ready = serde_json::from_slice(&bytes).ok()?;
        (ready.pid == self.child.id()).then_some(ready)
    }

    fn failure(&self, what: &str) -> CliError {
        let words = logs::last_words(&self.spec.log, self.log_start);
        let said = if words.is_empty() { String::new() } else { format!("; it said:\n  {words}") };
        CliError::failed(format!("the {} {what}{said}", self.spec.name))
            .hint(format!("its whole log is {}", self.spec.log.display()))
    }

    /// Starts it again after its death, each time after a longer wait. True when a new process runs.
    pub fn revive(&mut self, ui: Ui) -> bool {
        if let Some(at) = self.start_again {
            if Instant::now() < at {
                return false;
            }
            match Self::start(self.spec.clone()) {
                Ok(new) => {
                    *self = Self { deaths: self.deaths, ..new };
                    return true;
                }
                Err(e) => ui.warn(e),
            }
            self.plan_restart();
            return false;
        }
        if let Ok(Some(status)) = self.child.try_wait() {
            if self.started.elapsed() > FORGIVEN {
                self.deaths = 0;
            }
            let wait = self.plan_restart();
            ui.warn(format!(
                "the {} ended with {}; starting it again in {:.1} s",
                self.spec.name,
                describe(status),
                wait.as_secs_f64()
            ));
        }
        false
    }

    fn plan_restart(&mut self) -> Duration {
        let wait = FIRST_WAIT.saturating_mul(1 << self.deaths.min(16)).min(LONGEST_WAIT);
        self.deaths = self.deaths.saturating_add(1);
        self.start_again = Some(Instant::now() + wait);
        wait
    }

    /// SIGTERM, and SIGKILL when that does not help.
    pub fn stop(&mut self) {
        if self.start_again.is_none() {
            if let Some(process) = &self.process {
                process.stop(Signal::SIGTERM, Duration::from_secs(10));
            }
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_file(&self.spec.ready_file);
    }
}

/// `exit code 1`, `signal 9 (SIGKILL)`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(n)) => match Signal::try_from(n) {
            Ok(signal) => format!("signal {n} ({})", signal.as_str()),
            Err(_) => format!("signal {n}"),
        },
        (None, None) => "an unknown status".into(),
    }
}
