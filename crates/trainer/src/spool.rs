//! The event spool: what happened, in order, on local disk before it is sent anywhere.
//!
//! [`Spool::push`] is all the training thread ever calls: a bounded push under a mutex held for nanoseconds. A
//! writer thread takes what has gathered, gives each event its sequence number, appends the group to a segment
//! file, syncs once, and only then shows the events to the sender. A step never waits for a disk or a socket.
//!
//! **Bounds.** Both the queue and the undelivered backlog are bounded. Past a bound, *detail* (metrics without an
//! evaluation loss, phases, info logs) is refused **before it gets a sequence number**, so the sequence stays
//! gap-free, and the loss is announced by one warning event as soon as there is room, or before the last event.
//! *Essential* events (start, plan, checkpoints, evaluation, warnings, the outcome) are still admitted up to four
//! times the bound: they are few by nature. Events that storage already holds (see `report`) are forgotten first.
//!
//! **Failure.** A disk that cannot be written turns the spool into a memory queue with the same bounds and says so
//! in a warning event; training and reporting go on. Nothing is ever counted as delivered because of it.
//!
//! **Recovery.** Opening a spool that a killed process left behind continues its sequence and its identity (the
//! directory is locked, so two processes never share one) and cuts off an unfinished last line. That line was
//! never sent, because sending comes after the sync.

mod files;
#[cfg(test)]
mod tests;

pub use files::SpoolError;

use chrono::{SubsecRound, Utc};
use files::Files;
use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::Notify;
use wire::{
    Event, EventKind, InstanceId,
    event::{Level, MAX_BATCH, MAX_BATCH_BYTES, metric},
};

#[derive(Debug, Clone)]
pub struct SpoolConfig {
    pub dir: PathBuf,
    /// Bound on undelivered events in bytes.
    pub max_bytes: usize,
    /// Bound on events that wait for the writer.
    pub max_queue: usize,
}

impl SpoolConfig {
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir, max_bytes: 16 << 20, max_queue: 8192 }
    }
}

/// Longest text an event carries, in bytes: the bounds above hold for any message.
const MAX_TEXT: usize = 8 << 10;
/// Essential events may use this many times the bounds.
const ESSENTIAL_FACTOR: usize = 4;

/// An event that is not known to be delivered.
#[derive(Debug, Clone)]
struct Held {
    event: Event,
    /// Its JSON length.
    bytes: usize,
    /// Storage has it, or the backend refused it for good; kept in case the backend asks for it again.
    settled: bool,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<EventKind>,
    dropped: Dropped,
    closed: bool,
    acked: u64,
}

/// Detail refused since the last announcement.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Dropped {
    count: u64,
    steps: Option<(u64, u64)>,
}

impl Dropped {
    fn add(&mut self, kind: &EventKind) {
        self.count = self.count.saturating_add(1);
        if let EventKind::Metrics { step, .. } = kind {
            let (first, last) = self.steps.unwrap_or((*step, *step));
            self.steps = Some((first.min(*step), last.max(*step)));
        }
    }

    fn merge(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.steps = match (self.steps, other.steps) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
    }

    fn announcement(self) -> EventKind {
        let steps = self.steps.map(|(a, b)| format!(" (steps {a} to {b})")).unwrap_or_default();
        let message = format!(
            "{} metric and log events{steps} were not kept because the backend and storage did not take them in time; \
             training was not affected",
            self.count
        );
        EventKind::Log { level: Level::Warn, message }
    }
}

#[derive(Debug, Default)]
struct Backlog {
    held: VecDeque<Held>,
    bytes: usize,
    /// Highest sequence number given out and durable.
    last_seq: u64,
    /// Every event up to here was acknowledged by the backend.
    acked: u64,
}

#[derive(Debug)]
struct Shared {
    config: SpoolConfig,
    queue: Mutex<Queue>,
    wake_writer: Condvar,
    backlog: Mutex<Backlog>,
    /// Something to send.
    ready: Notify,
}

/// Handle of the spool; clones share it.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    instance: InstanceId,
}

/// The writer thread. Joining it after [`Spool::close`] proves that everything pushed was written.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Blocks until the queue is written out; call [`Spool::close`] first.
    pub fn join(self) {
        // A panic of the writer was logged by the panic hook; there is nothing to add.
        let _ = self.0.join();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// Opens or continues the spool in `config.dir` and starts its writer.
    ///
    /// # Errors
    /// Another process holds the directory. A directory that cannot be written is not an error: see the module.
    pub fn open(config: SpoolConfig) -> Result<(Self, Writer), SpoolError> {
        let (files, recovered) = Files::open(&config.dir)?;
        let mut backlog = Backlog {
            last_seq: recovered.last_seq,
            acked: recovered.events.first().map_or(recovered.last_seq, |e| e.seq.saturating_sub(1)),
            ..Backlog::default()
        };
        for event in recovered.events {
            let bytes = serde_json::to_string(&event).map_or(0, |s| s.len());
            backlog.bytes = backlog.bytes.saturating_add(bytes);
            backlog.held.push_back(Held { event, bytes, settled: false });
        }
        let shared = Arc::new(Shared {
            config,
            queue: Mutex::default(),
            wake_writer: Condvar::new(),
            backlog: Mutex::new(backlog),
            ready: Notify::new(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("spool".into())
            .spawn(move || write_loop(&for_thread, files))
            .map_err(SpoolError::Thread)?;
        Ok((Self { shared, instance: recovered.instance }, Writer(thread)))
    }

    #[must_use]
    pub const fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Takes an event without ever blocking on I/O; detail past the bounds is dropped and announced later.
    pub fn push(&self, kind: EventKind) {
        let kind = bounded(kind);
        let mut queue = lock(&self.shared.queue);
        let factor = if is_essential(&kind) { ESSENTIAL_FACTOR } else { 1 };
        if queue.closed || queue.events.len() >= self.shared.config.max_queue.saturating_mul(factor) {
            queue.dropped.add(&kind);
            return;
        }
        queue.events.push_back(kind);
        drop(queue);
        self.shared.wake_writer.notify_one();
    }

    /// No more events; the writer ends when the queue is written.
    pub fn close(&self) {
        lock(&self.shared.queue).closed = true;
        self.shared.wake_writer.notify_one();
    }

    /// Returns when something was written since the last call (or may have been).
    pub async fn ready(&self) {
        self.shared.ready.notified().await;
    }

    /// Up to `limit` (at most [`MAX_BATCH`]) consecutive events from `seq` on, within [`MAX_BATCH_BYTES`].
    #[must_use]
    pub fn batch(&self, seq: u64, limit: usize) -> Vec<Event> {
        // Leaves room for the envelope.
        let mut room = MAX_BATCH_BYTES - (4 << 10);
        let backlog = lock(&self.shared.backlog);
        let skip = backlog.held.partition_point(|h| h.event.seq < seq);
        backlog
            .held
            .iter()
            .skip(skip)
            .take(limit.clamp(1, MAX_BATCH))
            .enumerate()
            .take_while(|(i, h)| {
                let fits = h.bytes < room || *i == 0;
                room = room.saturating_sub(h.bytes.saturating_add(1));
                fits
            })
            .map(|(_, h)| h.event.clone())
            .collect()
    }

    /// Sequence number of the oldest event still held.
    #[must_use]
    pub fn first_held(&self) -> Option<u64> {
        lock(&self.shared.backlog).held.front().map(|h| h.event.seq)
    }

    /// Highest sequence number given out.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        lock(&self.shared.backlog).last_seq
    }

    /// Every event up to here was acknowledged by the backend.
    #[must_use]
    pub fn acked(&self) -> u64 {
        lock(&self.shared.backlog).acked
    }

    /// The backend has everything up to `seq`: forgets it. Returns the highest checkpoint step among it.
    pub fn ack(&self, seq: u64) -> Option<u64> {
        let mut backlog = lock(&self.shared.backlog);
        let seq = seq.min(backlog.last_seq);
        let mut checkpoint = None;
        while let Some(front) = backlog.held.front().filter(|h| h.event.seq <= seq) {
            let bytes = front.bytes;
            if let EventKind::Checkpoint { step, .. } = front.event.kind {
                checkpoint = checkpoint.max(Some(step));
            }
            backlog.bytes = backlog.bytes.saturating_sub(bytes);
            backlog.held.pop_front();
        }
        backlog.acked = backlog.acked.max(seq);
        drop(backlog);
        let mut queue = lock(&self.shared.queue);
        queue.acked = queue.acked.max(seq);
        drop(queue);
        self.shared.wake_writer.notify_one();
        checkpoint
    }

    /// Storage holds the events `first..=last`, or the backend refused them for good: they count as delivered and
    /// may be forgotten when room is needed.
    pub fn settle(&self, first: u64, last: u64) {
        let mut backlog = lock(&self.shared.backlog);
        for held in backlog.held.iter_mut().filter(|h| (first..=last).contains(&h.event.seq)) {
            held.settled = true;
        }
    }

    /// Whether every event so far is acknowledged, in storage, or refused for good.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        lock(&self.shared.backlog).held.iter().all(|h| h.settled)
    }
}

/// Whether an event is worth more than the bound.
fn is_essential(kind: &EventKind) -> bool {
    match kind {
        EventKind::Metrics { values, .. } => values.contains_key(metric::EVAL_LOSS),
        EventKind::Phase { .. } | EventKind::Progress { .. } | EventKind::Log { level: Level::Info, .. } => false,
        EventKind::Log { .. }
        | EventKind::Started { .. }
        | EventKind::Plan { .. }
        | EventKind::Checkpoint { .. }
        | EventKind::Finished { .. }
        | EventKind::Failed { .. }
        | EventKind::Stopped { .. } => true,
    }
}

fn is_last(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Finished { .. } | EventKind::Failed { .. } | EventKind::Stopped { .. })
}

/// Cuts long texts, and removes numbers JSON cannot carry (a NaN becomes `null`, which no reader takes).
fn bounded(mut kind: EventKind) -> EventKind {
    match &mut kind {
        EventKind::Metrics { values, .. } => values.retain(|_, v| v.is_finite()),
        EventKind::Log { message, .. } | EventKind::Phase { message, .. } => cut(message),
        EventKind::Failed { failure } => cut(&mut failure.message),
        _ => {}
    }
    kind
}

fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

fn write_loop(shared: &Shared, mut files: Files) {
    loop {
        let mut queue = lock(&shared.queue);
        // The timeout only bounds how long an acknowledged segment stays on disk.
        if queue.events.is_empty() && !queue.closed {
            queue = shared
                .wake_writer
                .wait_timeout(queue, Duration::from_secs(1))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let take = queue.events.len().min(MAX_BATCH);
        let group: Vec<EventKind> = queue.events.drain(..take).collect();
        let dropped = if group.is_empty() { Dropped::default() } else { std::mem::take(&mut queue.dropped) };
        let (acked, finished) = (queue.acked, queue.closed && queue.events.is_empty());
        drop(queue);
        files.discard(acked);
        if !group.is_empty() {
            append(shared, &mut files, group, dropped);
            shared.ready.notify_one();
        }
        if finished {
            shared.ready.notify_one();
            return;
        }
    }
}

/// Numbers and writes one group.
fn append(shared: &Shared, files: &mut Files, group: Vec<EventKind>, mut dropped: Dropped) {
    let mut fresh: VecDeque<Held> = VecDeque::new();
    let (mut seq, mut bytes) = {
        let mut backlog = lock(&shared.backlog);
        evict_settled(&mut backlog, shared.config.max_bytes);
        (backlog.last_seq, backlog.bytes)
    };
    let mut lines = String::new();
    let mut admit = |mut kind: EventKind, fresh: &mut VecDeque<Held>, bytes: &mut usize| {
        seq = seq.saturating_add(1);
        if let EventKind::Finished { last_seq, .. } = &mut kind {
            *last_seq = seq;
        }
        let event = Event { seq, at: Utc::now().trunc_subsecs(3), kind };
        // Events are plain data with string keys; serialising cannot fail.
        let json = serde_json::to_string(&event).unwrap_or_default();
        files::push_line(&mut lines, &json);
        *bytes = bytes.saturating_add(json.len());
        fresh.push_back(Held { event, bytes: json.len(), settled: false });
    };
    for kind in group {
        let factor = if is_essential(&kind) { ESSENTIAL_FACTOR } else { 1 };
        let full = bytes >= shared.config.max_bytes.saturating_mul(factor);
        if full && !is_last(&kind) {
            dropped.add(&kind);
            continue;
        }
        // Announced when half the room is free again, so that a full spool does not fill up with announcements.
        if dropped.count > 0 && (bytes < shared.config.max_bytes / 2 || is_last(&kind)) {
            admit(std::mem::take(&mut dropped).announcement(), &mut fresh, &mut bytes);
        }
        admit(kind, &mut fresh, &mut bytes);
    }
    if dropped.count > 0 {
        lock(&shared.queue).dropped.merge(dropped);
    }
    let first_failure = files.append(&lines, fresh.front().map_or(0, |h| h.event.seq));
    let mut backlog = lock(&shared.backlog);
    backlog.last_seq = seq;
    backlog.bytes = backlog.bytes.saturating_add(fresh.iter().map(|h| h.bytes).sum());
    backlog.held.append(&mut fresh);
    drop(backlog);
    if let Some(error) = first_failure {
        tracing::warn!(%error, "the event spool cannot be written; undelivered events are only in memory");
        let message =
            format!("the event spool cannot be written ({error}); undelivered events are kept in memory only");
        lock(&shared.queue).events.push_front(EventKind::Log { level: Level::Warn, message });
    }
}

/// Makes room by forgetting the oldest events that count as delivered.
fn evict_settled(backlog: &mut Backlog, max_bytes: usize) {
    while backlog.bytes > max_bytes {
        let Some(front) = backlog.held.front().filter(|h| h.settled) else { return };
        backlog.bytes = backlog.bytes.saturating_sub(front.bytes);
        backlog.held.pop_front();
    }
}
