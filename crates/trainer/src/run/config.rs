//! What `hone-trainer run` reads from its environment.

use crate::engine::device::{DeviceChoice, HONE_DEVICE};
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
            callback_retry: RetryPolicy {
                first_wait: millis(env, "CALLBACK_RETRY_FIRST_MS", 4_000)?,
                max_wait: millis(env, "CALLBACK_RETRY_MAX_MS", 30_000)?,
                retries: env.parse_or("CALLBACK_RETRIES", 5)?,
            },
            storage_retry: RetryPolicy {
                first_wait: millis(env, "STORAGE_RETRY_FIRST_MS", 1_000)?,
                max_wait: millis(env, "STORAGE_RETRY_MAX_MS", 30_000)?,
                retries: env.parse_or("STORAGE_RETRIES", 8)?,
            },
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

    /// The step in `resume_from`, which ends with `checkpoint-{step}/`.
    #[must_use]
    pub fn resume_step(&self) -> Option<u64> {
        let prefix = self.spec.resume_from.as_deref()?;
        let step = prefix.trim_end_matches('/').rsplit('-').next()?.parse().ok()?;
        prefix.ends_with(&layout::checkpoint_dir(step)).then_some(step)
    }
}

/// `attempt-{n}`
#[must_use]
pub fn attempt_name(attempt: u32) -> String {
    format!("attempt-{attempt}")
}

fn millis(env: &Env, name: &str, default: u64) -> Result<Duration, service::EnvError> {
    env.parse_or(name, default).map(Duration::from_millis)
}
