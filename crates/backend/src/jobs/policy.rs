//! The times and limits of the job machinery, read once from the environment.

use crate::costs::alerts::Thresholds;
use service::{Env, EnvError};
use std::time::Duration;

/// How long things may take. All durations are measured by the database clock unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Without a heartbeat for this long an attempt is fenced.
    pub lease: Duration,
    /// How often a trainer reports; told to it in its job spec.
    pub heartbeat: Duration,
    /// How long a started trainer may take to send its first callback.
    pub claim: Duration,
    /// The same two for a trainer outside Hone, which somebody has to start and which reports when it likes.
    pub external_lease: Duration,
    pub external_claim: Duration,
    /// Wait before the second attempt; doubles with every further one.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// From SIGTERM to SIGKILL when a user cancels or an attempt is fenced.
    pub kill_grace: Duration,
    /// How long a trainer may take to reach a durable checkpoint after a pause request.
    pub pause: Duration,
    /// From SIGTERM to SIGKILL when a pause request was not followed in time.
    pub pause_grace: Duration,
    /// From SIGTERM to SIGKILL for a trainer whose job is over already.
    pub linger: Duration,
    /// Jobs that may have a trainer at the same time.
    pub max_concurrent: u32,
    /// Jobs of one user that may be unfinished at the same time.
    pub max_unfinished: u32,
    /// A live stream whose client takes nothing for this long is dropped.
    pub slow_client: Duration,
    /// How often the reconciler looks at everything, hints or not.
    pub tick: Duration,
    /// Shares of a budget at which its owner is told.
    pub alerts: Thresholds,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(45),
            heartbeat: Duration::from_secs(10),
            claim: Duration::from_secs(120),
            external_lease: Duration::from_secs(600),
            external_claim: Duration::from_secs(24 * 3600),
            retry_first: Duration::from_secs(5),
            retry_max: Duration::from_secs(300),
            kill_grace: Duration::from_secs(2),
            pause: Duration::from_secs(600),
            pause_grace: Duration::from_secs(60),
            linger: Duration::from_secs(15),
            max_concurrent: 1,
            max_unfinished: 1000,
            slow_client: Duration::from_secs(10),
            tick: Duration::from_secs(1),
            alerts: Thresholds::default(),
        }
    }
}

impl Policy {
    /// The rules for a trainer outside Hone.
    #[must_use]
    pub const fn external(self) -> Self {
        Self { lease: self.external_lease, claim: self.external_claim, ..self }
    }

    /// Reads `LEASE_SECONDS`, `HEARTBEAT_SECONDS`, `CLAIM_SECONDS`, `EXTERNAL_LEASE_SECONDS`, `EXTERNAL_CLAIM_SECONDS`,
    /// `RETRY_SECONDS`, `SLOW_CLIENT_SECONDS`, `MAX_CONCURRENT_JOBS`, `MAX_UNFINISHED_JOBS` and `BUDGET_ALERTS`.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let base = Self::default();
        let policy = Self {
            lease: seconds(env, "LEASE_SECONDS", base.lease)?,
            heartbeat: seconds(env, "HEARTBEAT_SECONDS", base.heartbeat)?,
            claim: seconds(env, "CLAIM_SECONDS", base.claim)?,
            external_lease: seconds(env, "EXTERNAL_LEASE_SECONDS", base.external_lease)?,
            external_claim: seconds(env, "EXTERNAL_CLAIM_SECONDS", base.external_claim)?,
            retry_first: seconds(env, "RETRY_SECONDS", base.retry_first)?,
            slow_client: seconds(env, "SLOW_CLIENT_SECONDS", base.slow_client)?,
            max_concurrent: env.parse_or("MAX_CONCURRENT_JOBS", base.max_concurrent)?,
            max_unfinished: env.parse_or("MAX_UNFINISHED_JOBS", base.max_unfinished)?,
            alerts: Thresholds::from_env(env)?,
            ..base
        };
        let invalid = |name: &str, value: String, reason: &str| {
            Err(EnvError::Invalid { name: name.into(), value, reason: reason.into() })
        };
        if policy.max_concurrent == 0 {
            return invalid("MAX_CONCURRENT_JOBS", "0".into(), "at least one job must be allowed to run");
        }
        if policy.heartbeat.is_zero() || policy.heartbeat * 2 > policy.lease {
            let reason = "it must be at least 1 and at most half of LEASE_SECONDS";
            return invalid("HEARTBEAT_SECONDS", policy.heartbeat.as_secs().to_string(), reason);
        }
        Ok(policy)
    }

    /// Wait before the attempt after `attempt`: exponential, with up to a quarter more by `jitter` (0 to 1).
    #[must_use]
    pub fn retry_delay(&self, attempt: u32, jitter: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(16);
        let wait = self.retry_first.saturating_mul(1 << doublings).min(self.retry_max);
        wait.mul_f64(1.0 + 0.25 * jitter.clamp(0.0, 1.0))
    }
}

fn seconds(env: &Env, name: &str, default: Duration) -> Result<Duration, EnvError> {
    Ok(env.parse::<u32>(name)?.map_or(default, |s| Duration::from_secs(s.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_exponentially_up_to_a_bound() {
        let policy = Policy::default();
        let waits: Vec<u64> = [1, 2, 3, 30].map(|n| policy.retry_delay(n, 0.0).as_secs()).into();
        assert_eq!(waits, [5, 10, 20, 300]);
        assert_eq!(policy.retry_delay(1, 1.0), Duration::from_millis(6250));
    }

    #[test]
    fn a_heartbeat_longer_than_half_a_lease_is_refused() {
        let env: Env = [("LEASE_SECONDS", "10"), ("HEARTBEAT_SECONDS", "9")].into_iter().collect();
        let error = Policy::from_env(&env).unwrap_err().to_string();
        assert!(error.contains("at most half of LEASE_SECONDS"), "{error}");
    }
}
