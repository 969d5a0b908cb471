//! The output head and the loss in one op: `logits = x Wᵀ`, `loss = Σ −log softmax(logits)[target] / denominator`.
//!
//! With a large vocabulary the logits are by far the largest matrix of a training step, so they only ever
//! exist for a few rows. Rows whose target is [`IGNORE`] are left out before any product. Gradients are
//! computed in the forward pass, while a chunk's logits are there: `dlogits = (softmax − onehot) / denominator`,
//! `dx = dlogits W`, `dW = dlogitsᵀ x`. The backward pass scales them by the gradient of the loss.
//!
//! A soft cap `c` (Gemma 2, arXiv 2408.00118) replaces each logit `z` by `c tanh(z / c)`, and multiplies its
//! gradient by `1 − (z / c)²`, `z` after the cap.
//!
//! The denominator comes from outside, because with gradient accumulation it is the number of target tokens
//! of the whole global batch.

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "row offsets and targets of checked shapes")]

use crate::buffer::{input, prepare, prepare_weight, tensor, with_data, with_weight};
use crate::linear::check;
use crate::matmul::{Mat, MatMut, Threads, Write, gemm, product};
use crate::portable;
use crate::simd;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Target of a token that does not count.
pub const IGNORE: u32 = u32::MAX;

/// Bytes of logits alive at once: up to the second figure while a chunk has fewer than [`ENOUGH_ROWS`], because the
/// weight is packed again for every chunk.
const CHUNK_BYTES: [usize; 2] = [16 << 20, 192 << 20];
const ENOUGH_ROWS: usize = 1024;

/// `x (N, C)`, `w (V, C)` frozen, `targets (N)` → scalar. The gradient flows to `x` only.
///
/// A batch without any target has loss 0 and gradient 0.
pub fn linear_cross_entropy(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    denominator: f64,
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    const OP: &str = "linear_cross_entropy";
    let plan = Plan::new(OP, x, w, targets, denominator, soft_cap)?;
    if portable::is_portable(x) {
        return portable::head::loss(x, w, plan);
    }
    let w = prepare_weight(OP, w)?;
    let need = Need { dx: x.track_op(), dw: false };
    let op = LinearCrossEntropy { plan, need, w: Some(w), gradients: OnceLock::new() };
    tape::apply1(&prepare(OP, "x", x)?, op, Saves::NOTHING)
}

/// [`linear_cross_entropy`] with a gradient for `w` too.
pub fn linear_cross_entropy_trainable(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    denominator: f64,
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    const OP: &str = "linear_cross_entropy_trainable";
    let plan = Plan::new(OP, x, w, targets, denominator, soft_cap)?;
    if portable::is_portable(x) {
        return portable::head::loss_trainable(x, w, plan);
    }
    let need = Need { dx: x.track_op(), dw: w.track_op() };
    let op = LinearCrossEntropy { plan, need, w: None, gradients: OnceLock::new() };
    tape::apply2([&prepare(OP, "x", x)?, &prepare(OP, "w", w)?], op, Saves::NOTHING)
}

/// Negative log-likelihood of every token's target, without gradient; 0 where the target is [`IGNORE`].
///
/// `x (N, C)`, `w (V, C)`, `targets (N)` → `N` losses.
pub fn token_losses(x: &Tensor, w: &Tensor, targets: &[u32], soft_cap: Option<f32>) -> Result<Vec<f32>> {
    const OP: &str = "token_losses";
    let plan = Plan::new(OP, x, w, targets, 1.0, soft_cap)?;
    if portable::is_portable(x) {
        return portable::head::token_losses(x, w, &plan);
    }
    let (x, w) = (prepare(OP, "x", x)?, prepare_weight(OP, w)?);
    with_data(OP, &x, |x| with_weight(OP, &w, |w| plan.token_losses(x, w)))?
}

/// Which gradients the forward pass computes.
#[derive(Clone, Copy)]
pub(crate) struct Need {
    pub(crate) dx: bool,
    pub(crate) dw: bool,
}

/// Rows that count, and the sizes.
pub(crate) struct Plan {
    /// Rows that have a target, and the targets.
    pub(crate) rows: Vec<(usize, usize)>,
    pub(crate) n: usize,
    c: usize,
    pub(crate) vocabulary: usize,
    pub(crate) denominator: f64,
    pub(crate) soft_cap: Option<f32>,
}

pub(crate) struct Outcome {
    losses: Vec<f32>,
    pub(crate) dx: Option<Vec<f32>>,
    dw: Option<Vec<f32>>,
}

impl Plan {
    pub(crate) fn new(
        op: &str,
        x: &Tensor,
        w: &Tensor,
        targets: &[u32],
        denominator: f64,
        soft_cap: Option<f32>,
    ) -> Result<Self> {
        let (n, c, vocabulary) = check(op, x, w)?;
        if targets.len() != n {
            bail!("{op}: x has {n} rows but there are {} targets", targets.len());
        }
        if !(denominator.is_finite() && denominator > 0.0) {
            bail!("{op}: the denominator is {denominator}; expected a positive number of target tokens");
        }
        if let Some(cap) = soft_cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            bail!("{op}: a soft cap of {cap}; expected a positive number");
        }
        let mut rows = Vec::new();
        for (row, &target) in targets.iter().enumerate() {
            match target as usize {
                _ if target == IGNORE => {}
                target if target < vocabulary => rows.push((row, target)),
                target => bail!("{op}: the target of row {row} is {target}, the vocabulary ends at {vocabulary}"),
            }
        }
        Ok(Self { rows, n, c, vocabulary, denominator, soft_cap })
    }

    /// Loss of every target, `N`; 0 where it is ignored.
    pub(crate) fn token_losses(&self, x: &[f32], w: &[f32]) -> Vec<f32> {
        let losses = self.run(x, w, Need { dx: false, dw: false }, &|_| 0.0).losses;
        let mut all = vec![0.0; self.n];
        for (&(row, _), loss) in self.rows.iter().zip(losses) {
            all[row] = loss;
        }
        all
    }

    /// Losses, and the gradients of `Σ factor(row) · loss(row)` that are needed.
    pub(crate) fn run(&self, x: &[f32], w: &[f32], need: Need, factor: &(dyn Fn(usize) -> f32 + Sync)) -> Outcome {
        let (c, v) = (self.c, self.vocabulary);
        let weight = Mat::new(w, c);
        let [rows, most] = CHUNK_BYTES.map(|bytes| bytes / (4 * v));
        let chunk_rows = rows.max(most.min(ENOUGH_ROWS)).clamp(16, 4096).min(self.rows.len().max(1));
        let mut dx = need.dx.then(|| vec![0.0; self.n * c]);
        let mut dw = need.dw.then(|| vec![0.0; v * c]);
        let mut losses = Vec::with_capacity(self.rows.len());
        for rows in self.rows.chunks(chunk_rows) {
            let mut compact = Vec::with_capacity(rows.len() * c);
            rows.iter().for_each(|&(row, _)| compact.extend_from_slice(&x[row * c..][..c]));
            let xs = Mat::new(&compact, c);
            let mut logits = product(1.0, xs, weight.t());
            let with_gradient = need.dx || need.dw;
            let of_chunk: Vec<f32> = logits
                .par_chunks_exact_mut(v)
                .zip(rows)
                .map(|(logits, &(row, target))| {
                    row_loss(logits, target, self.soft_cap, with_gradient.then(|| factor(row)))
                })
                .collect();
            losses.extend(of_chunk);
            let dlogits = Mat::new(&logits, v);
            if let Some(dx) = &mut dx {
                let dxs = product(1.0, dlogits, weight);
                for (&(row, _), compact) in rows.iter().zip(dxs.chunks_exact(c)) {
                    dx[row * c..][..c].copy_from_slice(compact);
                }
            }
            if let Some(dw) = &mut dw {
                gemm(&mut MatMut::new(dw, c), Write::Add, 1.0, dlogits.t(), xs, Threads::All);
            }
        }
        Outcome { losses, dx, dw }
    }

    /// The loss, summed in f64 in row order.
    fn total(&self, losses: &[f32]) -> f32 {
        (losses.iter().map(|&l| f64::from(l)).sum::<f64>() / self.denominator) as f32
    }
}

/// `−log softmax(logits)[target]`, the logits capped first. With `inverse`, turns them into their gradient,
/// `(softmax − onehot) · inverse` times the slope of the cap.
fn row_loss(logits: &mut [f32], target: usize, cap: Option<f32>, inverse: Option<f32>) -> f32 {
    if let Some(cap) = cap {
        simd::soft_cap(logits, cap);
    }
    let max = simd::max(logits);
    let at_target = logits[target];
    let sum = match (inverse, cap) {
        (None, _) => simd::sum_exp(logits, max),
        (Some(inverse), None) => {
            let sum = simd::exp_sum(logits, max);
            simd::scale(logits, inverse / sum);
            logits[target] -= inverse;
            sum
        }
        (Some(inverse), Some(cap)) => {
            let sum = simd::sum_exp(logits, max);
            simd::capped_softmax(logits, max, inverse / sum, cap);
            logits[target] -= inverse * (1.0 - (at_target / cap).powi(2));
            sum
        }
    };
    max + sum.ln() - at_target
}

struct LinearCrossEntropy {
    plan: Plan,
    need: Need,
    /// The frozen weight; `None` when it is an input of the graph.
    w: Option<Tensor>,
    /// For a loss gradient of 1.
    gradients: OnceLock<(Option<Tensor>, Option<Tensor>)>,
}

impl LinearCrossEntropy {
    fn forward(&self, x: &[f32], w: &[f32]) -> Result<(CpuStorage, Shape)> {
        let inverse = (1.0 / self.plan.denominator) as f32;
        let Outcome { losses, dx, dw } = self.plan.run(x, w, self.need, &|_| inverse);
        let dx = dx.map(|dx| tensor(dx, (self.plan.n, self.plan.c))).transpose()?;
        let dw = dw.map(|dw| tensor(dw, (self.plan.vocabulary, self.plan.c))).transpose()?;
        if self.gradients.set((dx, dw)).is_err() {
            bail!("linear_cross_entropy: the same op ran forward twice");
        }
        Ok((CpuStorage::F32(vec![self.plan.total(&losses)]), Shape::from(())))
    }

    fn backward(&self, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some((dx, dw)) = self.gradients.get() else { bail!("linear_cross_entropy: backward ran before forward") };
        let factor = g.to_scalar::<f32>()?;
        let scaled = |t: &Option<Tensor>| match t {
            Some(t) if factor == 1.0 => Ok(Some(t.clone())),
            Some(t) => t.affine(f64::from(factor), 0.0).map(Some),
            None => Ok(None),
        };
        Ok((scaled(dx)?, scaled(dw)?))
    }
}

impl CustomOp1 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = input("linear_cross_entropy", x, layout)?;
        let Some(w) = &self.w else { bail!("linear_cross_entropy: the frozen weight is missing") };
        with_weight("linear_cross_entropy", w, |w| self.forward(x, w))?
    }

    fn bwd(&self, _x: &Tensor, _loss: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(g)?.0)
    }
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_trainable"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        const OP: &str = "linear_cross_entropy_trainable";
        self.forward(input(OP, x, xl)?, input(OP, w, wl)?)
    }

    fn bwd(&self, _x: &Tensor, _w: &Tensor, _loss: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(g)
    }
}
