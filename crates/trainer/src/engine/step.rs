//! Forward and backward pass over one micro-batch, block by block.
//!
//! Every block is recorded on a tape of its own, whose backward pass begins with the gradient that came from
//! above and frees activations as it goes. With recomputation only block inputs are kept, and the block runs
//! again. The result is the same to the bit either way.
//!
//! A micro-batch of several sequences runs in parts of about [`PART_TOKENS`] tokens, one after the other, whose
//! gradients are added up: activations are kept for one part only, at no cost in speed.

use super::{
    Place, TrainError,
    data::Batch,
    dropout::Dropout,
    model::{Causal, CausalLm, Pass},
    params::Gradients,
};
use candle_core::{Tensor, Var};
use kernels::Tape;
use std::{
    ops::Range,
    time::{Duration, Instant},
};

/// Tokens that run at once where sequences can be separated: enough for products to reach their full speed.
pub const PART_TOKENS: usize = 1024;

/// How one micro-batch is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Divides the summed loss: the number of targets in the whole global batch.
    pub denominator: f64,
    pub dropout: Option<Dropout>,
    /// Recompute each block in the backward pass.
    pub recompute: bool,
}

/// A variable with the value of `x`, for free when a recorded op made it.
fn leaf(x: &Tensor) -> Result<Tensor, TrainError> {
    Ok(if x.is_variable() { x.clone() } else { Var::from_tensor(&x.detach())?.into_inner() })
}

/// Adds the gradients of `batch` to `grads` and returns its share of the global batch's mean loss.
///
/// # Errors
/// Tensor errors only.
pub fn forward_backward(
    model: &dyn CausalLm,
    batch: &Batch,
    options: StepOptions,
    grads: &mut Gradients,
) -> Result<f64, TrainError> {
    let mut forward = Duration::ZERO;
    forward_backward_timed(model, batch, options, grads, &mut forward)
}

/// [`forward_backward`], which adds the time until the loss was known to `forward`.
///
/// # Errors
/// Tensor errors only.
pub fn forward_backward_timed(
    model: &dyn CausalLm,
    batch: &Batch,
    options: StepOptions,
    grads: &mut Gradients,
    forward: &mut Duration,
) -> Result<f64, TrainError> {
    let parts = parts(batch, part_tokens(model.place()))?;
    if parts.is_empty() {
        return run(model, batch, options, grads, forward);
    }
    let mut loss = 0.0;
    for (number, part) in (0_u64..).zip(&parts) {
        // Each part draws masks of its own.
        let dropout = options.dropout.map(|d| Dropout { key: d.key.at(number), ..d });
        loss += run(model, part, StepOptions { dropout, ..options }, grads, forward)?;
    }
    Ok(loss)
}

/// [`PART_TOKENS`] where `place` is the CPU; a GPU needs more to be busy.
#[must_use]
pub const fn part_tokens(place: Place) -> usize {
    match place {
        Place::Cpu => PART_TOKENS,
        Place::Cuda(_) => 16 * PART_TOKENS,
    }
}

/// The batch cut between sequences into parts of at most `limit` tokens, or one longer sequence each; none when it
/// is small enough as it is.
fn parts(batch: &Batch, limit: usize) -> Result<Vec<Batch>, TrainError> {
    if batch.tokens.len() <= limit || batch.segments.count() < 2 {
        return Ok(Vec::new());
    }
    let mut parts: Vec<Vec<Range<usize>>> = Vec::new();
    for range in batch.segments.ranges() {
        match parts.last_mut() {
            Some(part) if part.first().is_some_and(|f| range.end.saturating_sub(f.start) <= limit) => {
                part.push(range);
            }
            _ => parts.push(vec![range]),
        }
    }
    let part = |ranges: &Vec<_>| batch.part(ranges).ok_or_else(|| TrainError::internal("a batch cannot be cut"));
    parts.iter().map(part).collect()
}

fn run(
    model: &dyn CausalLm,
    batch: &Batch,
    options: StepOptions,
    grads: &mut Gradients,
    forward: &mut Duration,
) -> Result<f64, TrainError> {
    let started = Instant::now();
    let mut value = 0.0;
    backpropagate(
        model,
        batch,
        options,
        grads,
        &|top, pass| model.loss(top, &batch.targets, options.denominator, pass),
        &mut |loss| {
            value = f64::from(loss.to_scalar::<f32>()?);
            *forward += started.elapsed();
            Ok(loss.ones_like()?)
        },
    )?;
    Ok(value)
}

/// What is computed from the activations above the last block.
pub type Head<'a> = &'a dyn Fn(&Tensor, &Pass) -> candle_core::Result<Tensor>;

/// The gradient of the loss by the output of a [`Head`].
pub type LossGradient<'a> = &'a mut dyn FnMut(&Tensor) -> Result<Tensor, TrainError>;

/// Adds the gradients of any loss to `grads`.
///
/// # Errors
/// Those of `gradient`, and tensor errors.
pub fn backpropagate(
    model: &dyn CausalLm,
    batch: &Batch,
    options: StepOptions,
    grads: &mut Gradients,
    head: Head<'_>,
    gradient: LossGradient<'_>,
) -> Result<(), TrainError> {
    let params = model.params();
    let pass = Pass { grad: true, dropout: options.dropout, ..batch.pass() };
    let mut attention = Causal(&batch.segments);
    let (embedded, embedding) = kernels::record(|| model.embed(&batch.tokens, &pass));
    let embedded = embedded?;
    let mut x = embedded.clone();
    let mut blocks: Vec<(Tensor, Option<(Tensor, Tape)>)> = Vec::new();
    for layer in 0..model.dims().layers {
        // Nothing below the first block is trained unless the embedding is, so its input needs no gradient.
        let input = if layer > 0 || model.trains_embedding() { leaf(&x)? } else { x.detach() };
        let (output, tape) = kernels::record(|| model.block(layer, &input, &pass, &mut attention));
        x = output?;
        blocks.push((input, (!options.recompute).then(|| (x.clone(), tape))));
    }
    let top = leaf(&x)?;
    drop(x);
    let (output, tape) = kernels::record(|| head(&top, &pass));
    let output = output?;
    let mut store = tape.backward(&output, gradient(&output)?)?;
    drop(output);
    grads.collect(params, &mut store)?;
    let mut grad = store.remove(&top).ok_or_else(|| TrainError::internal("the loss gave its input no gradient"))?;
    drop((store, top));
    for layer in (0..model.dims().layers).rev() {
        let Some((input, output)) = blocks.pop() else { break };
        let (output, tape) = match output {
            Some(output) => output,
            None => {
                let (output, tape) = kernels::record(|| model.block(layer, &input, &pass, &mut attention));
                (output?, tape)
            }
        };
        let mut store = tape.backward(&output, grad)?;
        drop(output);
        grads.collect(params, &mut store)?;
        if !input.track_op() {
            return Ok(());
        }
        grad = store
            .remove(&input)
            .ok_or_else(|| TrainError::internal(format!("block {layer} gave its input no gradient")))?;
    }
    grads.collect(params, &mut embedding.backward(&embedded, grad)?)?;
    Ok(())
}

/// Sum of the targets' losses in `batch`, without a gradient.
///
/// # Errors
/// Tensor errors only.
pub fn total_loss(model: &dyn CausalLm, batch: &Batch) -> Result<f64, TrainError> {
    let x = hidden(model, batch, &batch.pass())?;
    Ok(model.token_losses(&x, &batch.targets)?.iter().map(|l| f64::from(*l)).sum())
}

/// Logits of every token, `(N, V)`, without a gradient.
///
/// # Errors
/// Tensor errors only.
pub fn logits(model: &dyn CausalLm, batch: &Batch) -> Result<Tensor, TrainError> {
    Ok(model.logits(&hidden(model, batch, &batch.pass())?)?)
}

/// Activations above the last block, `(N, C)`.
///
/// # Errors
/// Tensor errors only.
pub fn hidden(model: &dyn CausalLm, batch: &Batch, pass: &Pass) -> Result<Tensor, TrainError> {
    let mut attention = Causal(&batch.segments);
    let mut x = model.embed(&batch.tokens, pass)?;
    for layer in 0..model.dims().layers {
        x = model.block(layer, &x, pass, &mut attention)?;
    }
    Ok(x)
}
