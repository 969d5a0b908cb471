//! The job's states: which may follow which.

use wire::JobState;

/// Whether a job in `from` may become `to`. The single truth about transitions.
#[must_use]
pub const fn can(from: JobState, to: JobState) -> bool {
    use JobState::{
        Cancelled, Cancelling, Failed, Finalizing, Paused, Pausing, Queued, RetryWait, Running, Starting, Succeeded,
        Validating,
    };
    match from {
        Validating => matches!(to, Queued | Failed | Cancelled),
        Queued => matches!(to, Starting | Paused | Cancelled),
        Starting => matches!(to, Running | Pausing | Cancelling | RetryWait | Failed),
        Running => matches!(to, Finalizing | Pausing | Cancelling | RetryWait | Failed),
        Finalizing => matches!(to, Succeeded | Cancelling | RetryWait | Failed),
        RetryWait => matches!(to, Queued | Paused | Cancelled),
        Pausing => matches!(to, Paused | Finalizing | Cancelling | Failed),
        Paused => matches!(to, Queued | Cancelled),
        Cancelling => matches!(to, Cancelled),
        Succeeded | Failed | Cancelled => false,
    }
}

/// The states from which a job may become `to`.
#[must_use]
pub fn sources(to: JobState) -> Vec<JobState> {
    JobState::ALL.into_iter().filter(|from| can(*from, to)).collect()
}

/// Whether an attempt of the job may have a runtime.
#[must_use]
pub const fn has_runtime(state: JobState) -> bool {
    matches!(
        state,
        JobState::Starting | JobState::Running | JobState::Pausing | JobState::Cancelling | JobState::Finalizing
    )
}
