//! Brings model, data and checkpoint from storage to local disk: verified, resumable, through the cache.

use crate::{
    cache::{Cache, disk_full, free_bytes},
    engine::TrainError,
    gateway::{Gateway, SMALL, blocking, storage_error},
    progress::Transfer,
};
use backon::BackoffBuilder;
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::StatusCode;
use service::{ClientError, error::chain};
use sha2::{Digest, Sha256};
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Write},
    path::{Component, Path, PathBuf},
};
use wire::{
    job::FailureCode,
    layout,
    storage::{FileRef, Manifest},
};

const FILES_IN_FLIGHT: usize = 4;
/// Bytes gathered before they are hashed and written.
const CHUNK: usize = 1 << 20;

/// A file to stage: what it is and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub file: FileRef,
    pub target: PathBuf,
}

impl Item {
    /// `relative` comes from outside: only plain path segments are taken.
    ///
    /// # Errors
    /// The path leaves `dir`.
    pub fn below(dir: &Path, relative: &str, file: FileRef) -> Result<Self, TrainError> {
        let path = Path::new(relative);
        if relative.is_empty() || !path.components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(TrainError::new(
                FailureCode::ModelCorrupt,
                format!("the file name `{relative}` is not a plain relative path"),
            ));
        }
        Ok(Self { file, target: dir.join(path) })
    }
}

#[derive(Debug, Clone)]
pub struct Stager {
    pub gateway: Gateway,
    pub cache: Cache,
}

/// A download under way.
struct Download {
    out: File,
    hasher: Sha256,
    len: u64,
}

impl Stager {
    /// Stages all items. Dropping the future stops it; what was downloaded so far is kept for the next try.
    ///
    /// # Errors
    /// Missing or damaged objects, a full disk, storage that stays unreachable.
    pub async fn stage(&self, items: &[Item], transfer: &Transfer) -> Result<(), TrainError> {
        transfer.expect(items.iter().map(|i| i.file.size).sum());
        stream::iter(items)
            .map(|item| self.stage_one(item, transfer))
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_collect()
            .await
    }

    /// The files of the checkpoint under `prefix`, to be staged into `dir`.
    ///
    /// # Errors
    /// No readable manifest: the checkpoint is not complete.
    pub async fn checkpoint_items(&self, prefix: &str, dir: &Path) -> Result<Vec<Item>, TrainError> {
        let manifest: Manifest = self.gateway.read_json(&format!("{prefix}{}", layout::MANIFEST)).await?;
        let outside = |key: &str| {
            let message = format!("the manifest of {prefix} names {key}, which is not below it");
            TrainError::new(FailureCode::ArtifactMissing, message)
        };
        manifest
            .files
            .into_iter()
            .map(|file| {
                let relative = file.key.strip_prefix(prefix).ok_or_else(|| outside(&file.key))?.to_owned();
                Item::below(dir, &relative, file)
            })
            .collect()
    }

    async fn stage_one(&self, item: &Item, transfer: &Transfer) -> Result<(), TrainError> {
        let file = &item.file;
        let claim = self.cache.claim(&file.sha256).await?;
        if self.cache.take(&claim, file, &item.target).await? {
            transfer.advance(file.size);
            return Ok(());
        }
        let partial = self.cache.partial(&file.sha256);
        for last in [false, true] {
            let actual = self.download(file, &partial, transfer).await?;
            if actual == file.sha256 {
                return self.cache.publish(&claim, &file.sha256, &item.target).await;
            }
            std::fs::remove_file(&partial).map_err(|e| TrainError::io("remove", &partial, e))?;
            transfer.retract(file.size);
            if last {
                return Err(TrainError::new(
                    FailureCode::ChecksumMismatch,
                    format!(
                        "{} arrived damaged twice: its SHA-256 is {actual}, expected {}; the stored object was changed \
                         or the network alters data; upload it again",
                        file.key, file.sha256
                    ),
                ));
            }
            tracing::warn!(key = %file.key, actual, expected = %file.sha256, "arrived damaged, downloading it again");
        }
        Ok(())
    }

    /// Completes `partial` and returns its digest. Progress resets the patience.
    async fn download(&self, file: &FileRef, partial: &Path, transfer: &Transfer) -> Result<String, TrainError> {
        let mut download = resume(partial.to_owned(), file.size).await?;
        transfer.advance(download.len);
        self.cache.make_room(file.size.saturating_sub(download.len), &file.key)?;
        let policy = self.gateway.retry();
        let mut waits = policy.backoff().build();
        // Large files come straight from storage; where storage cannot be reached from here, through the gateway.
        let mut direct = file.size > SMALL;
        while download.len < file.size {
            let before = download.len;
            let error = match self.gateway.open(&file.key, download.len, direct).await {
                Ok(response) => {
                    let (rest, error) = receive(response, download, file, partial, transfer).await?;
                    download = rest;
                    error
                }
                Err(e) => Some(e),
            };
            if download.len > before {
                waits = policy.backoff().build();
            }
            let Some(error) = error else {
                if download.len < file.size {
                    return Err(shorter(file, partial));
                }
                continue;
            };
            if error.status() == Some(StatusCode::RANGE_NOT_SATISFIABLE.as_u16()) {
                return Err(shorter(file, partial));
            }
            let refused = matches!(error.status(), Some(401 | 403));
            let may_pass = error.is_transient() || (refused && direct);
            if !may_pass {
                return Err(storage_error("download", &file.key, error));
            }
            let Some(wait) = waits.next() else { return Err(storage_error("download", &file.key, error)) };
            direct = file.size > SMALL && !direct;
            tracing::warn!(key = %file.key, at = download.len, error = %chain(&error), "download interrupted, going on in {wait:.1?}");
            transfer.retrying(&chain(&error));
            tokio::time::sleep(wait).await;
        }
        Ok(hex::encode(download.hasher.finalize()))
    }
}

/// Opens the partial file and hashes what it has; one that is too long starts over.
async fn resume(path: PathBuf, size: u64) -> Result<Download, TrainError> {
    blocking(move || {
        let failed = |e| TrainError::io("open", &path, e);
        let mut out =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).map_err(failed)?;
        if out.metadata().map_err(failed)?.len() > size {
            out.set_len(0).map_err(failed)?;
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut len: u64 = 0;
        loop {
            let read = out.read(&mut buffer).map_err(failed)?;
            let Some(chunk) = buffer.get(..read).filter(|c| !c.is_empty()) else { break };
            hasher.update(chunk);
            len = len.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        }
        Ok(Download { out, hasher, len })
    })
    .await
}

/// Appends a reply's body. The network error that cut it short is returned beside what arrived.
async fn receive(
    mut response: reqwest::Response,
    mut download: Download,
    file: &FileRef,
    path: &Path,
    transfer: &Transfer,
) -> Result<(Download, Option<ClientError>), TrainError> {
    if download.len > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        // The server ignores ranges: start over.
        transfer.retract(download.len);
        download.out.set_len(0).map_err(|e| TrainError::io("truncate", path, e))?;
        std::io::Seek::rewind(&mut download.out).map_err(|e| TrainError::io("rewind", path, e))?;
        (download.hasher, download.len) = (Sha256::new(), 0);
    }
    let service = "storage";
    let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK * 2);
    let mut cut: Option<ClientError> = None;
    loop {
        let ended = match response.chunk().await {
            Ok(Some(chunk)) => {
                buffer.extend_from_slice(&chunk);
                false
            }
            Ok(None) => true,
            Err(source) => {
                cut = Some(ClientError::Transport { service, source });
                true
            }
        };
        if buffer.len() >= CHUNK || (ended && !buffer.is_empty()) {
            let count = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
            if download.len.saturating_add(count) > file.size {
                return Err(TrainError::new(
                    FailureCode::ChecksumMismatch,
                    format!("{} is longer than the {} bytes it should have; upload it again", file.key, file.size),
                ));
            }
            (download, buffer) = write(download, buffer, file, path).await?;
            transfer.advance(count);
        }
        if ended {
            break;
        }
    }
    Ok((download, cut))
}

/// The whole object arrived, and it is not all that was promised. What is left of it must not be resumed.
fn shorter(file: &FileRef, partial: &Path) -> TrainError {
    let _ = std::fs::remove_file(partial);
    TrainError::new(
        FailureCode::ChecksumMismatch,
        format!("{} is shorter than the {} bytes it should have; upload it again", file.key, file.size),
    )
}

async fn write(
    mut download: Download,
    mut buffer: Vec<u8>,
    file: &FileRef,
    path: &Path,
) -> Result<(Download, Vec<u8>), TrainError> {
    let (rest, path) = (file.size.saturating_sub(download.len), path.to_owned());
    let what = file.key.clone();
    blocking(move || {
        download.hasher.update(&buffer);
        download.out.write_all(&buffer).map_err(|e| match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                disk_full(&what, &path, rest, free_bytes(&path).unwrap_or(0))
            }
            _ => TrainError::io("write", &path, e),
        })?;
        download.len = download.len.saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        buffer.clear();
        Ok((download, buffer))
    })
    .await
}
