//! Requests to the Hub (huggingface_hub: `hf_api.py`, `file_download.py`).

use super::{HubConfig, search::Cache};
use crate::error::{Error, Result};
use reqwest::{Method, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use service::{
    Client, ClientConfig,
    client::RetryPolicy,
    outgoing::{Outgoing, read_at_most},
};
use std::{sync::Arc, time::Duration};
use url::Url;
use wire::problem::Code;

/// For an answer in JSON, whole.
const QUICK: Duration = Duration::from_secs(15);
/// For a piece of a file, whole: a session's parts are some megabytes.
const PIECE: Duration = Duration::from_secs(15 * 60);
const CONNECT: Duration = Duration::from_secs(5);
const MAX_REDIRECTS: usize = 5;
/// Largest answer in JSON: a listing of a thousand files has some 300 kB.
const MAX_JSON: usize = 8 << 20;

/// Cheap to clone; clones share connections and cache.
#[derive(Clone)]
pub struct HubClient {
    own: Client,
    elsewhere: Outgoing,
    storage: reqwest::Client,
    endpoint: Arc<Url>,
    pub(super) max_bytes: u64,
    pub(super) cache: Arc<Cache>,
}

impl std::fmt::Debug for HubClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubClient").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

/// A reply in JSON, with where the next page is.
#[derive(Debug)]
pub struct Answer<T> {
    pub value: T,
    pub next: Option<Url>,
}

impl HubClient {
    pub fn new(config: &HubConfig) -> anyhow::Result<Self> {
        let own = ClientConfig::new("the Hugging Face Hub", config.endpoint.clone())
            .retry(RetryPolicy::NONE)
            .read_timeout(Duration::from_secs(60));
        let own = match &config.token {
            Some(token) => own.bearer(token.clone()),
            None => own,
        };
        Ok(Self {
            own: Client::new(own)?,
            elsewhere: Outgoing::new(config.allowed.clone(), PIECE)?,
            // Signed URLs are our own; no proxy leads to them.
            storage: reqwest::Client::builder().connect_timeout(CONNECT).no_proxy().build()?,
            endpoint: Arc::new(Url::parse(&config.endpoint)?),
            max_bytes: config.max_bytes,
            cache: Arc::default(),
        })
    }

    /// GET below the endpoint, JSON.
    pub async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>> {
        let response = self.get(path, None, QUICK).await?;
        let next = response.headers().get(header::LINK).and_then(|v| next_link(v.to_str().ok()?));
        let body = read_at_most(response, MAX_JSON).await.map_err(|e| self.unreachable(&service::error::chain(&e)))?;
        let value = serde_json::from_slice(&body).map_err(|e| self.unreachable(&format!("its reply is none: {e}")))?;
        Ok(Answer { value, next })
    }

    /// `size` bytes of a file from `offset` on, as a stream.
    pub async fn piece(&self, path: &str, offset: u64, size: u64) -> Result<Response> {
        let range = format!("bytes={offset}-{}", offset.saturating_add(size).saturating_sub(1));
        let response = self.get(path, Some(&range), PIECE).await?;
        let whole = response.status() == StatusCode::OK && offset == 0;
        if response.content_length() == Some(size) && (whole || response.status() == StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        Err(self
            .unreachable(&format!("it does not send the bytes {offset} to {} of {path}", offset.saturating_add(size))))
    }

    /// A PUT to a signed URL of our own storage.
    pub fn storage(&self, url: &str) -> reqwest::RequestBuilder {
        self.storage.put(url).timeout(PIECE)
    }

    /// GET, following redirects: with the token below the endpoint, past the guard to other places.
    async fn get(&self, path: &str, range: Option<&str>, timeout: Duration) -> Result<Response> {
        let base = self.own.base_url();
        let mut url = format!("{base}{path}");
        for _ in 0..=MAX_REDIRECTS {
            let request = match url.strip_prefix(base).filter(|rest| rest.starts_with('/')) {
                Some(rest) => self.own.request(Method::GET, rest)?,
                None if self.is_ours(&url) => self.own.request(Method::GET, &url)?,
                None => {
                    let refused = |e| Error::refused(Code::Invalid, format!("the Hub sends us to another place: {e}"));
                    self.elsewhere.request(Method::GET, &url).map_err(refused)?
                }
            };
            let request = match range {
                Some(range) => request.header(header::RANGE, range),
                None => request,
            };
            let response = request.timeout(timeout).send().await;
            let response = response.map_err(|e| self.unreachable(&service::error::chain(&e.without_url())))?;
            if !response.status().is_redirection() {
                return self.checked(response, path).await;
            }
            let to = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
            let from = Url::parse(&url).map_err(Error::defect)?;
            let to = to.and_then(|to| from.join(to).ok());
            url = to.ok_or_else(|| self.unreachable("it redirects to nowhere"))?.into();
        }
        Err(self.unreachable("it redirects in circles"))
    }

    fn is_ours(&self, url: &str) -> bool {
        Url::parse(url).is_ok_and(|u| u.origin() == self.endpoint.origin())
    }

    async fn checked(&self, response: Response, path: &str) -> Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let path = path.split('?').next().unwrap_or_default();
        Err(match (status.as_u16(), code.as_str()) {
            (_, "GatedRepo") => Error::refused(
                Code::Forbidden,
                "this model is gated: accept its licence on the Hub, and let the operator set HF_TOKEN to a token of that account",
            ),
            // The Hub answers 401 for what does not exist when nobody is signed in.
            (401 | 403 | 404, _) => Error::refused(
                Code::NotFound,
                format!(
                    "the Hub has no {path} for us; check the name, and for private models let the operator set HF_TOKEN"
                ),
            ),
            (400 | 422, _) => {
                let said = read_at_most(response, 300).await.unwrap_or_default();
                Error::refused(Code::Invalid, format!("the Hub refuses this: {}", String::from_utf8_lossy(&said)))
            }
            _ => self.unreachable(&format!("it answered {status}")),
        })
    }

    fn unreachable(&self, why: &str) -> Error {
        let host = self.endpoint.host_str().unwrap_or_default();
        let detail = format!(
            "the Hugging Face Hub ({host}) cannot be used now: {why}; try again, check HF_ENDPOINT, or bring a model from a folder with `hone models import`"
        );
        Error::refused(Code::Unavailable, detail)
    }
}

/// The URL of `rel="next"` in a Link header.
fn next_link(value: &str) -> Option<Url> {
    let link = value.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (_, rest) = link.split_once('<')?;
    Url::parse(rest.split_once('>')?.0).ok()
}

/// A value as one part of a path.
pub fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        let value = "<https://h/api/models?cursor=a%3D>; rel=\"next\"";
        assert_eq!(next_link(value).unwrap().query(), Some("cursor=a%3D"));
        assert!(next_link("<https://h/>; rel=\"prev\", <https://h/?p=2>; rel=\"next\"").is_some());
        assert!(next_link("<https://h/>; rel=\"prev\"").is_none());
    }
}
