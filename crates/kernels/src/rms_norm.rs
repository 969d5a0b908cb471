//! RMSNorm: `y = r x ⊙ w` with `r = 1 / sqrt(mean(x²) + ε)` per row (Zhang and Sennrich, arXiv 1910.07467).
//!
//! Backward per row of `C`: `dx = r (g ⊙ w − x · r² Σ(g ⊙ w ⊙ x) / C)`, and for a trainable weight
//! `dw = Σ_rows r g ⊙ x`. `r` is computed again instead of being saved.

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "row offsets of checked shapes")]

use crate::buffer::{fill_rows, input, prepare, tensor, with_data};
use crate::portable;
use crate::simd;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows whose weight gradients are summed in one piece. The pieces are fixed, so the sum is too.
const ROWS_PER_SUM: usize = 64;

/// `x (N, C)`, `w (C)` frozen → `(N, C)`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    check("rms_norm", x, w)?;
    if portable::is_portable(x) {
        return portable::norm::rms_norm(x, w, eps);
    }
    let w = prepare("rms_norm", "w", w)?.to_vec1()?;
    tape::apply1(&prepare("rms_norm", "x", x)?, RmsNorm { w, eps: eps as f32 }, Saves::INPUTS_CHEAP)
}

/// `x (N, C)`, `w (C)` → `(N, C)`, with a gradient for `w` too.
pub fn rms_norm_trainable(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "rms_norm_trainable";
    check(OP, x, w)?;
    if portable::is_portable(x) {
        return portable::norm::rms_norm_trainable(x, w, eps);
    }
    let op = RmsNormTrainable { eps: eps as f32 };
    tape::apply2([&prepare(OP, "x", x)?, &prepare(OP, "w", w)?], op, Saves::INPUTS_CHEAP)
}

fn check(op: &str, x: &Tensor, w: &Tensor) -> Result<()> {
    match (x.dims(), w.dims()) {
        (&[n, c], &[w]) if c == w && n * c > 0 => Ok(()),
        (x, w) => bail!("{op}: x is {x:?} and w is {w:?}; expected (N, C) and (C), none of them zero"),
    }
}

/// `1 / sqrt(mean(x²) + ε)`.
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (simd::dot(x, x) / x.len() as f32 + eps).sqrt()
}

fn forward(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let c = w.len();
    fill_rows(x.len() / c, c, |row, y| {
        let x = &x[row * c..][..c];
        simd::scale_by(y, x, w, inverse_rms(x, eps));
    })
}

fn gradient_of_input(x: &[f32], w: &[f32], g: &[f32], eps: f32) -> Vec<f32> {
    let c = w.len();
    fill_rows(x.len() / c, c, |row, dx| {
        let (x, g) = (&x[row * c..][..c], &g[row * c..][..c]);
        let r = inverse_rms(x, eps);
        let mean = simd::dot3(g, w, x) / c as f32;
        simd::rms_backward(dx, g, w, x, r, mean * r * r);
    })
}

fn gradient_of_weight(x: &[f32], g: &[f32], c: usize, eps: f32) -> Vec<f32> {
    let piece = ROWS_PER_SUM * c;
    let sums: Vec<Vec<f32>> = x
        .par_chunks(piece)
        .zip(g.par_chunks(piece))
        .map(|(x, g)| {
            let mut sum = vec![0.0; c];
            for (x, g) in x.chunks_exact(c).zip(g.chunks_exact(c)) {
                simd::add_scaled_product(&mut sum, g, x, inverse_rms(x, eps));
            }
            sum
        })
        .collect();
    let mut total = vec![0.0; c];
    for sum in &sums {
        simd::add(&mut total, sum);
    }
    total
}

struct RmsNorm {
    w: Vec<f32>,
    eps: f32,
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = forward(input(self.name(), x, layout)?, &self.w, self.eps);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let name = self.name();
        let dx = with_data(name, x, |x| with_data(name, g, |g| gradient_of_input(x, &self.w, g, self.eps)))??;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

struct RmsNormTrainable {
    eps: f32,
}

impl CustomOp2 for RmsNormTrainable {
    fn name(&self) -> &'static str {
        "rms_norm_trainable"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = forward(input(self.name(), x, xl)?, input(self.name(), w, wl)?, self.eps);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (name, c) = (self.name(), w.dims1()?);
        let (dx, dw) = with_data(name, x, |x_data| {
            with_data(name, g, |g| {
                with_data(name, w, |w| {
                    let dx = x.track_op().then(|| gradient_of_input(x_data, w, g, self.eps));
                    (dx, gradient_of_weight(x_data, g, c, self.eps))
                })
            })
        })???;
        Ok((dx.map(|dx| tensor(dx, x.shape())).transpose()?, Some(tensor(dw, w.shape())?)))
    }
}
