//! A linear projection without bias, with or without an adapter.

use super::{Pass, Source, Weight};
use crate::engine::{TrainError, params::Params};
use candle_core::{Result, Tensor, Var};

/// A low-rank adapter: `y += scale · B·A·dropout(x)` (arXiv 2106.09685).
#[derive(Debug, Clone)]
pub struct Lora {
    /// `(r, in)`
    pub a: Var,
    /// `(out, r)`
    pub b: Var,
    pub scale: f64,
    /// Picks the dropout mask.
    pub index: u64,
}

/// `y = W·x` with `W (out, in)`.
#[derive(Debug)]
pub struct Linear {
    path: String,
    shape: (usize, usize),
    weight: Weight,
    lora: Option<Lora>,
}

impl Linear {
    /// Loads `{path}.weight`, of shape `(out, in)`.
    ///
    /// # Errors
    /// Unreadable weights.
    pub fn load(
        source: &Source,
        path: &str,
        shape: (usize, usize),
        params: Option<&mut Params>,
    ) -> std::result::Result<Self, TrainError> {
        let weight = Weight::load(source, &format!("{path}.weight"), &[shape.0, shape.1], params)?;
        Ok(Self { path: path.to_owned(), shape, weight, lora: None })
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
        let Some(dropout) = pass.dropout else {
            return kernels::lora_linear(x, &w, &a, &b, lora.scale);
        };
        // The branch sees another input than the base weight, so the fused op does not fit.
        let low = kernels::linear_trainable(&dropout.apply(x, lora.index)?, &a)?; // (N, in) -> (N, r)
        let branch = kernels::linear_trainable(&low, &b)?; // (N, r) -> (N, out)
        kernels::linear(x, &w)? + (branch * lora.scale)?
    }
}
