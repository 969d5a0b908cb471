//! Sends the spool to the backend, in order, at least once, and hears the directives in the replies.
//!
//! - A task sends batches, a thread with a runtime and connections of its own heartbeats: neither a step that takes
//!   minutes nor file work that holds up the other tasks delays it.
//! - A batch that the backend does not take within the retry budget is written as an object under the attempt's
//!   `events/` prefix, where the backend's reconciler finds it, and counts as delivered.
//! - `422` splits the batch until the one event it is about is alone; that event is logged and skipped.
//! - `410` fences this process: the switch is raised and nothing is sent any more.
//! - A reply may say when the budget ends; the switch is raised then, whether the backend can be reached or not.
//! - Nothing here can fail training; the worst case is told to the caller of [`Reporter::finish`].

use crate::{
    control::{Deadline, Signal, Switch},
    gateway::Gateway,
    spool::{Spool, Writer},
};
use backon::BackoffBuilder;
use reqwest::Method;
use service::{Client, ClientConfig, ClientError, SecretString, client::RetryPolicy, error::chain};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::Instrument;
use wire::{CallbackBatch, CallbackReply, Event, EventKind, JobId, event::MAX_BATCH, layout};

/// For one callback, and when little time is left.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const HURRIED_TIMEOUT: Duration = Duration::from_millis(1500);
const HURRIED_WAIT: Duration = Duration::from_millis(250);

#[derive(Debug, Clone)]
pub struct ReportConfig {
    pub job_id: JobId,
    pub attempt: u32,
    pub callback_url: String,
    pub token: SecretString,
    /// Longest silence.
    pub heartbeat: Duration,
    /// How long events gather before a batch is sent.
    pub linger: Duration,
    /// For one batch, before it goes to storage.
    pub retry: RetryPolicy,
    /// `{output_prefix}events/`
    pub events_prefix: String,
}

#[derive(Debug)]
struct Shared {
    config: ReportConfig,
    client: Client,
    /// The heartbeat's: connections belong to the runtime that made them.
    pulse: Client,
    gateway: Gateway,
    spool: Spool,
    switch: Switch,
    last_contact: Mutex<Instant>,
    /// A heartbeat got through: whoever waits for a retry need not wait longer.
    contact: Notify,
    /// No more events will come.
    closing: watch::Sender<bool>,
    /// Once set, a failing backend gets one quick retry before a batch goes to storage.
    deadline: Deadline,
    /// Highest checkpoint step the backend acknowledged.
    checkpoint_acked: watch::Sender<Option<u64>>,
    /// When the budget asks for a pause, by the last reply.
    pause_at: watch::Sender<Option<Instant>>,
}

/// Two tasks, the heartbeat's thread, and the spool's writer.
#[derive(Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
    writer: Writer,
    sender: JoinHandle<()>,
    heart: Heart,
    timer: JoinHandle<()>,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Acked,
    Stored,
    /// Send again from here.
    Rewind(u64),
    /// The backend will never take this batch as it is.
    Rejected(String),
    Fenced,
    /// Neither the backend nor storage took it.
    Stuck,
}

impl Reporter {
    /// # Errors
    /// The HTTP clients cannot be built, or the thread not be started.
    pub fn start(
        config: ReportConfig,
        (spool, writer): (Spool, Writer),
        gateway: Gateway,
        switch: Switch,
        deadline: Deadline,
    ) -> anyhow::Result<Self> {
        let client = ClientConfig::new("backend", &config.callback_url)
            .bearer(config.token.clone())
            .retry(RetryPolicy::NONE)
            .timeout(CALL_TIMEOUT);
        let shared = Arc::new(Shared {
            client: Client::new(client.clone())?,
            pulse: Client::new(client)?,
            config,
            gateway,
            spool,
            switch,
            last_contact: Mutex::new(Instant::now()),
            contact: Notify::new(),
            closing: watch::Sender::new(false),
            deadline,
            checkpoint_acked: watch::Sender::new(None),
            pause_at: watch::Sender::new(None),
        });
        let sender = tokio::spawn(Sender::new(Arc::clone(&shared)).run().in_current_span());
        let heart = Heart::start(Arc::clone(&shared))?;
        let timer = tokio::spawn(mind_the_budget(Arc::clone(&shared)).in_current_span());
        Ok(Self { shared, writer, sender, heart, timer })
    }

    /// Highest checkpoint step the backend knows to be durable.
    #[must_use]
    pub fn checkpoint_acked(&self) -> watch::Receiver<Option<u64>> {
        self.shared.checkpoint_acked.subscribe()
    }

    /// Pushes the last event and delivers everything. `false`: some events are only on this machine, because
    /// neither backend nor storage took them within `budget`, or because this process is fenced.
    pub async fn finish(self, last: EventKind, budget: Duration) -> bool {
        self.shared.spool.push(last);
        self.shared.spool.close();
        let Self { shared, writer, mut sender, heart, timer } = self;
        timer.abort();
        let all = async {
            // The writer only has to write what is queued.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
            shared.closing.send_replace(true);
            let _ = (&mut sender).await;
        };
        let in_time = tokio::time::timeout(budget, all).await.is_ok();
        drop(heart);
        sender.abort();
        in_time && shared.spool.is_delivered()
    }

    /// Stops sending at once; what is not delivered stays in the spool's directory.
    pub fn abandon(self) {
        self.sender.abort();
        drop(self.heart);
        self.timer.abort();
        self.shared.spool.close();
    }
}

/// The heartbeat's thread; dropping it ends it.
#[derive(Debug)]
struct Heart {
    _stop: oneshot::Sender<()>,
}

impl Heart {
    fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let span = tracing::Span::current();
        std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let beat = async {
                tokio::select! {
                    () = heartbeats(shared) => {}
                    _ = stopped => {}
                }
            };
            runtime.block_on(beat.instrument(span));
        })?;
        Ok(Self { _stop: stop })
    }
}

async fn heartbeats(shared: Arc<Shared>) {
    loop {
        let due = shared.last_contact() + shared.config.heartbeat;
        if Instant::now() < due {
            tokio::time::sleep_until(due).await;
            continue;
        }
        match shared.post(&shared.pulse, Vec::new()).await {
            Ok(_) => shared.contact.notify_waiters(),
            Err(e) if e.status() == Some(410) => return shared.switch.raise(Signal::Fenced),
            Err(e) => {
                tracing::debug!(error = %chain(&e), "a heartbeat did not get through");
                tokio::time::sleep(shared.config.heartbeat).await;
            }
        }
    }
}

/// Raises the switch when the budget ends.
async fn mind_the_budget(shared: Arc<Shared>) {
    let mut due = shared.pause_at.subscribe();
    loop {
        let at = *due.borrow_and_update();
        let end = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end => return shared.switch.raise(Signal::Pause),
            changed = due.changed() => if changed.is_err() { return },
        }
    }
}

impl Shared {
    fn last_contact(&self) -> Instant {
        *self.last_contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends once and applies what the reply says about directives and acknowledgements.
    async fn post(&self, client: &Client, events: Vec<Event>) -> Result<CallbackReply, ClientError> {
        let batch = self.envelope(events);
        let timeout = if self.deadline.is_set() { HURRIED_TIMEOUT } else { CALL_TIMEOUT };
        let request = client.request(Method::POST, "")?.timeout(timeout).json(&batch);
        let response = client.send(request).await?;
        let reply: CallbackReply =
            response.json().await.map_err(|source| ClientError::Decode { service: "backend", source })?;
        *self.last_contact.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Some(step) = self.spool.ack(reply.acked_seq) {
            self.checkpoint_acked.send_modify(|known| *known = (*known).max(Some(step)));
        }
        let pause_in = reply.pause_in_ms.map(Duration::from_millis);
        self.pause_at.send_replace(pause_in.and_then(|wait| Instant::now().checked_add(wait)));
        self.switch.raise(reply.directive.into());
        Ok(reply)
    }

    fn envelope(&self, events: Vec<Event>) -> CallbackBatch {
        let ReportConfig { job_id, attempt, .. } = self.config;
        CallbackBatch { job_id, attempt, instance_id: self.spool.instance(), events }
    }

    async fn store(&self, events: Vec<Event>) -> Result<(), ClientError> {
        let (first, last) = (events.first().map_or(0, |e| e.seq), events.last().map_or(0, |e| e.seq));
        let key = format!("{}{}", self.config.events_prefix, layout::event_batch_name(first, last));
        // Plain data with string keys; serialising cannot fail.
        let body = serde_json::to_vec(&self.envelope(events)).unwrap_or_default();
        self.gateway.put_bytes(&key, body.into()).await?;
        self.spool.settle(first, last);
        tracing::warn!(%key, "the backend does not answer; events {first} to {last} were left in storage for it");
        Ok(())
    }
}

struct Sender {
    shared: Arc<Shared>,
    /// Next sequence number to send.
    cursor: u64,
    /// Events per batch; shrinks while looking for a rejected event.
    limit: usize,
    /// Last `resend_from` that was followed, and what was acknowledged then: following it again without progress
    /// would go round in circles.
    rewound: Option<(u64, u64)>,
}

impl Sender {
    fn new(shared: Arc<Shared>) -> Self {
        let cursor = shared.spool.first_held().unwrap_or_else(|| shared.spool.last_seq().saturating_add(1));
        Self { shared, cursor, limit: MAX_BATCH, rewound: None }
    }

    async fn run(mut self) {
        let mut closing = self.shared.closing.subscribe();
        loop {
            let batch = self.shared.spool.batch(self.cursor, self.limit);
            let (Some(first), Some(last)) = (batch.first().map(|e| e.seq), batch.last().map(|e| e.seq)) else {
                if *closing.borrow() {
                    return;
                }
                tokio::select! {
                    () = self.shared.spool.ready() => {}
                    _ = closing.changed() => {}
                }
                if !*closing.borrow() {
                    // The last events have nothing to wait for.
                    tokio::select! {
                        () = tokio::time::sleep(self.shared.config.linger) => {}
                        _ = closing.changed() => {}
                    }
                }
                continue;
            };
            match self.deliver(batch).await {
                Verdict::Acked | Verdict::Stored => {
                    self.cursor = last.saturating_add(1);
                    self.limit = self.limit.saturating_mul(2).min(MAX_BATCH);
                }
                Verdict::Rewind(seq) => self.cursor = seq,
                Verdict::Rejected(reason) if first == last => {
                    tracing::error!(seq = first, reason, "the backend refused this event for good; it is skipped");
                    self.shared.spool.settle(first, first);
                    self.cursor = last.saturating_add(1);
                }
                Verdict::Rejected(_) => {
                    let sent = usize::try_from(last - first).unwrap_or(MAX_BATCH).saturating_add(1);
                    self.limit = (sent / 2).max(1);
                }
                Verdict::Fenced => return,
                Verdict::Stuck => tokio::time::sleep(self.shared.config.retry.max_wait).await,
            }
        }
    }

    async fn deliver(&mut self, batch: Vec<Event>) -> Verdict {
        let shared = Arc::clone(&self.shared);
        let mut waits = shared.config.retry.backoff().build();
        let mut tries: u32 = 0;
        loop {
            tries = tries.saturating_add(1);
            match shared.post(&shared.client, batch.clone()).await {
                Ok(reply) => match self.judge(&batch, reply) {
                    Some(verdict) => return verdict,
                    None => {
                        tracing::warn!(acked = reply.acked_seq, "the backend took events but did not acknowledge them")
                    }
                },
                Err(e) if e.status() == Some(410) => {
                    shared.switch.raise(Signal::Fenced);
                    return Verdict::Fenced;
                }
                Err(e) if matches!(e.status(), Some(400 | 413 | 422)) => return Verdict::Rejected(e.to_string()),
                Err(e) => tracing::warn!(error = %chain(&e), "a progress report did not get through"),
            }
            let in_a_hurry = shared.deadline.is_set();
            let Some(wait) = waits.next().filter(|_| !in_a_hurry || tries < 2) else { break };
            let wait = if in_a_hurry { wait.min(HURRIED_WAIT) } else { wait };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shared.contact.notified() => {}
                _ = shared.deadline.announced(), if !in_a_hurry => {}
            }
        }
        match shared.store(batch).await {
            Ok(()) => Verdict::Stored,
            Err(e) => {
                tracing::warn!(error = %chain(&e), "storage did not take the progress report either; it is kept here");
                Verdict::Stuck
            }
        }
    }

    /// `None`: the backend took the batch without acknowledging it, which counts as a failed try.
    fn judge(&mut self, batch: &[Event], reply: CallbackReply) -> Option<Verdict> {
        let (first, last) = (batch.first()?.seq, batch.last()?.seq);
        if reply.acked_seq >= last {
            return Some(Verdict::Acked);
        }
        let wanted = reply.resend_from?.max(self.shared.spool.first_held()?);
        let step = (wanted, reply.acked_seq);
        if wanted > last || wanted == first || self.rewound == Some(step) {
            return None;
        }
        self.rewound = Some(step);
        Some(Verdict::Rewind(wanted))
    }
}
