//! What the outside wants of this attempt: directives, SIGTERM and fencing end up in one switch that only ever
//! moves towards stopping. SIGTERM also sets the time by which the process must be gone.

use crate::engine::Control;
use std::time::Duration;
use tokio::{sync::watch, time::Instant};
use wire::{Directive, event::StopReason};

/// In order of precedence: a later variant overrides an earlier one and is never taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Signal {
    #[default]
    Continue,
    /// SIGTERM. A pause requested by the user outlives it, so that the job does not start again by itself.
    Preempt,
    Pause,
    Cancel,
    /// Another instance or attempt owns the job, or the job is over: leave without a word.
    Fenced,
}

impl Signal {
    /// How a stop on this signal is reported.
    #[must_use]
    pub const fn stop_reason(self) -> Option<StopReason> {
        match self {
            Self::Continue | Self::Fenced => None,
            Self::Preempt => Some(StopReason::Preempted),
            Self::Pause => Some(StopReason::Paused),
            Self::Cancel => Some(StopReason::Cancelled),
        }
    }
}

impl From<Directive> for Signal {
    fn from(directive: Directive) -> Self {
        match directive {
            Directive::Continue => Self::Continue,
            Directive::Cancel => Self::Cancel,
            Directive::Pause => Self::Pause,
            Directive::Stop => Self::Fenced,
        }
    }
}

/// Shared by the reporter and SIGTERM (which raise it) and by the engine and the staging (which obey it).
#[derive(Debug, Clone, Default)]
pub struct Switch(watch::Sender<Signal>);

impl Switch {
    pub fn raise(&self, signal: Signal) {
        let raised = self.0.send_if_modified(|current| {
            let higher = signal > *current;
            if higher {
                *current = signal;
            }
            higher
        });
        if raised {
            tracing::info!(?signal, "asked to stop");
        }
    }

    #[must_use]
    pub fn signal(&self) -> Signal {
        *self.0.borrow()
    }

    #[must_use]
    pub fn control(&self) -> Control {
        match self.signal() {
            Signal::Continue => Control::Continue,
            Signal::Preempt => Control::Preempt,
            Signal::Pause => Control::Pause,
            Signal::Cancel | Signal::Fenced => Control::Cancel,
        }
    }

    /// Returns once the signal is `least` or higher.
    pub async fn raised(&self, least: Signal) -> Signal {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        receiver.wait_for(|signal| *signal >= least).await.map_or(least, |signal| *signal)
    }
}

/// When the process must be gone. Not set until SIGTERM arrives.
#[derive(Debug, Clone)]
pub struct Deadline(watch::Sender<Option<Instant>>);

impl Default for Deadline {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Deadline {
    /// The first call counts.
    pub fn set(&self, grace: Duration) {
        self.0.send_if_modified(|at| {
            let fresh = at.is_none();
            if fresh {
                *at = Some(Instant::now() + grace);
            }
            fresh
        });
    }

    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Returns once a deadline is set.
    pub async fn announced(&self) -> Instant {
        let mut receiver = self.0.subscribe();
        let set = receiver.wait_for(Option::is_some).await.ok().and_then(|at| *at);
        match set {
            Some(at) => at,
            None => std::future::pending().await,
        }
    }

    /// Returns `before` the deadline; never when none is set.
    pub async fn near(&self, before: Duration) {
        let at = self.announced().await;
        tokio::time::sleep_until(at.checked_sub(before).unwrap_or(at)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_never_taken_back() {
        let switch = Switch::default();
        switch.raise(Signal::Pause);
        switch.raise(Directive::Continue.into());
        switch.raise(Signal::Preempt);
        assert_eq!(switch.control(), Control::Pause);
        switch.raise(Signal::Cancel);
        assert_eq!(switch.control(), Control::Cancel);
    }

    #[tokio::test]
    async fn waiting_ends_at_the_first_signal_that_is_high_enough() {
        let switch = Switch::default();
        let waiter = switch.clone();
        let waiting = tokio::spawn(async move { waiter.raised(Signal::Pause).await });
        switch.raise(Signal::Preempt);
        switch.raise(Signal::Cancel);
        assert_eq!(waiting.await.unwrap(), Signal::Cancel);
    }
}
