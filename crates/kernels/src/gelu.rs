//! GELU in its exact form, `y = x Φ(x)` with the normal distribution's Φ (Hendrycks and Gimpel, arXiv 1606.08415).
//!
//! Backward: `dx = g (Φ(x) + x φ(x))`, φ the normal density. Nothing is saved but the input.

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "row offsets of checked shapes")]

use crate::buffer::{fill_rows, input, prepare, tensor, with_data};
use crate::portable;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::f64::consts::PI;

/// `x (N, F)` → `(N, F)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    match x.dims() {
        &[n, f] if n * f > 0 && portable::is_portable(x) => portable::elementwise::gelu(x),
        &[n, f] if n * f > 0 => tape::apply1(&prepare("gelu", "x", x)?, Gelu, Saves::INPUTS),
        x => bail!("gelu: x is {x:?}; expected (N, F), none of them zero"),
    }
}

struct Gelu;

/// `Φ(x)` and `φ(x)`; erf by Abramowitz and Stegun 7.1.26, off by at most 1.5e-7, whose exponential is φ's.
fn normal(x: f32) -> (f32, f32) {
    let exponential = (-0.5 * x * x).exp();
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let series = [1.061_405_4, -1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6];
    let tail = 0.5 * t * series.iter().fold(0.0, |sum, a| sum * t + a) * exponential;
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    (if x.is_nan() { x } else { phi }, exponential * (1.0 / (2.0 * PI).sqrt()) as f32)
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = input(self.name(), x, layout)?;
        let (n, f) = layout.shape().dims2()?;
        let y = fill_rows(n, f, |row, y| {
            for (y, x) in y.iter_mut().zip(&x[row * f..][..f]) {
                *y = x * normal(*x).0;
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (name, (n, f)) = (self.name(), x.dims2()?);
        let dx = with_data(name, x, |x| {
            with_data(name, g, |g| {
                fill_rows(n, f, |row, dx| {
                    let (x, g) = (&x[row * f..][..f], &g[row * f..][..f]);
                    for ((dx, x), g) in dx.iter_mut().zip(x).zip(g) {
                        let (phi, density) = normal(*x);
                        *dx = g * (phi + x * density);
                    }
                })
            })
        })??;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
