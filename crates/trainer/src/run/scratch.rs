//! What attempts leave in the scratch directory, and when it goes.

use super::config::{RunConfig, attempt_name};
use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, SystemTime},
};

/// Leftovers of attempts that nobody runs are removed after this time.
const KEEP: Duration = Duration::from_secs(2 * 24 * 3600);

/// Removes this job's earlier attempts, and what dead attempts of other jobs left long ago.
pub fn sweep(config: &RunConfig) {
    for attempt in 1..config.spec.attempt {
        remove_dir(&config.job_dir().join(attempt_name(attempt)));
    }
    let attempts = children(&config.jobs_dir()).flat_map(|job| children(&job));
    for dir in attempts.filter(|dir| is_old(dir) && !is_locked(dir)) {
        tracing::info!(dir = %dir.display(), "removing what a dead attempt left");
        remove_dir(&dir);
    }
    for job in children(&config.jobs_dir()) {
        // Fails, as it should, unless the directory is empty.
        let _ = fs::remove_dir(job);
    }
}

/// Removes this attempt's directory: everything in it is in storage.
pub fn remove(config: &RunConfig) {
    remove_dir(&config.attempt_dir());
    // Fails, as it should, unless the directory is empty.
    let _ = fs::remove_dir(config.job_dir());
}

fn children(dir: &Path) -> impl Iterator<Item = std::path::PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
}

fn is_old(dir: &Path) -> bool {
    let age =
        fs::metadata(dir).and_then(|m| m.modified()).ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age > KEEP)
}

fn is_locked(dir: &Path) -> bool {
    File::open(dir.join("spool/instance")).is_ok_and(|lock| lock.try_lock().is_err())
}

fn remove_dir(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "cannot remove a scratch directory");
        }
        _ => {}
    }
}
