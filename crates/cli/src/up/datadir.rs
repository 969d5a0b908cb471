//! The data directory: who uses it, its secrets, its ports.
//!
//! ```text
//! hone.lock        locked by the `hone up` that uses the directory; says which process that is
//! connection.json  where the API is, and its key
//! state.json       what runs now
//! ports.json       the ports of the last time, so that trainers find everything again
//! secrets/         generated at the first start; each file is readable by its owner only
//! postgres/  s3/   the data
//! run/             records of running trainers, their scratch space
//! logs/
//! ```

use crate::{
    context::{CONNECTION, Connection},
    error::{CliError, CliResult},
    proc::ProcessId,
};
use nix::{sys::statvfs::statvfs, unistd::geteuid};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const LOCK: &str = "hone.lock";
const STATE: &str = "state.json";
const PORTS: &str = "ports.json";
/// Less free space than this is "full": Postgres stops working without room for its log.
const LEAST_FREE: u64 = 200_000_000;

/// A data directory that this process alone uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held, not read: the lock ends with it.
    _lock: File,
}

/// What runs, for `hone status` and for cleaning up after a killed `hone`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub hone: ProcessId,
    pub url: String,
    /// Everything answered.
    pub healthy: bool,
    pub started_at: chrono::DateTime<chrono::Utc>,
    pub services: Vec<ServiceState>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceState {
    pub name: String,
    pub process: ProcessId,
    pub url: Option<String>,
}

/// Ports on 127.0.0.1.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Ports {
    pub backend: Option<u16>,
    pub gateway: Option<u16>,
    pub s3: Option<u16>,
}

impl DataDir {
    /// Creates the directory when it is absent, checks that it can be used, and locks it.
    pub fn open(path: &Path) -> CliResult<Self> {
        create_private(path, if geteuid().is_root() { 0o711 } else { 0o700 })?;
        let lock_path = path.join(LOCK);
        if !lock_path.exists() && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(CliError::invalid(format!(
                "{} is not empty, and it is no data directory of Hone",
                path.display()
            ))
            .hint("name an empty or new directory with --data-dir"));
        }
        let mut options = OpenOptions::new();
        let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let mut lock = lock
            .map_err(|e| CliError::io("write into", path, &e).hint("choose a directory of your own with --data-dir"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(e)) => return Err(CliError::io("lock", &lock_path, &e)),
        }
        let me = ProcessId::of(std::process::id());
        let written = lock.set_len(0).and_then(|()| lock.write_all(&serde_json::to_vec(&me).unwrap_or_default()));
        written.map_err(|e| CliError::io("write", &lock_path, &e))?;
        let dir = Self { path: path.to_owned(), _lock: lock };
        dir.check_space()?;
        for sub in ["secrets", "run", "logs"] {
            create_private(&path.join(sub), 0o700)?;
        }
        Ok(dir)
    }

    fn check_space(&self) -> CliResult {
        let free = free_bytes(&self.path).unwrap_or(u64::MAX);
        if free >= LEAST_FREE {
            return Ok(());
        }
        let (free, least) = (crate::ui::bytes(free), crate::ui::bytes(LEAST_FREE));
        Err(CliError::failed(format!("the disk that holds {} is full: {free} are free", self.path.display()))
            .hint(format!("free at least {least}, or choose a directory on another disk with --data-dir")))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The file of a secret, which is generated at its first use, and its content.
    pub fn secret(&self, name: &str, generate: fn() -> String) -> CliResult<(PathBuf, SecretString)> {
        let path = self.path.join("secrets").join(name);
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok((path, text.trim().into())),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(CliError::io("read", &path, &e)),
            _ => {}
        }
        let secret = SecretString::from(generate());
        write_private(&path, secret.expose_secret().as_bytes())?;
        Ok((path, secret))
    }

    #[must_use]
    pub fn ports(&self) -> Ports {
        remembered_ports(&self.path)
    }

    pub fn set_ports(&self, ports: Ports) -> CliResult {
        write_private(&self.path.join(PORTS), &to_json(&ports)?)
    }

    pub fn set_state(&self, state: &State) -> CliResult {
        write_private(&self.path.join(STATE), &to_json(state)?)
    }

    pub fn clear_state(&self) {
        let _ = fs::remove_file(self.path.join(STATE));
    }

    pub fn set_connection(&self, connection: &Connection) -> CliResult {
        write_private(&self.path.join(CONNECTION), &to_json(connection)?)
    }
}

fn in_use(path: &Path) -> CliError {
    let who = holder(path).map(|p| format!(" (pid {})", p.pid)).unwrap_or_default();
    let dir = path.display();
    CliError::failed(format!("the data directory {dir} is in use by another `hone`{who}")).hint(format!(
        "`hone --data-dir {dir} status` shows what runs, `hone --data-dir {dir} down` stops it; or choose another --data-dir"
    ))
}

/// The living `hone` that has locked the directory.
#[must_use]
pub fn holder(path: &Path) -> Option<ProcessId> {
    let id: ProcessId = read_json(&path.join(LOCK))?;
    // The file outlives the lock.
    id.is_alive().then_some(id)
}

#[must_use]
pub fn remembered_ports(path: &Path) -> Ports {
    read_json(&path.join(PORTS)).unwrap_or_default()
}

/// What the last `hone up` recorded; it may have been killed since.
#[must_use]
pub fn state(path: &Path) -> Option<State> {
    read_json(&path.join(STATE))
}

/// Free space in bytes on the file system that holds `path`.
#[must_use]
#[expect(clippy::as_conversions, reason = "the width of the fields depends on the platform")]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = statvfs(path).ok()?;
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}

fn create_private(path: &Path, mode: u32) -> CliResult {
    if path.is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|e| {
        CliError::io("create the directory", path, &e).hint("choose a directory of your own with --data-dir")
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn to_json<T: Serialize>(value: &T) -> CliResult<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| CliError::failed(format!("cannot write JSON: {e}")))
}

/// Replaces a file atomically; only its owner can read it, at no moment anybody else.
fn write_private(path: &Path, bytes: &[u8]) -> CliResult {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| CliError::io("write", path, &e))
}

/// 64 hex digits from the operating system.
#[must_use]
pub fn random_hex() -> String {
    use rand::RngCore;
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_generated_once_and_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&root.path().join("d")).unwrap();
        let (path, first) = dir.secret("key", random_hex).unwrap();
        let (_, second) = dir.secret("key", random_hex).unwrap();
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_in_use_names_its_user_and_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("d");
        let held = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("is in use by another `hone` (pid {pid})")), "{error}");
        assert!(error.contains("down` stops it"), "{error}");
        drop(held);
        assert!(DataDir::open(&path).is_ok());
    }

    #[test]
    fn a_directory_with_foreign_files_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.tex"), "x").unwrap();
        let error = DataDir::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("is not empty, and it is no data directory of Hone"), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
