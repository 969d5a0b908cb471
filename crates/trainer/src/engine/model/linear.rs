//! A linear projection, with or without a bias and an adapter.

use super::{Pass, Weight};
use crate::engine::params::Params;
use candle_core::{Result, Tensor, Var};

/// A low-rank adapter: `y += scale · B·A·dropout(x)` (arXiv 2106.09685). With magnitudes `m` (DoRA, arXiv
/// 2402.09353) the merged weight's rows are brought to these lengths: `y = m / ‖W + scale · B·A‖ ⊙ (W·x + …)`.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `(r, in)`
    pub a: Var,
    /// `(out, r)`
    pub b: Var,
    /// `(out)`
    pub magnitude: Option<Var>,
    pub scale: f64,
    /// Picks the dropout mask.
    pub index: u64,
}

impl Lora {
    /// Adds the adapter's tensors to `params` under PEFT's names for the module at `path`.
    pub fn register(&self, path: &str, params: &mut Params) {
        params.insert(format!("{path}.lora_A.weight"), self.a.clone());
        params.insert(format!("{path}.lora_B.weight"), self.b.clone());
        if let Some(magnitude) = &self.magnitude {
            params.insert(format!("{path}.lora_magnitude_vector"), magnitude.clone());
        }
    }

    /// `m / ‖W + scale · B·A‖`, `(out)`; the norm counts as a constant in the backward pass, as in PEFT.
    fn row_factors(&self, w: &Tensor, grad: bool) -> Result<Option<Tensor>> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        let norms = kernels::merged_row_norms(w, &self.a, &self.b, self.scale)?;
        let magnitude = if grad { magnitude.as_tensor().clone() } else { magnitude.detach() };
        Ok(Some((magnitude / norms)?))
    }
}

/// `y = W·x + b` with `W (out, in)`.
#[derive(Debug)]
pub struct Linear {
    path: String,
    shape: (usize, usize),
    weight: Weight,
    bias: Option<Weight>,
    lora: Option<Lora>,
}

impl Linear {
    /// `weight (out, in)`; `path` as in [`Linear::path`].
    #[must_use]
    pub fn new(path: &str, shape: (usize, usize), weight: Weight) -> Self {
        Self { path: path.to_owned(), shape, weight, bias: None, lora: None }
    }

    /// `bias (out)`
    #[must_use]
    pub fn with_bias(self, bias: Weight) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Module path as in the HF layout: `model.layers.0.self_attn.q_proj`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `(out, in)`
    #[must_use]
    pub const fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The base weight, `(out, in)`, without a gradient.
    #[must_use]
    pub fn weight(&self) -> Tensor {
        self.weight.tensor(false)
    }

    #[must_use]
    pub const fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    pub fn attach(&mut self, lora: Lora) {
        self.lora = Some(lora);
    }

    /// `(N, in)` → `(N, out)`
    ///
    /// # Errors
    /// Tensor errors only.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let y = self.project(x, pass)?;
        match &self.bias {
            Some(bias) => kernels::add_bias(&y, &bias.tensor(pass.grad)),
            None => Ok(y),
        }
    }

    /// `(N, in)` → `(N, out)`, the bias left out.
    fn project(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let w = self.weight.tensor(pass.grad);
        let Some(lora) = self.lora.as_ref().filter(|_| pass.adapter) else {
            return if self.weight.wants_gradient(pass.grad) {
                kernels::linear_trainable(x, &w)
            } else {
                kernels::linear(x, &w)
            };
        };
        let (a, b) = if pass.grad {
            (lora.a.as_tensor().clone(), lora.b.as_tensor().clone())
        } else {
            (lora.a.detach(), lora.b.detach())
        };
        let factors = lora.row_factors(&w, pass.grad)?;
        let Some(dropout) = pass.dropout else {
            let y = kernels::lora_linear(x, &w, &a, &b, lora.scale)?;
            return match factors {
                Some(factors) => y.broadcast_mul(&factors.to_dtype(y.dtype())?),
                None => Ok(y),
            };
        };
        if let Some(factors) = factors {
            // PEFT's formula: only what the adapter changes about the output sees the dropped input.
            let dropped = dropout.apply(x, lora.index)?;
            let merged = kernels::lora_linear(&dropped, &w, &a, &b, lora.scale)?;
            let merged = merged.broadcast_mul(&factors.to_dtype(merged.dtype())?)?;
            return kernels::linear(x, &w)? + (merged - kernels::linear(&dropped, &w)?)?;
        }
        // The branch sees another input than the base weight, so the fused op does not fit.
        let low = kernels::linear_trainable(&dropout.apply(x, lora.index)?, &a)?; // (N, in) -> (N, r)
        let branch = kernels::linear_trainable(&low, &b)?; // (N, r) -> (N, out)
        kernels::linear(x, &w)? + (branch * lora.scale)?
    }
}
