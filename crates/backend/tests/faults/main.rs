//! The fault matrix (`docs/fault-matrix.md`): every row breaks something under real backend, gateway, Postgres and
//! trainer processes, says what the user sees, and ends with the oracle: what a trainer knows as acknowledged is
//! in the database, once.
//!
//! `FAULT_SEEDS` says how many seeds each row runs (1 when it is not set), `FAULT_FIRST_SEED` where they begin.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod attempts;
mod backend_dies;
mod callbacks;
mod database;
mod kubernetes;
mod oracle;
mod real_trainer;
mod replicas;
mod sinks;
#[path = "../support/jobs.rs"]
mod support;
mod upgrade;
mod users;
mod world;

/// The seeds a row runs.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |v| v.parse().expect("a number"));
    let first = number("FAULT_FIRST_SEED", 1);
    first..first + number("FAULT_SEEDS", 1)
}
