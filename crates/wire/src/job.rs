//! Jobs: states, views, and the specification a trainer gets.

use crate::{
    config::TrainingConfig,
    cost::{JobCost, Pause},
    dataset::DatasetFormat,
    ids::{DatasetId, JobId, UserId, VersionId},
    model::ModelFile,
    storage::FileRef,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// States of a job; the stored names are the wire names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Validating,
    Queued,
    Starting,
    Running,
    Finalizing,
    RetryWait,
    Pausing,
    Paused,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub const ALL: [Self; 12] = [
        Self::Validating,
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Finalizing,
        Self::RetryWait,
        Self::Pausing,
        Self::Paused,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The wire name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Finalizing => "finalizing",
            Self::RetryWait => "retry_wait",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::str::FromStr for JobState {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|state| state.as_str() == s).ok_or_else(|| format!("`{s}` is not a job state"))
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why an attempt or a job failed. Stable names, shown to users with a remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureCode {
    /// The trainer could not be started.
    StartFailed,
    /// The trainer process died (signal, crash) without a word.
    TrainerDied,
    /// Killed for memory.
    TrainerOom,
    /// No heartbeat within the lease.
    LeaseExpired,
    /// Model files are corrupt or unsupported.
    ModelCorrupt,
    /// Dataset rows cannot be used.
    DatasetInvalid,
    /// The configuration does not fit model or data.
    ConfigInvalid,
    /// Loss or gradients became NaN or infinite.
    Diverged,
    DiskFull,
    ChecksumMismatch,
    /// Storage or network stayed unreachable beyond the retries.
    StorageUnavailable,
    /// SIGTERM; resumable.
    Preempted,
    /// A promised artifact is missing or differs.
    ArtifactMissing,
    /// Somebody deleted what it ran in, past Hone.
    DeletedExternally,
    /// It ran longer than an attempt may.
    DeadlineExceeded,
    Internal,
}

impl FailureCode {
    /// Whether another attempt may succeed.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::TrainerDied
            | Self::LeaseExpired
            | Self::ChecksumMismatch
            | Self::StorageUnavailable
            | Self::Preempted
            | Self::ArtifactMissing => true,
            Self::StartFailed
            | Self::TrainerOom
            | Self::ModelCorrupt
            | Self::DatasetInvalid
            | Self::ConfigInvalid
            | Self::Diverged
            | Self::DiskFull
            | Self::DeletedExternally
            | Self::DeadlineExceeded
            | Self::Internal => false,
        }
    }
}

/// Cause of a failure with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Failure {
    pub code: FailureCode,
    pub message: String,
}

/// Who trains a job. The names are those of the column `framework`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrainerKind {
    /// Hone starts its own trainer.
    #[default]
    Candle,
    /// Somebody else's trainer, which its user starts and which reports here.
    External,
}

impl TrainerKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Candle => "candle",
            Self::External => "external",
        }
    }

    #[must_use]
    pub const fn is_candle(&self) -> bool {
        matches!(self, Self::Candle)
    }
}

/// Body of `POST /training/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(example = json!({"config": {"model": "hone-tiny", "dataset": "demo", "method": "sft", "lora": {"r": 16, "lora_alpha": 32},
    "training": {"num_train_epochs": 3, "learning_rate": 2e-4}}}))]
#[serde(deny_unknown_fields)]
pub struct CreateJob {
    /// A [`TrainingConfig`], kept as a value so that every error in it can be reported at once.
    #[schema(value_type = TrainingConfig)]
    pub config: serde_json::Value,
    /// Most attempts before the job fails; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Id of a GPU configuration, which has the price; this machine's processors when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_config: Option<String>,
    /// Most the job may cost, in the currency of its GPU configuration: it is paused before it costs more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_limit: Option<f64>,
    /// `external` for a trainer of your own: the reply says how it reports. `candle` when absent.
    #[serde(default, skip_serializing_if = "TrainerKind::is_candle")]
    pub trainer: TrainerKind,
}

/// Reply of `POST /training/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreatedJob {
    #[serde(flatten)]
    pub job: JobView,
    /// Of a job with an external trainer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalTrainer>,
}

/// What a trainer outside Hone needs in order to report. The token is told only here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExternalTrainer {
    /// Takes Kubeflow's `trainerStatus`: `KUBEFLOW_TRAINER_SERVER_URL` of Hugging Face Transformers.
    pub status_url: String,
    /// Takes `CallbackBatch`es.
    pub callback_url: String,
    pub storage_gateway_url: String,
    /// Where artifacts may be uploaded to.
    pub output_prefix: String,
    /// Bearer token for all of these. Secret.
    pub token: String,
    pub expires_at: DateTime<Utc>,
}

impl std::fmt::Debug for ExternalTrainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalTrainer")
            .field("status_url", &self.status_url)
            .field("token", &"[redacted]")
            .finish_non_exhaustive()
    }
}

/// Where training stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    pub step: u64,
    pub total_steps: Option<u64>,
    pub epoch: f64,
    /// What the trainer is doing now.
    pub phase: Option<crate::event::Phase>,
    pub loss: Option<f64>,
    pub eval_loss: Option<f64>,
    /// Validation loss before the first step.
    pub initial_eval_loss: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub eta_seconds: Option<f64>,
}

/// A job as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    pub id: JobId,
    pub name: String,
    pub state: JobState,
    pub model: String,
    pub model_revision: String,
    pub dataset: String,
    pub dataset_id: DatasetId,
    /// The package version it was launched from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    pub config: TrainingConfig,
    #[serde(default, skip_serializing_if = "TrainerKind::is_candle")]
    pub trainer: TrainerKind,
    pub attempt: u32,
    pub max_attempts: u32,
    pub progress: Progress,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Of a job that is paused or pausing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_config: Option<String>,
    pub cost: JobCost,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Last sign of life of the trainer.
    pub last_contact_at: Option<DateTime<Utc>>,
}

/// One file of a job's result, with where to get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArtifactView {
    /// Path below the artifact folder: `adapter_model.safetensors`.
    pub path: String,
    pub size: u64,
    pub sha256: String,
    /// Signed, valid for at most 15 minutes.
    pub url: String,
}

/// A stored checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckpointView {
    pub attempt: u32,
    pub step: u64,
    pub prefix: String,
    pub size: u64,
    pub created_at: DateTime<Utc>,
}

/// One point of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MetricPoint {
    pub attempt: u32,
    pub step: u64,
    pub epoch: f64,
    pub at: DateTime<Utc>,
    pub values: BTreeMap<String, f64>,
}

/// The model a trainer loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    pub name: String,
    pub revision: String,
    /// `models/{name}/{revision}/`; file keys are `prefix + path`.
    pub prefix: String,
    pub files: Vec<ModelFile>,
}

/// The data a trainer reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSpec {
    pub id: DatasetId,
    pub name: String,
    pub format: DatasetFormat,
    pub train: FileRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<FileRef>,
}

/// The adapter that `lora.init_from` names: what an earlier job made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSpec {
    pub job_id: JobId,
    /// Where that job's artifacts are; file keys are below it.
    pub prefix: String,
    /// The adapter's weights and configuration.
    pub files: Vec<FileRef>,
}

/// Everything a trainer needs to know, in `JOB_SPEC`. It holds no credentials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    pub job_id: JobId,
    pub user_id: UserId,
    pub attempt: u32,
    pub config: TrainingConfig,
    pub model: ModelSpec,
    pub dataset: DatasetSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterSpec>,
    /// `jobs/{user}/{job}/attempt-{n}/`: everything this attempt writes is below it.
    pub output_prefix: String,
    /// Prefix of a durable checkpoint (its `manifest.json` exists) to continue from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_from: Option<String>,
    pub heartbeat_seconds: u64,
}

/// Body of `POST {TRAINER_SERVICE_URL}/training/start`: run one attempt. The same contract as the environment of
/// [`crate::job_env`], for a trainer that is a service. Answers 201 [`TrainerRun`]; 200 when this (job, attempt)
/// was started before; 409 with `retry-after` when the trainer runs as many jobs as it may.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartTraining {
    pub job_id: JobId,
    pub attempt: u32,
    pub spec: JobSpec,
    pub callback_url: String,
    pub storage_gateway_url: String,
    /// Secret: scoped to this job and attempt.
    pub job_token: String,
}

impl std::fmt::Debug for StartTraining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartTraining")
            .field("job_id", &self.job_id)
            .field("attempt", &self.attempt)
            .field("callback_url", &self.callback_url)
            .field("job_token", &"[redacted]")
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainerRunState {
    /// The process lives (also while it stops).
    Running,
    /// The process was reaped; `exit_code` or `signal` says how it ended.
    Exited,
}

/// One attempt on a trainer service: reply of `POST /training/start`, `GET /training/{job}/{attempt}` (404 when it
/// never ran here) and `POST /training/{job}/{attempt}/stop` (SIGTERM, then SIGKILL; idempotent; poll for `exited`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainerRun {
    pub job_id: JobId,
    pub attempt: u32,
    pub state: TrainerRunState,
    pub pid: u32,
    /// See [`crate::job_env::exit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    pub started_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
}

/// Reply of a trainer service's `GET /models`: what it can train.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainerCapabilities {
    /// Entries of `architectures` in `config.json`, e.g. `LlamaForCausalLM`.
    pub architectures: Vec<String>,
    pub methods: Vec<crate::config::Method>,
    pub version: String,
    /// Attempts that may run at once, and that run now.
    pub capacity: usize,
    pub running: usize,
    /// Memory of the machine or control group; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}
