//! The update of AdamW on tensors of any device.

use super::wide;
use crate::launch;
use candle_core::{Result, Tensor, bail};

/// The numbers of one update of `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWRule {
    /// Factor of the gradient.
    pub clip: f32,
    /// `1 − rate · weight_decay`
    pub shrink: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// `rate / (1 − beta1ᵗ)`
    pub step_size: f32,
    /// `√(1 − beta2ᵗ)`
    pub root2: f32,
}

/// Updates `p` and its moments `m` and `v` in place, given the gradient `g`. All contiguous, f32, of one shape.
///
/// # Errors
/// Shapes that differ.
pub fn adamw(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, rule: AdamWRule) -> Result<()> {
    if [g, m, v].iter().any(|t| t.dims() != p.dims()) {
        bail!("adamw: p is {:?}, g is {:?}, m is {:?}, v is {:?}", p.dims(), g.dims(), m.dims(), v.dims());
    }
    let flat = |t: &Tensor| t.detach().flatten_all();
    let (p, m, v) = (flat(p)?, flat(m)?, flat(v)?);
    let g = flat(&wide(g)?.contiguous()?)?;
    if let Some([new_p, new_m, new_v]) = launch::adamw(&p, &g, &m, &v, rule)? {
        p.slice_set(&new_p, 0, 0)?;
        m.slice_set(&new_m, 0, 0)?;
        return v.slice_set(&new_v, 0, 0);
    }
    let g = (g * f64::from(rule.clip))?;
    let (beta1, beta2) = (f64::from(rule.beta1), f64::from(rule.beta2));
    let mean = (&m + ((&g - &m)? * (1.0 - beta1))?)?;
    let square = ((&v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
    let scale = (square.sqrt()? / f64::from(rule.root2))?.affine(1.0, f64::from(rule.epsilon))?;
    let moved = ((&p * f64::from(rule.shrink))? - ((&mean / scale)? * f64::from(rule.step_size))?)?;
    m.slice_set(&mean, 0, 0)?;
    v.slice_set(&square, 0, 0)?;
    p.slice_set(&moved, 0, 0)
}
