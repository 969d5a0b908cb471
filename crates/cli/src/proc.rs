//! Processes seen from outside: are they alive, are they still the same ones, please stop.

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// How often a process that was asked to stop is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A process that cannot be confused with a later one of the same pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Opaque; differs between two processes that had the same pid.
    pub started: String,
}

impl ProcessId {
    /// The identity of a running process; `None` when there is none.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        start_mark(pid).map(|started| Self { pid, started })
    }

    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends `signal` if this is still the same process.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            send(self.pid, signal);
        }
    }

    /// Sends `signal`, and SIGKILL after `patience`; returns once the process is gone.
    pub fn stop(&self, signal: Signal, patience: Duration) {
        self.signal(signal);
        if !self.wait_gone(patience) {
            self.signal(Signal::SIGKILL);
            let _ = self.wait_gone(Duration::from_secs(5));
        }
    }

    /// Whether the process was gone before `patience` ran out.
    #[must_use]
    pub fn wait_gone(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

/// Sends a signal; a process that is gone already is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = as_pid(pid) {
        let _ = kill(pid, signal);
    }
}

/// Whether any process has this pid (a zombie counts).
#[must_use]
pub fn exists(pid: u32) -> bool {
    as_pid(pid).is_some_and(|pid| !matches!(kill(pid, None), Err(Errno::ESRCH)))
}

/// Name of the executable, without its path.
#[must_use]
pub fn name(pid: u32) -> Option<String> {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => Some(name.trim().to_owned()),
        Err(_) => ps(pid, "comm=").map(|path| path.rsplit('/').next().unwrap_or(&path).to_owned()),
    }
}

/// Program and arguments.
#[must_use]
pub fn command_line(pid: u32) -> Option<String> {
    match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) => Some(String::from_utf8_lossy(&line).replace('\0', " ")),
        Err(_) => ps(pid, "command="),
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|p| *p > 0).map(Pid::from_raw)
}

/// Start time of a live process that is no zombie.
fn start_mark(pid: u32) -> Option<String> {
    if std::path::Path::new("/proc/self/stat").exists() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name in parentheses may contain anything; fields count from after it.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = fields.next()?;
        // starttime is field 22 of proc(5), the 20th after the name; the state was the first.
        return if matches!(state, "Z" | "X") { None } else { fields.nth(18).map(str::to_owned) };
    }
    let state = ps(pid, "state=")?;
    if state.starts_with('Z') { None } else { ps(pid, "lstart=") }
}

fn ps(pid: u32, column: &str) -> Option<String> {
    let out = Command::new("ps").args(["-o", column, "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    (out.status.success() && !text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_gone_after_stop() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        assert_eq!(name(child.id()).as_deref(), Some("sleep"));
        assert!(!ProcessId { started: "1".into(), ..id.clone() }.is_alive());
        id.stop(Signal::SIGTERM, Duration::from_secs(5));
        assert!(!id.is_alive(), "a zombie does not count as alive");
        child.wait().unwrap();
        assert!(!exists(id.pid));
    }
}
