//! A job's event log as a live stream: what is stored first, then what comes, each message once, in order.
//!
//! A client names the last id it has (`?after=`, `Last-Event-ID`) and gets everything after it, so a broken
//! connection costs nothing. Clients read the log in pages until they reach its tail, which is read once for all
//! of them; notifications only say that there is more. So a stream holds at most one page of its own, and a slow
//! client slows nobody but itself, and not for long.

pub mod hub;
pub mod logs;
pub mod sse;
pub mod tail;
pub mod ws;

use crate::{
    db::{Conn, Db},
    error::{Error, Result},
    schema::{job_events, training_jobs},
};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use hub::Hub;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tail::{After, Line, Tail};
use tokio::sync::mpsc;
use wire::{JobId, JobState, UserId, event::StreamMessage, problem::Code};

/// Messages read at once.
const PAGE: i64 = 200;
/// Messages between the reader of the log and the connection.
const BUFFER: usize = 32;
/// Looks into the log without being told, in case a notification was lost.
pub const POLL: Duration = Duration::from_secs(5);
/// Between messages, to keep proxies from closing the connection and to notice clients that are gone.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a connection passes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Message(Arc<Line>),
    /// The job is over and everything was sent.
    End,
}

/// The messages of a job after `after`, oldest first, at most `limit`.
pub async fn page(conn: &mut Conn, job: JobId, after: i64, limit: i64) -> Result<Vec<StreamMessage>> {
    let rows: Vec<(i64, i32, Value)> = job_events::table
        .filter(job_events::job_id.eq(job.0))
        .filter(job_events::id.gt(after))
        .order(job_events::id)
        .limit(limit)
        .select((job_events::id, job_events::attempt, job_events::body))
        .load(conn)
        .await?;
    rows.into_iter()
        .map(|(id, attempt, body)| {
            let attempt = u32::try_from(attempt).unwrap_or_default();
            Ok(StreamMessage { id, job_id: job, attempt, body: serde_json::from_value(body)? })
        })
        .collect()
}

/// The job's state, for a user who may see it.
pub async fn job_state(conn: &mut Conn, job: JobId) -> Result<JobState> {
    let row = training_jobs::table.find(job.0).filter(training_jobs::deleted_at.is_null()).select(training_jobs::state);
    let state: Option<String> = row.first(conn).await.optional()?;
    let missing = || Error::refused(Code::NotFound, format!("no job {job}; `GET /training/jobs` lists yours"));
    state.ok_or_else(missing)?.parse().map_err(Error::defect)
}

/// Starts reading the log; fails when the user has no such job. Dropping the receiver ends it.
pub async fn open(db: &Db, hub: Arc<Hub>, user: UserId, job: JobId, after: i64) -> Result<mpsc::Receiver<Item>> {
    db.tenant(user, async move |conn| job_state(conn, job).await).await?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    let tail = hub.tail(db, user, job);
    let feed = Feed { db: db.clone(), tail, slow_client: hub.slow_client(), user, job, last: after, sender };
    tokio::spawn(feed.run());
    Ok(receiver)
}

struct Feed {
    db: Db,
    tail: Arc<Tail>,
    slow_client: Duration,
    user: UserId,
    job: JobId,
    last: i64,
    sender: mpsc::Sender<Item>,
}

impl Feed {
    async fn run(mut self) {
        metrics::gauge!("live_streams").increment(1.0);
        self.pass_on().await;
        metrics::gauge!("live_streams").decrement(1.0);
    }

    /// Until the job or the client is gone.
    async fn pass_on(&mut self) {
        let mut more = self.tail.subscribe();
        loop {
            more.borrow_and_update();
            let lines = match self.tail.after(self.last) {
                After::Lines(lines) => lines,
                After::Behind => match self.read().await {
                    Ok(lines) => lines,
                    // The database is away; the client keeps its connection and misses nothing.
                    Err(error) => {
                        tracing::debug!(job.id = %self.job, error = %service::error::chain(&error), "cannot read the event log");
                        Vec::new()
                    }
                },
                After::Caught { over: true } => {
                    self.send(Item::End).await;
                    return;
                }
                After::Caught { over: false } => Vec::new(),
            };
            let idle = lines.is_empty();
            for line in lines {
                let (id, last) = (line.id, line.last);
                if !self.send(Item::Message(line)).await {
                    return;
                }
                self.last = id;
                if last {
                    self.send(Item::End).await;
                    return;
                }
            }
            if idle {
                tokio::select! {
                    _ = more.changed() => {}
                    () = tokio::time::sleep(POLL) => {}
                    () = self.sender.closed() => return,
                }
            }
        }
    }

    /// A page of the log.
    async fn read(&self) -> Result<Vec<Arc<Line>>> {
        let (job, after) = (self.job, self.last);
        let messages = self.db.tenant(self.user, async move |conn| page(conn, job, after, PAGE).await).await?;
        messages.iter().map(|message| Line::new(message).map(Arc::new)).collect()
    }

    /// False when the client is gone or too slow; it resumes with the last id it got.
    async fn send(&self, item: Item) -> bool {
        match tokio::time::timeout(self.slow_client, self.sender.send(item)).await {
            Ok(sent) => sent.is_ok(),
            Err(_) => {
                metrics::counter!("slow_streams_dropped_total").increment(1);
                tracing::info!(job.id = %self.job, "dropped a client that does not read its stream");
                false
            }
        }
    }
}
