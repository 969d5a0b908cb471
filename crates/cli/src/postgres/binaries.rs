//! Where Postgres is installed.

use super::PostgresError;
use service::Env;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Oldest major version the migrations are tested with.
const OLDEST: u32 = 15;

/// A directory with `postgres` and `initdb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

impl Binaries {
    /// Looks in `HONE_POSTGRES_BIN`, `PATH`, Debian's and Homebrew's directories; the newest version wins.
    pub fn find(env: &Env) -> Result<Self, PostgresError> {
        if let Some(dir) = env.get("HONE_POSTGRES_BIN") {
            return Self::at(Path::new(dir)).ok_or_else(|| PostgresError::BadBinaries { dir: dir.into() });
        }
        let mut found: Vec<Self> = candidates(env).iter().filter_map(|dir| Self::at(dir)).collect();
        // A stable sort: among equal versions the one that comes first in PATH wins.
        found.sort_by_key(|b| std::cmp::Reverse(b.major));
        match found.into_iter().next() {
            Some(newest) if newest.major >= OLDEST => Ok(newest),
            Some(old) => Err(PostgresError::TooOld { dir: old.dir, major: old.major, oldest: OLDEST }),
            None => Err(PostgresError::NotInstalled),
        }
    }

    fn at(dir: &Path) -> Option<Self> {
        if !dir.join("postgres").is_file() || !dir.join("initdb").is_file() {
            return None;
        }
        let out = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let major = text.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok())?;
        Some(Self { dir: dir.to_owned(), major })
    }

    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    #[must_use]
    pub fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }
}

fn candidates(env: &Env) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = env.get("PATH").map(|p| std::env::split_paths(p).collect()).unwrap_or_default();
    // Debian and Ubuntu; the PGDG packages of Red Hat; Postgres.app.
    dirs.extend(children("/usr/lib/postgresql").map(|d| d.join("bin")));
    dirs.extend(children("/usr").filter(|d| starts_with(d, "pgsql-")).map(|d| d.join("bin")));
    dirs.extend(children("/Applications/Postgres.app/Contents/Versions").map(|d| d.join("bin")));
    for opt in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
        dirs.extend(children(opt).filter(|d| starts_with(d, "postgresql")).map(|d| d.join("bin")));
    }
    dirs.dedup();
    dirs
}

fn children(dir: &str) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn starts_with(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}
