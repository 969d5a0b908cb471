//! What the gateway needs of an object store. [`crate::s3`] is the only implementation, and the only place
//! that knows rusoto; another S3 library can take its place behind this trait.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use std::{collections::BTreeMap, fmt, io, ops::Range, time::Duration};

/// An object's address. Key rules are the caller's business (see [`crate::keys`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub bucket: String,
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.key)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such object, upload or bucket.
    #[error("{op}: not found")]
    NotFound { op: &'static str },
    /// The range lies outside the object.
    #[error("{op}: range not satisfiable")]
    Range { op: &'static str },
    /// The store cannot hold an object of this name.
    #[error("the object store cannot use this key: {reason}")]
    Key { reason: String },
    /// The store refuses; trying again changes nothing.
    #[error("{op} was refused by the object store: {reason}")]
    Refused { op: &'static str, reason: String },
    /// The store failed, timed out or cannot be reached; it may work later.
    #[error("{op} failed at the object store: {reason}")]
    Unavailable { op: &'static str, reason: String },
}

impl StoreError {
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

pub type StoreResult<T> = Result<T, StoreError>;

/// User metadata of an object: lower-case ASCII names and ASCII values.
pub type Metadata = BTreeMap<String, String>;

/// Bytes of an object in order; ends with an error when the store stops before the announced length.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Part of an object, as HTTP's `Range` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByteRange {
    /// `start..end`, end excluded.
    Bounded(Range<u64>),
    From(u64),
    /// The last n bytes.
    Suffix(u64),
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bounded(r) => write!(f, "bytes={}-{}", r.start, r.end.saturating_sub(1)),
            Self::From(start) => write!(f, "bytes={start}-"),
            Self::Suffix(n) => write!(f, "bytes=-{n}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub size: u64,
    pub last_modified: Option<DateTime<Utc>>,
    pub metadata: Metadata,
}

pub struct Download {
    /// Bytes in `body`.
    pub length: u64,
    /// `bytes a-b/size` when a range was asked for.
    pub content_range: Option<String>,
    pub head: Head,
    pub body: ByteStream,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("length", &self.length).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    pub last_modified: Option<DateTime<Utc>>,
}

/// One page of a listing in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    pub objects: Vec<Listed>,
    /// Whether keys after the last one exist.
    pub more: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    pub size: u64,
    /// Absent where the store does not use it.
    pub etag: Option<String>,
}

/// A multipart upload that was neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenMultipart {
    pub key: String,
    pub upload_id: String,
    pub initiated: Option<DateTime<Utc>>,
}

/// What a presigned URL allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presign<'a> {
    Get,
    Put,
    /// A part of exactly `size` bytes.
    UploadPart {
        upload_id: &'a str,
        number: u32,
        size: u64,
    },
}

/// An S3-like store. Every call has a timeout and retries transient failures by itself.
#[async_trait::async_trait]
pub trait ObjectStore: Send + Sync + fmt::Debug {
    /// Creates the bucket unless it exists.
    async fn ensure_bucket(&self, bucket: &str) -> StoreResult<()>;
    /// Whether the bucket answers now; not retried.
    async fn check_bucket(&self, bucket: &str) -> StoreResult<()>;
    /// Writes a small object at once.
    async fn put(&self, at: &Place, body: Bytes, metadata: &Metadata) -> StoreResult<()>;
    async fn get(&self, at: &Place, range: Option<&ByteRange>) -> StoreResult<Download>;
    async fn head(&self, at: &Place) -> StoreResult<Head>;
    /// Deleting what does not exist is no error.
    async fn delete(&self, at: &Place) -> StoreResult<()>;
    /// Up to 1000 keys after `after`.
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&str>, limit: u16) -> StoreResult<Listing>;
    /// Copies an object of `size` bytes inside the store, giving the copy `metadata`.
    async fn copy(&self, from: &Place, to: &Place, size: u64, metadata: &Metadata) -> StoreResult<()>;
    /// Returns the upload id.
    async fn create_multipart(&self, at: &Place, metadata: &Metadata) -> StoreResult<String>;
    async fn put_part(&self, at: &Place, upload_id: &str, number: u32, body: Bytes) -> StoreResult<Part>;
    /// All parts stored so far, by number.
    async fn list_parts(&self, at: &Place, upload_id: &str) -> StoreResult<Vec<Part>>;
    async fn complete_multipart(&self, at: &Place, upload_id: &str, parts: &[Part]) -> StoreResult<()>;
    /// Aborting what does not exist is no error.
    async fn abort_multipart(&self, at: &Place, upload_id: &str) -> StoreResult<()>;
    /// All open uploads below `prefix`.
    async fn list_multiparts(&self, bucket: &str, prefix: &str) -> StoreResult<Vec<OpenMultipart>>;
    /// A URL that anyone may use for `what` until it expires. The store checks host, path and query.
    fn presign(&self, at: &Place, what: &Presign<'_>, expires_in: Duration) -> String;
}
