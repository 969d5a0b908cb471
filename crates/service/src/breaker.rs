//! Circuit breakers: a service that failed again and again is left alone for a while.
//!
//! All clients of one service at one address in this process share a breaker. Its state is in the metrics, in the reply
//! of `/ready`, and in `hone doctor`.

use crate::client::ClientError;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

/// Every breaker in use, by service and address.
static ALL: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

type Known = BTreeMap<(&'static str, String), Weak<Breaker>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Calls go through.
    Closed,
    /// Calls fail at once.
    Open,
    /// The next call tries whether the service is back.
    HalfOpen,
}

/// A breaker as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub service: String,
    pub state: State,
    /// Failures in a row.
    pub failures: u32,
    /// Until the next try; only of an open one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
}

/// The breakers of this process in order of their names.
#[must_use]
pub fn all() -> Vec<View> {
    let mut all = lock(&ALL);
    all.retain(|_, breaker| breaker.strong_count() > 0);
    all.values().filter_map(Weak::upgrade).map(|breaker| breaker.view()).collect()
}

/// Opens after [`Breaker::LIMIT`] transient failures in a row; lets one call through every [`Breaker::REST`].
#[derive(Debug)]
pub struct Breaker {
    service: &'static str,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    pub const LIMIT: u32 = 8;
    pub const REST: Duration = Duration::from_secs(5);

    /// The breaker for `service` at `address`.
    #[must_use]
    pub fn of(service: &'static str, address: &str) -> Arc<Self> {
        let mut all = lock(&ALL);
        all.retain(|_, breaker| breaker.strong_count() > 0);
        let name = (service, address.to_owned());
        if let Some(known) = all.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        let fresh = Arc::new(Self { service, inner: Mutex::default() });
        all.insert(name, Arc::downgrade(&fresh));
        // So that a scrape shows it before anything happens.
        metrics::gauge!("circuit_breaker_open", "service" => service).set(0.0);
        fresh
    }

    pub fn check(&self) -> Result<(), ClientError> {
        let mut inner = lock(&self.inner);
        let Some(until) = inner.open_until else { return Ok(()) };
        let now = Instant::now();
        if now < until {
            return Err(ClientError::BreakerOpen { service: self.service, retry_in: until - now });
        }
        // Half open: this call probes, the others keep waiting.
        inner.open_until = now.checked_add(Self::REST);
        Ok(())
    }

    pub fn record(&self, ok: bool) {
        let mut inner = lock(&self.inner);
        let was_open = inner.open_until.is_some();
        if ok {
            *inner = Inner::default();
        } else {
            inner.failures = inner.failures.saturating_add(1);
            if inner.failures >= Self::LIMIT {
                inner.open_until = Instant::now().checked_add(Self::REST);
            }
        }
        let is_open = inner.open_until.is_some();
        drop(inner);
        if was_open == is_open {
            return;
        }
        let service = self.service;
        metrics::gauge!("circuit_breaker_open", "service" => service).set(f64::from(u8::from(is_open)));
        if is_open {
            metrics::counter!("circuit_breaker_opened_total", "service" => service).increment(1);
            tracing::warn!(service, "it failed {} times in a row; it is left alone for a while", Self::LIMIT);
        } else {
            tracing::info!(service, "it answers again");
        }
    }

    #[must_use]
    pub fn view(&self) -> View {
        let inner = lock(&self.inner);
        let left = inner.open_until.map(|until| until.saturating_duration_since(Instant::now()));
        let state = match left {
            None => State::Closed,
            Some(Duration::ZERO) => State::HalfOpen,
            Some(_) => State::Open,
        };
        let retry_in_ms = left.filter(|_| state == State::Open).and_then(|left| u64::try_from(left.as_millis()).ok());
        View { service: self.service.to_owned(), state, failures: inner.failures, retry_in_ms }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_repeated_failures_and_closes_on_success() {
        let breaker = Breaker::of("test", "http://a");
        for _ in 0..Breaker::LIMIT {
            assert!(breaker.check().is_ok());
            breaker.record(false);
        }
        assert!(matches!(breaker.check(), Err(ClientError::BreakerOpen { .. })));
        let seen = all().into_iter().find(|view| view.service == "test").unwrap();
        assert_eq!((seen.state, seen.failures), (State::Open, Breaker::LIMIT));
        assert!(seen.retry_in_ms.is_some_and(|ms| ms > 0 && ms <= 5000), "{seen:?}");
        // As if the rest were over: one call probes, the next one still waits.
        breaker.inner.lock().unwrap().open_until = Some(Instant::now());
        assert_eq!(breaker.view().state, State::HalfOpen);
        assert!(breaker.check().is_ok() && breaker.check().is_err());
        breaker.record(true);
        assert!(breaker.check().is_ok());
        assert_eq!(
            breaker.view(),
            View { service: "test".into(), state: State::Closed, failures: 0, retry_in_ms: None }
        );
    }

    #[test]
    fn clients_of_one_service_share_it_and_it_goes_with_the_last_of_them() {
        let (a, b, c) = (Breaker::of("shared", "x"), Breaker::of("shared", "x"), Breaker::of("shared", "y"));
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
        drop((a, b, c));
        assert!(all().iter().all(|view| view.service != "shared"));
    }
}
