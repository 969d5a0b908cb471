//! How often a key may ask, and how often an address may fail to sign in. In memory of this process: several backends
//! count apart. Trainers' callbacks are not limited.

use service::{Env, EnvError};
use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Most senders and addresses that are remembered.
const CAPACITY: usize = 50_000;

/// How much of something is allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub per_minute: u32,
    /// At once, after a pause.
    pub burst: u32,
}

/// Settings. None is no limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitsConfig {
    /// Requests of one key.
    pub requests: Option<Rate>,
    /// Failed sign-ins from one address.
    pub failures: Option<Rate>,
    /// Reverse proxies in front, which add the address they see to `X-Forwarded-For`.
    pub proxies: usize,
}

impl LimitsConfig {
    /// Reads `RATE_LIMIT_PER_MINUTE`, `RATE_LIMIT_BURST`, `AUTH_FAILURES_PER_MINUTE` and `TRUSTED_PROXIES`.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let rate = |per_minute: u32, burst: u32| (per_minute > 0).then_some(Rate { per_minute, burst: burst.max(1) });
        let requests: u32 = env.parse_or("RATE_LIMIT_PER_MINUTE", 6000)?;
        let failures: u32 = env.parse_or("AUTH_FAILURES_PER_MINUTE", 60)?;
        Ok(Self {
            requests: rate(requests, env.parse_or("RATE_LIMIT_BURST", requests / 6)?),
            failures: rate(failures, failures),
            proxies: env.parse_or("TRUSTED_PROXIES", 0)?,
        })
    }
}

/// One token bucket per key.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    /// Tokens at a time.
    levels: Mutex<HashMap<K, (f64, Instant)>>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, levels: Mutex::default() }
    }

    fn per_second(&self) -> f64 {
        f64::from(self.rate.per_minute) / 60.0
    }

    fn level(&self, (tokens, at): (f64, Instant), now: Instant) -> f64 {
        let gained = now.saturating_duration_since(at).as_secs_f64() * self.per_second();
        (tokens + gained).min(f64::from(self.rate.burst))
    }

    /// How long until there is a token, when there is none.
    fn missing(&self, level: f64) -> Option<Duration> {
        (level < 1.0).then(|| Duration::from_secs_f64((1.0 - level) / self.per_second()))
    }

    /// What [`Buckets::take`] would say.
    fn peek(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let level = levels.get(key).map_or(f64::from(self.rate.burst), |at| self.level(*at, now));
        self.missing(level).map_or(Ok(()), Err)
    }

    /// Takes a token, or says how long to wait for one.
    fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let full = f64::from(self.rate.burst);
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if levels.len() >= CAPACITY && !levels.contains_key(&key) {
            // A full bucket is as good as none.
            levels.retain(|_, at| self.level(*at, now) < full);
            if levels.len() >= CAPACITY {
                // Memory is bounded before everything else; whoever was limited gets one burst more.
                levels.clear();
            }
        }
        let bucket = levels.entry(key).or_insert((full, now));
        let level = self.level(*bucket, now);
        if let Some(wait) = self.missing(level) {
            return Err(wait);
        }
        *bucket = (level - 1.0, now);
        Ok(())
    }
}

/// The limits of this process.
#[derive(Debug)]
pub struct Limits {
    requests: Option<Buckets<Uuid>>,
    failures: Option<Buckets<IpAddr>>,
    /// Digests of credentials that were good lately: they are served whatever their neighbours do.
    good: Mutex<HashSet<Vec<u8>>>,
    pub proxies: usize,
}

impl Limits {
    #[must_use]
    pub fn new(config: &LimitsConfig) -> Self {
        Self {
            requests: config.requests.map(Buckets::new),
            failures: config.failures.map(Buckets::new),
            good: Mutex::default(),
            proxies: config.proxies,
        }
    }

    /// Counts a request; else how long to wait.
    pub fn request(&self, sender: Uuid) -> Result<(), Duration> {
        self.requests.as_ref().map_or(Ok(()), |buckets| buckets.take(sender, Instant::now()))
    }

    /// Whether a credential is worth looking at: the address has not failed too often, or the credential was good.
    pub fn may_try(&self, address: Option<IpAddr>, digest: &[u8]) -> Result<(), Duration> {
        let (Some(buckets), Some(address)) = (&self.failures, address) else { return Ok(()) };
        let waiting = buckets.peek(&address, Instant::now());
        if waiting.is_err() && self.good.lock().unwrap_or_else(PoisonError::into_inner).contains(digest) {
            return Ok(());
        }
        waiting
    }

    /// Notes how an attempt to sign in ended.
    pub fn tried(&self, address: Option<IpAddr>, digest: &[u8], good: bool) {
        let Some(buckets) = &self.failures else { return };
        let mut known = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good {
            if known.len() >= CAPACITY {
                known.clear();
            }
            if !known.contains(digest) {
                known.insert(digest.to_vec());
            }
        } else {
            known.remove(digest);
            if let Some(address) = address {
                // At the limit there is nothing more to take.
                let _ = buckets.take(address, Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(per_minute: u32, burst: u32) -> (Buckets<u32>, Instant) {
        (Buckets::new(Rate { per_minute, burst }), Instant::now())
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (buckets, start) = buckets(60, 3);
        assert!((0..3).all(|_| buckets.take(1, start).is_ok()));
        assert_eq!(buckets.take(1, start), Err(Duration::from_secs(1)));
        assert!(buckets.take(2, start).is_ok(), "another key has its own");
        assert!(buckets.take(1, start + Duration::from_secs(1)).is_ok());
        assert!(buckets.take(1, start + Duration::from_secs(1)).is_err());
        let later = start + Duration::from_secs(3600);
        assert!((0..3).all(|_| buckets.take(1, later).is_ok()));
        assert!(buckets.take(1, later).is_err(), "a pause gives no more than a burst");
    }

    #[test]
    fn memory_is_bounded_and_who_waits_is_kept() {
        let (buckets, start) = buckets(60, 2);
        assert!(buckets.take(u32::MAX, start).is_ok() && buckets.take(u32::MAX, start).is_ok());
        let capacity = u32::try_from(CAPACITY).unwrap();
        for key in 0..capacity - 1 {
            buckets.levels.lock().unwrap().insert(key, (2.0, start));
        }
        assert!(buckets.take(capacity, start).is_ok());
        assert!(buckets.levels.lock().unwrap().len() < 3);
        assert!(buckets.take(u32::MAX, start).is_err(), "the one without tokens is still without");
        for key in 0..3 * capacity {
            let _ = buckets.take(key, start);
            assert!(buckets.levels.lock().unwrap().len() <= CAPACITY);
        }
    }

    #[test]
    fn an_address_that_fails_is_stopped_and_a_good_credential_behind_it_is_not() {
        let failures = Some(Rate { per_minute: 60, burst: 2 });
        let limits = Limits::new(&LimitsConfig { requests: None, failures, proxies: 0 });
        let address = Some(IpAddr::from([192, 0, 2, 1]));
        limits.tried(address, b"good", true);
        limits.tried(address, b"bad", false);
        assert!(limits.may_try(address, b"bad").is_ok());
        limits.tried(address, b"bad", false);
        assert!(limits.may_try(address, b"bad").is_err() && limits.may_try(address, b"other").is_err());
        assert!(limits.may_try(address, b"good").is_ok());
        assert!(limits.may_try(Some(IpAddr::from([192, 0, 2, 2])), b"bad").is_ok());
        // A credential that stops being good is one like any other.
        limits.tried(address, b"good", false);
        assert!(limits.may_try(address, b"good").is_err());
    }
}
