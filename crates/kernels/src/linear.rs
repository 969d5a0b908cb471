//! `y = x Wᵀ`, with a frozen or a trainable weight.
//!
//! Backward: `dx = g W`, and for a trainable weight `dW = gᵀ x`. The frozen weight is captured by the op
//! instead of being an input of the graph, so its gradient is neither computed nor stored.

use crate::buffer::{input, prepare, prepare_weight, tensor, with_data, with_weight};
use crate::matmul::{Mat, product};
use crate::portable;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `x (N, in)`, `w (out, in)` frozen, f32 or 16 bits → `(N, out)`. The gradient flows to `x` only.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    check("linear", x, w)?;
    if portable::is_portable(x) {
        return portable::linear::linear(x, w);
    }
    let w = prepare_weight("linear", w)?;
    tape::apply1(&prepare("linear", "x", x)?, Linear { w }, Saves::NOTHING)
}

/// `x (N, in)`, `w (out, in)` → `(N, out)`. The gradient flows to both.
pub fn linear_trainable(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    const OP: &str = "linear_trainable";
    check(OP, x, w)?;
    if portable::is_portable(x) {
        return portable::linear::linear_trainable(x, w);
    }
    tape::apply2([&prepare(OP, "x", x)?, &prepare(OP, "w", w)?], LinearTrainable, Saves::INPUTS)
}

/// Checks `x (N, in)` against `w (out, in)`; returns `(N, in, out)`.
pub(crate) fn check(op: &str, x: &Tensor, w: &Tensor) -> Result<(usize, usize, usize)> {
    match (x.dims(), w.dims()) {
        (&[n, k], &[out, w_in]) if k == w_in && n * k * out > 0 => Ok((n, k, out)),
        (x, w) => bail!("{op}: x is {x:?} and w is {w:?}; expected (N, in) and (out, in), none of them zero"),
    }
}

struct Linear {
    w: Tensor,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = input(self.name(), x, layout)?;
        let (out, k) = self.w.dims2()?;
        let y = with_weight(self.name(), &self.w, |w| product(1.0, Mat::new(x, k), Mat::new(w, k).t()))?;
        Ok((CpuStorage::F32(y), Shape::from((x.len() / k, out))))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient_of_input(self.name(), &self.w, g)?))
    }
}

struct LinearTrainable;

impl CustomOp2 for LinearTrainable {
    fn name(&self) -> &'static str {
        "linear_trainable"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, k) = xl.shape().dims2()?;
        let (out, _) = wl.shape().dims2()?;
        let (x, w) = (input(self.name(), x, xl)?, input(self.name(), w, wl)?);
        Ok((CpuStorage::F32(product(1.0, Mat::new(x, k), Mat::new(w, k).t())), Shape::from((n, out))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = if x.track_op() { Some(gradient_of_input(self.name(), w, g)?) } else { None };
        let dw = if w.track_op() { Some(gradient_of_weight(self.name(), x, w, g)?) } else { None };
        Ok((dx, dw))
    }
}

/// `dx = g W`.
fn gradient_of_input(op: &str, w: &Tensor, g: &Tensor) -> Result<Tensor> {
    let (out, k) = w.dims2()?;
    let dx = with_data(op, g, |g| with_weight(op, w, |w| product(1.0, Mat::new(g, out), Mat::new(w, k))))??;
    tensor(dx, (g.dim(0)?, k))
}

/// `dW = gᵀ x`.
fn gradient_of_weight(op: &str, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<Tensor> {
    let (out, k) = w.dims2()?;
    let dw = with_data(op, g, |g| with_data(op, x, |x| product(1.0, Mat::new(g, out).t(), Mat::new(x, k))))??;
    tensor(dw, w.shape())
}
