//! When a job with a limit has to be paused: pure arithmetic.

use wire::cost::{Pause, PauseReason};

/// From when the checkpoint is durable until the trainer's last word is here.
const REPORT_SECONDS: f64 = 0.05;
/// What a checkpoint is taken to need before one was measured: this share of the time the limit buys, …
const UNKNOWN_SHARE: f64 = 0.005;
/// … but no less than this.
const UNKNOWN_SECONDS: f64 = 0.5;
/// A job this close to its limit has reached it: it is paused within this share of the limit.
pub const TOLERANCE: f64 = 0.01;
/// A trainer that pauses by itself knew a forecast that has changed a little since.
const FORECAST_SHARE: f64 = 0.05;

/// What a running job has spent and may spend, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Spending {
    pub limit: f64,
    pub currency: String,
    pub price_per_hour: f64,
    /// What earlier attempts have cost.
    pub earlier: f64,
    /// Seconds since the current attempt began.
    pub running: f64,
    /// Seconds that the last checkpoint took from the end of its step until it was durable.
    pub checkpoint: Option<f64>,
    /// Seconds of a step; 0 where it is not known.
    pub step: f64,
}

impl Spending {
    #[must_use]
    pub fn spent(&self) -> f64 {
        self.earlier + self.running / 3600.0 * self.price_per_hour
    }

    /// Seconds until the trainer has to be asked to pause, so that the rest of a step, its checkpoint and the report
    /// fit below the limit. Negative: too late already.
    #[must_use]
    pub fn pause_in(&self) -> f64 {
        let bought = self.limit / self.price_per_hour * 3600.0;
        let left = (self.limit - self.earlier) / self.price_per_hour * 3600.0 - self.running;
        let checkpoint = self.checkpoint.unwrap_or_else(|| UNKNOWN_SECONDS.max(bought * UNKNOWN_SHARE));
        left - checkpoint - self.step - REPORT_SECONDS
    }

    /// Whether the job has to pause now.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.pause_in() <= 0.0
    }

    /// Whether a trainer that has paused by itself did so for the budget.
    #[must_use]
    pub fn explains_a_pause(&self) -> bool {
        let slack = self.limit / self.price_per_hour * 3600.0 * FORECAST_SHARE;
        self.pause_in() <= slack
    }

    #[must_use]
    pub fn pause(&self) -> Pause {
        used_up(self.spent(), self.limit, &self.currency)
    }
}

/// Whether nothing worth a start is left of `limit`.
#[must_use]
pub fn is_used_up(spent: f64, limit: f64) -> bool {
    spent >= limit * (1.0 - TOLERANCE)
}

/// Why a job whose budget is used up does not run.
#[must_use]
pub fn used_up(spent: f64, limit: f64, currency: &str) -> Pause {
    let message = format!(
        "the job has spent {spent:.4} of its limit of {limit:.4} {currency}; raise its budget_limit and resume it"
    );
    Pause { reason: PauseReason::Budget, message, limit: Some(limit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One unit of money per second, 100 of them.
    fn spending() -> Spending {
        Spending {
            limit: 100.0,
            currency: "EUR".into(),
            price_per_hour: 3600.0,
            earlier: 20.0,
            running: 30.0,
            checkpoint: Some(2.0),
            step: 0.5,
        }
    }

    #[test]
    fn the_pause_leaves_time_for_a_step_and_its_checkpoint() {
        let s = spending();
        assert_eq!(s.spent(), 50.0);
        assert!((s.pause_in() - 47.45).abs() < 1e-9, "{}", s.pause_in());
        let late = Spending { running: 77.5, ..s };
        assert!(late.is_due() && !Spending { running: 77.4, ..late }.is_due());
    }

    #[test]
    fn an_unknown_checkpoint_is_taken_to_need_half_a_percent() {
        let s = Spending { limit: 1000.0, checkpoint: None, ..spending() };
        assert!((s.pause_in() - (1000.0 - 50.0 - 5.0 - 0.55)).abs() < 1e-9, "{}", s.pause_in());
        let short = Spending { limit: 60.0, checkpoint: None, ..spending() };
        assert!((short.pause_in() - (60.0 - 50.0 - 0.5 - 0.55)).abs() < 1e-9, "{}", short.pause_in());
    }

    #[test]
    fn a_limit_that_was_raised_does_not_explain_a_pause() {
        let s = Spending { running: 74.0, ..spending() };
        assert!(s.explains_a_pause() && !s.is_due());
        assert!(!Spending { limit: 200.0, ..s }.explains_a_pause());
    }

    #[test]
    fn what_is_within_one_percent_is_used_up() {
        assert!(is_used_up(99.0, 100.0) && !is_used_up(98.9, 100.0));
        let pause = used_up(0.09951, 0.1, "USD");
        assert_eq!(
            pause.message,
            "the job has spent 0.0995 of its limit of 0.1000 USD; raise its budget_limit and resume it"
        );
    }
}
