//! Direct preference optimisation (Rafailov et al., arXiv 2305.18290) with the meaning TRL gives its numbers.
//!
//! The reference is the model with its adapter switched off, so no second model is kept. A micro-batch holds
//! whole pairs, the preferred answer first, laid end to end; an answer's log-probability is the sum over its
//! tokens behind the prompt. With `r = log π − log π_ref` of an answer and `Δ = r(chosen) − r(rejected)` the
//! loss is a function of Δ, so every token's log-probability gets the gradient `± dloss/dΔ / denominator`.

use super::{
    TrainError,
    data::Batch,
    model::{CausalLm, Pass},
    params::Gradients,
    step::{self, StepOptions},
};
use candle_core::{Device, Tensor};
use kernels::IGNORE;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use wire::{
    config::{DpoConfig, DpoLoss},
    event::metric,
};

/// Log-probabilities of the answers of one pair and how many tokens they have.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pair {
    log_probs: [f64; 2],
    tokens: [f64; 2],
}

/// Sums over pairs; every metric is one of them over [`Outcome::pairs`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcome {
    pub pairs: u64,
    pub loss: f64,
    rewards: [f64; 2],
    right: f64,
    log_probs: [f64; 2],
}

impl Outcome {
    pub fn add(&mut self, other: &Self) {
        self.pairs = self.pairs.saturating_add(other.pairs);
        self.loss += other.loss;
        self.right += other.right;
        let sums = self.rewards.iter_mut().zip(other.rewards).chain(self.log_probs.iter_mut().zip(other.log_probs));
        for (sum, more) in sums {
            *sum += more;
        }
    }

    /// TRL's metrics; `prefix` goes before each name.
    #[must_use]
    pub fn metrics(&self, prefix: &str) -> BTreeMap<String, f64> {
        #[expect(clippy::as_conversions, reason = "a number of pairs is far below 2^53")]
        let n = self.pairs.max(1) as f64;
        let [chosen, rejected] = self.rewards;
        let values = [
            (metric::REWARDS_CHOSEN, chosen),
            (metric::REWARDS_REJECTED, rejected),
            (metric::REWARDS_ACCURACIES, self.right),
            (metric::REWARDS_MARGINS, chosen - rejected),
            (metric::LOGPS_CHOSEN, self.log_probs[0]),
            (metric::LOGPS_REJECTED, self.log_probs[1]),
        ];
        values.into_iter().map(|(name, sum)| (format!("{prefix}{name}"), sum / n)).collect()
    }
}

/// Adds the gradients of the pairs in `batch` to `grads`. `options.denominator` is the number of pairs in the
/// global batch; the time until the loss was known is added to `forward`.
///
/// # Errors
/// Tensor errors only.
pub fn forward_backward(
    model: &dyn CausalLm,
    batch: &Batch,
    options: StepOptions,
    config: &DpoConfig,
    grads: &mut Gradients,
    forward: &mut Duration,
) -> Result<Outcome, TrainError> {
    let started = Instant::now();
    let reference = reference(model, batch)?;
    let mut outcome = Outcome::default();
    step::backpropagate(
        model,
        batch,
        options,
        grads,
        &|top, pass| model.log_probs(top, &batch.targets, pass),
        &mut |log_probs| {
            let policy = pairs(batch, &log_probs.to_vec1()?);
            let (sums, slopes) = losses(config, &policy, &reference);
            outcome = sums;
            *forward += started.elapsed();
            Ok(seed(batch, &slopes, options.denominator, log_probs.device())?)
        },
    )?;
    Ok(outcome)
}

/// The same sums without gradients.
///
/// # Errors
/// Tensor errors only.
pub fn evaluate(model: &dyn CausalLm, batch: &Batch, config: &DpoConfig) -> Result<Outcome, TrainError> {
    let policy = of_pass(model, batch, &batch.pass())?;
    Ok(losses(config, &policy, &reference(model, batch)?).0)
}

fn reference(model: &dyn CausalLm, batch: &Batch) -> Result<Vec<Pair>, TrainError> {
    of_pass(model, batch, &Pass { adapter: false, ..batch.pass() })
}

fn of_pass(model: &dyn CausalLm, batch: &Batch, pass: &Pass) -> Result<Vec<Pair>, TrainError> {
    let x = step::hidden(model, batch, pass)?;
    let losses = model.token_losses(&x, &batch.targets)?;
    Ok(pairs(batch, &losses.into_iter().map(|loss| -loss).collect::<Vec<_>>()))
}

/// Sums the log-probabilities of the targets, `(N)`, by answer.
fn pairs(batch: &Batch, log_probs: &[f32]) -> Vec<Pair> {
    let answer = |range: std::ops::Range<usize>| {
        let values = log_probs.get(range.clone()).unwrap_or_default();
        let targets = batch.targets.get(range).unwrap_or_default();
        // Where there is no target the log-probability is zero.
        let sum = values.iter().map(|p| f64::from(*p)).sum::<f64>();
        (sum, targets.iter().filter(|t| **t != IGNORE).map(|_| 1.0).sum::<f64>())
    };
    let answers: Vec<(f64, f64)> = batch.segments.ranges().map(answer).collect();
    let pair = |[chosen, rejected]: &[(f64, f64); 2]| Pair {
        log_probs: [chosen.0, rejected.0],
        tokens: [chosen.1, rejected.1],
    };
    answers.as_chunks::<2>().0.iter().map(pair).collect()
}

/// Sums over the pairs, and the derivative of each pair's loss by the log-probabilities of its answers.
fn losses(config: &DpoConfig, policy: &[Pair], reference: &[Pair]) -> (Outcome, Vec<[f64; 2]>) {
    let mut sums = Outcome::default();
    let mut slopes = Vec::with_capacity(policy.len());
    for (policy, reference) in policy.iter().zip(reference) {
        let ratio = [0, 1].map(|i: usize| {
            let of = |pair: &Pair| pair.log_probs.get(i).copied().unwrap_or_default();
            of(policy) - of(reference)
        });
        let [chosen, rejected] = ratio;
        let (loss, slope) = match config.loss_type {
            DpoLoss::Ipo => {
                // Per token, as TRL has it; see its comment there.
                let [long, short] = policy.tokens.map(|n| n.max(1.0));
                let off = chosen / long - rejected / short - 1.0 / (2.0 * config.beta);
                (off * off, [2.0 * off / long, -2.0 * off / short])
            }
            kind => {
                let (loss, slope) = of_margin(kind, config, config.beta * (chosen - rejected));
                (loss, [config.beta * slope, -config.beta * slope])
            }
        };
        let rewards = ratio.map(|r| config.beta * r);
        sums.add(&Outcome {
            pairs: 1,
            loss,
            rewards,
            right: if rewards[0] > rewards[1] { 1.0 } else { 0.0 },
            log_probs: policy.log_probs,
        });
        slopes.push(slope);
    }
    (sums, slopes)
}

/// Loss and its derivative at the margin `z = β Δ`.
fn of_margin(kind: DpoLoss, config: &DpoConfig, z: f64) -> (f64, f64) {
    // −log σ(z) and its derivative, for either sign of z.
    let negative_log_sigmoid = |z: f64| ((-z.abs()).exp().ln_1p() + (-z).max(0.0), -1.0 / (1.0 + z.exp()));
    match kind {
        DpoLoss::Hinge => {
            if z < 1.0 {
                (1.0 - z, -1.0)
            } else {
                (0.0, 0.0)
            }
        }
        DpoLoss::Robust => {
            let noise = config.label_smoothing;
            let ((as_given, slope), (turned, turned_slope)) = (negative_log_sigmoid(z), negative_log_sigmoid(-z));
            let scale = 1.0 / (1.0 - 2.0 * noise);
            (
                scale * ((1.0 - noise) * as_given - noise * turned),
                scale * ((1.0 - noise) * slope + noise * turned_slope),
            )
        }
        DpoLoss::Sigmoid | DpoLoss::Ipo => negative_log_sigmoid(z),
    }
}

/// Gradient of the mean loss by every token's log-probability, `(N)`.
fn seed(batch: &Batch, slopes: &[[f64; 2]], denominator: f64, device: &Device) -> candle_core::Result<Tensor> {
    let mut gradient = Vec::with_capacity(batch.tokens.len());
    for (range, slope) in batch.segments.ranges().zip(slopes.iter().flatten()) {
        #[expect(clippy::as_conversions, reason = "gradients are f32")]
        gradient.extend(std::iter::repeat_n((slope / denominator) as f32, range.len()));
    }
    let n = gradient.len();
    Tensor::from_vec(gradient, n, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_s_derivative_is_that_of_its_values() {
        let reference = Pair { log_probs: [-20.0, -31.0], tokens: [7.0, 12.0] };
        for (loss_type, label_smoothing) in
            [(DpoLoss::Sigmoid, 0.0), (DpoLoss::Hinge, 0.0), (DpoLoss::Ipo, 0.0), (DpoLoss::Robust, 0.2)]
        {
            let config = DpoConfig { beta: 0.3, loss_type, label_smoothing };
            for start in [[-18.0, -33.5], [-24.0, -29.0], [-20.0, -31.0], [-900.0, -3.0], [-3.0, -900.0]] {
                let loss = |log_probs: [f64; 2]| losses(&config, &[Pair { log_probs, ..reference }], &[reference]);
                let (_, slopes) = loss(start);
                for side in [0, 1] {
                    let moved = |by: f64| {
                        let mut log_probs = start;
                        log_probs[side] += by;
                        loss(log_probs).0.loss
                    };
                    let wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    let off = (slopes[0][side] - wanted).abs();
                    assert!(off < 1e-6 * wanted.abs().max(1.0), "{loss_type:?} at {start:?}: {slopes:?}, {wanted}");
                }
            }
        }
    }

    #[test]
    fn untrained_pairs_have_loss_ln_2_and_reward_0() {
        let pair = Pair { log_probs: [-5.0, -9.0], tokens: [2.0, 3.0] };
        let (sums, _) = losses(&DpoConfig::default(), &[pair; 3], &[pair; 3]);
        assert!((sums.loss / 3.0 - std::f64::consts::LN_2).abs() < 1e-12);
        let metrics = sums.metrics("eval_");
        assert_eq!(metrics.get("eval_rewards/margins"), Some(&0.0));
        assert_eq!(metrics.get("eval_rewards/accuracies"), Some(&0.0));
        assert_eq!(metrics.get("eval_logps/rejected"), Some(&-9.0));
    }
}
