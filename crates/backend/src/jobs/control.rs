//! What users ask of a job: start, cancel, pause, resume. Repeating a request that is already fulfilled (or
//! under way) succeeds and changes nothing.

use super::{
    policy::Policy,
    rows::JobRow,
    transition::{Change, Moved, OneMore},
};
use crate::{
    db::Conn,
    error::{Error, Result},
};
use wire::{
    JobId, JobState,
    cost::{Pause, PauseReason},
    problem::Code,
};

/// A user's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Start,
    Cancel,
    Pause,
    Resume,
}

/// validating → queued: the job's configuration, model and dataset are good.
pub async fn submit(conn: &mut Conn, job: JobId) -> Result<()> {
    // Counting is for the end of jobs.
    let _ = Change::to(JobState::Queued).apply_or_refuse(conn, job, JobState::Validating).await?;
    Ok(())
}

/// Does what the user wants as far as it can be done at once; the reconciler does the rest. Count the result
/// after COMMIT.
pub async fn request(conn: &mut Conn, job: JobId, wish: Wish, policy: &Policy) -> Result<Option<Moved>> {
    let row = JobRow::lock(conn, job).await?;
    let row =
        row.ok_or_else(|| Error::refused(Code::NotFound, format!("no job {job}; `GET /training/jobs` lists yours")))?;
    let from = row.state()?;
    if wish == Wish::Pause && row.is_external() && !from.is_terminal() {
        let detail =
            format!("job {job} is trained outside Hone, where it cannot be paused from here; cancel it instead");
        return Err(Error::refused(Code::Conflict, detail));
    }
    let mut change = match plan(from, wish, row.attempt > 0, policy) {
        Ok(Some(change)) => change,
        Ok(None) => return Ok(None),
        Err(reason) => return Err(Error::refused(Code::Conflict, format!("job {job} {reason}"))),
    };
    match change.target() {
        JobState::Queued => {
            if let Some(pause) = row.used_up()? {
                return Err(Error::refused(Code::Conflict, format!("job {job} is {from}: {}", pause.message)));
            }
        }
        JobState::Pausing | JobState::Paused => {
            let message = "somebody asked for it; resume the job to go on".into();
            change = change.pause(Pause { reason: PauseReason::Requested, message, limit: None });
        }
        _ => {}
    }
    change.apply_or_refuse(conn, job, from).await.map(Some)
}

/// The change that `wish` means for a job in `from`; None when nothing is to be done.
fn plan(from: JobState, wish: Wish, attempted: bool, policy: &Policy) -> Result<Option<Change>, String> {
    use JobState as S;
    let queue = || Ok(Some(Change::to(S::Queued).no_lease()));
    // A pause is the user's doing and costs no attempt.
    let again = || Ok(Some(Change::to(S::Queued).no_lease().one_more_attempt(OneMore::from(attempted))));
    let over = || Err(format!("is {from}; create a new job to train again"));
    match (wish, from) {
        (Wish::Cancel, S::Cancelled | S::Cancelling) => Ok(None),
        (Wish::Cancel, S::Validating | S::Queued | S::RetryWait | S::Paused) => {
            Ok(Some(Change::to(S::Cancelled).failure(None)))
        }
        (Wish::Cancel, S::Starting | S::Running | S::Finalizing | S::Pausing) => Ok(Some(Change::to(S::Cancelling))),
        (Wish::Cancel, S::Succeeded | S::Failed) => Err(format!("is {from} already and cannot be cancelled")),

        (Wish::Pause, S::Paused | S::Pausing) => Ok(None),
        (Wish::Pause, S::Queued | S::RetryWait) => Ok(Some(Change::to(S::Paused).no_lease())),
        (Wish::Pause, S::Starting | S::Running) => Ok(Some(Change::to(S::Pausing).timer(Some(policy.pause)))),
        (Wish::Pause, S::Validating | S::Finalizing | S::Cancelling | S::Succeeded | S::Failed | S::Cancelled) => {
            Err(format!("is {from} and cannot be paused"))
        }

        (Wish::Start, S::Validating) => queue(),
        (Wish::Start | Wish::Resume, S::Paused) => again(),
        (Wish::Start, S::RetryWait) => queue(),
        (Wish::Start | Wish::Resume, S::Queued | S::Starting | S::Running | S::Finalizing) => Ok(None),
        (Wish::Resume, S::RetryWait | S::Validating) => Ok(None),
        (Wish::Start | Wish::Resume, S::Pausing | S::Cancelling) => Err(format!("is {from}; wait until that is done")),
        (Wish::Start | Wish::Resume, S::Succeeded | S::Failed | S::Cancelled) => over(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::state::can;

    #[test]
    fn a_wish_never_asks_for_a_transition_the_table_forbids() {
        let policy = Policy::default();
        for from in JobState::ALL {
            for wish in [Wish::Start, Wish::Cancel, Wish::Pause, Wish::Resume] {
                if let Ok(Some(change)) = plan(from, wish, true, &policy) {
                    assert!(can(from, change.target()), "{wish:?} from {from} to {}", change.target());
                }
            }
        }
    }

    #[test]
    fn repeating_a_wish_changes_nothing() {
        let policy = Policy::default();
        for (wish, reached) in
            [(Wish::Cancel, JobState::Cancelled), (Wish::Pause, JobState::Paused), (Wish::Start, JobState::Queued)]
        {
            assert!(plan(reached, wish, true, &policy).unwrap().is_none());
        }
    }
}
