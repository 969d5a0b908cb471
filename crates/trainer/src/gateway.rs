//! The trainer's view of storage: objects behind the gateway, reached with the job's token.
//!
//! Small objects go through the gateway; large ones go straight to storage by signed URLs. Every call has a
//! timeout, every transfer resumes, every digest is checked by the receiving side.

use crate::{engine::TrainError, progress::Transfer};
use backon::BackoffBuilder;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use reqwest::{Method, header};
use serde::de::DeserializeOwned;
use service::{Client, ClientConfig, ClientError, SecretString, client::RetryPolicy, error::chain};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};
use wire::{
    job::FailureCode,
    problem::Code,
    storage::{
        CompleteUpload, Deleted, FileRef, ObjectInfo, ObjectList, OpenUpload, SHA256_HEADER, SignMethod, SignRequest,
        SignedUrl, UploadKind, UploadPart, UploadSession, VerifyRequest,
    },
};

/// Up to here an object goes through the gateway in one request.
pub const SMALL: u64 = 4 << 20;
/// Parts of one upload in flight; each is held in memory.
const PARTS_IN_FLIGHT: usize = 2;
/// Files of one directory in flight.
const FILES_IN_FLIGHT: usize = 4;
/// Longest silence of a transfer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For calls that read whole objects: complete, verify.
const LONG: Duration = Duration::from_secs(15 * 60);
/// Bytes of a body handed over at a time; progress is counted by them.
const SLICE: usize = 64 << 10;
/// Largest JSON object read into memory.
const MAX_JSON: usize = 16 << 20;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway {
    client: Client,
    /// For calls in which the gateway reads whole objects before it answers.
    long: Client,
    retry: RetryPolicy,
    patience: Duration,
}

impl Gateway {
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(url: &str, token: SecretString, retry: RetryPolicy) -> Result<Self, ClientError> {
        Self::with_patience(url, token, retry, PATIENCE)
    }

    /// As [`Self::new`]; a transfer may be silent for `patience`, which is also added to the time it may take at the
    /// slowest bearable speed.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn with_patience(
        url: &str,
        token: SecretString,
        retry: RetryPolicy,
        patience: Duration,
    ) -> Result<Self, ClientError> {
        let config = ClientConfig::new("the storage gateway", url).bearer(token).retry(retry);
        let long = config.clone().timeout(LONG).read_timeout(LONG);
        Ok(Self { client: Client::new(config.read_timeout(patience))?, long: Client::new(long)?, retry, patience })
    }

    #[must_use]
    pub const fn retry(&self) -> RetryPolicy {
        self.retry
    }

    /// Stores a small object; tries once.
    ///
    /// # Errors
    /// The gateway refused it or cannot be reached.
    pub async fn put_bytes(&self, key: &str, body: Bytes) -> Result<FileRef, ClientError> {
        let sha256 = hex::encode(Sha256::digest(&body));
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let request = self
            .client
            .request(Method::PUT, &object_path(key))?
            .timeout(self.time_for(size))
            .header(SHA256_HEADER, &sha256)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body);
        self.client.send(request).await?;
        Ok(FileRef { key: key.to_owned(), size, sha256 })
    }

    /// Stores a small object, retrying.
    ///
    /// # Errors
    /// Storage stayed unreachable or refused it.
    pub async fn put_bytes_retrying(&self, key: &str, body: Bytes, told: &Transfer) -> Result<FileRef, TrainError> {
        use backon::Retryable;
        (|| self.put_bytes(key, body.clone()))
            .retry(self.retry.backoff())
            .when(ClientError::is_transient)
            .notify(|error, wait| {
                tracing::warn!(key, error = %chain(error), "storage did not take it, trying again in {wait:.1?}");
                told.retrying(&chain(error));
            })
            .await
            .map_err(|e| storage_error("store", key, e))
    }

    /// Stores a file of any size and returns its digest.
    ///
    /// # Errors
    /// The file cannot be read; storage stayed unreachable or refused it.
    pub async fn put_file(&self, key: &str, path: &Path, told: &Transfer) -> Result<FileRef, TrainError> {
        let (size, sha256) = hash_file(path.to_owned()).await?;
        let file = FileRef { key: key.to_owned(), size, sha256 };
        told.expect(size);
        if size <= SMALL {
            let body = read_part(path.to_owned(), 0, size).await?;
            let stored = self.put_bytes_retrying(key, body, told).await?;
            told.advance(size);
            return Ok(stored);
        }
        for last in [false, true] {
            match self.upload(&file, path, told).await {
                // Damaged on the way: storage threw it away, so one more upload may succeed.
                Err(e) if e.code == FailureCode::ChecksumMismatch && !last => {
                    tracing::warn!(key, error = %e, "the upload arrived damaged, sending it again");
                    told.retract(size);
                    told.retrying(&e.message);
                }
                result => return result.map(|()| file),
            }
        }
        Ok(file)
    }

    /// Stores every file below `dir` under `prefix`; in key order.
    ///
    /// # Errors
    /// As [`Self::put_file`].
    pub async fn put_dir(&self, prefix: &str, dir: &Path, told: &Transfer) -> Result<Vec<FileRef>, TrainError> {
        let paths = files_below(dir).map_err(|e| TrainError::io("list", dir, e))?;
        // Boxed: the compiler cannot see that a stream of borrowing futures is `Send`.
        let uploads = paths.into_iter().map(|relative| {
            let (key, path) = (format!("{prefix}{relative}"), dir.join(&relative));
            async move { self.put_file(&key, &path, told).await }.boxed()
        });
        stream::iter(uploads).buffered(FILES_IN_FLIGHT).try_collect().await
    }

    /// Opens the object's bytes from offset `from` on; tries once. `direct` reads from storage by a signed URL.
    ///
    /// # Errors
    /// The gateway or storage refused it or cannot be reached.
    pub async fn open(&self, key: &str, from: u64, direct: bool) -> Result<reqwest::Response, ClientError> {
        let url = if direct {
            let body = SignRequest { method: SignMethod::Get, key: key.to_owned(), expires_in: None };
            self.client.post::<_, SignedUrl>("/sign", &body).await?.url
        } else {
            object_path(key)
        };
        let mut request = self.client.request(Method::GET, &url)?;
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        self.client.send(request).await
    }

    /// Reads a small JSON object.
    ///
    /// # Errors
    /// It does not exist, is not JSON of this type, or storage stayed unreachable.
    pub async fn read_json<T: DeserializeOwned>(&self, key: &str) -> Result<T, TrainError> {
        let path = object_path(key);
        let response = self
            .client
            .send_retrying(|| Ok(self.client.request(Method::GET, &path)?.timeout(Duration::from_secs(60))))
            .await
            .map_err(|e| storage_error("read", key, e))?;
        let bad = |e: &dyn std::fmt::Display| {
            TrainError::new(FailureCode::ArtifactMissing, format!("{key} in storage cannot be read: {e}"))
        };
        let body = response.bytes().await.map_err(|e| bad(&e))?;
        if body.len() > MAX_JSON {
            return Err(bad(&format!("{} bytes are too many", body.len())));
        }
        serde_json::from_slice(&body).map_err(|e| bad(&e))
    }

    /// All keys below `prefix`, in order.
    ///
    /// # Errors
    /// The gateway refused it or stayed unreachable.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>, TrainError> {
        let mut keys = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/objects?prefix={}&after={}", encode(prefix), encode(&after));
            let page: ObjectList = self.client.get(&path).await.map_err(|e| storage_error("list", prefix, e))?;
            keys.extend(page.objects.into_iter().map(|object| object.key));
            match page.next_after {
                Some(next) => after = next,
                None => return Ok(keys),
            }
        }
    }

    /// # Errors
    /// The gateway refused it or stayed unreachable.
    pub async fn delete(&self, key: &str) -> Result<(), ClientError> {
        match self.client.delete(&object_path(key)).await {
            Err(e) if e.status() == Some(404) => Ok(()),
            other => other,
        }
    }

    /// # Errors
    /// The gateway refused it or stayed unreachable.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64, ClientError> {
        let path = format!("/objects?prefix={}", encode(prefix));
        self.client.call::<(), Deleted>(Method::DELETE, &path, None).await.map(|d| d.deleted)
    }

    /// One multipart upload. A part that fails is sent again with a fresh URL; progress resets the patience.
    async fn upload(&self, file: &FileRef, path: &Path, told: &Transfer) -> Result<(), TrainError> {
        let failed = |e| storage_error("upload", &file.key, e);
        let open = OpenUpload {
            key: file.key.clone(),
            size: file.size,
            kind: UploadKind::Job,
            sha256: Some(file.sha256.clone()),
        };
        let mut session: UploadSession = self.client.post("/uploads", &open).await.map_err(failed)?;
        let status = format!("/uploads/{}", session.id);
        let mut waits = self.retry.backoff().build();
        let mut missing = session.parts.len();
        while let Err(error) = self.put_parts(&session, path, told).await {
            let error = error?;
            session = self.client.get(&status).await.map_err(failed)?;
            if session.parts.len() < missing {
                missing = session.parts.len();
                waits = self.retry.backoff().build();
            }
            let Some(wait) = waits.next() else { return Err(failed(error)) };
            tracing::warn!(key = %file.key, error = %chain(&error), "{missing} parts are missing, trying again in {wait:.1?}");
            told.retrying(&chain(&error));
            tokio::time::sleep(wait).await;
        }
        let complete = CompleteUpload { sha256: Some(file.sha256.clone()) };
        let Err(error) = self.long.post::<_, ObjectInfo>(&format!("{status}/complete"), &complete).await else {
            return Ok(());
        };
        // The reply may be lost while the object is complete.
        let verify = VerifyRequest { files: vec![file.clone()] };
        match self.long.call_unit(Method::POST, "/verify", Some(&verify)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(failed(error)),
        }
    }

    /// Sends the missing parts. The inner error is ours (the file cannot be read), the outer one the network's.
    async fn put_parts(
        &self,
        session: &UploadSession,
        path: &Path,
        told: &Transfer,
    ) -> Result<(), Result<ClientError, TrainError>> {
        let parts = session.parts.iter().cloned().map(|part| {
            async move {
                let body = read_part(path.to_owned(), part.offset, part.size).await.map_err(Err)?;
                self.put_part(&part, body, told).await.map_err(Ok)
            }
            .boxed()
        });
        stream::iter(parts).buffer_unordered(PARTS_IN_FLIGHT).try_collect().await
    }

    async fn put_part(&self, part: &UploadPart, body: Bytes, told: &Transfer) -> Result<(), ClientError> {
        let flight = told.flight();
        let counter = flight.counter();
        let slices = stream::unfold(body, move |mut rest| {
            let slice = rest.split_to(rest.len().min(SLICE));
            counter.count(slice.len());
            std::future::ready((!slice.is_empty()).then_some((Ok::<_, std::io::Error>(slice), rest)))
        });
        let request = self
            .client
            .request(Method::PUT, &part.url)?
            .timeout(self.time_for(part.size))
            .header(header::CONTENT_LENGTH, part.size)
            .body(reqwest::Body::wrap_stream(slices));
        self.client.send(request).await?;
        flight.arrived();
        Ok(())
    }

    /// Time for moving `size` bytes: the patience and what the slowest bearable line (128 KiB/s) needs.
    fn time_for(&self, size: u64) -> Duration {
        self.patience.saturating_add(Duration::from_secs(size >> 17))
    }
}

fn object_path(key: &str) -> String {
    let segments: Vec<String> = key.split('/').map(encode).collect();
    format!("/objects/{}", segments.join("/"))
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, b| {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

/// Paths of all regular files below `dir`, relative to it, sorted.
///
/// # Errors
/// A directory cannot be read.
pub fn files_below(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        for entry in std::fs::read_dir(dir.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Size and hex SHA-256 of a file.
///
/// # Errors
/// It cannot be read.
pub async fn hash_file(path: PathBuf) -> Result<(u64, String), TrainError> {
    blocking(move || {
        let mut hasher = Sha256::new();
        let size = File::open(&path)
            .and_then(|mut f| std::io::copy(&mut f, &mut hasher))
            .map_err(|e| TrainError::io("read", &path, e))?;
        Ok((size, hex::encode(hasher.finalize())))
    })
    .await
}

async fn read_part(path: PathBuf, offset: u64, size: u64) -> Result<Bytes, TrainError> {
    blocking(move || {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut body = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
            file.read_exact(&mut body)?;
            Ok(body)
        };
        read().map(Bytes::from).map_err(|e| TrainError::io("read", &path, e))
    })
    .await
}

/// Runs file work off the async threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TrainError> + Send + 'static,
) -> Result<T, TrainError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(TrainError::internal(format!("file work ended abnormally: {e}"))),
    }
}

/// A failed call as a failure of the job.
#[must_use]
pub fn storage_error(verb: &str, key: &str, error: ClientError) -> TrainError {
    let code = match &error {
        ClientError::Problem { problem, .. } if problem.code == Code::ChecksumMismatch => FailureCode::ChecksumMismatch,
        ClientError::Problem { problem, .. } if problem.code == Code::NotFound => FailureCode::ArtifactMissing,
        _ => FailureCode::StorageUnavailable,
    };
    let hint = match code {
        FailureCode::StorageUnavailable if error.is_transient() => {
            "; check that the storage gateway and the object store behind it are up, then resume the job"
        }
        FailureCode::ArtifactMissing => "; it was deleted after the job was created",
        _ => "",
    };
    TrainError::new(code, format!("cannot {verb} {key}: {}{hint}", chain(&error))).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_per_segment() {
        assert_eq!(object_path("models/a b/x+y.json"), "/objects/models/a%20b/x%2By.json");
    }

    #[test]
    fn files_are_found_in_order_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b/c"), "1").unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(files_below(dir.path()).unwrap(), ["a", "b/c"]);
    }
}
