//! Where trainers run. The reconciler knows only this trait; what it cannot observe it does not assume.

pub mod http;
pub mod kubernetes;
mod rehearsal;
pub mod subprocess;

use super::decide::Runtime;
use futures::future::BoxFuture;
use secrecy::SecretString;
use serde_json::Value;
use std::{fmt, time::Duration};
use wire::{JobId, JobSpec, catalog::GpuConfig, estimate::Estimate};

/// Everything a trainer gets.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    pub spec: JobSpec,
    pub callback_url: String,
    pub storage_gateway_url: String,
    pub token: SecretString,
    /// W3C trace context of whoever dispatched the job.
    pub traceparent: Option<String>,
    /// The job's GPU configuration.
    pub gpu: Option<GpuConfig>,
}

/// Names a runtime, also for a backend that did not start it.
#[derive(Debug, Clone, PartialEq)]
pub struct Handle {
    pub job: JobId,
    pub attempt: u32,
    /// What [`Launcher::describe`] said when the attempt was dispatched.
    pub runtime: Value,
}

/// A runtime that a launcher still has something of.
#[derive(Debug, Clone, PartialEq)]
pub struct Leftover {
    pub handle: Handle,
    pub alive: bool,
    /// It ended and its log is not in storage yet.
    pub log_due: bool,
    /// It is kept until [`Launcher::release`].
    pub held: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Trying again would fail the same way; the text says what to fix.
    #[error("{0}")]
    Fatal(String),
    /// Trying again may help.
    #[error("{0}")]
    Transient(String),
}

/// Why there is no rehearsal.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The run itself would fail like this.
    #[error("{0}")]
    Refused(String),
    /// Another one is running.
    #[error("another job is being rehearsed; try again in a moment")]
    Busy,
    /// No trainer answered in time.
    #[error("{0}")]
    Unavailable(String),
}

/// Runs trainers. Every call is idempotent: "already started" and "already gone" are success.
pub trait Launcher: Send + Sync + fmt::Debug {
    /// Where an attempt will run; stored with the attempt before [`Self::launch`].
    fn describe(&self, job: JobId, attempt: u32) -> Value;

    fn launch<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<(), LaunchError>>;

    fn observe<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Runtime>;

    /// One step of stopping, and what is left after it: asks politely first and kills once `grace` has
    /// passed since. A runtime that was not started will not start any more.
    fn stop<'a>(&'a self, handle: &'a Handle, grace: Duration) -> BoxFuture<'a, Runtime>;

    /// Records that an attempt cannot be started and why, for [`Self::observe`] to report.
    fn refuse<'a>(&'a self, handle: &'a Handle, reason: &'a str) -> BoxFuture<'a, Runtime>;

    /// Bytes of memory that a trainer has here; `None` when that is not known. Quick, also when no trainer answers.
    fn memory(&self) -> BoxFuture<'_, Option<u64>>;

    /// Stages what an attempt would, rehearses it, and tells what it will need.
    fn rehearse<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Estimate, RehearsalError>>;

    /// Runtimes this launcher knows of, over or not.
    fn leftovers(&self) -> BoxFuture<'_, Vec<Leftover>> {
        Box::pin(async { Vec::new() })
    }

    /// The log of a runtime that is over.
    fn log<'a>(&'a self, _handle: &'a Handle) -> BoxFuture<'a, Option<Vec<u8>>> {
        Box::pin(async { None })
    }

    /// The log of a runtime that goes on, as far as there is one.
    fn live_log<'a>(&'a self, _handle: &'a Handle) -> BoxFuture<'a, Option<Vec<u8>>> {
        Box::pin(async { None })
    }

    /// The outcome of an attempt that is over is stored, and its log as well.
    fn release<'a>(&'a self, _handle: &'a Handle) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// The log is in storage.
    fn log_kept<'a>(&'a self, _handle: &'a Handle) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// Removes what ended attempts left behind, except the newest.
    fn tidy(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
