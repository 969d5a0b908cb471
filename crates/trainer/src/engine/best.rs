//! The best evaluation so far, and when to stop for lack of a better one: what `transformers` does with
//! `metric_for_best_model: eval_loss`, `load_best_model_at_end` and its `EarlyStoppingCallback`.

use serde::{Deserialize, Serialize};

/// What evaluations have shown so far. The one before training does not count.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Best {
    /// Step and loss of the best evaluation.
    pub at: Option<(u64, f64)>,
    /// Evaluations in a row that were not better by more than the threshold.
    pub worse: u64,
}

impl Best {
    /// Notes an evaluation; tells whether it is the best so far.
    pub fn record(&mut self, step: u64, loss: f64, threshold: f64) -> bool {
        let best = self.at.map_or(f64::INFINITY, |(_, best)| best);
        self.worse = if best - loss > threshold { 0 } else { self.worse.saturating_add(1) };
        if loss < best {
            self.at = Some((step, loss));
        }
        loss < best
    }

    /// Whether training should stop with this patience; 0 means never.
    #[must_use]
    pub const fn exhausted(&self, patience: u64) -> bool {
        patience > 0 && self.worse >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compared with `EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=0.1)` of transformers
    /// 5.23 fed the same losses: its counter after each evaluation.
    #[test]
    fn the_counter_is_that_of_the_callback() {
        let mut best = Best::default();
        let counts: Vec<u64> = [3.0, 2.5, 2.45, 2.3, 2.31, 2.29]
            .into_iter()
            .zip(1..)
            .map(|(loss, step)| {
                best.record(step, loss, 0.1);
                best.worse
            })
            .collect();
        assert_eq!(counts, [0, 0, 1, 0, 1, 2]);
        assert_eq!(best.at, Some((6, 2.29)));
        assert!(best.exhausted(2) && !best.exhausted(3) && !best.exhausted(0));
    }
}
