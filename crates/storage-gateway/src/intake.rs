//! `PUT /objects/{key}`: a body streamed through the gateway, one part in memory at a time.

use crate::{
    digest::mismatch,
    gateway::{Gateway, META_SHA256, store_failed},
    keys::Key,
    session::part_size,
    store::{Metadata, Part, Place},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use service::{ApiError, ApiResult};
use sha2::{Digest, Sha256};
use std::{fmt::Display, pin::Pin, sync::Arc, time::Duration};
use uuid::Uuid;
use wire::{problem::Code, storage::ObjectInfo};

/// Longest silence of a client.
const SILENCE: Duration = Duration::from_secs(60);
/// Bodies up to this size are cheap enough to need no turn.
const SMALL: u64 = 256 << 10;

/// What the headers say about a body.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    pub size: Option<u64>,
    pub sha256: Option<String>,
}

/// Stores a body under `key`. Nothing is visible there unless all of it arrived and matches its digest.
pub async fn receive<S, E>(gateway: &Arc<Gateway>, key: &Key, declared: Declared, body: S) -> ApiResult<ObjectInfo>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: Display,
{
    gateway.limits.check(key.kind(), declared.size.unwrap_or(0))?;
    let small = declared.size.is_some_and(|size| size <= SMALL);
    let _turn = if small { None } else { Some(gateway.upload_turn().await?) };
    let part_size = part_size_for(declared.size.unwrap_or_else(|| gateway.limits.of(key.kind())));
    let mut body = Body { stream: Box::pin(body), rest: Bytes::new(), hasher: Sha256::new(), seen: 0 };

    let likely = declared.size.and_then(|size| usize::try_from(size).ok()).unwrap_or(0).min(part_size);
    let first = body.fill(gateway, key, part_size, BytesMut::with_capacity(likely)).await?;
    if first.len() < part_size {
        let sha256 = body.check(key, &declared)?;
        let metadata = Metadata::from([(META_SHA256.into(), sha256.clone())]);
        let place = gateway.place(key);
        gateway.store.put(&place, first, &metadata).await.map_err(|e| store_failed(e, key))?;
        return Ok(body.info(key, sha256));
    }

    let staged = Staged::open(gateway, key).await?;
    let mut parts = Vec::new();
    let mut next = first;
    while !next.is_empty() {
        parts.push(staged.put(parts.len(), next.clone()).await?);
        // The part is sent: its memory takes the next one.
        let buffer = next.try_into_mut().unwrap_or_else(|_| BytesMut::with_capacity(part_size));
        next = body.fill(gateway, key, part_size, buffer).await?;
    }
    let sha256 = body.check(key, &declared)?;
    staged.finish(key, &parts, body.seen, &sha256).await?;
    Ok(body.info(key, sha256))
}

/// 8 MiB, more only where S3's limit of 10,000 parts asks for it.
fn part_size_for(size: u64) -> usize {
    let needed = size.div_ceil(9_999);
    usize::try_from(needed.max(part_size(0))).unwrap_or(usize::MAX)
}

/// The incoming bytes, cut into parts.
struct Body<S> {
    stream: Pin<Box<S>>,
    rest: Bytes,
    hasher: Sha256,
    seen: u64,
}

impl<S, E> Body<S>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: Display,
{
    /// The next `part_size` bytes, in place of what `part` holds; fewer only at the end.
    async fn fill(&mut self, gateway: &Gateway, key: &Key, part_size: usize, mut part: BytesMut) -> ApiResult<Bytes> {
        part.clear();
        while part.len() < part_size {
            if self.rest.is_empty() {
                match tokio::time::timeout(SILENCE, self.stream.next()).await {
                    Ok(Some(Ok(chunk))) => self.accept(gateway, key, chunk)?,
                    Ok(Some(Err(e))) => return Err(broken_off(key, self.seen, &e.to_string())),
                    Ok(None) => break,
                    Err(_) => return Err(broken_off(key, self.seen, "no data for 60 s")),
                }
            }
            let take = self.rest.len().min(part_size - part.len());
            part.extend_from_slice(&self.rest.split_to(take));
        }
        Ok(part.freeze())
    }

    fn accept(&mut self, gateway: &Gateway, key: &Key, chunk: Bytes) -> ApiResult<()> {
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.seen = self.seen.saturating_add(length);
        if self.seen > gateway.limits.of(key.kind()) {
            return Err(gateway.limits.exceeded(key.kind(), "more"));
        }
        metrics::counter!("gateway_upload_bytes_total").increment(length);
        self.hasher.update(&chunk);
        self.rest = chunk;
        Ok(())
    }

    /// The digest, after the last byte.
    fn check(&mut self, key: &Key, declared: &Declared) -> ApiResult<String> {
        if let Some(size) = declared.size.filter(|size| *size != self.seen) {
            return Err(broken_off(key, self.seen, &format!("expected {size}")));
        }
        let actual = hex::encode(self.hasher.finalize_reset());
        match &declared.sha256 {
            Some(expected) if *expected != actual => Err(mismatch(key.as_str(), "sha256", expected, &actual)),
            _ => Ok(actual),
        }
    }

    fn info(&self, key: &Key, sha256: String) -> ObjectInfo {
        ObjectInfo { key: key.to_string(), size: self.seen, sha256: Some(sha256), last_modified: None }
    }
}

fn broken_off(key: &Key, seen: u64, why: &str) -> ApiError {
    ApiError::new(Code::Invalid, format!("the body of `{key}` broke off after {seen} bytes: {why}; nothing was stored"))
}

/// A multipart upload into staging, aborted when dropped unfinished: also when the client goes away.
struct Staged {
    gateway: Arc<Gateway>,
    place: Place,
    upload: Uuid,
    upload_id: String,
    armed: bool,
}

impl Staged {
    async fn open(gateway: &Arc<Gateway>, key: &Key) -> ApiResult<Self> {
        let upload = Uuid::new_v4();
        let place = gateway.staging(key, upload);
        let upload_id = gateway.store.create_multipart(&place, &Metadata::new()).await;
        let upload_id = upload_id.map_err(|e| store_failed(e, key))?;
        Ok(Self { gateway: Arc::clone(gateway), place, upload, upload_id, armed: true })
    }

    /// Stores the part after `index` others.
    async fn put(&self, index: usize, body: Bytes) -> ApiResult<Part> {
        let number = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
        let part = self.gateway.store.put_part(&self.place, &self.upload_id, number, body).await;
        part.map_err(|e| store_failed(e, &self.place))
    }

    async fn finish(mut self, key: &Key, parts: &[Part], size: u64, sha256: &str) -> ApiResult<()> {
        let store = &self.gateway.store;
        if let Err(e) = store.complete_multipart(&self.place, &self.upload_id, parts).await {
            // The reply to a completion that worked may be lost; its retry then finds no upload.
            let done = store.head(&self.place).await.is_ok_and(|head| head.size == size);
            if !done {
                return Err(store_failed(e, key));
            }
        }
        self.gateway.promote(&self.place, key, self.upload, size, sha256).await?;
        self.armed = false;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (gateway, place, upload_id) = (Arc::clone(&self.gateway), self.place.clone(), self.upload_id.clone());
        // Outside a runtime (at shutdown) the sweeper does it later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = gateway.store.abort_multipart(&place, &upload_id).await {
                    tracing::warn!(%error, "cannot abort an upload, leaving it to the sweeper");
                }
                gateway.discard(&place).await;
            });
        }
    }
}
