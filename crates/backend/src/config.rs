//! Settings, read once at start.

use crate::{
    catalog::{Catalog, CatalogError},
    db::DbConfig,
    hub::HubConfig,
    jobs::{
        launcher::{kubernetes::config::KubernetesConfig, subprocess::inheritable},
        policy::Policy,
    },
    limits::LimitsConfig,
    mlflow::MlflowConfig,
    oidc::OidcConfig,
};
use secrecy::{ExposeSecret, SecretString};
use service::{
    Env, EnvError,
    outgoing::Allowed,
    server::ServerConfig,
    token::{TokenError, TokenKey},
};
use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU16, path::PathBuf, time::Duration};

/// Default size limit of a dataset: 500 MB.
const DATASET_MAX_BYTES: u64 = 500 * 1000 * 1000;

/// What every API key starts with.
pub const KEY_PREFIX: &str = "hone_sk_";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("TOKEN_SIGNING_KEY cannot be used")]
    SigningKey(#[source] TokenError),
    #[error("HONE_BOOTSTRAP_KEY must be `{KEY_PREFIX}` followed by at least 32 characters")]
    BootstrapKey,
    #[error("TRAINING_MODE is set to `{0}`, which is not valid: must be `subprocess`, `http` or `kubernetes`")]
    Mode(String),
}

/// Where trainers run.
#[derive(Debug, Clone)]
pub enum TrainingMode {
    /// As processes beside the backend, each under its own supervisor.
    Subprocess {
        trainer: PathBuf,
        /// Supervisor records and trainer scratch.
        run_dir: PathBuf,
        /// The part of our environment that trainers get.
        inherited: BTreeMap<String, String>,
        /// Bytes of memory a trainer may have; those of the machine or its control group when absent.
        memory: Option<u64>,
    },
    /// On a long-running `hone-trainer serve`.
    Http {
        url: String,
        /// What the service wants of its callers.
        token: Option<SecretString>,
    },
    /// As Jobs in a Kubernetes cluster.
    Kubernetes(Box<KubernetesConfig>),
}

/// How much of something one user may have.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    pub count: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub server: ServerConfig,
    pub database: DbConfig,
    pub gateway_url: String,
    /// Where trainers reach this backend; from the listening address when absent.
    pub base_url: Option<String>,
    pub token_key: TokenKey,
    /// API key of the user `local`, stored at start.
    pub bootstrap_key: Option<SecretString>,
    pub training: TrainingMode,
    pub policy: Policy,
    /// How long after its last word a backend still counts as the leading one.
    pub leader_lease: Duration,
    pub limits: LimitsConfig,
    pub oidc: Option<OidcConfig>,
    /// Presets and GPU configurations.
    pub catalog: Catalog,
    /// Size limit of one dataset, all files together; the gateway has its own per file.
    pub dataset_max_bytes: u64,
    /// Of datasets, per user.
    pub dataset_quota: Quota,
    /// Keys that one user may have which still work.
    pub keys_per_user: u64,
    pub hub: HubConfig,
    /// Where runs are exported to.
    pub mlflow: Option<MlflowConfig>,
    /// Where requests to URLs of users may go besides public addresses.
    pub outgoing: Allowed,
}

impl Config {
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let url = env.required("DATABASE_URL", "give a URL such as postgres://user@host:5432/hone")?;
        let gateway = env.required("STORAGE_GATEWAY_URL", "give the URL of hone-gateway, http://127.0.0.1:8701")?;
        let signing = env.required_secret(
            "TOKEN_SIGNING_KEY",
            "give the same random text of 32 characters or more to backend and gateway",
        )?;
        Ok(Self {
            server: ServerConfig::from_env("hone-backend", env, 8700)?,
            database: DbConfig::from_env(url.into(), env)?,
            gateway_url: gateway.trim_end_matches('/').to_owned(),
            base_url: env.get("BACKEND_BASE_URL").map(|v| v.trim_end_matches('/').to_owned()),
            token_key: TokenKey::new(signing).map_err(ConfigError::SigningKey)?,
            bootstrap_key: bootstrap_key(env)?,
            training: training_mode(env)?,
            policy: Policy::from_env(env)?,
            leader_lease: Duration::from_secs(
                env.parse_or("LEADER_SECONDS", NonZeroU16::new(15).unwrap_or(NonZeroU16::MIN))?.get().into(),
            ),
            limits: LimitsConfig::from_env(env)?,
            oidc: OidcConfig::from_env(env)?,
            catalog: Catalog::from_env(env)?,
            dataset_max_bytes: env.parse_or("DATASET_MAX_BYTES", DATASET_MAX_BYTES)?,
            dataset_quota: Quota {
                count: env.parse_or("DATASETS_PER_USER", 1000)?,
                bytes: env.parse_or("DATASET_BYTES_PER_USER", 100 * 1000 * 1000 * 1000)?,
            },
            keys_per_user: env.parse_or("KEYS_PER_USER", 100)?,
            hub: HubConfig::from_env(env)?,
            mlflow: MlflowConfig::from_env(env)?,
            outgoing: Allowed::from_env(env)?,
        })
    }

    /// The URL trainers call back to, once the listening address is known.
    #[must_use]
    pub fn base_url(&self, listening: SocketAddr) -> String {
        if let Some(url) = &self.base_url {
            return url.clone();
        }
        let mut address = listening;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        format!("http://{address}")
    }
}

fn bootstrap_key(env: &Env) -> Result<Option<SecretString>, ConfigError> {
    let key = env.secret("HONE_BOOTSTRAP_KEY")?;
    let strong = |k: &SecretString| k.expose_secret().strip_prefix(KEY_PREFIX).is_some_and(|rest| rest.len() >= 32);
    match key {
        Some(key) if !strong(&key) => Err(ConfigError::BootstrapKey),
        key => Ok(key),
    }
}

fn training_mode(env: &Env) -> Result<TrainingMode, ConfigError> {
    match env.get("TRAINING_MODE").unwrap_or("subprocess") {
        "subprocess" => {
            let run_dir = env.required("RUN_DIR", "give a directory that survives a restart, for running trainers")?;
            let trainer = env.get("TRAINER_BIN").map_or_else(default_trainer, PathBuf::from);
            let memory = env.parse("TRAINER_MEMORY_BYTES")?;
            Ok(TrainingMode::Subprocess { trainer, run_dir: run_dir.into(), inherited: inheritable(env), memory })
        }
        "http" => {
            let url = env.required("TRAINER_SERVICE_URL", "give the URL of a running `hone-trainer serve`")?;
            let token = env.secret("TRAINER_SERVICE_TOKEN")?;
            Ok(TrainingMode::Http { url: url.trim_end_matches('/').to_owned(), token })
        }
        "kubernetes" => Ok(TrainingMode::Kubernetes(Box::new(KubernetesConfig::from_env(env)?))),
        other => Err(ConfigError::Mode(other.to_owned())),
    }
}

/// `hone-trainer` beside this executable, else the one in PATH.
fn default_trainer() -> PathBuf {
    const NAME: &str = "hone-trainer";
    let sibling = std::env::current_exe().ok().map(|exe| exe.with_file_name(NAME));
    sibling.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::error::chain;

    const GOOD: [(&str, &str); 4] = [
        ("DATABASE_URL", "postgres://localhost/hone"),
        ("STORAGE_GATEWAY_URL", "http://127.0.0.1:8701/"),
        ("TOKEN_SIGNING_KEY", "0123456789012345678901234567890123456789"),
        ("RUN_DIR", "/run/hone"),
    ];

    fn config(changes: &[(&str, &str)]) -> Result<Config, String> {
        let env: Env = GOOD.iter().chain(changes).copied().collect();
        Config::from_env(&env).map_err(|e| chain(&e))
    }

    #[test]
    fn the_defaults_are_the_laptop() {
        let config = config(&[]).unwrap();
        assert_eq!(config.gateway_url, "http://127.0.0.1:8701");
        assert_eq!(config.base_url("0.0.0.0:8700".parse().unwrap()), "http://127.0.0.1:8700");
        assert!(matches!(config.training, TrainingMode::Subprocess { .. }));
    }

    #[test]
    fn every_error_names_its_variable() {
        let error = |changes: &[(&str, &str)]| config(changes).unwrap_err();
        assert_eq!(
            error(&[("DATABASE_URL", "")]),
            "DATABASE_URL is not set; give a URL such as postgres://user@host:5432/hone"
        );
        assert_eq!(
            error(&[("TOKEN_SIGNING_KEY", "short")]),
            "TOKEN_SIGNING_KEY cannot be used: TOKEN_SIGNING_KEY must have at least 32 characters"
        );
        assert_eq!(
            error(&[("HONE_BOOTSTRAP_KEY", "secret")]),
            "HONE_BOOTSTRAP_KEY must be `hone_sk_` followed by at least 32 characters"
        );
        assert_eq!(
            error(&[("TRAINING_MODE", "kubernetes")]),
            "TRAINER_IMAGE is not set; give the image of hone-trainer, such as ghcr.io/hone-ml/hone-trainer:TAG"
        );
        assert_eq!(
            error(&[("TRAINING_MODE", "http")]),
            "TRAINER_SERVICE_URL is not set; give the URL of a running `hone-trainer serve`"
        );
        assert_eq!(
            error(&[("HEARTBEAT_SECONDS", "60")]),
            "HEARTBEAT_SECONDS is set to `60`, which is not valid: it must be at least 1 and at most half of LEASE_SECONDS"
        );
    }
}
