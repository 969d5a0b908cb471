//! The output head and the log-probabilities of its targets: `logits = x Wᵀ`, `y = log softmax(logits)[target]`.
//!
//! What losses over whole sequences need (DPO, arXiv 2305.18290): their gradient weighs every token's
//! log-probability on its own, and is known only after all of them. Logits exist for a few rows at a time;
//! the backward pass makes them again: `dlogits = g (onehot − softmax)`, `dx = dlogits W`.

#![expect(clippy::indexing_slicing, reason = "row numbers of checked shapes")]

use crate::buffer::{input, prepare, prepare_weight, tensor, with_data, with_weight};
use crate::cross_entropy::{Need, Plan};
use crate::portable;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// `x (N, C)`, `w (V, C)` frozen, `targets (N)` → `(N)`; 0 where the target is [`IGNORE`](crate::IGNORE). The
/// gradient flows to `x` only. `soft_cap` as in [`linear_cross_entropy`](crate::linear_cross_entropy).
pub fn linear_log_probs(x: &Tensor, w: &Tensor, targets: &[u32], soft_cap: Option<f32>) -> Result<Tensor> {
    const OP: &str = "linear_log_probs";
    let plan = Plan::new(OP, x, w, targets, 1.0, soft_cap)?;
    if portable::is_portable(x) {
        return portable::head::log_probs(x, w, plan);
    }
    let w = prepare_weight(OP, w)?;
    tape::apply1(&prepare(OP, "x", x)?, LinearLogProbs { plan, w }, Saves::INPUTS)
}

struct LinearLogProbs {
    plan: Plan,
    w: Tensor,
}

impl CustomOp1 for LinearLogProbs {
    fn name(&self) -> &'static str {
        "linear_log_probs"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = input(self.name(), x, layout)?;
        let losses = with_weight(self.name(), &self.w, |w| self.plan.token_losses(x, w))?;
        let log_probs: Vec<f32> = losses.into_iter().map(|loss| 0.0 - loss).collect();
        let n = log_probs.len();
        Ok((CpuStorage::F32(log_probs), Shape::from(n)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let name = self.name();
        let g: Vec<f32> = g.contiguous()?.to_vec1()?;
        let need = Need { dx: true, dw: false };
        let outcome =
            with_data(name, x, |x| with_weight(name, &self.w, |w| self.plan.run(x, w, need, &|row| -g[row])))??;
        let Some(dx) = outcome.dx else { bail!("{name}: no gradient was computed") };
        Ok(Some(tensor(dx, x.shape())?))
    }
}
