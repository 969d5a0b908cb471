//! What can go wrong with the private Postgres, in sentences that say what to do.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "Postgres is not installed; install it (Debian, Ubuntu: `apt-get install postgresql`; macOS: `brew install \
         postgresql@17`), or set DATABASE_URL to a Postgres that runs elsewhere"
    )]
    NotInstalled,
    #[error("HONE_POSTGRES_BIN is set to {}, which has no working `postgres` and `initdb`", dir.display())]
    BadBinaries { dir: PathBuf },
    #[error(
        "the newest Postgres found, in {}, has version {major}; Hone needs {oldest} or newer: install one, or set \
         DATABASE_URL to a Postgres that runs elsewhere", dir.display()
    )]
    TooOld { dir: PathBuf, major: u32, oldest: u32 },
    #[error(
        "the database in {} was made by Postgres {found}, and the one installed is {installed}; install postgresql-{found}, \
         or set HONE_POSTGRES_BIN to its bin directory", dir.display()
    )]
    OtherVersion { dir: PathBuf, found: String, installed: u32 },
    #[error(
        "Postgres refuses to run as root, and there is neither a user `postgres` nor `nobody` to run it as; run `hone` \
         as an ordinary user, or set DATABASE_URL"
    )]
    NoUser,
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{program} failed: {output}")]
    Tool { program: &'static str, output: String },
    #[error("Postgres did not start: {reason}; its log is {}", log.display())]
    Start { reason: String, log: PathBuf },
}

impl PostgresError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
