//! The storage layout. Only these functions build keys, so that every service agrees on them.
//!
//! The database stores keys (paths), never URLs.

use crate::ids::{DatasetId, JobId, UserId};
use uuid::Uuid;

/// `datasets/{user}/{dataset}/`
#[must_use]
pub fn dataset_prefix(user: UserId, dataset: DatasetId) -> String {
    format!("datasets/{user}/{dataset}/")
}

/// `datasets/{user}/upload-{upload}/`: parts of a file that is not complete yet
#[must_use]
pub fn upload_prefix(user: UserId, upload: Uuid) -> String {
    format!("datasets/{user}/upload-{upload}/")
}

/// `models/{name}/{revision}/`
#[must_use]
pub fn model_prefix(name: &str, revision: &str) -> String {
    format!("models/{name}/{revision}/")
}

/// `jobs/{user}/{job}/`
#[must_use]
pub fn job_prefix(user: UserId, job: JobId) -> String {
    format!("jobs/{user}/{job}/")
}

/// `jobs/{user}/{job}/attempt-{n}/`
#[must_use]
pub fn attempt_prefix(user: UserId, job: JobId, attempt: u32) -> String {
    format!("jobs/{user}/{job}/attempt-{attempt}/")
}

/// Folders below an attempt's prefix.
pub const CHECKPOINTS: &str = "checkpoints/";
pub const ARTIFACTS: &str = "artifacts/";
pub const EVENTS: &str = "events/";
pub const LOGS: &str = "logs/";
/// The trainer's log, below `logs/`.
pub const TRAINER_LOG: &str = "trainer.log";
/// Name of a manifest, always the last object written below its prefix.
pub const MANIFEST: &str = "manifest.json";

/// `checkpoint-{step}/` below `checkpoints/`.
#[must_use]
pub fn checkpoint_dir(step: u64) -> String {
    format!("checkpoint-{step}/")
}

/// Object name of a batch of events that could not be delivered: `{first:012}-{last:012}.json`.
#[must_use]
pub fn event_batch_name(first_seq: u64, last_seq: u64) -> String {
    format!("{first_seq:012}-{last_seq:012}.json")
}

/// The name Kubernetes and process listings show for an attempt.
#[must_use]
pub fn workload_name(job: JobId, attempt: u32) -> String {
    format!("ft-{job}-a{attempt}")
}
