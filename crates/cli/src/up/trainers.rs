//! Stopping the trainers of this machine, so that they can go on later.
//!
//! Trainers run under supervisors that outlive the backend; each has a directory below `run/` with a
//! `record.json` that names its process. SIGTERM makes a trainer finish its step, store a checkpoint and end;
//! the next `hone up` continues from there.

use crate::proc::ProcessId;
use nix::sys::signal::Signal;
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The parts of a supervisor's record that matter here.
#[derive(Debug, Deserialize)]
struct Record {
    boot_id: String,
    supervisor: Option<Process>,
    trainer: Option<Process>,
}

#[derive(Debug, Deserialize)]
struct Process {
    pid: u32,
    start_time: u64,
}

impl Process {
    fn identity(&self) -> ProcessId {
        ProcessId { pid: self.pid, started: self.start_time.to_string() }
    }
}

/// A trainer that runs now.
#[derive(Debug, Clone)]
pub struct Trainer {
    supervisor: Option<ProcessId>,
    trainer: ProcessId,
}

impl Trainer {
    pub fn ask_to_stop(&self) {
        self.trainer.signal(Signal::SIGTERM);
    }

    /// Also waits for the supervisor, which records how the trainer ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.trainer.is_alive() || self.supervisor.as_ref().is_some_and(ProcessId::is_alive)
    }

    /// The supervisor is left to record it.
    pub fn kill(&self) {
        self.trainer.signal(Signal::SIGKILL);
    }
}

/// Every trainer that runs under a record below `run_dir`.
#[must_use]
pub fn running(run_dir: &Path) -> Vec<Trainer> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut found = Vec::new();
    // jobs/{attempt}/record.json; a little deeper does no harm.
    collect(run_dir, 3, &mut |path| {
        let record: Option<Record> = fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let Some(record) = record.filter(|r| r.boot_id == boot.trim()) else { return };
        let Some(trainer) = record.trainer.as_ref().map(Process::identity).filter(ProcessId::is_alive) else { return };
        found.push(Trainer { supervisor: record.supervisor.as_ref().map(Process::identity), trainer });
    });
    found
}

fn collect(dir: &Path, depth: u32, found: &mut dyn FnMut(&PathBuf)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_dir && depth > 0 {
            collect(&path, depth.saturating_sub(1), found);
        } else if path.file_name().is_some_and(|n| n == "record.json") {
            found(&path);
        }
    }
}
