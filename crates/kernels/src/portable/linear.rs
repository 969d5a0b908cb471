//! Products with weights. A frozen weight is captured by its op, as on the CPU, and gets no gradient.

use super::{Backward, Op, apply, prepare, wide};
use crate::tape::Saves;
use candle_core::{Result, Tensor, bail};

/// Rows of a weight that [`merged_row_norms`] has merged at a time.
const ROWS: usize = 1024;

/// `x (N, in)`, `w (out, in)` frozen.
pub(crate) fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    prepare("linear", "x", x)?;
    prepare("linear", "w", w)?;
    apply(&[x], Linear { w: w.detach() }, Saves::NOTHING)
}

struct Linear {
    w: Tensor,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x] = inputs else { bail!("linear: {} inputs", inputs.len()) };
        x.matmul(&self.w.to_dtype(x.dtype())?.t()?)
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let dx = saved.when(0, || saved.grad.matmul(&self.w.to_dtype(saved.grad.dtype())?))?;
        Ok(vec![dx])
    }
}

/// `x (N, in)`, `w (out, in)`.
pub(crate) fn linear_trainable(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    prepare("linear_trainable", "x", x)?;
    prepare("linear_trainable", "w", w)?;
    apply(&[x, w], LinearTrainable, Saves::INPUTS)
}

struct LinearTrainable;

impl Op for LinearTrainable {
    fn name(&self) -> &'static str {
        "linear_trainable"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x, w] = inputs else { bail!("linear_trainable: {} inputs", inputs.len()) };
        x.matmul(&w.to_dtype(x.dtype())?.t()?)
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (x, w, g) = (saved.input(0)?, saved.input(1)?, saved.grad);
        let dx = saved.when(0, || g.matmul(&w.to_dtype(g.dtype())?))?;
        let dw = saved.when(1, || g.t()?.matmul(x)?.to_dtype(w.dtype()))?;
        Ok(vec![dx, dw])
    }
}

/// `x (N, in)`, `w (out, in)` frozen, `a (r, in)`, `b (out, r)`.
///
/// The adapter is never folded into the weight: where that has 16 bits, a young adapter would be rounded away.
pub(crate) fn lora_linear(x: &Tensor, w: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    const OP: &str = "lora_linear";
    for (name, t) in [("x", x), ("w", w), ("a", a), ("b", b)] {
        prepare(OP, name, t)?;
    }
    apply(&[x, a, b], LoraLinear { w: w.detach(), scale }, Saves::INPUTS)
}

struct LoraLinear {
    w: Tensor,
    scale: f64,
}

impl Op for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x, a, b] = inputs else { bail!("lora_linear: {} inputs", inputs.len()) };
        let of = x.dtype();
        let low = (x.matmul(&a.to_dtype(of)?.t()?)? * self.scale)?; // (N, in) -> (N, r)
        x.matmul(&self.w.to_dtype(of)?.t()?)? + low.matmul(&b.to_dtype(of)?.t()?)? // -> (N, out)
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (x, a, b, g) = (saved.input(0)?, saved.input(1)?, saved.input(2)?, saved.grad);
        let of = g.dtype();
        let (narrow_a, narrow_b) = (a.to_dtype(of)?, b.to_dtype(of)?);
        let u = (g.matmul(&narrow_b)? * self.scale)?; // (N, out) -> (N, r)
        let da = saved.when(1, || u.t()?.matmul(x)?.to_dtype(a.dtype()))?;
        let db = saved.when(2, || {
            let t = (x.matmul(&narrow_a.t()?)? * self.scale)?; // (N, in) -> (N, r)
            g.t()?.matmul(&t)?.to_dtype(b.dtype())
        })?;
        let dx = saved.when(0, || g.matmul(&self.w.to_dtype(of)?)? + u.matmul(&narrow_a)?)?;
        Ok(vec![dx, da, db])
    }
}

/// `‖w_i + scale · b_i a‖₂` for every row, `(out)`, f32.
pub(crate) fn merged_row_norms(w: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let (w, a, b) = (w.detach(), wide(&a.detach())?, wide(&b.detach())?);
    let out = w.dim(0)?;
    let norms = (0..out).step_by(ROWS).map(|from| {
        let rows = ROWS.min(out - from);
        let low = (b.narrow(0, from, rows)?.matmul(&a)? * scale)?;
        (wide(&w.narrow(0, from, rows)?)? + low)?.sqr()?.sum(1)?.sqrt()
    });
    Tensor::cat(&norms.collect::<Result<Vec<_>>>()?, 0)
}
