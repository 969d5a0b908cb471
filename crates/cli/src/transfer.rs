//! Large files: parts put straight to storage by signed URLs, and downloads with verified digests.

use crate::error::{CliError, CliResult, Exit};
use backon::Retryable;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use service::client::RetryPolicy;
use sha2::{Digest, Sha256};
use std::{
    io::{self, Read, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;
use wire::{
    job::ArtifactView,
    storage::{UploadPart, UploadSession},
};

/// Parts in flight.
const PARALLEL: usize = 2;
/// Without a byte for this long a transfer is broken off and tried again.
const STALLED: Duration = Duration::from_secs(60);

/// A part or a file that could not be transferred; `expired` asks for fresh URLs.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("the storage refused the signed URL")]
    Expired,
    #[error("the storage answered {status}: {body}")]
    Status { status: reqwest::StatusCode, body: String },
    #[error("the connection to the storage broke")]
    Network(#[source] reqwest::Error),
    #[error("cannot read or write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} arrived with another SHA-256 than promised", path.display())]
    Digest { path: PathBuf },
}

impl TransferError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error() || status.as_u16() == 429,
            Self::Network(_) | Self::Digest { .. } => true,
            Self::Expired | Self::File { .. } => false,
        }
    }
}

impl From<TransferError> for CliError {
    fn from(error: TransferError) -> Self {
        let text = service::error::chain(&error);
        match &error {
            TransferError::File { path, source } => Self::io("read or write", path, source),
            TransferError::Network(_) => {
                Self::new(Exit::Unreachable, text).hint("run the same command again: it goes on where it stopped")
            }
            TransferError::Expired | TransferError::Status { .. } | TransferError::Digest { .. } => {
                Self::failed(text).hint("run the same command again: it goes on where it stopped")
            }
        }
    }
}

/// How putting the parts ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Done,
    /// The URLs ran out; ask for the missing parts again.
    Expired,
}

/// A client for signed URLs like `url`.
fn http(url: &str) -> CliResult<reqwest::Client> {
    let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).read_timeout(STALLED);
    let client = if service::client::is_loopback(url) { client.no_proxy() } else { client };
    client.build().map_err(|e| CliError::failed(format!("cannot make an HTTP client: {e}")))
}

/// Puts all missing parts of `session` from the file at `path`.
pub async fn put_parts(session: &UploadSession, path: &Path, bar: &ProgressBar) -> CliResult<Put> {
    let Some(first) = session.parts.first() else { return Ok(Put::Done) };
    let http = http(&first.url)?;
    let missing: u64 = session.parts.iter().map(|p| p.size).sum();
    bar.inc(session.size.saturating_sub(missing));
    let puts = session.parts.iter().map(|part| put_with_retries(&http, part, path, bar));
    let result: Result<Vec<()>, TransferError> = stream::iter(puts).buffer_unordered(PARALLEL).try_collect().await;
    match result {
        Ok(_) => Ok(Put::Done),
        Err(TransferError::Expired) => Ok(Put::Expired),
        Err(e) => Err(e.into()),
    }
}

async fn put_with_retries(
    http: &reqwest::Client,
    part: &UploadPart,
    path: &Path,
    bar: &ProgressBar,
) -> Result<(), TransferError> {
    let before = std::sync::atomic::AtomicU64::new(0);
    let attempt = || async {
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let result = put_part(http, part, path, bar, &sent).await;
        before.store(sent.load(std::sync::atomic::Ordering::Relaxed), std::sync::atomic::Ordering::Relaxed);
        result
    };
    attempt
        .retry(RetryPolicy::BACKGROUND.backoff())
        .when(TransferError::is_transient)
        // What was sent in vain is taken back from the bar.
        .notify(|_, _| {
            bar.set_position(bar.position().saturating_sub(before.load(std::sync::atomic::Ordering::Relaxed)))
        })
        .await
}

async fn put_part(
    http: &reqwest::Client,
    part: &UploadPart,
    path: &Path,
    bar: &ProgressBar,
    sent: &std::sync::Arc<std::sync::atomic::AtomicU64>,
) -> Result<(), TransferError> {
    let failed = |source| TransferError::File { path: path.to_owned(), source };
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    file.seek(SeekFrom::Start(part.offset)).await.map_err(failed)?;
    let (bar, sent) = (bar.clone(), std::sync::Arc::clone(sent));
    let body = ReaderStream::with_capacity(file.take(part.size), 256 << 10).inspect_ok(move |chunk| {
        let n = u64::try_from(chunk.len()).unwrap_or(0);
        sent.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        bar.inc(n);
    });
    let request = http.put(&part.url).header("content-length", part.size).body(reqwest::Body::wrap_stream(body));
    let response = request.send().await.map_err(TransferError::Network)?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    if status.as_u16() == 403 {
        return Err(TransferError::Expired);
    }
    Err(refused(response).await)
}

async fn refused(response: reqwest::Response) -> TransferError {
    let status = response.status();
    let body = response.text().await.unwrap_or_default().chars().take(300).collect();
    TransferError::Status { status, body }
}

/// SHA-256 of a file as hex.
pub fn sha256_file(path: &Path, bar: &ProgressBar) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
        bar.inc(u64::try_from(n).unwrap_or(0));
    }
}

/// Downloads every file below `dir` unless it is there already with the right digest. Returns how many had to
/// be transferred.
pub async fn download_all(files: &[ArtifactView], dir: &Path, bar: &ProgressBar) -> CliResult<usize> {
    let Some(first) = files.first() else { return Ok(0) };
    let http = http(&first.url)?;
    let mut transferred = 0_usize;
    for file in files {
        let target = safe_join(dir, &file.path)?;
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(|e| CliError::io("create the directory", parent, &e))?;
        }
        let there = std::fs::metadata(&target).is_ok_and(|m| m.len() == file.size);
        if there && sha256_file(&target, &ProgressBar::hidden()).is_ok_and(|digest| digest == file.sha256) {
            bar.inc(file.size);
            continue;
        }
        let start = bar.position();
        (|| download(&http, file, &target, bar))
            .retry(RetryPolicy::BACKGROUND.backoff())
            .when(TransferError::is_transient)
            .notify(|_, _| bar.set_position(start))
            .await?;
        transferred = transferred.saturating_add(1);
    }
    Ok(transferred)
}

async fn download(
    http: &reqwest::Client,
    file: &ArtifactView,
    target: &Path,
    bar: &ProgressBar,
) -> Result<(), TransferError> {
    let partial = PathBuf::from(format!("{}.part", target.display()));
    let failed = |source| TransferError::File { path: partial.clone(), source };
    let response = http.get(&file.url).send().await.map_err(TransferError::Network)?;
    if !response.status().is_success() {
        return Err(refused(response).await);
    }
    let mut out = tokio::fs::File::create(&partial).await.map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.try_next().await.map_err(TransferError::Network)? {
        hasher.update(&chunk);
        out.write_all(&chunk).await.map_err(failed)?;
        bar.inc(u64::try_from(chunk.len()).unwrap_or(0));
    }
    out.sync_all().await.map_err(failed)?;
    if hex::encode(hasher.finalize()) != file.sha256 {
        let _ = tokio::fs::remove_file(&partial).await;
        return Err(TransferError::Digest { path: target.to_owned() });
    }
    // Under its own name a file is always whole.
    tokio::fs::rename(&partial, target).await.map_err(failed)
}

/// `path` comes from a server: it must stay below `dir`.
fn safe_join(dir: &Path, path: &str) -> CliResult<PathBuf> {
    let plain = Path::new(path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if !plain || path.is_empty() {
        return Err(CliError::failed(format!(
            "the server names a file `{path}`, which would not stay below {}",
            dir.display()
        )));
    }
    Ok(dir.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for bad in ["../x", "/etc/passwd", "a/../../b", ""] {
            assert!(safe_join(Path::new("/d"), bad).is_err(), "{bad}");
        }
        assert_eq!(safe_join(Path::new("/d"), "a/b.json").unwrap(), Path::new("/d/a/b.json"));
    }
}
