//! Reading whole objects: streams that survive a broken connection, digests, verification.

use crate::{
    gateway::{Gateway, store_failed},
    keys::Key,
    store::{ByteRange, ByteStream, ObjectStore, Place, StoreError},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use service::{ApiError, ApiResult};
use sha2::{Digest, Sha256};
use std::{io, sync::Arc};
use wire::{
    problem::{Code, FieldError, Problem},
    storage::{FileRef, VerifyRequest},
};

/// How often a broken stream is picked up again without getting further.
const RESUMES: u32 = 3;
/// This much more counts as getting further.
const PROGRESS: u64 = 1 << 20;

/// The `size` bytes of an object. A connection that breaks is picked up where it broke.
#[must_use]
pub fn read(store: Arc<dyn ObjectStore>, place: Place, size: u64) -> ByteStream {
    struct State {
        store: Arc<dyn ObjectStore>,
        place: Place,
        offset: u64,
        body: Option<ByteStream>,
        resumes: u32,
        /// Where it was picked up last.
        resumed_at: u64,
    }
    impl State {
        async fn next(&mut self) -> io::Result<Option<Bytes>> {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => {
                    let range = (self.offset > 0).then_some(ByteRange::From(self.offset));
                    let download = self.store.get(&self.place, range.as_ref()).await;
                    download.map_err(io::Error::other)?.body
                }
            };
            let chunk = body.next().await.transpose()?;
            self.body = Some(body);
            Ok(chunk)
        }
    }
    let state = State { store, place, offset: 0, body: None, resumes: 0, resumed_at: 0 };
    stream::try_unfold(state, move |mut state| async move {
        loop {
            if state.offset >= size {
                return Ok(None);
            }
            match state.next().await {
                Ok(Some(chunk)) => {
                    state.offset = state.offset.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                    return Ok(Some((chunk, state)));
                }
                Ok(None) => return Ok(None),
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) => {
                    if state.offset.saturating_sub(state.resumed_at) >= PROGRESS {
                        state.resumes = 0;
                    }
                    if state.resumes >= RESUMES {
                        return Err(error);
                    }
                    (state.resumes, state.resumed_at) = (state.resumes.saturating_add(1), state.offset);
                    metrics::counter!("store_retries_total", "op" => "resume read").increment(1);
                    tracing::warn!(%error, place = %state.place, "reading again from byte {}", state.offset);
                }
            }
        }
    })
    .boxed()
}

/// Length and hex SHA-256 of an object, read in constant memory.
pub async fn digest(store: &Arc<dyn ObjectStore>, place: &Place, size: u64) -> ApiResult<(u64, String)> {
    let hashed = read(Arc::clone(store), place.clone(), size)
        .try_fold((0_u64, Sha256::new()), |(length, mut hasher), chunk| async move {
            hasher.update(&chunk);
            Ok((length.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX)), hasher))
        })
        .await;
    let (length, hasher) = hashed.map_err(|e| read_failed(e, place))?;
    Ok((length, hex::encode(hasher.finalize())))
}

/// Whether the object vanished while it was read.
fn is_gone(error: &io::Error) -> bool {
    error.get_ref().and_then(|e| e.downcast_ref::<StoreError>()).is_some_and(StoreError::is_not_found)
}

/// A read that failed in the middle.
pub fn read_failed(error: io::Error, what: impl std::fmt::Display) -> ApiError {
    if is_gone(&error) {
        return ApiError::new(Code::NotFound, format!("there is no object `{what}` any more")).caused_by(error);
    }
    ApiError::new(Code::Unavailable, format!("reading `{what}` from the object store failed; try again in a moment"))
        .caused_by(error)
}

/// Lower-case hex of a SHA-256, or `INVALID`.
pub fn parse_sha256(text: &str) -> ApiResult<String> {
    let ok = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if ok {
        return Ok(text.to_ascii_lowercase());
    }
    Err(ApiError::new(Code::Invalid, "a sha256 must be 64 hexadecimal digits"))
}

/// `CHECKSUM_MISMATCH` for one key.
#[must_use]
pub fn mismatch(key: &str, what: &str, expected: &str, actual: &str) -> ApiError {
    let detail = format!("`{key}` has {what} {actual}, expected {expected}");
    let error = FieldError::new(key, format!("{what} is {actual}, expected {expected}"));
    Problem::new(Code::ChecksumMismatch, detail).with_errors(vec![error]).into()
}

/// Checks that every file exists with its size and digest; stops at the first that does not.
pub async fn verify(gateway: &Gateway, request: &VerifyRequest) -> ApiResult<()> {
    let _turn = gateway.reading_turn().await?;
    for file in &request.files {
        verify_file(gateway, file).await?;
    }
    Ok(())
}

async fn verify_file(gateway: &Gateway, file: &FileRef) -> ApiResult<()> {
    let key = Key::parse(&file.key)?;
    let expected = parse_sha256(&file.sha256)?;
    let place = gateway.place(&key);
    let head = gateway.store.head(&place).await.map_err(|e| store_failed(e, &key))?;
    if head.size != file.size {
        return Err(mismatch(&file.key, "size", &file.size.to_string(), &head.size.to_string()));
    }
    let (_, actual) = digest(&gateway.store, &place, head.size).await?;
    if actual == expected { Ok(()) } else { Err(mismatch(&file.key, "sha256", &expected, &actual)) }
}
