//! Learning-rate schedules, exactly those of `transformers.optimization`: the factor for the optimizer
//! step with 0-based index `step`. With warm-up the first step therefore runs at a rate of zero.

use wire::config::LrScheduler;

/// A schedule with its lengths fixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub kind: LrScheduler,
    pub peak: f64,
    pub warmup: u64,
    pub total: u64,
}

#[expect(clippy::as_conversions, reason = "step counts are far below 2^53")]
const fn float(n: u64) -> f64 {
    n as f64
}

impl Schedule {
    /// `warmup = ceil(total * ratio)`, as `TrainingArguments.get_warmup_steps`.
    #[must_use]
    pub fn new(kind: LrScheduler, peak: f64, warmup_ratio: f64, total: u64) -> Self {
        #[expect(clippy::as_conversions, reason = "a share of a step count, never negative")]
        let warmup = (float(total) * warmup_ratio).ceil() as u64;
        Self { kind, peak, warmup, total }
    }

    /// The learning rate of the optimizer step with 0-based index `step`.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if self.kind == LrScheduler::Constant {
            return self.peak;
        }
        if step < self.warmup {
            return self.peak * (float(step) / float(self.warmup.max(1)));
        }
        let span = float(self.total.saturating_sub(self.warmup).max(1));
        let factor = match self.kind {
            LrScheduler::Constant | LrScheduler::ConstantWithWarmup => 1.0,
            LrScheduler::Linear => float(self.total.saturating_sub(step)) / span,
            LrScheduler::Cosine => {
                let progress = float(step.saturating_sub(self.warmup)) / span;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected rates printed by `transformers.get_scheduler(name, opt, 3, 10)` (5.23) at rate 1.
    #[test]
    fn rates_equal_those_of_transformers() {
        let expect = [
            (
                LrScheduler::Cosine,
                [
                    0.0,
                    1.0 / 3.0,
                    2.0 / 3.0,
                    1.0,
                    0.950_484_433_951_210,
                    0.811_744_900_929_366_8,
                    0.611_260_466_978_157_2,
                    0.388_739_533_021_842_8,
                    0.188_255_099_070_633_15,
                    0.049_515_566_048_790_43,
                ],
            ),
            (
                LrScheduler::Linear,
                [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 6.0 / 7.0, 5.0 / 7.0, 4.0 / 7.0, 3.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0],
            ),
            (LrScheduler::Constant, [1.0; 10]),
            (LrScheduler::ConstantWithWarmup, [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ];
        for (kind, rates) in expect {
            let schedule = Schedule::new(kind, 1.0, 0.21, 10);
            assert_eq!(schedule.warmup, 3);
            for (step, want) in (0..).zip(rates) {
                assert!(
                    (schedule.rate(step) - want).abs() < 1e-12,
                    "{kind:?} step {step}: {} {want}",
                    schedule.rate(step)
                );
            }
        }
    }

    #[test]
    fn warmup_rounds_up() {
        assert_eq!(Schedule::new(LrScheduler::Cosine, 1.0, 0.03, 100).warmup, 3);
        assert_eq!(Schedule::new(LrScheduler::Cosine, 1.0, 0.03, 101).warmup, 4);
        assert_eq!(Schedule::new(LrScheduler::Cosine, 1.0, 0.0, 100).warmup, 0);
    }
}
