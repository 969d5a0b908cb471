//! The one way to call another service: timeouts, retries with jitter (backon), a circuit breaker, trace
//! context and bearer tokens.

pub use crate::retry::RetryPolicy;

use crate::breaker::Breaker;
use backon::Retryable;
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, sync::Arc, time::Duration};
use wire::problem::{Code, Problem};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The service answered with a problem.
    #[error("{service}: {}", problem.detail)]
    Problem { service: &'static str, problem: Problem },
    /// The service answered with an error that is no problem+json.
    #[error("{service} answered {status}: {body}")]
    Status { service: &'static str, status: StatusCode, body: String },
    #[error("cannot reach {service}")]
    Transport { service: &'static str, source: reqwest::Error },
    #[error("{service} failed repeatedly; not calling it again for {} s", retry_in.as_secs())]
    BreakerOpen { service: &'static str, retry_in: Duration },
    #[error("{service} sent a reply that cannot be read")]
    Decode { service: &'static str, source: reqwest::Error },
    #[error("cannot build the HTTP client")]
    Build(#[source] reqwest::Error),
    #[error("cannot make a token")]
    Token(#[source] crate::token::TokenError),
}

impl ClientError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Problem { problem, .. } => matches!(problem.status, 429 | 500 | 502 | 503 | 504),
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Transport { .. } | Self::BreakerOpen { .. } => true,
            Self::Decode { .. } | Self::Build(_) | Self::Token(_) => false,
        }
    }

    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem { problem, .. } => Some(problem.status),
            Self::Status { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }
}

/// Passes a peer's problem on to our own caller; anything else becomes 503 or 500.
impl From<ClientError> for crate::ApiError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Problem { problem, .. } if problem.status < 500 && problem.status != 401 => problem.into(),
            e if e.is_transient() => Self::new(Code::Unavailable, format!("{e}; try again in a moment")).caused_by(e),
            e => Self::internal(e),
        }
    }
}

type TokenSource = Arc<dyn Fn() -> Result<SecretString, crate::token::TokenError> + Send + Sync>;

#[derive(Clone)]
pub struct ClientConfig {
    /// Name of the called service in errors, logs and metrics.
    pub service: &'static str,
    pub base_url: String,
    /// For a whole JSON call; streams only have the connect and read timeouts.
    pub timeout: Duration,
    /// Longest silence of the service, also before the first byte of its reply.
    pub read_timeout: Duration,
    pub retry: RetryPolicy,
    pub token: Option<TokenSource>,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("service", &self.service)
            .field("base_url", &self.base_url)
            .finish_non_exhaustive()
    }
}

impl ClientConfig {
    pub fn new(service: &'static str, base_url: impl Into<String>) -> Self {
        let base_url = base_url.into().trim_end_matches('/').to_owned();
        Self {
            service,
            base_url,
            timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
            retry: RetryPolicy::INTERACTIVE,
            token: None,
        }
    }

    #[must_use]
    pub fn bearer(mut self, token: SecretString) -> Self {
        self.token = Some(Arc::new(move || Ok(token.clone())));
        self
    }

    /// Calls `source` for a token before every request.
    #[must_use]
    pub fn bearer_from(
        mut self,
        source: impl Fn() -> Result<SecretString, crate::token::TokenError> + Send + Sync + 'static,
    ) -> Self {
        self.token = Some(Arc::new(source));
        self
    }

    #[must_use]
    pub const fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    #[must_use]
    pub const fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }
}

/// A client for one service. Cheap to clone; clones share connections and breaker.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    config: Arc<ClientConfig>,
    breaker: Arc<Breaker>,
}

impl Client {
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("hone/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(config.read_timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none());
        // HTTP_PROXY without NO_PROXY is common, and no proxy reaches this machine's own loopback.
        let http = if is_loopback(&config.base_url) { http.no_proxy() } else { http };
        let http = http.build().map_err(ClientError::Build)?;
        let breaker = Breaker::of(config.service, &config.base_url);
        Ok(Self { http, config: Arc::new(config), breaker })
    }

    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.config.base_url
    }

    /// A request to `path` (or an absolute URL) with trace context and, for our own service only, the token.
    pub fn request(&self, method: Method, path: &str) -> Result<reqwest::RequestBuilder, ClientError> {
        let foreign = path.starts_with("http://") || path.starts_with("https://");
        let url = if foreign { path.to_owned() } else { format!("{}{path}", self.config.base_url) };
        let mut headers = reqwest::header::HeaderMap::new();
        crate::telemetry::inject_parent(&mut headers);
        let request = self.http.request(method, url).headers(headers);
        match &self.config.token {
            Some(source) if !foreign => Ok(request.bearer_auth(source().map_err(ClientError::Token)?.expose_secret())),
            _ => Ok(request),
        }
    }

    /// Sends once, through the breaker; an error status becomes an error.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let service = self.config.service;
        self.breaker.check()?;
        let result = match request.send().await {
            Ok(response) if response.status().is_success() => Ok(response),
            Ok(response) => Err(into_error(service, response).await),
            Err(source) => Err(ClientError::Transport { service, source }),
        };
        self.breaker.record(!matches!(&result, Err(e) if e.is_transient() && e.status() != Some(429)));
        result
    }

    /// Calls `build` for each try and retries transient errors by the configured policy.
    pub async fn send_retrying<F>(&self, build: F) -> Result<reqwest::Response, ClientError>
    where
        F: Fn() -> Result<reqwest::RequestBuilder, ClientError>,
    {
        (|| async { self.send(build()?).await })
            .retry(self.config.retry.backoff())
            .when(ClientError::is_transient)
            .notify(|error, wait| {
                metrics::counter!("http_client_retries_total", "service" => self.config.service).increment(1);
                tracing::warn!(service = self.config.service, error = %crate::error::chain(error), "call failed, trying again in {wait:.1?}");
            })
            .await
    }

    /// A JSON call. `body` is sent when present.
    pub async fn call<B, R>(&self, method: Method, path: &str, body: Option<&B>) -> Result<R, ClientError>
    where
        B: Serialize + Sync + ?Sized,
        R: DeserializeOwned,
    {
        let response = self.send_json(method, path, body).await?;
        response.json().await.map_err(|source| ClientError::Decode { service: self.config.service, source })
    }

    /// A JSON call whose reply has no body of interest.
    pub async fn call_unit<B>(&self, method: Method, path: &str, body: Option<&B>) -> Result<(), ClientError>
    where
        B: Serialize + Sync + ?Sized,
    {
        self.send_json(method, path, body).await.map(drop)
    }

    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.call::<(), R>(Method::GET, path, None).await
    }

    pub async fn post<B: Serialize + Sync + ?Sized, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<R, ClientError> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.call_unit::<()>(Method::DELETE, path, None).await
    }

    async fn send_json<B>(&self, method: Method, path: &str, body: Option<&B>) -> Result<reqwest::Response, ClientError>
    where
        B: Serialize + Sync + ?Sized,
    {
        self.send_retrying(|| {
            let request = self.request(method.clone(), path)?.timeout(self.config.timeout);
            Ok(match body {
                Some(body) => request.json(body),
                None => request,
            })
        })
        .await
    }
}

/// Whether `url` names this machine.
#[must_use]
pub fn is_loopback(url: &str) -> bool {
    let host = url::Url::parse(url).ok().and_then(|u| u.host().map(|h| h.to_owned()));
    match host {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

async fn into_error(service: &'static str, response: reqwest::Response) -> ClientError {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    match serde_json::from_str::<Problem>(&body) {
        Ok(problem) => ClientError::Problem { service, problem },
        Err(_) => ClientError::Status { service, status, body: body.chars().take(500).collect() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for url in ["http://127.0.0.1:8700", "http://localhost/x", "http://[::1]:1/"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1", "https://localhost.example.com", "http://127.0.0.1.example.com", "nonsense"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_service_is_a_transient_error_after_the_retries() {
        let retry =
            RetryPolicy { first_wait: Duration::from_millis(1), max_wait: Duration::from_millis(1), retries: 2 };
        let client = Client::new(ClientConfig::new("nobody", "http://127.0.0.1:9").retry(retry)).unwrap();
        let error = client.get::<()>("/").await.unwrap_err();
        assert!(error.is_transient());
        assert_eq!(error.to_string(), "cannot reach nobody");
        assert_eq!(client.breaker.view().failures, 3);
    }
}
