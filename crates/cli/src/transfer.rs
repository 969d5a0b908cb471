//! Large files: parts put straight to storage by signed URLs, and downloads with verified digests.

use crate::error::{CliError, CliResult, Exit};
use backon::{BackoffBuilder, Retryable};
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
/// Signed URLs last 15 minutes; a large file on a slow line needs several rounds of them. So many may pass in a row in
/// which no part gets through.
const ROUNDS: usize = 3;
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

/// Puts what is missing of uploads of `total` bytes, from the file that `source` knows for a session. `again` gives what is
/// missing then, with fresh URLs.
pub async fn put_sessions<'a>(
    (mut sessions, total): (Vec<UploadSession>, u64),
    bar: &ProgressBar,
    source: impl Fn(&UploadSession) -> Option<&'a Path>,
    again: impl AsyncFn() -> CliResult<Vec<UploadSession>>,
) -> CliResult<()> {
    let (mut idle, mut left) = (0_usize, u64::MAX);
    loop {
        // What is there already counts as done.
        let open: u64 = sessions.iter().map(|u| u.size).sum();
        bar.set_position(total.saturating_sub(open));
        let missing: u64 = sessions.iter().flat_map(|u| &u.parts).map(|p| p.size).sum();
        idle = if missing < left { 0 } else { idle.saturating_add(1) };
        if idle >= ROUNDS {
            return Err(CliError::failed("the storage refuses the signed URLs, also fresh ones")
                .hint("check the clocks of this machine and of the storage, and S3_PUBLIC_ENDPOINT of the gateway"));
        }
        left = missing;
        let mut expired = false;
        for session in &sessions {
            let path = source(session).ok_or_else(|| {
                CliError::failed(format!("the server asks for `{}`, which is none of the files", session.key))
            })?;
            expired |= put_parts(session, path, bar).await? == Put::Expired;
        }
        if !expired {
            return Ok(());
        }
        sessions = again().await?;
    }
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

/// Downloads every file below `dir` unless it is there already with the right digest; one that broke off goes on where
/// it stopped. `refresh` gives the same files with fresh URLs when those ran out. Returns how many had to be transferred.
pub async fn download_all(
    files: &[ArtifactView],
    dir: &Path,
    bar: &ProgressBar,
    refresh: impl AsyncFn() -> CliResult<Vec<ArtifactView>>,
) -> CliResult<usize> {
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
        let mut file = file.clone();
        let mut download = Download { target: &target, bar, start: bar.position(), arrived: 0 };
        let mut waits = RetryPolicy::BACKGROUND.backoff().build();
        let mut refreshed_at = None;
        loop {
            let before = download.arrived;
            let Err(error) = download.go_on(&http, &file).await else { break };
            let progress = download.arrived > before;
            if progress {
                waits = RetryPolicy::BACKGROUND.backoff().build();
            }
            // A URL that is refused although it is fresh will stay so.
            if matches!(error, TransferError::Expired) && (progress || refreshed_at != Some(download.arrived)) {
                refreshed_at = Some(download.arrived);
                file = same_file(&file, refresh().await?)?;
                continue;
            }
            let wait = if error.is_transient() { waits.next() } else { None };
            let Some(wait) = wait else { return Err(error.into()) };
            tokio::time::sleep(wait).await;
        }
        transferred = transferred.saturating_add(1);
    }
    Ok(transferred)
}

/// `file` with a fresh URL.
fn same_file(file: &ArtifactView, fresh: Vec<ArtifactView>) -> CliResult<ArtifactView> {
    let same = fresh.into_iter().find(|f| f.path == file.path && f.sha256 == file.sha256);
    same.ok_or_else(|| CliError::failed(format!("`{}` is not there any more", file.path)))
}

/// A file on its way to `{target}.part`; under its own name a file is always whole.
struct Download<'a> {
    target: &'a Path,
    bar: &'a ProgressBar,
    /// Of the bar.
    start: u64,
    /// Most bytes of the file that were there at a time.
    arrived: u64,
}

impl Download<'_> {
    /// One request: takes up what is there already, also from an earlier run.
    async fn go_on(&mut self, http: &reqwest::Client, file: &ArtifactView) -> Result<(), TransferError> {
        let partial = PathBuf::from(format!("{}.part", self.target.display()));
        let failed = |source| TransferError::File { path: partial.clone(), source };
        let mut options = tokio::fs::OpenOptions::new();
        let mut out =
            options.create(true).truncate(false).read(true).write(true).open(&partial).await.map_err(failed)?;
        if out.metadata().await.map_err(failed)?.len() > file.size {
            out.set_len(0).await.map_err(failed)?;
        }
        let (mut hasher, mut len) = hash_open(&mut out).await.map_err(failed)?;
        if len < file.size || file.size == 0 {
            let request = http.get(&file.url);
            let request = if len > 0 { request.header("range", format!("bytes={len}-")) } else { request };
            let response = request.send().await.map_err(TransferError::Network)?;
            match response.status() {
                status if status == reqwest::StatusCode::FORBIDDEN => return Err(TransferError::Expired),
                status if !status.is_success() => return Err(refused(response).await),
                status if len > 0 && status != reqwest::StatusCode::PARTIAL_CONTENT => {
                    // The server ignores ranges.
                    out.set_len(0).await.map_err(failed)?;
                    out.rewind().await.map_err(failed)?;
                    (hasher, len) = (Sha256::new(), 0);
                }
                _ => {}
            }
            self.show(len);
            let mut body = response.bytes_stream();
            while let Some(chunk) = body.try_next().await.map_err(TransferError::Network)? {
                hasher.update(&chunk);
                out.write_all(&chunk).await.map_err(failed)?;
                len = len.saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
                self.show(len);
            }
        }
        out.sync_all().await.map_err(failed)?;
        if hex::encode(hasher.finalize()) != file.sha256 {
            let _ = tokio::fs::remove_file(&partial).await;
            return Err(TransferError::Digest { path: self.target.to_owned() });
        }
        tokio::fs::rename(&partial, self.target).await.map_err(failed)
    }

    fn show(&mut self, len: u64) {
        self.arrived = self.arrived.max(len);
        self.bar.set_position(self.start.saturating_add(len));
    }
}

/// Digest and length of what a file holds, leaving it positioned at its end.
async fn hash_open(file: &mut tokio::fs::File) -> io::Result<(Sha256, u64)> {
    let (mut hasher, mut len) = (Sha256::new(), 0_u64);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).await?;
        if n == 0 {
            return Ok((hasher, len));
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
        len = len.saturating_add(u64::try_from(n).unwrap_or(0));
    }
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
