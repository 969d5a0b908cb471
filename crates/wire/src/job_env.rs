//! Names of the environment variables every launcher gives a trainer.

pub const JOB_ID: &str = "JOB_ID";
/// Attempt number, from 1.
pub const ATTEMPT: &str = "ATTEMPT";
/// The [`crate::JobSpec`] as JSON.
pub const JOB_SPEC: &str = "JOB_SPEC";
/// A file holding the [`crate::JobSpec`], when it is too long for an environment variable.
pub const JOB_SPEC_FILE: &str = "JOB_SPEC_FILE";
/// Full URL of the callback route of this job.
pub const CALLBACK_URL: &str = "CALLBACK_URL";
pub const STORAGE_GATEWAY_URL: &str = "STORAGE_GATEWAY_URL";
/// Bearer token for the callback route and the storage gateway, scoped to this job and attempt.
pub const JOB_TOKEN: &str = "JOB_TOKEN";
pub const JOB_TOKEN_FILE: &str = "JOB_TOKEN_FILE";
/// Directory the trainer may use and may lose: model cache, event spool.
pub const SCRATCH_DIR: &str = "SCRATCH_DIR";

/// Exit codes of `hone-trainer run`. They mirror what the callbacks said, for when those were lost.
pub mod exit {
    /// Everything was uploaded and the `finished` event was acknowledged or spooled to storage.
    pub const SUCCEEDED: i32 = 0;
    /// Training failed and trying again would fail the same way (bad configuration, bad data, divergence).
    pub const FATAL: i32 = 64;
    /// Training failed for a reason that another attempt may not meet (storage, network).
    pub const RETRYABLE: i32 = 65;
    /// Stopped by a `cancel` directive.
    pub const CANCELLED: i32 = 66;
    /// Stopped by a `pause` directive after a durable checkpoint.
    pub const PAUSED: i32 = 67;
    /// This instance was fenced (410): another attempt or instance owns the job.
    pub const FENCED: i32 = 68;
    /// SIGTERM: finished the step, wrote a durable checkpoint, can be resumed (`EX_TEMPFAIL`).
    pub const PREEMPTED: i32 = 75;
}
