//! What goes wrong between the stub and its callers, by a seed.

use super::objects::{Objects, text};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Probabilities per request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// 429 with `Retry-After`.
    pub too_many: f64,
    /// 500, nothing done.
    pub error: f64,
    /// Done, and the connection breaks before the reply.
    pub lost_reply: f64,
    /// Somebody changes an object just before a patch of it: 409.
    pub conflict: f64,
    /// A watch breaks off after an event.
    pub drop_watch: f64,
    /// The past is forgotten before a watch begins: 410.
    pub expire: f64,
}

/// Seconds that a 429 asks for.
const RETRY_AFTER: u64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    TooMany { retry_after: u64 },
    Error,
    LostReply,
}

#[derive(Debug)]
pub struct State {
    faults: Faults,
    rng: StdRng,
    /// When a refused request may come again.
    refused: HashMap<(String, String), Instant>,
    pub impatient: u64,
}

impl State {
    pub fn new(seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { faults: Faults::default(), rng, refused: HashMap::new(), impatient: 0 }
    }

    pub fn set(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// What happens to a request to this path and query.
    pub fn meet(&mut self, verb: &str, path: &str) -> Option<Fault> {
        let key = (verb.to_owned(), path.to_owned());
        // A moment less: clocks and threads are not exact.
        let early = |at: &Instant| Instant::now() + Duration::from_millis(50) < *at;
        self.impatient += u64::from(self.refused.remove(&key).is_some_and(|at| early(&at)));
        let Faults { too_many, error, lost_reply, .. } = self.faults;
        let roll: f64 = self.rng.random();
        if roll < too_many {
            self.refused.insert(key, Instant::now() + Duration::from_secs(RETRY_AFTER));
            return Some(Fault::TooMany { retry_after: RETRY_AFTER });
        }
        match roll - too_many {
            rest if rest < error => Some(Fault::Error),
            // Nothing is lost with a reply to a question.
            rest if rest < error + lost_reply && !matches!(verb, "get" | "list" | "watch") => Some(Fault::LostReply),
            _ => None,
        }
    }

    pub fn drops_watch(&mut self) -> bool {
        self.rng.random_bool(self.faults.drop_watch)
    }

    pub fn expires(&mut self) -> bool {
        self.rng.random_bool(self.faults.expire)
    }

    /// Another controller is faster.
    pub fn interfere(&mut self, objects: &mut Objects, kind: &'static str, name: &str) {
        if !self.rng.random_bool(self.faults.conflict) {
            return;
        }
        if let Ok(mut object) = objects.get(kind, name) {
            let version = text(&object, "/metadata/resourceVersion").to_owned();
            object["metadata"]["annotations"]["example.com/touched"] = version.into();
            objects.update(kind, object);
        }
    }
}
