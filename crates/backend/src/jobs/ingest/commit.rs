//! Group commit: submissions that arrive while a transaction runs share the next one, so that a busy backend waits for
//! the disk once for many trainers. A quiet one commits each at once.
//!
//! Invariants: a submission is answered after the COMMIT of the transaction it was in; one that cannot be applied does
//! not keep the others of its group from being applied.

use super::{
    Submission,
    apply::{self, Applied, Fate},
    count, ingest,
    rows::Held,
};
use crate::{
    db::Db,
    error::{Error, Result},
    jobs::policy::Policy,
};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wire::{JobId, problem::Code};

/// Submissions that may wait; their bodies are in memory.
const QUEUE: usize = 512;
/// Most submissions and, but for a last one that is larger, most events in one transaction.
const GROUP: usize = 256;
const GROUP_EVENTS: usize = 4000;
/// Below both, a group does not begin beside another one.
const SMALL: usize = 64;
const SMALL_EVENTS: usize = 1000;
/// Transactions at a time: one gathers and sends while the other waits for the disk.
const TRANSACTIONS: usize = 2;
/// Longest wait for a place in the queue; then 503, and the trainer tries again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes submissions. Cheap to clone; clones share the queue.
#[derive(Debug, Clone)]
pub struct Committer {
    queue: mpsc::Sender<Waiting>,
}

/// A submission and who waits for its outcome.
#[derive(Debug)]
pub struct Waiting {
    submission: Submission,
    done: oneshot::Sender<Result<Applied>>,
}

impl Committer {
    /// With the receiver for [`run`].
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Waiting>) {
        let (queue, submissions) = mpsc::channel(QUEUE);
        (Self { queue }, submissions)
    }

    /// Returns after COMMIT.
    pub async fn submit(&self, submission: Submission) -> Result<Applied> {
        let (done, outcome) = oneshot::channel();
        let sent = self.queue.send_timeout(Waiting { submission, done }, PATIENCE).await;
        sent.map_err(|_| {
            Error::refused(Code::Unavailable, "too many events wait to be stored; send again in a moment")
        })?;
        // Dropped with its transaction when the backend stops; nothing is acknowledged then.
        outcome.await.unwrap_or_else(|_| Err(Error::refused(Code::Unavailable, "the backend is stopping; send again")))
    }
}

/// Applies submissions until `stop`.
pub async fn run(db: Db, policy: Policy, mut submissions: mpsc::Receiver<Waiting>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(TRANSACTIONS));
    let mut later = VecDeque::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let group = tokio::select! {
            group = gather(&mut submissions, &mut later, &places) => group,
            () = stop.cancelled() => return,
        };
        if group.is_empty() {
            return;
        }
        let db = db.clone();
        tokio::spawn(async move {
            let left = commit(&db, &policy, group).await;
            drop(place);
            alone(&db, &policy, left).await;
        });
    }
}

/// The next group: every job at most once, what comes too early stays in `later`. While another transaction runs, a small
/// group waits for more, or for that one's end: many small transactions cost more than a few large ones. Empty when nobody
/// can submit any more.
async fn gather(
    submissions: &mut mpsc::Receiver<Waiting>,
    later: &mut VecDeque<Waiting>,
    places: &Semaphore,
) -> Vec<Waiting> {
    let mut group = Group::default();
    if later.is_empty() {
        later.extend(submissions.recv().await);
    }
    loop {
        group.fill(submissions, later);
        if group.waiting.len() >= SMALL || group.events >= SMALL_EVENTS || later.len() >= QUEUE {
            break;
        }
        tokio::select! {
            biased;
            // The caller holds one place; that there is another means that nothing runs.
            _ = places.acquire() => break,
            more = submissions.recv() => match more {
                Some(more) => later.push_back(more),
                None => break,
            },
        }
    }
    group.waiting
}

#[derive(Debug, Default)]
struct Group {
    waiting: Vec<Waiting>,
    jobs: HashSet<JobId>,
    events: usize,
}

impl Group {
    /// Takes what is there, and leaves in `later` what is of a job that it has.
    fn fill(&mut self, submissions: &mut mpsc::Receiver<Waiting>, later: &mut VecDeque<Waiting>) {
        let mut early = VecDeque::new();
        while self.waiting.len() < GROUP && self.events < GROUP_EVENTS && early.len() < QUEUE {
            let Some(next) = later.pop_front().or_else(|| submissions.try_recv().ok()) else { break };
            if self.jobs.insert(next.submission.whose.job) {
                self.events = self.events.saturating_add(next.submission.batch.events.len());
                self.waiting.push(next);
            } else {
                early.push_back(next);
            }
        }
        early.append(later);
        *later = early;
    }
}

/// Answers all but the ones it returns: those have to be applied alone.
async fn commit(db: &Db, policy: &Policy, group: Vec<Waiting>) -> Vec<Waiting> {
    metrics::histogram!("callback_group_size").record(u32::try_from(group.len()).map_or(f64::MAX, f64::from));
    let submissions: Vec<&Submission> = group.iter().map(|w| &w.submission).collect();
    let submissions = submissions.as_slice();
    let fates = db.system(async move |conn| apply::apply_group(conn, submissions, policy, Held::LeaveOut).await).await;
    let mut left = Vec::new();
    match fates {
        Ok(fates) => {
            service::fail_point!("ingest.after_commit");
            for (waiting, fate) in group.into_iter().zip(fates) {
                match fate {
                    Fate::Applied(applied) => {
                        count(&applied);
                        answer(waiting.done, Ok(applied));
                    }
                    Fate::Refused(error) => answer(waiting.done, Err(error)),
                    Fate::LeftOut => left.push(waiting),
                }
            }
        }
        // The others would wait for the same database, one after the other.
        Err(Error::DatabaseDown(cause)) => {
            let cause = service::error::chain(cause.as_ref());
            for waiting in group {
                answer(waiting.done, Err(Error::DatabaseDown(cause.clone().into())));
            }
        }
        Err(error) => {
            tracing::warn!(error = %service::error::chain(&error), "a group of callbacks failed; applying each alone");
            left = group;
        }
    }
    left
}

/// Each in a transaction of its own.
async fn alone(db: &Db, policy: &Policy, all: Vec<Waiting>) {
    for Waiting { submission, done } in all {
        answer(done, ingest(db, &submission, policy).await);
    }
}

/// Who has hung up meanwhile sends the batch again and is told then.
fn answer(done: oneshot::Sender<Result<Applied>>, outcome: Result<Applied>) {
    let _ = done.send(outcome);
}
