//! Every stable code with its cause and what to do about it: what `docs/errors.md` and `/docs/errors` show.

use crate::{job::FailureCode, job_env::exit, problem::Code};

/// Why something happens, and what to do about it; sentences without a final period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    pub cause: &'static str,
    pub remedy: &'static str,
}

const fn advice(cause: &'static str, remedy: &'static str) -> Advice {
    Advice { cause, remedy }
}

impl Code {
    #[must_use]
    pub const fn advice(self) -> Advice {
        match self {
            Self::Unauthorized => advice(
                "No bearer token, a key that was revoked or has expired, or a token of another provider",
                "Send `Authorization: Bearer KEY`; `hone keys create` makes a key, `connection.json` has that of this machine",
            ),
            Self::Forbidden => advice(
                "The caller is known but this is not for it: an administrator's operation, or a prefix outside the job",
                "Ask an administrator, or use the key of one",
            ),
            Self::InsufficientScope => {
                advice("The key was made for less", "Make a key with the scope that the detail names")
            }
            Self::NotFound => advice(
                "A misspelt name or id, something deleted, or something of another user",
                "Compare with the list; the detail names near matches. An upload session lives 24 hours: open a new one",
            ),
            Self::MethodNotAllowed => advice("The right path with another method", "Use one of those in `Allow`"),
            Self::Conflict => advice(
                "The thing is in a state that does not allow this, or parts of an upload are missing",
                "Read it again and act on what it is now; the detail says what stands in the way",
            ),
            Self::Invalid => advice(
                "A field is missing, misspelt or out of range, or a body broke off",
                "Correct what `errors` names; do not send the same again",
            ),
            Self::PreconditionFailed => {
                advice("Two people or tabs edit the same draft", "Merge with `current` and send its revision")
            }
            Self::PreconditionRequired => {
                advice("The request would overwrite blindly", "Read first and send `If-Match` with the revision read")
            }
            Self::TooLarge => advice(
                "The file is over the limit for its kind",
                "Make it smaller, or raise DATASET_MAX_BYTES or MODEL_MAX_BYTES",
            ),
            Self::StaleAttempt => advice(
                "The trainer was replaced (its lease ran out, or the job was cancelled), or a second process runs it",
                "None: the process exits with 68 by itself",
            ),
            Self::Unsupported => advice(
                "The method does not train this architecture or kind of data",
                "Choose what `errors` names: another method, model or dataset",
            ),
            Self::InsufficientMemory => advice(
                "Model, batch and sequence length need more than TRAINER_MEMORY_BYTES or the machine has",
                "Take the settings that `errors` names, or a trainer with more memory",
            ),
            Self::DatasetInvalid => advice(
                "Lines that are no JSON, roles or fields that are missing, bad UTF-8, lines over the limit, an archive",
                "Correct the lines that `errors` names; `hone datasets validate FILE` checks before an upload",
            ),
            Self::ModelCorrupt => advice(
                "A truncated or damaged file, pickled weights, or a configuration that is no model's",
                "Fetch the model again and import it; convert pickled weights to safetensors",
            ),
            Self::ChecksumMismatch => advice(
                "The bytes changed on the way or in storage, or the file changed while it was uploaded",
                "Upload again; when it repeats, look for a faulty disk, memory or proxy",
            ),
            Self::Overloaded => {
                advice("More work at once than this service takes", "Wait as long as `Retry-After` says and try again")
            }
            Self::RateLimited => advice(
                "More requests from one key or address than RATE_LIMIT_PER_MINUTE",
                "Wait as long as `Retry-After` says; use pages and streams instead of asking often",
            ),
            Self::Unavailable => advice(
                "Database, storage gateway, object store or trainer service is down, full or cannot be reached",
                "Try again in a moment; `hone doctor` and `/ready` name the service, its log the reason",
            ),
            Self::TargetNotServed => advice("The deploy target is planned but not there yet", "Choose another target"),
            Self::Internal => advice("A defect", "Report it with the trace id and the log around it"),
        }
    }
}

impl FailureCode {
    pub const ALL: [Self; 16] = [
        Self::StartFailed,
        Self::TrainerDied,
        Self::TrainerOom,
        Self::LeaseExpired,
        Self::ModelCorrupt,
        Self::DatasetInvalid,
        Self::ConfigInvalid,
        Self::Diverged,
        Self::DiskFull,
        Self::ChecksumMismatch,
        Self::StorageUnavailable,
        Self::Preempted,
        Self::ArtifactMissing,
        Self::DeletedExternally,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// As it is written on the wire.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// What it tells, in a sentence without a final period.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::StartFailed => "The trainer could not be started",
            Self::TrainerDied => "The trainer's process ended without a word",
            Self::TrainerOom => "The trainer needed more memory than there is",
            Self::LeaseExpired => "The trainer was silent for longer than its lease",
            Self::ModelCorrupt => "The files of the model, or of a checkpoint, cannot be used",
            Self::DatasetInvalid => "Rows of the dataset cannot be used",
            Self::ConfigInvalid => "The configuration does not fit model or data",
            Self::Diverged => "Loss, gradients or weights are not finite any more",
            Self::DiskFull => "The trainer's disk has no room; the message says what is needed and what there is",
            Self::ChecksumMismatch => "A file arrived with another digest than promised, twice",
            Self::StorageUnavailable => "Storage stayed out of reach for longer than the retries",
            Self::Preempted => "The trainer was asked to leave its machine",
            Self::ArtifactMissing => "A promised file is not in storage, or another one",
            Self::DeletedExternally => "Somebody deleted the trainer's Kubernetes Job, past Hone",
            Self::DeadlineExceeded => "The attempt ran longer than it may",
            Self::Internal => "A defect",
        }
    }

    #[must_use]
    pub const fn advice(self) -> Advice {
        match self {
            Self::StartFailed => advice(
                "The program or image is missing or cannot be executed, or nothing reported within CLAIM_SECONDS",
                "Correct what the message names (TRAINER_BIN, BACKEND_BASE_URL), then start the job again",
            ),
            Self::TrainerDied => advice(
                "A signal from outside Hone, a crash, or a restart of the machine",
                "None needed while attempts are left: the next one goes on from the last checkpoint. Else read the log in the message",
            ),
            Self::TrainerOom => advice(
                "The kernel or the GPU refused memory; the message has the peak",
                "Lower per_device_train_batch_size or max_seq_length, turn on gradient_checkpointing, or give it more memory; it is not tried again by itself",
            ),
            Self::LeaseExpired => advice(
                "A hung process, or a network that is split between trainer and backend",
                "None needed while attempts are left; check that the trainer reaches BACKEND_BASE_URL",
            ),
            Self::ModelCorrupt => {
                advice("Damaged or unsupported files", "Import the model again; the message names the file")
            }
            Self::DatasetInvalid => {
                advice("Rows that this method cannot train on", "Correct the rows that the message names, upload again")
            }
            Self::ConfigInvalid => advice(
                "A setting that only model and data together decide",
                "Change the setting that the message names",
            ),
            Self::Diverged => advice(
                "A learning rate that is too high, or no warm-up",
                "Lower learning_rate or lengthen the warm-up; the last finite checkpoint is kept",
            ),
            Self::DiskFull => advice(
                "Models, data and checkpoints of SCRATCH_DIR are larger than its disk",
                "Free some space or set SCRATCH_DIR to a larger disk, then start the job again; the last checkpoint is kept",
            ),
            Self::ChecksumMismatch => advice(
                "The stored object was changed or the network alters data",
                "None needed while attempts are left; else upload the file again",
            ),
            Self::StorageUnavailable => advice(
                "The gateway or the object store is down or refuses",
                "None needed while attempts are left; check both, then resume",
            ),
            Self::Preempted => {
                advice("SIGTERM: a shutdown, or somebody needs the machine", "None: it goes on from its checkpoint")
            }
            Self::ArtifactMissing => advice(
                "Somebody deleted inputs or results of a job that still runs",
                "Upload again, or start the job with inputs that exist",
            ),
            Self::DeletedExternally => advice(
                "kubectl, a clean-up script or an operator deleted it; to stop a job, cancel it in Hone",
                "Create the job again; its checkpoints are kept",
            ),
            Self::DeadlineExceeded => advice(
                "KUBE_DEADLINE_SECONDS, or deadline_seconds of the job's GPU configuration",
                "Train less in one job or raise the limit; the last checkpoint is kept",
            ),
            Self::Internal => advice("A defect of the trainer", "Report it with the job's log"),
        }
    }
}

/// Exit codes of `hone-trainer run`: number, meaning, and what follows.
pub const EXITS: [(i32, &str, &str); 7] = [
    (exit::SUCCEEDED, "Trained, stored, reported", "The job is verified and succeeds"),
    (exit::FATAL, "Failed for a reason that stays", "The job fails with the reported failure code"),
    (exit::RETRYABLE, "Failed for a reason that may pass", "The next attempt goes on from the last checkpoint"),
    (exit::CANCELLED, "Cancelled", "The job is cancelled"),
    (exit::PAUSED, "Paused after a durable checkpoint", "Resuming makes the next attempt"),
    (exit::FENCED, "Another attempt or process owns the job", "Nothing: what this one did does not count"),
    (exit::PREEMPTED, "SIGTERM, after a durable checkpoint", "The next attempt follows at once"),
];
