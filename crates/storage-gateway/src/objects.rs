//! Reading, listing, deleting and signing.

use crate::{
    gateway::{Gateway, store_failed},
    keys::Key,
    store::{ByteRange, Place, Presign},
};
use chrono::{TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use service::{ApiError, ApiResult};
use std::time::Duration;
use wire::{
    problem::Code,
    storage::{Deleted, ObjectInfo, ObjectList, SignMethod, SignRequest, SignedUrl},
};

/// Longest life of a signed URL in seconds.
pub const MAX_SIGNED: u32 = 900;
/// Largest page of a listing.
const MAX_PAGE: u16 = 1000;
/// Deletions in flight.
const DELETIONS: usize = 8;

/// What a `Range` header asks for; several ranges and other units are ignored, as HTTP allows.
#[must_use]
pub fn parse_range(header: &str) -> Option<ByteRange> {
    let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
    match (first, last) {
        ("", n) => Some(ByteRange::Suffix(n.parse().ok()?)),
        (start, "") => Some(ByteRange::From(start.parse().ok()?)),
        (start, end) => {
            let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
            (start <= end).then(|| ByteRange::Bounded(start..end.saturating_add(1)))
        }
    }
}

/// One page of keys below `prefix`, across the buckets, without the staging area.
pub async fn list(gateway: &Gateway, prefix: &str, after: &str, limit: Option<u16>) -> ApiResult<ObjectList> {
    let limit = limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
    // The staging area sorts before all our roots (`_` < `d`) and `0` follows `/`.
    let after = after.max("_staging0");
    let mut objects: Vec<ObjectInfo> = Vec::new();
    let mut more = false;
    for bucket in gateway.buckets.with_prefix(prefix) {
        let room = limit.saturating_sub(u16::try_from(objects.len()).unwrap_or(u16::MAX));
        if room == 0 {
            // The next bucket may hold more; the next page tells.
            more = true;
            break;
        }
        let page = gateway.store.list(bucket, prefix, Some(after), room).await;
        let page = page.map_err(|e| store_failed(e, prefix))?;
        more = page.more;
        objects.extend(page.objects.into_iter().map(|object| ObjectInfo {
            key: object.key,
            size: object.size,
            sha256: None,
            last_modified: object.last_modified,
        }));
        if more {
            break;
        }
    }
    let next_after = objects.last().filter(|_| more).map(|last| last.key.clone());
    Ok(ObjectList { objects, next_after })
}

/// Deletes everything below `prefix`.
pub async fn delete_prefix(gateway: &Gateway, prefix: &str) -> ApiResult<Deleted> {
    let mut deleted = 0;
    for bucket in gateway.buckets.with_prefix(prefix) {
        let mut after = None;
        loop {
            let page = gateway.store.list(bucket, prefix, after.as_deref(), MAX_PAGE).await;
            let page = page.map_err(|e| store_failed(e, prefix))?;
            after = page.objects.last().map(|object| object.key.clone());
            deleted += u64::try_from(page.objects.len()).unwrap_or(u64::MAX);
            stream::iter(page.objects)
                .map(|object| async move {
                    gateway.store.delete(&Place { bucket: bucket.to_owned(), key: object.key }).await
                })
                .buffer_unordered(DELETIONS)
                .try_collect::<()>()
                .await
                .map_err(|e| store_failed(e, prefix))?;
            if !page.more {
                break;
            }
        }
    }
    Ok(Deleted { deleted })
}

/// A URL for one method on one key.
pub fn sign(gateway: &Gateway, key: &Key, request: &SignRequest) -> ApiResult<SignedUrl> {
    let seconds = request.expires_in.unwrap_or(MAX_SIGNED);
    if !(1..=MAX_SIGNED).contains(&seconds) {
        return Err(ApiError::new(Code::Invalid, format!("expires_in must be 1 to {MAX_SIGNED} seconds")));
    }
    let what = match request.method {
        SignMethod::Get => Presign::Get,
        SignMethod::Put => Presign::Put,
    };
    let life = Duration::from_secs(seconds.into()).min(gateway.url_life);
    let expires_at = Utc::now() + TimeDelta::from_std(life).unwrap_or_default();
    let url = gateway.store.presign(&gateway.place(key), &what, life);
    Ok(SignedUrl { url, expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_writes_them() {
        assert_eq!(parse_range("bytes=0-9"), Some(ByteRange::Bounded(0..10)));
        assert_eq!(parse_range("bytes=5-"), Some(ByteRange::From(5)));
        assert_eq!(parse_range("bytes=-5"), Some(ByteRange::Suffix(5)));
        for ignored in ["bytes=9-0", "bytes=0-1,3-4", "lines=1-2", "bytes=-", "bytes=a-b"] {
            assert_eq!(parse_range(ignored), None, "{ignored}");
        }
        assert_eq!(ByteRange::Bounded(0..10).to_string(), "bytes=0-9");
    }
}
