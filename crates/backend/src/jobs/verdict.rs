//! Why an attempt ended: exit records and reports become an [`Outcome`] and, for failures, a text that says
//! what happened, where, and what to do.

use super::{
    decide::{AttemptSnapshot, JobSnapshot, Runtime},
    policy::Policy,
};
use serde::{Deserialize, Serialize};
use wire::{
    event::StopReason,
    job::{Failure, FailureCode, JobState},
    job_env::exit,
};

/// How an attempt ended; stored once in `job_attempts.outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed,
    Cancelled,
    Paused,
    Preempted,
}

impl Outcome {
    pub const ALL: [Self; 5] = [Self::Succeeded, Self::Failed, Self::Cancelled, Self::Paused, Self::Preempted];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Paused => "paused",
            Self::Preempted => "preempted",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.as_str() == text)
    }
}

impl From<StopReason> for Outcome {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Cancelled => Self::Cancelled,
            StopReason::Paused => Self::Paused,
            StopReason::Preempted => Self::Preempted,
        }
    }
}

/// How a runtime came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Ending {
    Code {
        code: i32,
    },
    Signal {
        signal: i32,
        /// The kernel's out-of-memory killer struck while it ran.
        out_of_memory: bool,
    },
    /// The program could not be executed: why.
    StartFailed {
        reason: String,
    },
    /// It was called off before it was started.
    Withdrawn,
    /// The process is no longer there and nobody saw it end.
    Lost,
    /// Its machine was needed for something else, or had too little left.
    Evicted {
        cause: String,
    },
    /// It wrote more to its scratch directory than it may.
    OutOfDisk {
        cause: String,
    },
    /// The machine it ran on is gone or cannot be reached.
    NodeLost {
        cause: String,
    },
    /// It ran longer than an attempt may.
    DeadlineExceeded,
    /// Somebody deleted what it ran in.
    Deleted {
        what: String,
    },
}

/// The end of a runtime with what helps to explain it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub ending: Ending,
    /// Last lines the process wrote.
    pub log_tail: String,
    /// Largest resident size in bytes.
    pub peak_memory: Option<u64>,
    /// Bytes of memory it might use, when there was a limit of its own.
    pub memory_limit: Option<u64>,
}

impl Exit {
    #[must_use]
    pub const fn new(ending: Ending) -> Self {
        Self { ending, log_tail: String::new(), peak_memory: None, memory_limit: None }
    }

    #[must_use]
    pub const fn code(&self) -> Option<i32> {
        match self.ending {
            Ending::Code { code } => Some(code),
            Ending::Signal { signal, .. } => Some(128_i32.saturating_add(signal)),
            Ending::StartFailed { .. }
            | Ending::Withdrawn
            | Ending::Lost
            | Ending::Evicted { .. }
            | Ending::OutOfDisk { .. }
            | Ending::NodeLost { .. }
            | Ending::DeadlineExceeded
            | Ending::Deleted { .. } => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub outcome: Outcome,
    pub failure: Option<Failure>,
    pub exit_code: Option<i32>,
}

impl Verdict {
    fn failed(code: FailureCode, message: String) -> Self {
        Self { outcome: Outcome::Failed, failure: Some(Failure { code, message }), exit_code: None }
    }
}

/// Judges an attempt whose runtime is gone. What was reported counts more than how the process ended.
#[must_use]
pub fn of(job: &JobSnapshot, attempt: &AttemptSnapshot, exit: &Exit) -> Verdict {
    // A trainer that has to go says that it was preempted, whoever wants it to.
    let for_good = matches!(exit.ending, Ending::DeadlineExceeded | Ending::Deleted { .. });
    let outcome = attempt.outcome.filter(|outcome| !(for_good && *outcome == Outcome::Preempted));
    let reported = outcome.map(|outcome| reported(job, attempt, outcome));
    Verdict { exit_code: exit.code(), ..reported.unwrap_or_else(|| unreported(job, attempt, exit)) }
}

fn reported(job: &JobSnapshot, attempt: &AttemptSnapshot, outcome: Outcome) -> Verdict {
    let failure = match outcome {
        Outcome::Failed => attempt.failure.clone().or_else(|| {
            Some(Failure {
                code: FailureCode::Internal,
                message: format!("the trainer gave up {} without a reason", place(job, attempt)),
            })
        }),
        Outcome::Preempted => Some(preempted(job, attempt)),
        Outcome::Paused if job.state != JobState::Pausing => Some(preempted(job, attempt)),
        Outcome::Cancelled if job.state != JobState::Cancelling => Some(Failure {
            code: FailureCode::TrainerDied,
            message: format!("the trainer stopped {} as if cancelled, but nobody cancelled it", place(job, attempt)),
        }),
        Outcome::Paused | Outcome::Cancelled | Outcome::Succeeded => None,
    };
    Verdict { outcome, failure, exit_code: None }
}

fn unreported(job: &JobSnapshot, attempt: &AttemptSnapshot, exit: &Exit) -> Verdict {
    let at = place(job, attempt);
    let tail = tail(exit);
    match &exit.ending {
        Ending::StartFailed { reason } => Verdict::failed(
            FailureCode::StartFailed,
            format!("the trainer could not be started: {reason}; fix that and start the job again"),
        ),
        Ending::Withdrawn if job.state == JobState::Cancelling => {
            Verdict { outcome: Outcome::Cancelled, failure: None, exit_code: None }
        }
        Ending::Withdrawn if job.state == JobState::Pausing => {
            Verdict { outcome: Outcome::Paused, failure: None, exit_code: None }
        }
        Ending::Withdrawn => Verdict::failed(
            FailureCode::TrainerDied,
            "the attempt was called off before the trainer was started".into(),
        ),
        Ending::Lost => Verdict::failed(
            FailureCode::TrainerDied,
            format!(
                "the trainer disappeared {at}, and nothing recorded how; the machine may have been restarted or the trainer's supervisor killed{tail}"
            ),
        ),
        Ending::Signal { signal, out_of_memory: true } => Verdict::failed(
            FailureCode::TrainerOom,
            format!(
                "the kernel killed the trainer for memory ({}) {at}{}{}; lower training.per_device_train_batch_size or training.max_seq_length, or give it more memory{tail}",
                signal_name(*signal),
                peak(exit),
                limit(exit),
            ),
        ),
        Ending::Signal { signal, .. } => Verdict::failed(
            FailureCode::TrainerDied,
            format!(
                "the trainer was killed by {} {at}{}; {}{tail}",
                signal_name(*signal),
                peak(exit),
                match *signal {
                    libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP =>
                        "something outside Hone sent that signal: look into the system's log",
                    _ => "that is a crash of the trainer: report it with the log below",
                },
            ),
        ),
        Ending::Code { code } => by_code(job, attempt, *code, &tail),
        Ending::Evicted { .. }
        | Ending::OutOfDisk { .. }
        | Ending::NodeLost { .. }
        | Ending::DeadlineExceeded
        | Ending::Deleted { .. } => by_cluster(&exit.ending, &at, &tail),
    }
}

/// What a cluster does to a trainer.
fn by_cluster(ending: &Ending, at: &str, tail: &str) -> Verdict {
    match ending {
        Ending::Evicted { cause } => Verdict {
            outcome: Outcome::Preempted,
            failure: Some(Failure {
                code: FailureCode::Preempted,
                message: format!("the trainer had to leave its machine {at} ({cause}); the job continues from there"),
            }),
            exit_code: None,
        },
        Ending::OutOfDisk { cause } => Verdict::failed(
            FailureCode::DiskFull,
            format!("the trainer was ended {at} because it wrote more than it may ({cause}); raise KUBE_SCRATCH{tail}"),
        ),
        Ending::NodeLost { cause } => {
            Verdict::failed(FailureCode::TrainerDied, format!("the machine of the trainer was lost {at} ({cause})"))
        }
        Ending::Deleted { what } => Verdict::failed(
            FailureCode::DeletedExternally,
            format!(
                "{what} was deleted externally {at}, not by Hone; create the job again to go on, and cancel jobs in Hone"
            ),
        ),
        // Of a cluster only this is left.
        _ => Verdict::failed(
            FailureCode::DeadlineExceeded,
            format!("the trainer ran longer than an attempt may (KUBE_DEADLINE_SECONDS) and was ended {at}{tail}"),
        ),
    }
}

/// Why an attempt must not go on although something of it may still be there.
#[must_use]
pub fn doomed(job: &JobSnapshot, attempt: &AttemptSnapshot, exit: &Exit) -> Failure {
    unreported(job, attempt, exit).failure.unwrap_or_else(|| preempted(job, attempt))
}

fn by_code(job: &JobSnapshot, attempt: &AttemptSnapshot, code: i32, tail: &str) -> Verdict {
    let at = place(job, attempt);
    let died = |what: String| Verdict::failed(FailureCode::TrainerDied, what);
    match code {
        exit::SUCCEEDED => died(format!(
            "the trainer ended with success {at}, but its last reports never arrived, neither by callback nor in storage{tail}"
        )),
        exit::FATAL => Verdict::failed(
            FailureCode::Internal,
            format!(
                "the trainer gave up {at} for a reason that trying again does not change (exit code {code}), and its report never arrived{tail}"
            ),
        ),
        exit::RETRYABLE => Verdict::failed(
            FailureCode::StorageUnavailable,
            format!(
                "the trainer gave up {at} because storage or network stayed unreachable (exit code {code}); check the storage gateway{tail}"
            ),
        ),
        exit::CANCELLED | exit::PAUSED | exit::PREEMPTED => {
            let outcome = match code {
                exit::CANCELLED => Outcome::Cancelled,
                exit::PAUSED => Outcome::Paused,
                _ => Outcome::Preempted,
            };
            reported(job, attempt, outcome)
        }
        exit::FENCED => died(format!("the trainer was told that another one owns this attempt and left {at}{tail}")),
        101 => died(format!(
            "the trainer panicked {at} (exit code 101); that is a defect: report it with the log below{tail}"
        )),
        _ => died(format!("the trainer ended with exit code {code} {at}, without a report{tail}")),
    }
}

fn preempted(job: &JobSnapshot, attempt: &AttemptSnapshot) -> Failure {
    Failure {
        code: FailureCode::Preempted,
        message: format!(
            "the trainer was asked to leave its machine {}; the job continues from there",
            place(job, attempt)
        ),
    }
}

/// Why an attempt that says nothing is fenced.
#[must_use]
pub fn silence(job: &JobSnapshot, attempt: &AttemptSnapshot, policy: &Policy, runtime: &Runtime) -> Failure {
    let process = match runtime {
        Runtime::Alive => "its process was alive, so it hung or could not reach the backend",
        Runtime::Unknown => "whether its process lives could not be found out",
        Runtime::Waiting => "it still waits for a machine",
        Runtime::NotStarted | Runtime::Gone(_) | Runtime::Doomed(_) => "no process of it was found",
    };
    if attempt.claimed {
        return Failure {
            code: FailureCode::LeaseExpired,
            message: format!(
                "no word from the trainer for {} s {}; {process}",
                policy.lease.as_secs(),
                place(job, attempt)
            ),
        };
    }
    let code = if *runtime == Runtime::NotStarted { FailureCode::StartFailed } else { FailureCode::LeaseExpired };
    Failure {
        code,
        message: format!(
            "the trainer did not report within {} s of its start; {process}; check that it can reach BACKEND_BASE_URL",
            policy.claim.as_secs()
        ),
    }
}

/// A job that claims to run an attempt which does not exist.
#[must_use]
pub fn without_attempt() -> Verdict {
    Verdict::failed(FailureCode::Internal, "the job's current attempt is not recorded; create the job again".into())
}

#[must_use]
pub fn broken_artifacts(what: &str) -> Verdict {
    Verdict::failed(
        FailureCode::ArtifactMissing,
        format!("the trainer finished, but its artifacts are not in storage as promised: {what}"),
    )
}

/// The failure of a job that has no attempt left.
#[must_use]
pub fn exhausted(failure: Failure, job: &JobSnapshot) -> Failure {
    if job.max_attempts <= 1 {
        return failure;
    }
    let message = format!("gave up after {} attempts; the last one: {}", job.attempt, failure.message);
    Failure { message, ..failure }
}

/// `at step 41 of attempt 2 (last durable checkpoint: step 40)`.
fn place(job: &JobSnapshot, attempt: &AttemptSnapshot) -> String {
    let saved = match attempt.checkpoint_step {
        Some(step) => format!("last durable checkpoint: step {step}"),
        None => "no checkpoint of this attempt is durable".into(),
    };
    match job.step {
        0 => format!("before the first step of attempt {}", job.attempt),
        step => format!("at step {step} of attempt {} ({saved})", job.attempt),
    }
}

fn peak(exit: &Exit) -> String {
    exit.peak_memory.map(|bytes| format!(", having used up to {} MiB", bytes >> 20)).unwrap_or_default()
}

fn limit(exit: &Exit) -> String {
    exit.memory_limit.map(|bytes| format!(", with a limit of {} MiB", bytes >> 20)).unwrap_or_default()
}

fn tail(exit: &Exit) -> String {
    match exit.log_tail.trim_end() {
        "" => String::new(),
        text => format!("\nlast lines of the trainer's log:\n{text}"),
    }
}

/// `signal 9 (SIGKILL)`.
#[must_use]
pub fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => format!("signal {number} ({signal})"),
        Err(_) => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: JobState) -> (JobSnapshot, AttemptSnapshot) {
        let attempt =
            AttemptSnapshot { epoch: 1, claimed: true, checkpoint_step: Some(40), ..AttemptSnapshot::default() };
        let job = JobSnapshot {
            state,
            attempt: 2,
            max_attempts: 3,
            epoch: 1,
            retry_at: None,
            lease_expires_at: None,
            step: 41,
            current: Some(attempt.clone()),
        };
        (job, attempt)
    }

    fn judge(ending: Ending) -> Verdict {
        let (job, attempt) = job(JobState::Running);
        of(
            &job,
            &attempt,
            &Exit { ending, log_tail: "the last line".into(), peak_memory: Some(300 << 20), memory_limit: None },
        )
    }

    #[test]
    fn every_exit_code_of_the_contract_has_its_meaning() {
        let code = |code| judge(Ending::Code { code }).failure.map(|f| f.code);
        assert_eq!(code(exit::SUCCEEDED), Some(FailureCode::TrainerDied), "success without a report is none");
        assert_eq!(code(exit::FATAL), Some(FailureCode::Internal));
        assert_eq!(code(exit::RETRYABLE), Some(FailureCode::StorageUnavailable));
        assert_eq!(code(exit::CANCELLED), Some(FailureCode::TrainerDied), "nobody cancelled");
        assert_eq!(code(exit::PAUSED), Some(FailureCode::Preempted), "nobody paused");
        assert_eq!(code(exit::FENCED), Some(FailureCode::TrainerDied));
        assert_eq!(code(exit::PREEMPTED), Some(FailureCode::Preempted));
        assert_eq!(code(101), Some(FailureCode::TrainerDied));
    }

    #[test]
    fn a_killed_trainer_is_explained_with_signal_place_and_log() {
        let failure = judge(Ending::Signal { signal: libc::SIGKILL, out_of_memory: false }).failure.unwrap();
        assert_eq!(failure.code, FailureCode::TrainerDied);
        assert_eq!(
            failure.message,
            "the trainer was killed by signal 9 (SIGKILL) at step 41 of attempt 2 (last durable checkpoint: step 40), having used up to 300 MiB; something outside Hone sent that signal: look into the system's log\nlast lines of the trainer's log:\nthe last line"
        );
    }

    #[test]
    fn running_out_of_memory_is_not_tried_again_and_says_what_to_lower() {
        let failure = judge(Ending::Signal { signal: libc::SIGKILL, out_of_memory: true }).failure.unwrap();
        assert_eq!(failure.code, FailureCode::TrainerOom);
        assert!(!failure.code.is_retryable());
        assert!(failure.message.contains("lower training.per_device_train_batch_size"), "{}", failure.message);
    }

    #[test]
    fn what_was_reported_counts_more_than_how_the_process_ended() {
        let (job, mut attempt) = job(JobState::Running);
        attempt.outcome = Some(Outcome::Failed);
        attempt.failure = Some(Failure { code: FailureCode::Diverged, message: "loss is NaN".into() });
        let verdict = of(&job, &attempt, &Exit::new(Ending::Signal { signal: libc::SIGKILL, out_of_memory: false }));
        assert_eq!(verdict.failure.map(|f| f.message).as_deref(), Some("loss is NaN"));
        assert_eq!(verdict.exit_code, Some(137));
    }
}
