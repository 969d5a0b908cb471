//! Forward and backward pass over one micro-batch, block by block.
//!
//! Every block is a graph of its own: its input is a fresh variable, and the backward pass seeds the
//! block's output with the gradient that came from above. So a block's activations are freed as soon as
//! its backward pass is done, and with recomputation they are not kept in the first place: only block
//! inputs are, and the block runs again. The result is the same to the bit either way.

use super::{
    TrainError,
    data::Batch,
    dropout::Dropout,
    model::{Causal, CausalLm, Pass},
    params::Gradients,
};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var, backprop::GradStore};

/// How one micro-batch is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Divides the summed loss: the number of targets in the whole global batch.
    pub denominator: f64,
    pub dropout: Option<Dropout>,
    /// Recompute each block in the backward pass.
    pub recompute: bool,
}

/// Scalar whose gradient with respect to its input is `grad`: starts a backward pass in the middle.
struct Seed {
    grad: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed-gradient"
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, _layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, _grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.grad.clone()))
    }
}

fn backward_from(output: &Tensor, grad: Tensor) -> Result<GradStore, TrainError> {
    Ok(output.apply_op1(Seed { grad })?.backward()?)
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
    let params = model.params();
    let pass = Pass { grad: true, dropout: options.dropout, ..batch.pass() };
    let mut attention = Causal(&batch.segments);
    let embedded = model.embed(&batch.tokens, &pass)?;
    let mut x = embedded.detach();
    let mut blocks: Vec<(Option<Var>, Tensor, Option<Tensor>)> = Vec::new();
    for layer in 0..model.dims().layers {
        // Nothing below the first block is trained unless the embedding is, so its input needs no gradient.
        let var = if layer > 0 || model.trains_embedding() { Some(Var::from_tensor(&x)?) } else { None };
        let input = var.as_ref().map_or(x, |v| v.as_tensor().clone());
        let output = model.block(layer, &input, &pass, &mut attention)?;
        x = output.detach();
        blocks.push((var, input, (!options.recompute).then_some(output)));
    }
    let top = Var::from_tensor(&x)?;
    let loss = model.loss(&top, &batch.targets, options.denominator, &pass)?;
    let value = f64::from(loss.to_scalar::<f32>()?);
    let mut store = loss.backward()?;
    drop((loss, x));
    grads.collect(params, &mut store)?;
    let mut grad = store.remove(&top).ok_or_else(|| TrainError::internal("the loss gave its input no gradient"))?;
    drop((store, top));
    for layer in (0..model.dims().layers).rev() {
        let Some((var, input, output)) = blocks.pop() else { break };
        let output = match output {
            Some(output) => output,
            None => model.block(layer, &input, &pass, &mut attention)?,
        };
        let mut store = backward_from(&output, grad)?;
        drop((output, input));
        grads.collect(params, &mut store)?;
        let Some(var) = var else { return Ok(value) };
        grad = store
            .remove(&var)
            .ok_or_else(|| TrainError::internal(format!("block {layer} gave its input no gradient")))?;
    }
    let mut store = backward_from(&embedded, grad)?;
    grads.collect(params, &mut store)?;
    Ok(value)
}

/// Sum of the targets' losses in `batch`, without a gradient.
///
/// # Errors
/// Tensor errors only.
pub fn total_loss(model: &dyn CausalLm, batch: &Batch) -> Result<f64, TrainError> {
    let x = hidden(model, batch)?;
    Ok(model.token_losses(&x, &batch.targets)?.iter().map(|l| f64::from(*l)).sum())
}

/// Logits of every token, `(N, V)`, without a gradient.
///
/// # Errors
/// Tensor errors only.
pub fn logits(model: &dyn CausalLm, batch: &Batch) -> Result<Tensor, TrainError> {
    Ok(model.logits(&hidden(model, batch)?)?)
}

fn hidden(model: &dyn CausalLm, batch: &Batch) -> Result<Tensor, TrainError> {
    let pass = batch.pass();
    let mut attention = Causal(&batch.segments);
    let mut x = model.embed(&batch.tokens, &pass)?;
    for layer in 0..model.dims().layers {
        x = model.block(layer, &x, &pass, &mut attention)?;
    }
    Ok(x)
}
