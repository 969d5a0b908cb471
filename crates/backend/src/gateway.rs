//! Client of the storage gateway: one method per call of `wire::storage`. The backend has no other way to
//! objects and never sees S3 keys.

use bytes::Bytes;
use futures::Stream;
use reqwest::Method;
use service::{
    Client, ClientConfig, ClientError,
    token::{Grant, TokenKey},
};
use std::time::Duration;
use wire::{
    dataset::{DatasetFormat, DatasetPreview, ValidationReport},
    model::ModelInfo,
    storage::{
        CompleteUpload, Deleted, FileRef, InspectRequest, ObjectInfo, ObjectList, OpenUpload, PreviewRequest,
        SelectRequest, SignMethod, SignRequest, SignedUrl, UploadSession, ValidateRequest, VerifyRequest,
    },
};

type Result<T> = std::result::Result<T, ClientError>;

const SERVICE: &str = "the storage gateway";
/// Tokens are minted per request, so they only have to outlive a clock difference.
const TOKEN_TTL: Duration = Duration::from_secs(60);
/// For calls that read whole objects: validate, verify, inspect, complete.
const LONG: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Clone)]
pub struct Gateway {
    quick: Client,
    long: Client,
}

impl Gateway {
    pub fn new(url: &str, key: &TokenKey) -> Result<Self> {
        let config = |key: TokenKey| {
            ClientConfig::new(SERVICE, url)
                .bearer_from(move || key.mint(Grant::Service { name: "backend".into() }, TOKEN_TTL))
        };
        Ok(Self {
            quick: Client::new(config(key.clone()))?,
            long: Client::new(config(key.clone()).timeout(LONG).read_timeout(LONG))?,
        })
    }

    pub async fn health(&self) -> Result<()> {
        self.quick.call_unit::<()>(Method::GET, "/health", None).await
    }

    pub async fn open_upload(&self, request: &OpenUpload) -> Result<UploadSession> {
        self.quick.post("/uploads", request).await
    }

    /// The parts still missing, with fresh URLs.
    pub async fn upload(&self, id: &str) -> Result<UploadSession> {
        self.quick.get(&format!("/uploads/{}", segment(id))).await
    }

    pub async fn complete_upload(&self, id: &str) -> Result<ObjectInfo> {
        self.long.post(&format!("/uploads/{}/complete", segment(id)), &CompleteUpload::default()).await
    }

    /// Aborting what is already gone is no error.
    pub async fn abort_upload(&self, id: &str) -> Result<()> {
        gone_is_fine(self.quick.delete(&format!("/uploads/{}", segment(id))).await)
    }

    /// Streams `body` to `key`. Sent once: a stream cannot be replayed.
    pub async fn put<S>(&self, key: &str, body: S) -> Result<ObjectInfo>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let request = self.long.request(Method::PUT, &format!("/objects/{}", path(key)))?;
        let response = self.long.send(request.body(reqwest::Body::wrap_stream(body))).await?;
        response.json().await.map_err(|source| ClientError::Decode { service: SERVICE, source })
    }

    /// Stores a small object.
    pub async fn put_bytes(&self, key: &str, body: Bytes) -> Result<ObjectInfo> {
        let path = format!("/objects/{}", path(key));
        let send = || Ok(self.quick.request(Method::PUT, &path)?.body(body.clone()));
        let response = self.quick.send_retrying(send).await?;
        response.json().await.map_err(|source| ClientError::Decode { service: SERVICE, source })
    }

    /// The object as a streaming response; `range` is an HTTP Range value.
    pub async fn get(&self, key: &str, range: Option<&str>) -> Result<reqwest::Response> {
        let path = format!("/objects/{}", path(key));
        let send = || {
            let request = self.quick.request(Method::GET, &path)?;
            Ok(match range {
                Some(range) => request.header("range", range),
                None => request,
            })
        };
        self.quick.send_retrying(send).await
    }

    pub async fn delete(&self, key: &str) -> Result<()> {
        gone_is_fine(self.quick.delete(&format!("/objects/{}", path(key))).await)
    }

    /// Deletes everything below `prefix`.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<Deleted> {
        self.long.call::<(), _>(Method::DELETE, &format!("/objects?prefix={}", segment(prefix)), None).await
    }

    /// Up to `limit` objects below `prefix`, in key order, after the key `after`.
    pub async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ObjectList> {
        let after = after.map(|key| format!("&after={}", segment(key))).unwrap_or_default();
        self.quick.get(&format!("/objects?prefix={}&limit={limit}{after}", segment(prefix))).await
    }

    /// A download URL, valid for the longest time allowed.
    pub async fn sign_get(&self, key: &str) -> Result<SignedUrl> {
        let request = SignRequest { method: SignMethod::Get, key: key.to_owned(), expires_in: None };
        self.quick.post("/sign", &request).await
    }

    /// Fails unless every object exists with its size and digest.
    pub async fn verify(&self, files: Vec<FileRef>) -> Result<()> {
        self.long.call_unit(Method::POST, "/verify", Some(&VerifyRequest { files })).await
    }

    pub async fn validate_dataset(&self, key: &str, format: Option<DatasetFormat>) -> Result<ValidationReport> {
        self.long.post("/datasets/validate", &ValidateRequest { key: key.to_owned(), format }).await
    }

    /// At most `limit` rows from the row `offset` on, which counts from 0.
    pub async fn preview_dataset(
        &self,
        key: &str,
        format: DatasetFormat,
        offset: usize,
        limit: usize,
    ) -> Result<DatasetPreview> {
        self.quick.post("/datasets/preview", &PreviewRequest { key: key.to_owned(), format, limit, offset }).await
    }

    /// Copies some rows of a file to a new object; again is the same again.
    pub async fn select_rows(&self, request: &SelectRequest) -> Result<ObjectInfo> {
        self.long.post("/datasets/select", request).await
    }

    pub async fn inspect_model(&self, prefix: &str) -> Result<ModelInfo> {
        self.long.post("/models/inspect", &InspectRequest { prefix: prefix.to_owned() }).await
    }
}

fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.status() == Some(404) => Ok(()),
        other => other,
    }
}

/// `text` as one URL path segment or query value.
fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// A storage key as URL path: its slashes stay.
fn path(key: &str) -> String {
    key.split('/').map(segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_segment_by_segment() {
        assert_eq!(path("models/a b/ü/x+y.bin"), "models/a%20b/%C3%BC/x%2By.bin");
        assert_eq!(segment("a/b&c"), "a%2Fb%26c");
    }
}
