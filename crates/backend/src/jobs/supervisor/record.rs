//! The files of one attempt's record directory. They outlive every process of ours.
//!
//! ```text
//! record.json     who runs the attempt; created exactly once, whoever creates it owns the attempt
//! exit.json       how it ended; created exactly once
//! stop.json       when it was first asked to stop
//! trainer.log     what the trainer wrote, trainer.log.1 the part before
//! spec.json, token  what the trainer was given
//! ```
//!
//! `record.json` and `exit.json` are written to a temporary file, synced, and linked to their name, which
//! fails when the name exists. So "may this attempt still start?" has one answer under any interleaving:
//! a supervisor and somebody who calls the attempt off both create `record.json`, and one of them loses.

use super::procfs;
use crate::jobs::verdict::Ending;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use wire::JobId;

pub const RECORD: &str = "record.json";
pub const EXIT: &str = "exit.json";
pub const STOP: &str = "stop.json";
pub const LOG: &str = "trainer.log";
pub const OLD_LOG: &str = "trainer.log.1";
pub const SPEC: &str = "spec.json";
pub const TOKEN: &str = "token";
/// The log was copied to storage.
pub const LOG_KEPT: &str = "log-kept";

/// A process by its full name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// Who runs an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub job: JobId,
    pub attempt: u32,
    pub boot_id: String,
    /// Leader of the session that all processes of the attempt belong to; absent when the attempt was
    /// called off before it started.
    pub supervisor: Option<Process>,
    pub trainer: Option<Process>,
    pub created_at: DateTime<Utc>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    #[serde(flatten)]
    pub ending: Ending,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    pub finished_at: DateTime<Utc>,
}

impl ExitRecord {
    #[must_use]
    pub fn now(ending: Ending) -> Self {
        Self { ending, peak_memory: None, finished_at: Utc::now() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    pub requested_at: DateTime<Utc>,
}

/// Whether this call created the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Now,
    Before,
}

/// Writes `bytes` under `name` atomically and durably, replacing what is there.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(dir, name, bytes)?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

/// Writes `value` under `name` atomically and durably unless the name exists.
pub fn create<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<Created> {
    let temporary = temporary(dir, name, &serde_json::to_vec(value)?)?;
    let linked = fs::hard_link(&temporary, dir.join(name));
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => sync_dir(dir).map(|()| Created::Now),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Before),
        Err(e) => Err(e),
    }
}

/// None when the file does not exist.
pub fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    match fs::read(dir.join(name)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn temporary(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!(".{name}.{}.{unique}", std::process::id()));
    // Tokens pass through here: nobody else may read them, not even for a moment.
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(path)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What the record directory says about its attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nobody has taken it up.
    Unclaimed,
    /// Processes of it live, in the session of this supervisor.
    Alive {
        supervisor: Process,
    },
    Ended(ExitRecord),
}

/// Reads the directory and looks at the processes it names. An absent directory is `Unclaimed`.
pub fn observe(dir: &Path) -> io::Result<State> {
    let Some(record) = read::<Record>(dir, RECORD)? else { return Ok(State::Unclaimed) };
    let alive = match record.supervisor {
        Some(leader) => record.boot_id == procfs::boot_id()? && is_alive(leader),
        None => false,
    };
    // Read after the processes: a supervisor writes its exit record before it ends.
    if let Some(exit) = read::<ExitRecord>(dir, EXIT)? {
        return Ok(State::Ended(exit));
    }
    match record.supervisor {
        Some(supervisor) if alive => Ok(State::Alive { supervisor }),
        _ => Ok(State::Ended(ExitRecord::now(Ending::Lost))),
    }
}

/// Whether the session's leader lives, or somebody it left behind.
fn is_alive(leader: Process) -> bool {
    let same = procfs::stat(leader.pid).is_some_and(|p| p.start_time == leader.start_time && !p.zombie);
    same || !procfs::session_members(leader.pid, leader.start_time).is_empty()
}

/// Makes sure that an attempt nobody has taken up never starts. Loses against a supervisor that was faster.
pub fn withdraw(dir: &Path, job: JobId, attempt: u32, ending: Ending) -> io::Result<Created> {
    fs::create_dir_all(dir)?;
    let record =
        Record { job, attempt, boot_id: procfs::boot_id()?, supervisor: None, trainer: None, created_at: Utc::now() };
    let created = create(dir, RECORD, &record)?;
    if created == Created::Now {
        create(dir, EXIT, &ExitRecord::now(ending))?;
    }
    Ok(created)
}
