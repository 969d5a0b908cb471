//! SwiGLU: `y = silu(gate) ⊙ up` (Shazeer, arXiv 2002.05202), with `silu(z) = z σ(z)`.
//!
//! Backward: `dup = g ⊙ silu(gate)`, `dgate = g ⊙ up ⊙ (σ + silu (1 − σ))`. Nothing is saved but the inputs.

#![expect(clippy::indexing_slicing, reason = "row offsets of checked shapes")]

use crate::buffer::{fill_rows, fill_rows_pair, input, prepare, tensor, with_data};
use crate::simd;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `gate (N, F)`, `up (N, F)` → `(N, F)`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match (gate.dims(), up.dims()) {
        (&[n, f], up) if up == [n, f] && n * f > 0 => {}
        (gate, up) => bail!("swiglu: gate is {gate:?} and up is {up:?}; expected (N, F) twice, none of them zero"),
    }
    prepare("swiglu", "gate", gate)?.apply_op2(&prepare("swiglu", "up", up)?, Swiglu)
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (input(self.name(), gate, gl)?, input(self.name(), up, ul)?);
        let (n, f) = gl.shape().dims2()?;
        let y = fill_rows(n, f, |row, y| simd::swiglu(y, &gate[row * f..][..f], &up[row * f..][..f]));
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (name, (n, f)) = (self.name(), gate.dims2()?);
        let (dgate, dup) = with_data(name, gate, |gate| {
            with_data(name, up, |up| {
                with_data(name, g, |g| {
                    fill_rows_pair(n, f, |row, dgate, dup| {
                        let at = row * f;
                        simd::swiglu_backward(dgate, dup, &gate[at..][..f], &up[at..][..f], &g[at..][..f]);
                    })
                })
            })
        })???;
        Ok((Some(tensor(dgate, gate.shape())?), Some(tensor(dup, up.shape())?)))
    }
}
