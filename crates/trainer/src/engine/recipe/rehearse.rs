//! Pre-flight: the run's largest batch and its first steps, rehearsed to learn what the whole run needs.
//!
//! Memory and speed depend on the machine, the model's shape and every option, and formulas for them rot. So the
//! rehearsal sets the run up as the run itself does, counts its batches, and really computes some of them: the
//! largest, which decides the memory, and the first ones, until a few seconds are over. What is in memory at once
//! must be what the run has there, no more and no less.

use super::{Halt, Run, count, fit, float};
use crate::engine::{Observer, Place, Setup, TrainError, checkpoint, data, memory, optim, params::Gradients, rng::Key};
use std::time::{Duration, Instant};
use wire::estimate::Estimate;

/// Epochs whose batches are counted; later ones are taken to be alike.
const COUNTED_EPOCHS: u64 = 3;
/// Fresh blocks make the first pass slow; shorter ones than this are warmed up twice.
const SHORT: Duration = Duration::from_secs(2);
/// Memory is given with this much more than was seen (small blocks, stacks), and a constant.
const MARGIN: f64 = 1.05;
const MARGIN_BYTES: u64 = 2 << 20;

/// The batches of a run.
#[derive(Debug, Default)]
struct Plan {
    /// Tokens of each micro-batch counted.
    sizes: Vec<usize>,
    /// All micro-batches for each one counted.
    times: f64,
    /// Step and place of the one that needs most memory.
    largest: (u64, usize),
    /// Its tokens that are in memory at once.
    at_once: usize,
}

/// Seconds as a linear function of tokens, by least squares.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    constant: f64,
    per_token: f64,
}

impl Line {
    fn through(points: &[(f64, f64)]) -> Self {
        let n = float(count(points.len())).max(1.0);
        let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let slope = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread;
        // Sizes that hardly differ say nothing about the slope; time goes through the origin then.
        let trusted = spread > n * (0.05 * x).powi(2) && slope > 0.0 && y - slope * x >= 0.0;
        if trusted {
            Self { constant: y - slope * x, per_token: slope }
        } else {
            Self { constant: 0.0, per_token: if x > 0.0 { y / x } else { 0.0 } }
        }
    }

    fn at(self, tokens: f64) -> f64 {
        self.per_token.mul_add(tokens, self.constant)
    }
}

/// Rehearses the run of `setup` for about `at_least`. Files are written below `setup.work_dir` only.
pub(in crate::engine) fn estimate(
    setup: &Setup,
    observer: &mut dyn Observer,
    at_least: Duration,
) -> Result<Estimate, TrainError> {
    let started = Instant::now();
    let mut rehearse = || {
        let mut run = Run::set_up(setup, observer)?;
        let set_up = started.elapsed().as_secs_f64();
        run.rehearse(started, set_up, at_least)
    };
    rehearse().map_err(|halt| match halt {
        Halt::Failed(error) => error,
        Halt::Stopped(_) => TrainError::internal("the estimate was stopped"),
    })
}

impl Run<'_> {
    fn rehearse(&mut self, started: Instant, set_up: f64, at_least: Duration) -> Result<Estimate, Halt> {
        let total = self.schedule.total;
        let plan = self.plan();
        let rehearsal = Instant::now();
        let mut optimizer = Vec::new();
        let (step, micro) = plan.largest;
        let largest = self.sampler.step(step).into_iter().nth(micro).unwrap_or_default();
        // One row brings the moments into memory, where they are from the second step on.
        let mut grads = Gradients::default();
        self.pass(largest.get(..1).unwrap_or_default(), &mut grads)?;
        for _ in 0..2 {
            optimizer.push(self.update(&grads)?);
        }
        // The largest batch meets the gradients of those before it, where a step has several.
        if self.setup.config.training.gradient_accumulation_steps == 1 {
            grads = Gradients::default();
        }
        let mut points = vec![self.pass(&largest, &mut grads)?];
        // The first pass met fresh memory; the next ones are like those of the run.
        if rehearsal.elapsed() < SHORT {
            if self.setup.config.training.gradient_accumulation_steps == 1 {
                grads = Gradients::default();
            }
            points.clear();
            points.push(self.pass(&largest, &mut grads)?);
        }
        drop(grads);
        let (began, mut step) = (Instant::now(), 0);
        while began.elapsed() < at_least && step < total {
            // As in a real step: gradients of its own, summed over its batches.
            let mut grads = Gradients::default();
            for rows in self.sampler.step(step) {
                points.push(self.pass(&rows, &mut grads)?);
            }
            optimizer.push(self.update(&grads)?);
            step = step.saturating_add(1);
        }
        let evaluation = self.rehearse_evaluation()?;
        let began = Instant::now();
        let root = self.setup.work_dir.join("checkpoints");
        checkpoint::save(&root, &self.kind, self.model.params(), &self.optimizer, &self.state, None)?;
        let checkpoint = began.elapsed().as_secs_f64();

        let line = Line::through(&points);
        let t = &self.setup.config.training;
        let update = optimizer.iter().copied().fold(f64::INFINITY, f64::min);
        let counted: f64 = plan.sizes.iter().map(|n| line.at(float(count(*n)))).sum();
        let train_seconds = counted * plan.times + float(total) * update;
        let every = |n: u64| total.saturating_sub(1).checked_div(n).unwrap_or(0);
        let evaluations = if self.eval_rows.is_empty() { 0 } else { every(t.eval_steps).saturating_add(2) };
        let checkpoints = every(t.save_steps).saturating_add(2);
        let place = self.setup.place;
        let (peak, headroom) = match place {
            Place::Cpu => (memory::resident().map(|(_, peak)| peak), count(kernels::alloc::headroom())),
            place => (place.peak_memory(), 0),
        };
        #[expect(clippy::as_conversions, reason = "a number of bytes, never negative")]
        let peak_memory_bytes =
            ((float(peak.unwrap_or(0)) * MARGIN) as u64).saturating_add(headroom).saturating_add(MARGIN_BYTES);
        #[expect(clippy::as_conversions, reason = "a number of tokens, never negative")]
        let total_tokens = (float(count(plan.sizes.iter().sum())) * plan.times).round() as u64;
        let base = self.model.weights();
        let trainable = self.model.params().elements();
        let adapter = matches!(self.kind, checkpoint::Kind::Adapter { .. });
        Ok(Estimate {
            total_steps: total,
            total_tokens,
            largest_batch_tokens: count(plan.at_once),
            trainable_parameters: trainable,
            total_parameters: base.saturating_add(if adapter { trainable } else { 0 }),
            peak_memory_bytes,
            available_memory_bytes: match place {
                Place::Cpu => memory::available(),
                place => place.memory().map(|m| m.total),
            },
            train_seconds,
            total_seconds: set_up + train_seconds + float(evaluations) * evaluation + float(checkpoints) * checkpoint,
            rehearsal_seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn plan(&mut self) -> Plan {
        let total = self.schedule.total;
        let steps = total.min(self.sampler.steps_per_epoch().saturating_mul(COUNTED_EPOCHS));
        let mut plan = Plan { times: float(total) / float(steps.max(1)), ..Plan::default() };
        let mut most = (0, 0);
        for step in 0..steps {
            for (micro, rows) in self.sampler.step(step).iter().enumerate() {
                let tokens = usize::try_from(self.train.tokens_in(rows)).unwrap_or(usize::MAX);
                let at_once = fit::at_once(self.setup, &self.train, rows);
                if (at_once, tokens) > most {
                    (most, plan.largest) = ((at_once, tokens), (step, micro));
                }
                plan.sizes.push(tokens);
            }
        }
        plan.at_once = most.0;
        plan
    }

    /// Seconds of one optimizer step that moves nothing: its rate is zero.
    fn update(&mut self, grads: &Gradients) -> Result<f64, Halt> {
        let began = Instant::now();
        optim::global_norm(grads)?;
        self.optimizer.step(self.model.params(), grads, 1.0, 0.0)?;
        self.setup.place.wait()?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Forward and backward pass over `rows`: tokens and seconds.
    fn pass(&mut self, rows: &[usize], grads: &mut Gradients) -> Result<(f64, f64), Halt> {
        let began = Instant::now();
        let batch = self.train.batch(rows)?;
        let units = float(count(batch.loss_units(self.setup.config.method))).max(1.0);
        let options = self.step_options(units, Key::new(0, "rehearsal"));
        let mut forward = Duration::ZERO;
        self.learn(&batch, options, grads, &mut forward)?;
        self.setup.place.wait()?;
        Ok((float(count(batch.tokens.len())), began.elapsed().as_secs_f64()))
    }

    /// Seconds of one evaluation, from its first batches.
    fn rehearse_evaluation(&self) -> Result<f64, Halt> {
        let corpus = self.eval.as_ref().unwrap_or(&self.train);
        let limit = self.max_length.saturating_mul(self.setup.config.training.per_device_train_batch_size);
        let began = Instant::now();
        let mut tokens = 0;
        for rows in data::by_tokens(corpus, &self.eval_rows, limit).iter().take(2) {
            self.judge(&corpus.batch(rows)?)?;
            tokens += corpus.tokens_in(rows);
        }
        let all = float(corpus.tokens_in(&self.eval_rows));
        Ok(if tokens == 0 { 0.0 } else { began.elapsed().as_secs_f64() * all / float(tokens) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_its_points_and_never_promises_free_tokens() {
        let line = Line::through(&[(100.0, 1.5), (200.0, 2.5), (300.0, 3.5)]);
        assert!((line.constant - 0.5).abs() < 1e-9 && (line.per_token - 0.01).abs() < 1e-9, "{line:?}");
        let alike = Line::through(&[(100.0, 1.0), (101.0, 2.0), (99.0, 3.0)]);
        assert_eq!(alike, Line { constant: 0.0, per_token: 0.02 });
        let falling = Line::through(&[(100.0, 3.0), (300.0, 1.0)]);
        assert_eq!((falling.constant, falling.at(200.0)), (0.0, 2.0));
    }
}
