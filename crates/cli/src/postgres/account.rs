//! Postgres refuses to run as root. Root therefore starts it as an existing unprivileged user, who must be
//! able to reach the data directory and to own it.

use super::PostgresError;
use nix::unistd::{Gid, Uid, User, chown, geteuid};
use std::{
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

/// Tried in this order.
const NAMES: [&str; 2] = ["postgres", "nobody"];

/// The user Postgres runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account(Option<(Uid, Gid)>);

impl Account {
    /// Ourselves, or for root the owner of an existing cluster, else the first of [`NAMES`] that exists.
    pub fn choose(existing: &Path) -> Result<Self, PostgresError> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        if let Ok(meta) = std::fs::metadata(existing)
            && meta.uid() != 0
        {
            return Ok(Self(Some((meta.uid().into(), meta.gid().into()))));
        }
        let user = NAMES.iter().find_map(|name| User::from_name(name).ok().flatten()).ok_or(PostgresError::NoUser)?;
        Ok(Self(Some((user.uid, user.gid))))
    }

    /// Lets `command` run as this user. Dropping the user id as root also drops the supplementary groups.
    pub fn apply(self, command: &mut Command) {
        if let Some((uid, gid)) = self.0 {
            command.gid(gid.as_raw()).uid(uid.as_raw());
        }
    }

    /// Makes this user the owner of `path`.
    pub fn own(self, path: &Path) -> Result<(), PostgresError> {
        let Some((uid, gid)) = self.0 else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(|e| PostgresError::io("give away", path)(e.into()))
    }

    /// Lets this user pass through every directory above `path` (`chmod o+x`, which shows no names).
    /// Returns the directories that had to be changed.
    pub fn open_parents(self, path: &Path) -> Result<Vec<PathBuf>, PostgresError> {
        let mut changed = Vec::new();
        let Some((uid, gid)) = self.0 else { return Ok(changed) };
        for dir in path.ancestors().skip(1).filter(|d| !d.as_os_str().is_empty()) {
            let meta = std::fs::metadata(dir).map_err(PostgresError::io("look at", dir))?;
            let mode = meta.permissions().mode();
            let needed = match (meta.uid() == uid.as_raw(), meta.gid() == gid.as_raw()) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            if mode & needed == 0 {
                let open = std::fs::Permissions::from_mode(mode | needed);
                std::fs::set_permissions(dir, open).map_err(PostgresError::io("make traversable", dir))?;
                changed.push(dir.to_owned());
            }
        }
        Ok(changed)
    }
}
