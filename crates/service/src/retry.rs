//! Every retry policy of Hone, by what is called. `docs/errors.md` shows this table.

use backon::ExponentialBuilder;
use std::time::Duration;

/// How often and how long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Before the second try; doubles from there, with jitter.
    pub first_wait: Duration,
    pub max_wait: Duration,
    /// Tries after the first one.
    pub retries: usize,
}

impl RetryPolicy {
    /// For calls inside a user's request: two more tries within about a second.
    pub const INTERACTIVE: Self =
        Self { first_wait: Duration::from_millis(100), max_wait: Duration::from_millis(500), retries: 2 };
    /// For background work: five more tries within about a minute.
    pub const BACKGROUND: Self =
        Self { first_wait: Duration::from_secs(1), max_wait: Duration::from_secs(30), retries: 5 };
    /// The gateway's calls to the object store: somebody waits for the answer.
    pub const OBJECT_STORE: Self =
        Self { first_wait: Duration::from_millis(100), max_wait: Duration::from_secs(2), retries: 4 };
    /// A trainer's transfers, counted from the last progress.
    pub const TRANSFER: Self =
        Self { first_wait: Duration::from_secs(1), max_wait: Duration::from_secs(30), retries: 8 };
    /// What the client of the Kubernetes API does by itself, within the 30 seconds of a call.
    pub const CLUSTER: Self =
        Self { first_wait: Duration::from_millis(5), max_wait: Duration::from_secs(30), retries: 15 };
    /// One batch of a trainer's reports, before it goes to storage instead.
    pub const CALLBACK: Self =
        Self { first_wait: Duration::from_secs(4), max_wait: Duration::from_secs(30), retries: 5 };
    /// Export of runs: as long as it takes, nobody waits for it.
    pub const EXPORT: Self =
        Self { first_wait: Duration::from_secs(1), max_wait: Duration::from_secs(30), retries: usize::MAX };
    pub const NONE: Self = Self { first_wait: Duration::ZERO, max_wait: Duration::ZERO, retries: 0 };

    #[must_use]
    pub fn backoff(self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.first_wait)
            .with_max_delay(self.max_wait)
            .with_max_times(self.retries)
            .with_jitter()
    }
}

/// Who calls whom, by which policy, and what happens when it is used up.
#[derive(Debug, Clone, Copy)]
pub struct Dependency {
    pub caller: &'static str,
    pub called: &'static str,
    pub policy: RetryPolicy,
    /// Whether a circuit breaker stands in front.
    pub breaker: bool,
    pub afterwards: &'static str,
}

/// The table. What retries by rows of the database (attempts of jobs, deliveries to webhooks) has its own schedule
/// there.
pub const DEPENDENCIES: [Dependency; 11] = [
    Dependency {
        caller: "backend",
        called: "storage gateway",
        policy: RetryPolicy::INTERACTIVE,
        breaker: true,
        afterwards: "`UNAVAILABLE`; reconcilers try again at their next look",
    },
    Dependency {
        caller: "gateway",
        called: "object store",
        policy: RetryPolicy::OBJECT_STORE,
        breaker: false,
        afterwards: "`UNAVAILABLE`; a read that broke off goes on where it broke, three times without progress",
    },
    Dependency {
        caller: "trainer",
        called: "backend, reports",
        policy: RetryPolicy::CALLBACK,
        breaker: true,
        afterwards: "the batch becomes an object below `events/`, which the backend reads",
    },
    Dependency {
        caller: "trainer",
        called: "backend, heartbeats",
        policy: RetryPolicy::NONE,
        breaker: true,
        afterwards: "the next one, a heartbeat later",
    },
    Dependency {
        caller: "trainer",
        called: "gateway and object store",
        policy: RetryPolicy::TRANSFER,
        breaker: true,
        afterwards: "inputs, results: `STORAGE_UNAVAILABLE`; checkpoints: a warning, training goes on",
    },
    Dependency {
        caller: "hone",
        called: "backend",
        policy: RetryPolicy::INTERACTIVE,
        breaker: true,
        afterwards: "exit code 5",
    },
    Dependency {
        caller: "hone",
        called: "object store",
        policy: RetryPolicy::BACKGROUND,
        breaker: false,
        afterwards: "exit code 5 or 1; the same command goes on where it stopped",
    },
    Dependency {
        caller: "backend",
        called: "trainer service",
        policy: RetryPolicy::NONE,
        breaker: true,
        afterwards: "the reconciler's next look",
    },
    Dependency {
        caller: "backend",
        called: "Kubernetes API (429, 503, 504; as long as `Retry-After` says)",
        policy: RetryPolicy::CLUSTER,
        breaker: true,
        afterwards: "the reconciler's next look",
    },
    Dependency {
        caller: "backend",
        called: "Hugging Face Hub",
        policy: RetryPolicy::NONE,
        breaker: true,
        afterwards: "`UNAVAILABLE`; a pull goes on where it stopped",
    },
    Dependency {
        caller: "backend",
        called: "MLflow",
        policy: RetryPolicy::EXPORT,
        breaker: true,
        afterwards: "never: points wait in the database",
    },
];
