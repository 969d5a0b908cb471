//! What a transfer tells whoever shows it: how far it is, and whether storage makes trouble.

use crate::cache::human;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// How often progress is shown.
const EVERY: Duration = Duration::from_secs(5);

/// Bytes of a transfer. Shared by its parts.
#[derive(Debug)]
pub struct Transfer {
    pub done: Arc<AtomicU64>,
    pub total: AtomicU64,
    /// Why it does not get on now.
    trouble: watch::Sender<Option<String>>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self { done: Arc::default(), total: AtomicU64::new(0), trouble: watch::Sender::new(None) }
    }
}

impl Transfer {
    pub fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes got through. What counts is that there were some: the trouble is over.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.trouble.send_if_modified(|trouble| trouble.take().is_some());
    }

    /// Counts what is on its way.
    #[must_use]
    pub fn flight(&self) -> Flight<'_> {
        Flight { transfer: self, counter: Counter { done: Arc::clone(&self.done), sent: Arc::default() } }
    }

    /// Bytes that were counted have to be sent again.
    pub fn retract(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Something failed and is being tried again.
    pub fn retrying(&self, reason: &str) {
        self.trouble.send_if_modified(|trouble| {
            let fresh = trouble.is_none();
            if fresh {
                *trouble = Some(reason.to_owned());
            }
            fresh
        });
    }

    /// `3.2 MB of 20 MB`, and the trouble if there is any.
    #[must_use]
    pub fn describe(&self) -> String {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let trouble = self.trouble.borrow().as_ref().map(|why| format!("; storage retrying: {why}"));
        format!("{} of {}{}", human(done), human(total), trouble.unwrap_or_default())
    }
}

/// Bytes handed to the network; taken back when dropped, unless they arrived.
#[derive(Debug)]
pub struct Flight<'a> {
    transfer: &'a Transfer,
    counter: Counter,
}

/// Counts for a [`Flight`] from inside a body.
#[derive(Debug, Clone)]
pub struct Counter {
    done: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Counter {
    pub fn count(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Flight<'_> {
    #[must_use]
    pub fn counter(&self) -> Counter {
        self.counter.clone()
    }

    pub fn arrived(self) {
        self.counter.sent.store(0, Ordering::Relaxed);
        self.transfer.advance(0);
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.transfer.retract(self.counter.sent.swap(0, Ordering::Relaxed));
    }
}

/// Calls `show` with the progress every five seconds, and when trouble begins or ends, until dropped.
pub async fn show_progress(transfer: &Transfer, mut show: impl FnMut(String)) -> Infallible {
    let mut trouble = transfer.trouble.subscribe();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            // The sender lives as long as `transfer`, so waiting cannot fail.
            _ = trouble.changed() => {}
        }
        show(transfer.describe());
    }
}

/// Calls `tell` with the reason when trouble begins, until dropped.
pub async fn tell_trouble(transfer: &Transfer, mut tell: impl FnMut(&str)) -> Infallible {
    let mut trouble = transfer.trouble.subscribe();
    loop {
        // As above.
        let _ = trouble.changed().await;
        if let Some(why) = trouble.borrow_and_update().as_deref() {
            tell(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_arrive_is_not_counted() {
        let transfer = Transfer::default();
        for arrives in [false, true] {
            let flight = transfer.flight();
            flight.counter().count(7);
            assert_eq!(transfer.done.load(Ordering::Relaxed), 7);
            if arrives {
                flight.arrived();
            }
        }
        assert_eq!(transfer.done.load(Ordering::Relaxed), 7);
    }

    #[tokio::test]
    async fn trouble_is_told_once_and_ends_with_the_next_bytes() {
        let transfer = Transfer::default();
        transfer.expect(2_000_000);
        let mut told = Vec::new();
        let work = async {
            for reason in ["503 SlowDown", "500"] {
                transfer.retrying(reason);
                tokio::task::yield_now().await;
            }
            let shown = transfer.describe();
            transfer.advance(1_000_000);
            shown
        };
        let shown = tokio::select! {
            biased;
            never = tell_trouble(&transfer, |why| told.push(why.to_owned())) => match never {},
            shown = work => shown,
        };
        assert_eq!(told, ["503 SlowDown"]);
        assert_eq!(shown, "0 B of 2.0 MB; storage retrying: 503 SlowDown");
        assert_eq!(transfer.describe(), "1.0 MB of 2.0 MB");
    }
}
