//! LayerNorm: `y = x̂ ⊙ w + b` with `x̂ = (x − μ) r`, `r = 1 / sqrt(σ² + ε)` per row (Ba et al., arXiv 1607.06450).
//!
//! Backward per row of `C`, with `h = g ⊙ w`: `dx = r (h − Σh / C − x̂ Σ(h ⊙ x̂) / C)`, and for a trained weight
//! and bias `dw = Σ_rows g ⊙ x̂`, `db = Σ_rows g`. `μ` and `r` are computed again instead of being saved.

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "row offsets of checked shapes")]

use crate::buffer::{fill_rows, input, prepare, tensor, with_data};
use crate::portable;
use crate::simd;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows whose gradients are summed in one piece. The pieces are fixed, so the sum is too.
const ROWS_PER_SUM: usize = 64;

/// `x (N, C)`, `w (C)`, `b (C)` → `(N, C)`. Gradients flow to `w` and `b` only where they are tracked.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    match (x.dims(), w.dims(), b.dims()) {
        (&[n, c], &[w], &[b]) if c == w && c == b && n * c > 0 => {}
        (x, w, b) => {
            bail!("{OP}: x is {x:?}, w is {w:?} and b is {b:?}; expected (N, C) and twice (C), none of them zero")
        }
    }
    if portable::is_portable(x) {
        return portable::norm::layer_norm(x, w, b, eps);
    }
    let (x, w, b) = (prepare(OP, "x", x)?, prepare(OP, "w", w)?, prepare(OP, "b", b)?);
    tape::apply3([&x, &w, &b], LayerNorm { eps }, Saves::INPUTS)
}

struct LayerNorm {
    eps: f64,
}

/// Mean and inverse deviation of a row, summed in f64.
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
}

impl LayerNorm {
    fn gradient_of_input(&self, x: &[f32], w: &[f32], g: &[f32]) -> Vec<f32> {
        let c = w.len();
        fill_rows(x.len() / c, c, |row, dx| {
            let (x, g) = (&x[row * c..][..c], &g[row * c..][..c]);
            let (mean, r) = moments(x, self.eps);
            let (mut sum, mut along) = (0.0_f64, 0.0_f64);
            for ((x, g), w) in x.iter().zip(g).zip(w) {
                let h = g * w;
                sum += f64::from(h);
                along += f64::from(h * ((x - mean) * r));
            }
            let (sum, along) = ((sum / c as f64) as f32, (along / c as f64) as f32);
            for (((dx, x), g), w) in dx.iter_mut().zip(x).zip(g).zip(w) {
                *dx = r * (g * w - sum - (x - mean) * r * along);
            }
        })
    }

    /// `(dw, db)`
    fn gradients_of_scale(&self, x: &[f32], g: &[f32], c: usize) -> (Vec<f32>, Vec<f32>) {
        let piece = ROWS_PER_SUM * c;
        let sums: Vec<(Vec<f32>, Vec<f32>)> = x
            .par_chunks(piece)
            .zip(g.par_chunks(piece))
            .map(|(x, g)| {
                let (mut dw, mut db) = (vec![0.0; c], vec![0.0; c]);
                for (x, g) in x.chunks_exact(c).zip(g.chunks_exact(c)) {
                    let (mean, r) = moments(x, self.eps);
                    for ((dw, x), g) in dw.iter_mut().zip(x).zip(g) {
                        *dw += g * (x - mean) * r;
                    }
                    simd::add(&mut db, g);
                }
                (dw, db)
            })
            .collect();
        let mut total = (vec![0.0; c], vec![0.0; c]);
        for (dw, db) in &sums {
            simd::add(&mut total.0, dw);
            simd::add(&mut total.1, db);
        }
        total
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (x, w, b) = (input(name, x, xl)?, input(name, w, wl)?, input(name, b, bl)?);
        let c = w.len();
        let y = fill_rows(x.len() / c, c, |row, y| {
            let x = &x[row * c..][..c];
            let (mean, r) = moments(x, self.eps);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = (x - mean) * r * w + b;
            }
        });
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (name, c) = (self.name(), w.dims1()?);
        let (dx, scale) = with_data(name, x, |x_data| {
            with_data(name, g, |g| {
                with_data(name, w, |w_data| {
                    let dx = x.track_op().then(|| self.gradient_of_input(x_data, w_data, g));
                    let trained = w.track_op() || b.track_op();
                    (dx, trained.then(|| self.gradients_of_scale(x_data, g, c)))
                })
            })
        })???;
        let dx = dx.map(|dx| tensor(dx, x.shape())).transpose()?;
        let Some((dw, db)) = scale else { return Ok((dx, None, None)) };
        let dw = if w.track_op() { Some(tensor(dw, c)?) } else { None };
        Ok((dx, dw, if b.track_op() { Some(tensor(db, c)?) } else { None }))
    }
}
