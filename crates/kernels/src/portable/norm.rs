//! RMSNorm and LayerNorm over the rows of `(N, C)`, in f32 whatever the type of the rows.

use super::{Backward, Op, apply, prepare, wide};
use crate::launch;
use crate::tape::Saves;
use candle_core::{Result, Tensor, bail};

/// `x (N, C)`, `w (C)` frozen.
pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    prepare("rms_norm", "x", x)?;
    apply(&[x], RmsNorm { w: Some(wide(&w.detach())?.contiguous()?), eps }, Saves::INPUTS_CHEAP)
}

/// `x (N, C)`, `w (C)`.
pub(crate) fn rms_norm_trainable(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    prepare("rms_norm_trainable", "x", x)?;
    apply(&[x, w], RmsNorm { w: None, eps }, Saves::INPUTS_CHEAP)
}

struct RmsNorm {
    /// The frozen weight; `None` when it is an input.
    w: Option<Tensor>,
    eps: f64,
}

impl RmsNorm {
    fn weight(&self, inputs: &[Tensor]) -> Result<Tensor> {
        match (&self.w, inputs.get(1)) {
            (Some(w), _) => Ok(w.clone()),
            (None, Some(w)) => wide(w),
            (None, None) => bail!("rms_norm: the weight is missing"),
        }
    }
}

/// `1 / sqrt(mean(x²) + ε)`, `(N, 1)`.
fn inverse_rms(x: &Tensor, eps: f64) -> Result<Tensor> {
    (x.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?.recip()
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let Some(x) = inputs.first() else { bail!("rms_norm: the input is missing") };
        let w = self.weight(inputs)?;
        if let Some(y) = launch::rms_norm(x, &w, self.eps)? {
            return Ok(y);
        }
        let z = wide(x)?;
        z.broadcast_mul(&inverse_rms(&z, self.eps)?)?.broadcast_mul(&w)?.to_dtype(x.dtype())
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (x, w) = (saved.input(0)?, self.weight(saved.inputs)?);
        if !saved.wants(1)
            && let Some(dx) = launch::rms_norm_backward(x, &w, saved.grad, self.eps)?
        {
            return Ok(vec![Some(dx)]);
        }
        let (z, g) = (wide(x)?, wide(saved.grad)?);
        let r = inverse_rms(&z, self.eps)?; // (N, 1)
        let dx = saved.when(0, || {
            let h = g.broadcast_mul(&w)?;
            let along = ((&h * &z)?.mean_keepdim(1)? * r.sqr()?)?; // (N, 1)
            (h - z.broadcast_mul(&along)?)?.broadcast_mul(&r)?.to_dtype(x.dtype())
        })?;
        let dw = saved.when(1, || {
            let dw = (&g * z.broadcast_mul(&r)?)?.sum(0)?;
            dw.to_dtype(saved.input(1)?.dtype())
        })?;
        Ok(vec![dx, dw])
    }
}

/// `x (N, C)`, `w (C)`, `b (C)`.
pub(crate) fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    prepare("layer_norm", "x", x)?;
    apply(&[x, w, b], LayerNorm { eps }, Saves::INPUTS)
}

struct LayerNorm {
    eps: f64,
}

impl LayerNorm {
    /// `x̂ (N, C)` and the inverse deviations `(N, 1)`.
    fn normed(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let r = (centred.sqr()?.mean_keepdim(1)? + self.eps)?.sqrt()?.recip()?;
        Ok((centred.broadcast_mul(&r)?, r))
    }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x, w, b] = inputs else { bail!("layer_norm: {} inputs", inputs.len()) };
        let (normed, _) = self.normed(&wide(x)?)?;
        normed.broadcast_mul(&wide(w)?)?.broadcast_add(&wide(b)?)?.to_dtype(x.dtype())
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (x, w, b) = (saved.input(0)?, saved.input(1)?, saved.input(2)?);
        let g = wide(saved.grad)?;
        let (normed, r) = self.normed(&wide(x)?)?;
        let dx = saved.when(0, || {
            let h = g.broadcast_mul(&wide(w)?)?;
            let along = (&h * &normed)?.mean_keepdim(1)?; // (N, 1)
            let centred = h.broadcast_sub(&h.mean_keepdim(1)?)?;
            (centred - normed.broadcast_mul(&along)?)?.broadcast_mul(&r)?.to_dtype(x.dtype())
        })?;
        let dw = saved.when(1, || (&g * &normed)?.sum(0)?.to_dtype(w.dtype()))?;
        let db = saved.when(2, || g.sum(0)?.to_dtype(b.dtype()))?;
        Ok(vec![dx, dw, db])
    }
}
