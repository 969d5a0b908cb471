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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_over_stays_over_and_everything_else_can_end_every_way_it_should() {
        for from in JobState::ALL {
            let next: Vec<JobState> = JobState::ALL.into_iter().filter(|to| can(from, *to)).collect();
            assert_eq!(next.is_empty(), from.is_terminal(), "{from}");
            let cancel = if has_runtime(from) { JobState::Cancelling } else { JobState::Cancelled };
            let cancellable = from.is_terminal() || from == JobState::Cancelling || can(from, cancel);
            assert!(cancellable, "{from} cannot be cancelled");
        }
    }

    #[test]
    fn only_finalizing_leads_to_success_and_only_cancelling_a_runtime_to_cancelled() {
        assert_eq!(sources(JobState::Succeeded), [JobState::Finalizing]);
        let with_runtime: Vec<JobState> =
            sources(JobState::Cancelled).into_iter().filter(|s| has_runtime(*s)).collect();
        assert_eq!(with_runtime, [JobState::Cancelling]);
    }

    #[test]
    fn every_state_can_be_reached_from_the_first_one() {
        let mut reached = BTreeSet::from([JobState::Validating.as_str()]);
        for _ in JobState::ALL {
            for from in JobState::ALL.into_iter().filter(|s| reached.contains(s.as_str())).collect::<Vec<_>>() {
                reached.extend(JobState::ALL.into_iter().filter(|to| can(from, *to)).map(JobState::as_str));
            }
        }
        assert_eq!(reached.len(), JobState::ALL.len());
    }
}
