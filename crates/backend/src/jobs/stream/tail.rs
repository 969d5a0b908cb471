//! The newest messages of a job, read from the log once for all who watch it.

use super::{PAGE, POLL, hub::Hub, job_state, page};
use crate::{db::Conn, db::Db, error::Result};
use bytestring::ByteString;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::sync::watch;
use wire::{
    JobId, UserId,
    event::{StreamBody, StreamMessage},
};

/// Messages kept for clients that are a little behind; who is further behind reads the log.
const KEPT: usize = 512;

/// A message as every client gets it.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    pub id: i64,
    /// The [`StreamMessage`] as JSON, shared by all connections.
    pub text: ByteString,
    /// Nothing follows it: the job's last state.
    pub last: bool,
}

impl Line {
    pub fn new(message: &StreamMessage) -> Result<Self> {
        let last = matches!(&message.body, StreamBody::State { state, .. } if state.is_terminal());
        Ok(Self { id: message.id, text: serde_json::to_string(message)?.into(), last })
    }
}

/// What there is after a message.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    Lines(Vec<Arc<Line>>),
    /// More than is kept: read the log.
    Behind,
    /// Nothing yet, or nothing any more.
    Caught {
        over: bool,
    },
}

/// The end of one job's log. Lives as long as somebody holds it.
#[derive(Debug)]
pub struct Tail {
    kept: Mutex<Kept>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Kept {
    /// Every message after this one is in `lines`; none before the first look.
    from: Option<i64>,
    lines: VecDeque<Arc<Line>>,
    over: bool,
}

impl Tail {
    /// Reads on for as long as the tail is held.
    pub fn start(db: Db, hub: Arc<Hub>, user: UserId, job: JobId) -> Arc<Self> {
        let kept = Mutex::new(Kept { from: None, lines: VecDeque::new(), over: false });
        let tail = Arc::new(Self { kept, changed: watch::Sender::new(()) });
        tokio::spawn(follow(db, hub, (user, job), Arc::downgrade(&tail)));
        tail
    }

    /// Changes whenever there may be more.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    #[must_use]
    pub fn after(&self, last: i64) -> After {
        let kept = self.kept();
        match kept.from {
            None => After::Behind,
            Some(from) if last < from => After::Behind,
            Some(_) => {
                let lines: Vec<_> =
                    kept.lines.iter().skip(kept.lines.partition_point(|l| l.id <= last)).cloned().collect();
                if lines.is_empty() { After::Caught { over: kept.over } } else { After::Lines(lines) }
            }
        }
    }

    fn newest(&self) -> Option<i64> {
        let kept = self.kept();
        kept.lines.back().map(|line| line.id).or(kept.from)
    }

    fn extend(&self, from: i64, lines: Vec<Arc<Line>>, over: bool) {
        let mut kept = self.kept();
        kept.from.get_or_insert(from);
        kept.over = over;
        kept.lines.extend(lines);
        while kept.lines.len() > KEPT {
            kept.from = kept.lines.pop_front().map(|line| line.id);
        }
        drop(kept);
        self.changed.send_replace(());
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(db: Db, hub: Arc<Hub>, (user, job): (UserId, JobId), tail: Weak<Tail>) {
    let mut more = hub.subscribe(job);
    loop {
        more.borrow_and_update();
        loop {
            let Some(tail) = tail.upgrade() else { return };
            let known = tail.newest();
            let read = async move |conn: &mut Conn| {
                // The state first: what is stored after it was read cannot make it terminal.
                let over = job_state(conn, job).await?.is_terminal();
                let Some(known) = known else {
                    return Ok((newest(conn, job).await?, over, Vec::new()));
                };
                Ok((known, over, page(conn, job, known, PAGE).await?))
            };
            let read = db.tenant(user, read).await;
            let read = read.and_then(|(from, over, messages)| {
                Ok((from, over, messages.iter().map(|m| Line::new(m).map(Arc::new)).collect::<Result<Vec<_>>>()?))
            });
            match read {
                Ok((from, over, lines)) => {
                    let full = i64::try_from(lines.len()).is_ok_and(|n| n == PAGE);
                    // The first look only says where the tail begins.
                    let again = full || known.is_none();
                    if again || over || !lines.is_empty() {
                        tail.extend(from, lines, over && !again);
                    }
                    if !again {
                        break;
                    }
                }
                // The database is away; clients keep their connections and miss nothing.
                Err(error) => {
                    tracing::debug!(job.id = %job, error = %service::error::chain(&error), "cannot read the event log");
                    break;
                }
            }
        }
        tokio::select! {
            _ = more.changed() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

async fn newest(conn: &mut Conn, job: JobId) -> Result<i64> {
    use crate::schema::job_events;
    use diesel::prelude::*;
    use diesel_async::RunQueryDsl;
    let id = job_events::table.filter(job_events::job_id.eq(job.0)).select(diesel::dsl::max(job_events::id));
    Ok(id.first::<Option<i64>>(conn).await?.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(ids: std::ops::RangeInclusive<i64>) -> Vec<Arc<Line>> {
        ids.map(|id| Arc::new(Line { id, text: ByteString::new(), last: false })).collect()
    }

    fn tail() -> Tail {
        let kept = Mutex::new(Kept { from: None, lines: VecDeque::new(), over: false });
        Tail { kept, changed: watch::Sender::new(()) }
    }

    #[test]
    fn who_is_further_behind_than_what_is_kept_reads_the_log() {
        let tail = tail();
        assert_eq!(tail.after(0), After::Behind, "before the first look");
        tail.extend(10, vec![], false);
        assert_eq!(tail.after(9), After::Behind);
        assert_eq!(tail.after(10), After::Caught { over: false });
        let many = i64::try_from(KEPT).unwrap() + 20;
        tail.extend(10, lines(11..=many), false);
        assert_eq!(tail.after(19), After::Behind);
        let After::Lines(rest) = tail.after(20) else { panic!("kept") };
        assert_eq!((rest.len(), rest[0].id), (KEPT, 21));
        assert_eq!(tail.after(many), After::Caught { over: false });
        tail.extend(many, vec![], true);
        assert_eq!(tail.after(many), After::Caught { over: true });
    }
}
