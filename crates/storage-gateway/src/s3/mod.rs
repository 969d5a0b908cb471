//! The S3 client: [`ObjectStore`] on rusoto, path-style. Nothing outside this module knows rusoto.

mod calls;
mod error;
mod presign;

use crate::store::{ObjectStore, Place, StoreError, StoreResult};
use backon::Retryable;
use error::failure;
use rusoto_core::{Region, RusotoError, request::HttpConfig};
use rusoto_credential::StaticProvider;
use rusoto_s3::S3Client;
use secrecy::{ExposeSecret, SecretString};
use service::retry::RetryPolicy;
use std::{
    error::Error,
    fmt,
    future::Future,
    time::{Duration, Instant},
};

/// For calls that move little data.
const QUICK: Duration = Duration::from_secs(15);
/// For a part or a small object, at about 100 kB/s in the worst case.
const TRANSFER: Duration = Duration::from_secs(90);
/// For calls in which the store moves data itself.
const REARRANGE: Duration = Duration::from_secs(180);
/// Longest silence inside a download.
const SILENCE: Duration = Duration::from_secs(30);

/// Where the store is and how to sign for it.
#[derive(Clone)]
pub struct S3Access {
    pub endpoint: Endpoint,
    /// Put into presigned URLs, because their signature covers the host.
    pub public_endpoint: Endpoint,
    pub region: String,
    pub access_key: String,
    pub secret_key: SecretString,
    /// Objects above this size are copied in parts; S3 allows at most 5 GiB in one call.
    pub copy_limit: u64,
}

impl S3Access {
    /// Keeps every call inside the store short, far below S3's own 5 GiB.
    pub const COPY_LIMIT: u64 = 1 << 30;
}

impl fmt::Debug for S3Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Access")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// Scheme and authority of an S3 service: `http://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    scheme: String,
    authority: String,
}

impl Endpoint {
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let url = url::Url::parse(s).map_err(|e| format!("{e}; expected a URL like https://s3.example.org"))?;
        let host = url.host_str().ok_or("it has no host; expected a URL like https://s3.example.org")?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("the scheme must be http or https".into());
        }
        if url.path() != "/" || url.query().is_some() || !url.username().is_empty() {
            return Err("only scheme, host and port are allowed; the bucket is set by BUCKET_NAME".into());
        }
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self { scheme: url.scheme().into(), authority })
    }
}

/// The client. Cheap to share behind an `Arc`.
pub struct S3Store {
    client: S3Client,
    access: S3Access,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("access", &self.access).finish_non_exhaustive()
    }
}

impl S3Store {
    pub fn new(access: S3Access) -> Result<Self, rusoto_core::request::TlsError> {
        let mut config = HttpConfig::new();
        // Shorter than what servers and load balancers use, so that no request meets a closed connection.
        config.pool_idle_timeout(Duration::from_secs(15));
        let http = rusoto_core::HttpClient::new_with_config(config)?;
        let secret = access.secret_key.expose_secret().to_owned();
        let credentials = StaticProvider::new_minimal(access.access_key.clone(), secret);
        let region = Region::Custom { name: access.region.clone(), endpoint: access.endpoint.to_string() };
        Ok(Self { client: S3Client::new_with(http, credentials, region), access })
    }

    /// One call: time limit, metrics, and retries of transient failures.
    async fn call<T, E, F, Fut>(&self, op: &'static str, limit: Duration, build: F) -> StoreResult<T>
    where
        T: Send,
        E: Error + Send + 'static,
        F: Fn() -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, RusotoError<E>>> + Send,
    {
        (|| self.once(op, limit, &build))
            .retry(RetryPolicy::OBJECT_STORE.backoff())
            .when(StoreError::is_transient)
            .notify(|error, wait| {
                metrics::counter!("store_retries_total", "op" => op).increment(1);
                tracing::warn!(%error, "storage call failed, trying again in {wait:.1?}");
            })
            .await
    }

    async fn once<T, E, F, Fut>(&self, op: &'static str, limit: Duration, build: &F) -> StoreResult<T>
    where
        T: Send,
        E: Error + Send + 'static,
        F: Fn() -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, RusotoError<E>>> + Send,
    {
        let started = Instant::now();
        let result = match tokio::time::timeout(limit, build()).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(failure(op, error)),
            Err(_) => Err(StoreError::Unavailable { op, reason: format!("no answer within {} s", limit.as_secs()) }),
        };
        let outcome = match &result {
            Ok(_) => "ok",
            Err(StoreError::NotFound { .. }) => "not_found",
            Err(StoreError::Range { .. } | StoreError::Key { .. } | StoreError::Refused { .. }) => "refused",
            Err(StoreError::Unavailable { .. }) => "failed",
        };
        metrics::histogram!("store_call_seconds", "op" => op, "outcome" => outcome)
            .record(started.elapsed().as_secs_f64());
        result
    }

    /// Copies in parts inside the store, four at a time.
    async fn copy_parts(&self, from: &Place, to: &Place, size: u64, upload_id: &str) -> StoreResult<()> {
        use futures::{StreamExt, TryStreamExt};
        // At most 10,000 parts, each at least 5 MiB.
        let part_size = self.access.copy_limit.div_ceil(2).max(size.div_ceil(10_000)).max(5 << 20);
        let starts = (0_u64..).map(|i| i.saturating_mul(part_size)).take_while(|start| *start < size);
        let parts: Vec<_> = futures::stream::iter((1_u32..).zip(starts))
            .map(|(number, start)| {
                let range = start..start.saturating_add(part_size).min(size);
                self.copy_part(from, to, upload_id, number, range)
            })
            .buffered(4)
            .try_collect()
            .await?;
        self.complete_multipart(to, upload_id, &parts).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_origins_and_nothing_else() {
        assert_eq!("http://a:9000/".parse::<Endpoint>().unwrap().to_string(), "http://a:9000");
        assert_eq!("https://a:443".parse::<Endpoint>().unwrap().authority(), "a");
        for bad in ["a:9000", "ftp://a", "https://a/bucket", "https://u@a", ""] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?} was accepted");
        }
    }
}
