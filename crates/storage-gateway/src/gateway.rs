//! The state every handler shares, and the pieces that several operations need.

use crate::{
    embedded::EmbeddedS3,
    keys::{Buckets, Key, Limits, STAGING},
    s3::{S3Access, S3Store},
    session::SessionKey,
    settings::{Settings, StoreSettings},
    store::{Metadata, ObjectStore, Place, StoreError},
    turns::Turns,
};
use anyhow::Context;
use service::{ApiError, ApiResult, token::TokenKey};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;
use wire::{problem::Code, storage::ObjectInfo};

/// Uploads that may hold a part in memory at a time.
const BUFFERED_UPLOADS: usize = 4;
/// Verifications, inspections and validations at a time; each reads whole objects.
const READING_JOBS: usize = 8;
/// Dataset parsers at a time; each remembers up to a million row hashes.
const PARSERS: usize = 2;
/// How long a request waits for its turn before it is told to come back.
const TURN: Duration = Duration::from_secs(30);

/// Metadata of our objects.
pub const META_SHA256: &str = "sha256";
/// The upload session an object came from, which makes completing twice harmless.
pub const META_UPLOAD: &str = "upload";

#[derive(Debug)]
pub struct Gateway {
    pub store: Arc<dyn ObjectStore>,
    /// How `store` is reached.
    pub access: S3Access,
    pub buckets: Buckets,
    pub limits: Limits,
    pub tokens: TokenKey,
    pub sessions: SessionKey,
    /// Longest life of a signed URL.
    pub url_life: Duration,
    /// Who completes an upload session.
    pub completing: Turns,
    uploads: Semaphore,
    readers: Semaphore,
    parsers: Semaphore,
    /// Kept alive as long as anybody uses the store.
    _embedded: Option<EmbeddedS3>,
}

impl Gateway {
    /// Connects to the store (starting the embedded one if there is no other) and makes sure of the buckets.
    pub async fn open(settings: &Settings) -> anyhow::Result<Arc<Self>> {
        let tokens = TokenKey::new(settings.signing_key.clone())?;
        let (access, embedded) = access(settings).await?;
        let endpoint = &access.endpoint;
        let store = S3Store::new(access.clone()).context("cannot set up TLS for the S3 client")?;
        for bucket in settings.buckets.distinct() {
            store.ensure_bucket(bucket).await.with_context(|| {
                format!("cannot use bucket `{bucket}` at {endpoint}; check S3_ENDPOINT, the AWS keys and their rights")
            })?;
        }
        Ok(Arc::new(Self {
            store: Arc::new(store),
            access,
            buckets: settings.buckets.clone(),
            limits: settings.limits,
            tokens,
            sessions: SessionKey::new(&settings.signing_key),
            url_life: settings.url_life,
            completing: Turns::default(),
            uploads: Semaphore::new(BUFFERED_UPLOADS),
            readers: Semaphore::new(READING_JOBS),
            parsers: Semaphore::new(PARSERS),
            _embedded: embedded,
        }))
    }

    #[must_use]
    pub fn place(&self, key: &Key) -> Place {
        Place { bucket: self.buckets.of(key.kind()).to_owned(), key: key.as_str().to_owned() }
    }

    /// Where an upload to `key` waits for its verification: in the same bucket.
    #[must_use]
    pub fn staging(&self, key: &Key, upload: Uuid) -> Place {
        Place { bucket: self.buckets.of(key.kind()).to_owned(), key: format!("{STAGING}{upload}/object") }
    }

    /// A turn to hold a part in memory.
    pub async fn upload_turn(&self) -> ApiResult<SemaphorePermit<'_>> {
        turn(&self.uploads, "uploads").await
    }

    /// A turn to read whole objects.
    pub async fn reading_turn(&self) -> ApiResult<SemaphorePermit<'_>> {
        turn(&self.readers, "verifications").await
    }

    /// A turn to parse a dataset.
    pub async fn parsing_turn(&self) -> ApiResult<SemaphorePermit<'_>> {
        turn(&self.parsers, "validations").await
    }

    /// Copies a verified object from staging to its key, then clears the staging.
    pub async fn promote(
        &self,
        staged: &Place,
        key: &Key,
        upload: Uuid,
        size: u64,
        sha256: &str,
    ) -> ApiResult<ObjectInfo> {
        let metadata = Metadata::from([(META_SHA256.into(), sha256.into()), (META_UPLOAD.into(), upload.to_string())]);
        self.store.copy(staged, &self.place(key), size, &metadata).await.map_err(|e| store_failed(e, staged))?;
        self.discard(staged).await;
        Ok(ObjectInfo { key: key.to_string(), size, sha256: Some(sha256.into()), last_modified: None })
    }

    /// Deletes a staged object; what cannot be deleted now is left to the sweeper.
    pub async fn discard(&self, staged: &Place) {
        if let Err(error) = self.store.delete(staged).await {
            tracing::warn!(%error, %staged, "cannot delete a staged object, leaving it to the sweeper");
        }
    }
}

async fn access(settings: &Settings) -> anyhow::Result<(S3Access, Option<EmbeddedS3>)> {
    let region = settings.region.clone();
    match &settings.store {
        StoreSettings::Outside { endpoint, access_key, secret_key } => {
            let public_endpoint = settings.public_endpoint.clone().unwrap_or_else(|| endpoint.clone());
            let access = S3Access {
                endpoint: endpoint.clone(),
                public_endpoint,
                region,
                access_key: access_key.clone(),
                secret_key: secret_key.clone(),
                copy_limit: S3Access::COPY_LIMIT,
            };
            Ok((access, None))
        }
        StoreSettings::Embedded { data_dir, listen } => {
            let embedded = EmbeddedS3::start(data_dir, *listen).await?;
            let mut address = embedded.address;
            if address.ip().is_unspecified() {
                address.set_ip(IpAddr::from([127, 0, 0, 1]));
            }
            let endpoint: crate::s3::Endpoint = format!("http://{address}").parse().map_err(anyhow::Error::msg)?;
            let access = S3Access {
                public_endpoint: settings.public_endpoint.clone().unwrap_or_else(|| endpoint.clone()),
                endpoint,
                region,
                access_key: embedded.access_key.clone(),
                secret_key: embedded.secret_key.clone(),
                // Copying inside the embedded store costs nothing at any size.
                copy_limit: u64::MAX,
            };
            Ok((access, Some(embedded)))
        }
    }
}

async fn turn<'a>(semaphore: &'a Semaphore, what: &str) -> ApiResult<SemaphorePermit<'a>> {
    match tokio::time::timeout(TURN, semaphore.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(closed)) => Err(ApiError::internal(closed)),
        Err(_) => Err(ApiError::new(
            Code::Overloaded,
            format!("too many {what} at a time, no turn within {} s; try again", TURN.as_secs()),
        )),
    }
}

/// The store's failure as an answer; `key` is what the caller asked for.
pub fn store_failed(error: StoreError, key: impl std::fmt::Display) -> ApiError {
    match error {
        StoreError::NotFound { .. } => ApiError::new(Code::NotFound, format!("there is no object `{key}`")),
        StoreError::Range { .. } => ApiError::new(Code::Invalid, format!("the range lies outside `{key}`")),
        StoreError::Key { .. } => ApiError::new(Code::Invalid, format!("`{key}`: {error}")),
        StoreError::Refused { .. } => ApiError::internal(error),
        StoreError::Unavailable { .. } => {
            ApiError::new(Code::Unavailable, format!("{error}; try again in a moment")).caused_by(error)
        }
    }
}
