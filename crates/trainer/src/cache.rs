//! Content-addressed cache of staged files, shared by every job on this machine.
//!
//! `sha256/{digest}` is a complete, verified, read-only file; it appears by an atomic rename after a sync.
//! `partial/{digest}` is a download that can be resumed. Both are evicted least recently used first. A job gets
//! hard links, so eviction never takes a file away from a running job. One process at a time works on a digest.

use crate::{
    engine::TrainError,
    gateway::{blocking, hash_file},
};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use wire::{job::FailureCode, storage::FileRef};

/// Left free on the disk besides the files themselves: logs, spool, rounding.
const MARGIN: u64 = 64 << 20;

#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    max_bytes: u64,
}

/// The right to work on one digest; released when dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl Cache {
    /// # Errors
    /// The directories cannot be made.
    pub fn open(root: PathBuf, max_bytes: u64) -> Result<Self, TrainError> {
        for name in ["sha256", "partial", "locks"] {
            let dir = root.join(name);
            fs::create_dir_all(&dir).map_err(|e| TrainError::io("create the cache directory", &dir, e))?;
        }
        Ok(Self { root, max_bytes })
    }

    fn complete(&self, digest: &str) -> PathBuf {
        self.root.join("sha256").join(digest)
    }

    #[must_use]
    pub fn partial(&self, digest: &str) -> PathBuf {
        self.root.join("partial").join(digest)
    }

    fn lock_path(&self, digest: &str) -> PathBuf {
        self.root.join("locks").join(digest)
    }

    fn try_claim(&self, digest: &str) -> Result<Option<Claim>, TrainError> {
        let path = self.lock_path(digest);
        let failed = |e| TrainError::io("lock", &path, e);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Claim { _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// Waits until no other process works on `digest`.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub async fn claim(&self, digest: &str) -> Result<Claim, TrainError> {
        if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(TrainError::internal(format!("`{digest}` is not a SHA-256")));
        }
        loop {
            if let Some(claim) = self.try_claim(digest)? {
                return Ok(claim);
            }
            // Another process downloads the same file; a lock has no event to wait for that can be cancelled.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Links the cached file to `target` if it is there and still has its digest; a damaged one is thrown away.
    ///
    /// # Errors
    /// The link cannot be made.
    pub async fn take(&self, _claim: &Claim, file: &FileRef, target: &Path) -> Result<bool, TrainError> {
        let path = self.complete(&file.sha256);
        if !path.exists() {
            return Ok(false);
        }
        let (size, digest) = hash_file(path.clone()).await?;
        if size != file.size || digest != file.sha256 {
            tracing::warn!(key = %file.key, path = %path.display(), "the cached copy is damaged; downloading it again");
            fs::remove_file(&path).map_err(|e| TrainError::io("remove", &path, e))?;
            return Ok(false);
        }
        // Only the order of eviction depends on it.
        let _ = File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        link(&path, target)?;
        Ok(true)
    }

    /// Makes the verified partial file the cached one and links it to `target`.
    ///
    /// # Errors
    /// The file system refuses.
    pub async fn publish(&self, _claim: &Claim, digest: &str, target: &Path) -> Result<(), TrainError> {
        let (partial, complete, target) = (self.partial(digest), self.complete(digest), target.to_owned());
        blocking(move || {
            let failed = |e| TrainError::io("store", &complete, e);
            let file = File::open(&partial).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            let mut permissions = file.metadata().map_err(failed)?.permissions();
            permissions.set_readonly(true);
            fs::set_permissions(&partial, permissions).map_err(failed)?;
            fs::rename(&partial, &complete).map_err(failed)?;
            link(&complete, &target)
        })
        .await
    }

    /// Evicts until `need` more bytes fit into the cache's bound and onto the disk.
    ///
    /// # Errors
    /// [`FailureCode::DiskFull`] with what is needed and what there is.
    pub fn make_room(&self, need: u64, what: &str) -> Result<(), TrainError> {
        let mut entries = self.entries();
        entries.sort_unstable_by_key(|e| e.used);
        let mut total: u64 = entries.iter().map(|e| e.size).sum();
        let mut oldest = entries.into_iter();
        loop {
            let free = free_bytes(&self.root)?;
            let fits_disk = need.saturating_add(MARGIN) <= free;
            if fits_disk && total.saturating_add(need) <= self.max_bytes {
                return Ok(());
            }
            match oldest.next() {
                Some(entry) => {
                    if self.evict(&entry) {
                        total = total.saturating_sub(entry.size);
                    }
                }
                // Larger than the whole cache, or the rest is in use: the bound is for what may be kept, not for what is needed.
                None if fits_disk => return Ok(()),
                None => return Err(disk_full(what, &self.root, need.saturating_add(MARGIN), free)),
            }
        }
    }

    fn entries(&self) -> Vec<Entry> {
        ["sha256", "partial"]
            .iter()
            .filter_map(|name| fs::read_dir(self.root.join(name)).ok())
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let data = entry.metadata().ok()?;
                Some(Entry { path: entry.path(), size: data.len(), used: data.modified().ok()? })
            })
            .collect()
    }

    /// Removes one file unless someone works on it.
    fn evict(&self, entry: &Entry) -> bool {
        let Some(digest) = entry.path.file_name().and_then(|n| n.to_str()) else { return false };
        let Ok(Some(_claim)) = self.try_claim(digest) else { return false };
        let removed = fs::remove_file(&entry.path).is_ok();
        if removed {
            tracing::info!(path = %entry.path.display(), bytes = entry.size, "evicted a file from the cache");
        }
        removed
    }
}

struct Entry {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

fn link(from: &Path, to: &Path) -> Result<(), TrainError> {
    let failed = |e| TrainError::io("create", to, e);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::remove_file(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    // A file system without hard links costs a copy.
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)).map_err(failed)
}

/// Bytes an unprivileged process can still write at `path`.
///
/// # Errors
/// The file system cannot be asked.
pub fn free_bytes(path: &Path) -> Result<u64, TrainError> {
    nix::sys::statvfs::statvfs(path)
        .map(|s| s.blocks_available().saturating_mul(s.fragment_size()))
        .map_err(|e| TrainError::io("ask for the free space of", path, e.into()))
}

/// The failure for a full disk.
#[must_use]
pub fn disk_full(what: &str, path: &Path, need: u64, have: u64) -> TrainError {
    TrainError::new(
        FailureCode::DiskFull,
        format!(
            "not enough disk space for {what}: need {}, have {} in {}; free some space or set SCRATCH_DIR to a larger \
             disk, then resume the job",
            human(need),
            human(have),
            path.display()
        ),
    )
}

/// `1.5 GB`
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000), ("B", 1)];
    let (unit, size) = UNITS.into_iter().find(|(_, size)| bytes >= *size).unwrap_or(("B", 1));
    match (bytes / size, bytes % size * 10 / size) {
        (whole, tenth) if size > 1 && whole < 100 => format!("{whole}.{tenth} {unit}"),
        (whole, _) => format!("{whole} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> FileRef {
        use sha2::Digest;
        FileRef {
            key: content.into(),
            size: content.len().try_into().unwrap(),
            sha256: hex::encode(sha2::Sha256::digest(content)),
        }
    }

    async fn add(cache: &Cache, content: &str, target: &Path) -> FileRef {
        let file = file(content);
        let claim = cache.claim(&file.sha256).await.unwrap();
        fs::write(cache.partial(&file.sha256), content).unwrap();
        cache.publish(&claim, &file.sha256, target).await.unwrap();
        file
    }

    #[tokio::test]
    async fn the_least_recently_used_file_goes_first_and_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache"), 25).unwrap();
        let old = add(&cache, "aaaaaaaaaa", &dir.path().join("old")).await;
        let new = add(&cache, "bbbbbbbbbb", &dir.path().join("new")).await;
        let stamp = |f: &FileRef, t| {
            File::open(cache.complete(&f.sha256)).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(t))
        };
        stamp(&old, 1).unwrap();
        stamp(&new, 2).unwrap();
        cache.make_room(10, "a test").unwrap();
        assert!(!cache.complete(&old.sha256).exists() && cache.complete(&new.sha256).exists());
        assert_eq!(fs::read_to_string(dir.path().join("old")).unwrap(), "aaaaaaaaaa");
    }

    #[tokio::test]
    async fn a_file_that_is_worked_on_is_not_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache"), 5).unwrap();
        let used = add(&cache, "aaaaaaaaaa", &dir.path().join("used")).await;
        let _claim = cache.claim(&used.sha256).await.unwrap();
        cache.make_room(10, "a test").unwrap();
        assert!(cache.complete(&used.sha256).exists());
    }

    #[tokio::test]
    async fn a_damaged_copy_is_not_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache"), 100).unwrap();
        let target = dir.path().join("x");
        let file = add(&cache, "good", &target).await;
        let path = cache.complete(&file.sha256);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "evil").unwrap();
        let claim = cache.claim(&file.sha256).await.unwrap();
        assert!(!cache.take(&claim, &file, &target).await.unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn more_than_the_disk_has_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().to_owned(), u64::MAX).unwrap();
        let error = cache.make_room(u64::MAX / 2, "model `a`").unwrap_err();
        assert_eq!(error.code, FailureCode::DiskFull);
        assert!(error.message.starts_with("not enough disk space for model `a`: need 9223372036 GB, have "), "{error}");
    }

    #[test]
    fn sizes_are_readable() {
        let read: Vec<String> = [0, 999, 1500, 64 << 20, 1_234_567_890].into_iter().map(human).collect();
        assert_eq!(read, ["0 B", "999 B", "1.5 kB", "67.1 MB", "1.2 GB"]);
    }
}
