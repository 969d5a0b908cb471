//! What `hone-trainer run` reads from its environment.

use crate::{
    engine::device::{DeviceChoice, HONE_DEVICE},
    gateway::PATIENCE,
};
use anyhow::{Context, bail};
use service::{Env, SecretString, client::RetryPolicy};
use std::{num::NonZero, path::PathBuf, thread::available_parallelism, time::Duration};
use wire::{JobSpec, job_env, layout};

/// Settings of one attempt.
#[derive(Debug, Clone)]
pub struct RunConfig {
    pub spec: JobSpec,
    pub callback_url: String,
    pub gateway_url: String,
    pub token: SecretString,
    pub scratch: PathBuf,
    pub threads: usize,
    pub device: DeviceChoice,
    pub cache_bytes: u64,
    pub spool_bytes: usize,
    /// For one batch of progress reports, before it goes to storage instead.
    pub callback_retry: RetryPolicy,
    /// For one transfer, counted from its last progress.
    pub storage_retry: RetryPolicy,
    /// Longest silence of a transfer.
    pub storage_patience: Duration,
    pub report_interval: Duration,
    pub log_interval: Duration,
    /// From SIGTERM to exit.
    pub grace: Duration,
}

impl RunConfig {
    /// # Errors
    /// A variable is missing or invalid; the error names it.
    pub fn from_env(env: &Env) -> anyhow::Result<Self> {
        let spec = match env.get(job_env::JOB_SPEC) {
            Some(text) => text.to_owned(),
            None => {
                let path = env.required(
                    job_env::JOB_SPEC_FILE,
                    "give the job specification in JOB_SPEC or JOB_SPEC_FILE (or train without a backend: \
                     `hone-trainer run --config FILE --model DIR --data FILE --out DIR`)",
                )?;
                std::fs::read_to_string(path).with_context(|| format!("cannot read JOB_SPEC_FILE {path}"))?
            }
        };
        let spec: JobSpec = serde_json::from_str(&spec).context("the job specification cannot be read")?;
        if env.parse(job_env::JOB_ID)?.is_some_and(|id: wire::JobId| spec.job_id != id) {
            bail!("JOB_ID names another job than the specification ({})", spec.job_id);
        }
        if env.parse(job_env::ATTEMPT)?.is_some_and(|n: u32| spec.attempt != n) {
            bail!("ATTEMPT is another one than the specification's ({})", spec.attempt);
        }
        let scratch = env.get(job_env::SCRATCH_DIR).map(PathBuf::from);
        let cores = available_parallelism().map_or(1, NonZero::get);
        Ok(Self {
            callback_url: env.required(job_env::CALLBACK_URL, "give the job's callback URL")?.to_owned(),
            gateway_url: env.required(job_env::STORAGE_GATEWAY_URL, "give the storage gateway's URL")?.to_owned(),
            token: env.required_secret(job_env::JOB_TOKEN, "give the job's token in JOB_TOKEN or JOB_TOKEN_FILE")?,
            scratch: scratch.unwrap_or_else(|| std::env::temp_dir().join("hone-trainer")),
            threads: env.parse_or("HONE_THREADS", cores)?.max(1),
            device: env.parse_or(HONE_DEVICE, DeviceChoice::Auto)?,
            cache_bytes: env.parse_or("CACHE_MAX_BYTES", 50_000_000_000)?,
            spool_bytes: env.parse_or("SPOOL_MAX_BYTES", 16 << 20)?,
            callback_retry: retry(env, "CALLBACK", RetryPolicy::CALLBACK)?,
            storage_retry: retry(env, "STORAGE", RetryPolicy::TRANSFER)?,
            storage_patience: env.parse("STORAGE_TIMEOUT_MS")?.map_or(PATIENCE, Duration::from_millis),
            report_interval: millis(env, "REPORT_INTERVAL_MS", 250)?,
            log_interval: millis(env, "LOG_UPLOAD_MS", 15_000)?,
            grace: millis(env, "STOP_GRACE_MS", 25_000)?,
            spec,
        })
    }

    /// This attempt's own directory.
    #[must_use]
    pub fn attempt_dir(&self) -> PathBuf {
        self.job_dir().join(attempt_name(self.spec.attempt))
    }

    #[must_use]
    pub fn job_dir(&self) -> PathBuf {
        self.jobs_dir().join(self.spec.job_id.to_string())
    }

    #[must_use]
    pub fn jobs_dir(&self) -> PathBuf {
        self.scratch.join("jobs")
    }

    /// Storage prefix of one of this attempt's folders ([`layout::CHECKPOINTS`], …).
    #[must_use]
    pub fn folder(&self, name: &str) -> String {
        format!("{}{name}", self.spec.output_prefix)
    }

    /// The step of `resume_from`.
    #[must_use]
    pub fn resume_step(&self) -> Option<u64> {
        checkpoint_step(self.spec.resume_from.as_deref()?)
    }
}

/// The step in a prefix that ends with `checkpoint-{step}/`.
#[must_use]
pub fn checkpoint_step(prefix: &str) -> Option<u64> {
    let step = prefix.trim_end_matches('/').rsplit('-').next()?.parse().ok()?;
    prefix.ends_with(&layout::checkpoint_dir(step)).then_some(step)
}

/// `attempt-{n}`
#[must_use]
pub fn attempt_name(attempt: u32) -> String {
    format!("attempt-{attempt}")
}

/// `{name}_RETRY_FIRST_MS`, `{name}_RETRY_MAX_MS`, `{name}_RETRIES`.
fn retry(env: &Env, name: &str, default: RetryPolicy) -> Result<RetryPolicy, service::EnvError> {
    let wait = |end: &str, default| {
        env.parse(&format!("{name}_RETRY_{end}_MS")).map(|ms| ms.map_or(default, Duration::from_millis))
    };
    Ok(RetryPolicy {
        first_wait: wait("FIRST", default.first_wait)?,
        max_wait: wait("MAX", default.max_wait)?,
        retries: env.parse_or(&format!("{name}_RETRIES"), default.retries)?,
    })
}

fn millis(env: &Env, name: &str, default: u64) -> Result<Duration, service::EnvError> {
    env.parse_or(name, default).map(Duration::from_millis)
}
