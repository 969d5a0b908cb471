//! A test double of the backend's callback route: it stores events as the real one does, and misbehaves as told.

use actix_web::{App, HttpResponse, HttpServer, http::StatusCode, web};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::watch;
use wire::{CallbackBatch, CallbackReply, Directive, Event, EventKind, InstanceId};

/// What the backend does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    Accept,
    /// Stores the events, then breaks the connection in the middle of the reply.
    AcceptAndLoseReply,
    /// Answers with this status and stores nothing.
    Refuse(u16),
}

type Script = Box<dyn FnMut(&CallbackBatch) -> Reaction + Send>;

pub struct Ledger {
    /// What was acknowledged, or could have been.
    pub events: BTreeMap<u64, Event>,
    pub instance: Option<InstanceId>,
    pub batches: usize,
    pub heartbeats: usize,
    pub directive: Directive,
    /// The same seq came with other content: always a defect.
    pub conflicts: Vec<u64>,
    script: Script,
}

impl Ledger {
    /// Every event up to here is stored.
    pub fn contiguous(&self) -> u64 {
        (1..).take_while(|seq| self.events.contains_key(seq)).last().unwrap_or(0)
    }

    pub fn kinds(&self) -> Vec<&EventKind> {
        self.events.values().map(|e| &e.kind).collect()
    }

    pub fn last(&self) -> Option<&EventKind> {
        self.events.values().next_back().map(|e| &e.kind)
    }

    pub fn checkpoints(&self) -> Vec<(u64, String)> {
        let checkpoint = |kind: &&EventKind| match kind {
            EventKind::Checkpoint { step, prefix, .. } => Some((*step, prefix.clone())),
            _ => None,
        };
        self.kinds().iter().filter_map(checkpoint).collect()
    }
}

#[derive(Clone)]
pub struct Backend {
    pub url: String,
    ledger: Arc<Mutex<Ledger>>,
    changed: watch::Sender<u64>,
}

impl Backend {
    pub fn start() -> Self {
        Self::scripted(|_| Reaction::Accept)
    }

    pub fn scripted(script: impl FnMut(&CallbackBatch) -> Reaction + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/callback", listener.local_addr().unwrap());
        let ledger = Ledger {
            events: BTreeMap::new(),
            instance: None,
            batches: 0,
            heartbeats: 0,
            directive: Directive::Continue,
            conflicts: Vec::new(),
            script: Box::new(script),
        };
        let backend = Self { url, ledger: Arc::new(Mutex::new(ledger)), changed: watch::Sender::new(0) };
        let data = web::Data::new(backend.clone());
        std::thread::spawn(move || {
            let server = HttpServer::new(move || {
                App::new()
                    .app_data(data.clone())
                    .app_data(web::JsonConfig::default().limit(wire::event::MAX_BATCH_BYTES))
                    .route("/callback", web::post().to(callback))
            });
            actix_web::rt::System::new().block_on(server.workers(1).listen(listener).unwrap().run()).unwrap();
        });
        backend
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub fn direct(&self, directive: Directive) {
        self.ledger().directive = directive;
    }

    /// Waits until the ledger is as wanted.
    pub async fn until(&self, what: &str, mut wanted: impl FnMut(&Ledger) -> bool) {
        let mut changes = self.changed.subscribe();
        let waiting = async {
            while !wanted(&self.ledger()) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), waiting).await.is_err() {
            panic!("waited in vain for {what}; heard {:?}", self.ledger().kinds());
        }
    }

    /// Asserts what must hold at the end of every attempt, and returns the last event.
    pub fn assert_complete(&self) -> EventKind {
        let ledger = self.ledger();
        let count = u64::try_from(ledger.events.len()).unwrap();
        assert_eq!(ledger.contiguous(), count, "the sequence has a gap: {:?}", ledger.events.keys());
        assert_eq!(ledger.conflicts, Vec::<u64>::new());
        assert!(matches!(ledger.kinds().first(), Some(EventKind::Started { .. })));
        ledger.last().unwrap().clone()
    }
}

async fn callback(backend: web::Data<Backend>, batch: web::Json<CallbackBatch>) -> HttpResponse {
    let batch = batch.into_inner();
    let mut ledger = backend.ledger();
    assert!(batch.events.is_sorted_by(|a, b| a.seq + 1 == b.seq), "a batch has a hole");
    if ledger.instance.is_some_and(|owner| owner != batch.instance_id) {
        return HttpResponse::Gone().finish();
    }
    let reaction = if batch.events.is_empty() { Reaction::Accept } else { (ledger.script)(&batch) };
    if let Reaction::Refuse(status) = reaction {
        drop(ledger);
        backend.changed.send_modify(|n| *n += 1);
        return HttpResponse::build(StatusCode::from_u16(status).unwrap()).finish();
    }
    ledger.instance = Some(batch.instance_id);
    ledger.batches += 1;
    if batch.events.is_empty() {
        ledger.heartbeats += 1;
    }
    let mut gap = false;
    for event in batch.events {
        gap |= event.seq > ledger.contiguous() + 1;
        match ledger.events.get(&event.seq) {
            Some(known) if *known != event => ledger.conflicts.push(event.seq),
            _ if gap && event.kind.is_ordered() => {}
            _ => drop(ledger.events.insert(event.seq, event)),
        }
    }
    let acked_seq = ledger.contiguous();
    let reply = CallbackReply {
        directive: ledger.directive,
        acked_seq,
        resend_from: gap.then_some(acked_seq + 1),
        pause_in_ms: None,
    };
    drop(ledger);
    backend.changed.send_modify(|n| *n += 1);
    if reaction == Reaction::AcceptAndLoseReply {
        let broken = futures::stream::iter([Ok(Bytes::from_static(b"{\"dir")), Err(std::io::Error::other("cut"))]);
        return HttpResponse::Ok().content_type("application/json").streaming(broken);
    }
    HttpResponse::Ok().json(reply)
}
