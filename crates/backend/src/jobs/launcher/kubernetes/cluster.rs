//! The Kubernetes API: every call in one namespace, with a time limit and a breaker.
//!
//! The client itself waits as long as a 429 or 503 asks for in `Retry-After` and tries again; what is not answered within
//! [`PATIENCE`] counts as unreachable.

use super::config::KubernetesConfig;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Secret},
};
use kube::{Api, Client, Config, api::PostParams, config::Kubeconfig, core::Status};
use service::breaker::Breaker;
use std::{fmt, future::Future, sync::Arc, time::Duration};

/// Longest call, its retries included.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Why the API did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It said why.
    #[error("the Kubernetes API answered {}: {}", .0.code, .0.message)]
    Refused(Box<Status>),
    /// Nobody knows whether it was done.
    #[error("the Kubernetes API cannot be reached: {0}")]
    Unreachable(String),
}

impl CallError {
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(status) => Some(status.code),
            Self::Unreachable(_) => None,
        }
    }
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            other => Self::Unreachable(service::error::chain(&other)),
        }
    }
}

pub type Result<T> = std::result::Result<T, CallError>;

#[derive(Clone)]
pub struct Cluster {
    pub jobs: Api<Job>,
    pub pods: Api<Pod>,
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    pub namespace: String,
    breaker: Arc<Breaker>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads the credentials; calls nobody.
    pub async fn new(config: &KubernetesConfig) -> anyhow::Result<Self> {
        use anyhow::Context;
        let mut access = match &config.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot read the file {} that KUBECONFIG names", path.display()))?;
                Config::from_custom_kubeconfig(file, &Default::default()).await.context("cannot use KUBECONFIG")?
            }
            None => Config::incluster().context(
                "TRAINING_MODE=kubernetes needs a service account (in a pod) or KUBECONFIG (outside of the cluster)",
            )?,
        };
        access.connect_timeout = Some(Duration::from_secs(5));
        let namespace = config.namespace.clone().unwrap_or_else(|| access.default_namespace.clone());
        let breaker = Breaker::of("kubernetes", &access.cluster_url.to_string());
        let client = Client::try_from(access).context("cannot build the client of the Kubernetes API")?;
        Ok(Self {
            jobs: Api::namespaced(client.clone(), &namespace),
            pods: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            config_maps: Api::namespaced(client, &namespace),
            namespace,
            breaker,
        })
    }

    /// Makes a call of the API.
    pub async fn call<T>(&self, work: impl Future<Output = kube::Result<T>> + Send) -> Result<T> {
        self.breaker.check().map_err(|e| CallError::Unreachable(e.to_string()))?;
        let result = match tokio::time::timeout(PATIENCE, work).await {
            Ok(result) => result.map_err(CallError::from),
            Err(_) => Err(CallError::Unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
        };
        // Too many requests are no illness of the server.
        let ill = |e: &CallError| e.code().is_none_or(|code| code >= 500);
        self.breaker.record(!result.as_ref().is_err_and(ill));
        result
    }

    /// Creates the Secret of an attempt; one that is there is it.
    pub async fn ensure_secret(&self, secret: &Secret) -> Result<()> {
        existing(self.call(self.secrets.create(&PostParams::default(), secret)).await)
    }

    pub async fn ensure_config_map(&self, map: &ConfigMap) -> Result<()> {
        existing(self.call(self.config_maps.create(&PostParams::default(), map)).await)
    }
}

fn existing<T>(result: Result<T>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) if e.code() == Some(409) => Ok(()),
        Err(e) => Err(e),
    }
}
