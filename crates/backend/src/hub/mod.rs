//! The Hugging Face Hub, or a mirror of it: `HF_ENDPOINT`. Searched through a cache, and pulled from by a worker that
//! brings one commit's safetensors, configuration and tokenizer into the registry.
//!
//! Invariant: `HF_TOKEN` is sent to `HF_ENDPOINT` only. Where it sends clients for large files is checked like any
//! other address that is not ours.

mod client;
pub mod pull;
pub mod rows;
pub mod search;
mod select;

pub use client::HubClient;

use secrecy::SecretString;
use service::{Env, EnvError, outgoing::Allowed};

/// Largest model that is pulled: 100 GB.
const PULL_MAX_BYTES: u64 = 100 * 1000 * 1000 * 1000;

#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Without a trailing slash.
    pub endpoint: String,
    pub token: Option<SecretString>,
    /// Bytes that the files of one model may have.
    pub max_bytes: u64,
    /// Where large files may come from besides public addresses.
    pub allowed: Allowed,
}

impl HubConfig {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let endpoint = env.get("HF_ENDPOINT").unwrap_or("https://huggingface.co").trim_end_matches('/').to_owned();
        let good = url::Url::parse(&endpoint)
            .is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.host().is_some() && u.password().is_none());
        if !good {
            let reason = "must be an http:// or https:// URL without a password".to_owned();
            return Err(EnvError::Invalid { name: "HF_ENDPOINT".into(), value: "…".into(), reason });
        }
        Ok(Self {
            endpoint,
            token: env.secret("HF_TOKEN")?,
            max_bytes: env.parse_or("PULL_MAX_BYTES", PULL_MAX_BYTES)?,
            allowed: Allowed::from_env(env)?,
        })
    }
}
