//! Settings, read once from the environment.

use crate::{
    keys::{Buckets, Limits},
    objects::MAX_SIGNED,
    s3::Endpoint,
};
use anyhow::Context;
use secrecy::SecretString;
use service::{Env, server::ServerConfig};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

#[derive(Debug, Clone)]
pub struct Settings {
    pub server: ServerConfig,
    pub store: StoreSettings,
    /// Host that clients of presigned URLs see; the store's own when absent.
    pub public_endpoint: Option<Endpoint>,
    pub region: String,
    pub buckets: Buckets,
    pub limits: Limits,
    pub signing_key: SecretString,
    /// Longest life of a signed URL.
    pub url_life: Duration,
}

#[derive(Debug, Clone)]
pub enum StoreSettings {
    Outside { endpoint: Endpoint, access_key: String, secret_key: SecretString },
    Embedded { data_dir: PathBuf, listen: SocketAddr },
}

impl Settings {
    pub fn from_env(env: &Env) -> anyhow::Result<Self> {
        let store = match env.parse::<Endpoint>("S3_ENDPOINT")? {
            Some(endpoint) => StoreSettings::Outside {
                endpoint,
                access_key: env
                    .required("AWS_ACCESS_KEY_ID", "S3_ENDPOINT needs a key pair that may use the buckets")?
                    .to_owned(),
                secret_key: env.required_secret(
                    "AWS_SECRET_ACCESS_KEY",
                    "S3_ENDPOINT needs a key pair that may use the buckets",
                )?,
            },
            None => StoreSettings::Embedded {
                data_dir: env
                    .required(
                        "DATA_DIR",
                        "name a directory for the embedded S3, or set S3_ENDPOINT to use another one",
                    )?
                    .into(),
                listen: env.parse_or("S3_LISTEN", SocketAddr::from(([127, 0, 0, 1], 0)))?,
            },
        };
        let bucket = |name: &str, default: &str| -> anyhow::Result<String> {
            let bucket = env.get("BUCKET_NAME").or(env.get(name)).unwrap_or(default);
            check_bucket(bucket).with_context(|| format!("`{bucket}` cannot be a bucket (BUCKET_NAME or {name})"))?;
            Ok(bucket.to_owned())
        };
        Ok(Self {
            server: ServerConfig::from_env("hone-gateway", env, 8701)?,
            store,
            public_endpoint: env.parse("S3_PUBLIC_ENDPOINT")?,
            region: env.get("AWS_REGION").unwrap_or("us-east-1").to_owned(),
            buckets: Buckets {
                datasets: bucket("DATASETS_BUCKET", "lora-datasets")?,
                models: bucket("MODELS_BUCKET", "lora-models")?,
            },
            limits: Limits {
                dataset: env.parse_or("DATASET_MAX_BYTES", 500_000_000)?,
                model: env.parse_or("MODEL_MAX_BYTES", 5_000_000_000)?,
            },
            signing_key: env.required_secret(
                "TOKEN_SIGNING_KEY",
                "give the backend and the gateway the same random string of at least 32 characters",
            )?,
            url_life: url_life(env.parse_or("SIGNED_URL_SECONDS", MAX_SIGNED)?)?,
        })
    }
}

fn url_life(seconds: u32) -> anyhow::Result<Duration> {
    anyhow::ensure!(
        (1..=MAX_SIGNED).contains(&seconds),
        "SIGNED_URL_SECONDS is {seconds}; use 1 to {MAX_SIGNED} seconds, what a transfer of one part needs"
    );
    Ok(Duration::from_secs(seconds.into()))
}

fn check_bucket(name: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ok = (3..=63).contains(&name.len())
        && name.chars().all(plain)
        && name.starts_with(ends)
        && name.ends_with(ends)
        && !name.contains("..");
    anyhow::ensure!(ok, "use 3 to 63 of a-z, 0-9, `-` and `.`, beginning and ending with a letter or digit");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(vars: &[(&str, &str)]) -> String {
        format!("{:#}", Settings::from_env(&vars.iter().copied().collect()).unwrap_err())
    }

    #[test]
    fn every_error_names_its_variable_and_says_what_to_do() {
        assert_eq!(
            error(&[]),
            "DATA_DIR is not set; name a directory for the embedded S3, or set S3_ENDPOINT to use another one"
        );
        assert!(error(&[("DATA_DIR", "/x")]).starts_with("TOKEN_SIGNING_KEY is not set; give the backend and"));
        assert!(error(&[("S3_ENDPOINT", "s3:9000")]).starts_with("S3_ENDPOINT is set to `s3:9000`"));
        assert!(error(&[("S3_ENDPOINT", "http://s3:9000")]).starts_with("AWS_ACCESS_KEY_ID is not set"));
        let key = "k".repeat(32);
        let life = error(&[("DATA_DIR", "/x"), ("TOKEN_SIGNING_KEY", &key), ("SIGNED_URL_SECONDS", "901")]);
        assert!(life.starts_with("SIGNED_URL_SECONDS is 901; use 1 to 900"), "{life}");
        assert!(error(&[("DATA_DIR", "/x"), ("BUCKET_NAME", "My_Bucket")]).contains("`My_Bucket` cannot be a bucket"));
    }

    #[test]
    fn one_bucket_name_serves_for_everything() {
        let key = "k".repeat(32);
        let env = [("DATA_DIR", "/x"), ("BUCKET_NAME", "all"), ("TOKEN_SIGNING_KEY", &key)];
        let settings = Settings::from_env(&env.into_iter().collect()).unwrap();
        assert_eq!(settings.buckets.distinct(), ["all"]);
    }
}
