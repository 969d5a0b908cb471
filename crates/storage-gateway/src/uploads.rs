//! Upload sessions: clients put parts straight to storage, the gateway verifies what arrived.
//!
//! Invariant: an object appears under its key only after all its bytes were read back and matched. Every
//! step can be repeated after a crash at any point: parts in S3, the staged object and the metadata of the
//! final one say how far a session came.

use crate::{
    digest::{digest, mismatch, parse_sha256},
    gateway::{Gateway, META_UPLOAD, store_failed},
    keys::Key,
    session::{PlannedPart, Session, gone, part_size},
    store::{Metadata, Part, Place, Presign, StoreError},
};
use chrono::{TimeDelta, Utc};
use service::{ApiError, ApiResult};
use std::{collections::BTreeMap, sync::Arc};
use tracing::Instrument;
use uuid::Uuid;
use wire::{
    problem::Code,
    storage::{CompleteUpload, ObjectInfo, OpenUpload, UploadPart, UploadSession},
};

/// Opens a session; nothing over the limit of its kind gets that far.
pub async fn open(gateway: &Gateway, key: &Key, request: OpenUpload) -> ApiResult<UploadSession> {
    if request.kind != key.kind() {
        let detail = format!("`{key}` is not a key of kind {:?}", request.kind);
        return Err(ApiError::new(Code::Invalid, detail.to_lowercase()));
    }
    gateway.limits.check(key.kind(), request.size)?;
    let sha256 = request.sha256.as_deref().map(parse_sha256).transpose()?;
    let id = Uuid::new_v4();
    let upload = if request.size == 0 {
        None
    } else {
        let staged = gateway.staging(key, id);
        let opened = gateway.store.create_multipart(&staged, &Metadata::new()).await;
        Some(opened.map_err(|e| store_failed(e, key))?)
    };
    let part_size = part_size(request.size);
    let session = Session { id, key: key.to_string(), size: request.size, part_size, upload, sha256 };
    let sealed = gateway.sessions.seal(session.clone())?;
    Ok(view(gateway, key, &session, sealed, session.parts().collect()))
}

/// The parts that are still missing, with fresh URLs.
pub async fn show(gateway: &Gateway, key: &Key, session: &Session, sealed: String) -> ApiResult<UploadSession> {
    let missing = match stored_parts(gateway, key, session).await {
        Ok(stored) => {
            session.parts().filter(|plan| stored.get(&plan.number).is_none_or(|p| p.size != plan.size)).collect()
        }
        Err(StoreError::NotFound { .. }) => {
            // No open upload, but perhaps one that is complete.
            if head(gateway, &gateway.staging(key, session.id)).await?.is_none()
                && finished(gateway, key, session).await?.is_none()
            {
                return Err(gone());
            }
            Vec::new()
        }
        Err(e) => return Err(store_failed(e, key)),
    };
    Ok(view(gateway, key, session, sealed, missing))
}

/// Verifies the parts and makes them the object. Repeating it gives the same answer; a caller that lost patience with a
/// large object and asks again waits for the same work, which goes on without anybody waiting.
pub async fn complete(
    gateway: Arc<Gateway>,
    key: Key,
    session: Session,
    request: CompleteUpload,
) -> ApiResult<ObjectInfo> {
    let work = async move {
        let _turn = gateway.completing.take(session.id).await;
        complete_now(&gateway, &key, &session, &request).await
    };
    tokio::spawn(work.in_current_span()).await.map_err(ApiError::internal)?
}

async fn complete_now(
    gateway: &Gateway,
    key: &Key,
    session: &Session,
    request: &CompleteUpload,
) -> ApiResult<ObjectInfo> {
    let late = request.sha256.as_deref().map(parse_sha256).transpose()?;
    if let (Some(early), Some(late)) = (&session.sha256, &late)
        && early != late
    {
        return Err(mismatch(key.as_str(), "declared sha256", early, late));
    }
    let expected = late.or_else(|| session.sha256.clone());
    let _turn = gateway.reading_turn().await?;
    if let Some(info) = finished(gateway, key, session).await? {
        return Ok(info);
    }
    if session.size == 0 {
        return store_empty(gateway, key, session, expected.as_deref()).await;
    }
    let error = match assemble_and_promote(gateway, key, session, expected.as_deref()).await {
        Ok(info) => return Ok(info),
        Err(error) => error,
    };
    // Another call for the same session may have finished it and cleared the staging under us.
    match finished(gateway, key, session).await {
        Ok(Some(info)) => Ok(info),
        _ if error.problem().code == Code::NotFound => Err(gone().caused_by(error)),
        _ => Err(error),
    }
}

/// Drops whatever the session has stored; a finished session's object stays.
pub async fn abort(gateway: &Gateway, key: &Key, session: &Session) -> ApiResult<()> {
    let staged = gateway.staging(key, session.id);
    if let Some(upload) = &session.upload {
        gateway.store.abort_multipart(&staged, upload).await.map_err(|e| store_failed(e, key))?;
    }
    gateway.store.delete(&staged).await.map_err(|e| store_failed(e, key))
}

fn view(gateway: &Gateway, key: &Key, session: &Session, sealed: String, parts: Vec<PlannedPart>) -> UploadSession {
    let staged = gateway.staging(key, session.id);
    let upload_id = session.upload.as_deref().unwrap_or_default();
    let sign = |part: PlannedPart| UploadPart {
        number: part.number,
        offset: part.offset,
        size: part.size,
        url: gateway.store.presign(
            &staged,
            &Presign::UploadPart { upload_id, number: part.number, size: part.size },
            gateway.url_life,
        ),
    };
    // Taken before signing, so that it is never later than the truth.
    let urls_expire_at = Utc::now() + TimeDelta::from_std(gateway.url_life).unwrap_or_default();
    UploadSession {
        id: sealed,
        key: session.key.clone(),
        size: session.size,
        part_size: session.part_size,
        parts: parts.into_iter().map(sign).collect(),
        urls_expire_at,
    }
}

async fn stored_parts(gateway: &Gateway, key: &Key, session: &Session) -> Result<BTreeMap<u32, Part>, StoreError> {
    let Some(upload) = &session.upload else { return Ok(BTreeMap::new()) };
    let parts = gateway.store.list_parts(&gateway.staging(key, session.id), upload).await?;
    Ok(parts.into_iter().map(|part| (part.number, part)).collect())
}

/// The object, if this very session made it.
async fn finished(gateway: &Gateway, key: &Key, session: &Session) -> ApiResult<Option<ObjectInfo>> {
    let head = head(gateway, &gateway.place(key)).await?;
    let ours = head.filter(|head| head.metadata.get(META_UPLOAD) == Some(&session.id.to_string()));
    Ok(ours.map(|head| ObjectInfo {
        key: key.to_string(),
        size: head.size,
        sha256: head.metadata.get(crate::gateway::META_SHA256).cloned(),
        last_modified: head.last_modified,
    }))
}

async fn head(gateway: &Gateway, place: &Place) -> ApiResult<Option<crate::store::Head>> {
    match gateway.store.head(place).await {
        Ok(head) => Ok(Some(head)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(e) => Err(store_failed(e, place)),
    }
}

async fn store_empty(gateway: &Gateway, key: &Key, session: &Session, expected: Option<&str>) -> ApiResult<ObjectInfo> {
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    if let Some(expected) = expected.filter(|expected| *expected != EMPTY) {
        return Err(mismatch(key.as_str(), "sha256", expected, EMPTY));
    }
    let metadata = Metadata::from([
        (crate::gateway::META_SHA256.into(), EMPTY.into()),
        (META_UPLOAD.into(), session.id.to_string()),
    ]);
    let stored = gateway.store.put(&gateway.place(key), bytes::Bytes::new(), &metadata).await;
    stored.map_err(|e| store_failed(e, key))?;
    Ok(ObjectInfo { key: key.to_string(), size: 0, sha256: Some(EMPTY.into()), last_modified: None })
}

async fn assemble_and_promote(
    gateway: &Gateway,
    key: &Key,
    session: &Session,
    expected: Option<&str>,
) -> ApiResult<ObjectInfo> {
    let staged = gateway.staging(key, session.id);
    assemble(gateway, key, session, &staged).await?;
    let Some(head) = head(gateway, &staged).await? else { return Err(gone()) };
    if head.size != session.size {
        gateway.discard(&staged).await;
        return Err(mismatch(key.as_str(), "size", &session.size.to_string(), &head.size.to_string()));
    }
    let (_, actual) = digest(&gateway.store, &staged, head.size).await?;
    if let Some(expected) = expected.filter(|expected| *expected != actual) {
        gateway.discard(&staged).await;
        return Err(mismatch(key.as_str(), "sha256", expected, &actual));
    }
    gateway.promote(&staged, key, session.id, head.size, &actual).await
}

/// Turns the parts into the staged object, unless an earlier call did.
async fn assemble(gateway: &Gateway, key: &Key, session: &Session, staged: &Place) -> ApiResult<()> {
    let stored = match stored_parts(gateway, key, session).await {
        Ok(stored) => stored,
        // Completed before; the caller looks for the object.
        Err(StoreError::NotFound { .. }) => return Ok(()),
        Err(e) => return Err(store_failed(e, key)),
    };
    let parts: Vec<&Part> =
        session.parts().filter_map(|plan| stored.get(&plan.number).filter(|part| part.size == plan.size)).collect();
    let planned = session.parts().count();
    if parts.len() != planned {
        let present: Vec<u32> = parts.iter().map(|part| part.number).collect();
        let missing = session.parts().map(|plan| plan.number).filter(|number| !present.contains(number));
        let missing: Vec<String> = missing.take(10).map(|number| number.to_string()).collect();
        return Err(ApiError::new(
            Code::Conflict,
            format!(
                "{} of {planned} parts of `{key}` are missing or have the wrong size, the first: {}; \
                 GET the session for their URLs",
                planned - parts.len(),
                missing.join(", ")
            ),
        ));
    }
    let parts: Vec<Part> = parts.into_iter().cloned().collect();
    let upload = session.upload.as_deref().unwrap_or_default();
    match gateway.store.complete_multipart(staged, upload, &parts).await {
        // Not found: the reply to a completion that worked was lost. The caller looks for the object.
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(e) => Err(store_failed(e, key)),
    }
}
