//! Gated activations, `y = f(gate) ⊙ up` (Shazeer, arXiv 2002.05202).
//!
//! SwiGLU: `f = silu`, `silu(z) = z σ(z)`. GeGLU: `f = gelu` in its tanh form (Hendrycks and Gimpel, arXiv
//! 1606.08415), which is `z σ(2u)` with `u = √(2/π) (z + 0.044715 z³)`.
//!
//! Backward: `dup = g ⊙ f(gate)`, `dgate = g ⊙ up ⊙ f'(gate)`, with `silu' = σ + z σ (1 − σ)` and
//! `gelu' = σ + 2 z u' σ (1 − σ)`, σ at `2u`. Nothing is saved but the inputs.

#![expect(clippy::indexing_slicing, reason = "row offsets of checked shapes")]

use crate::buffer::{fill_rows, fill_rows_pair, input, prepare, tensor, with_data};
use crate::portable::{self, elementwise::Gate};
use crate::simd;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `gate (N, F)`, `up (N, F)` → `(N, F)`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Glu { name: "swiglu", gate: Gate::Silu, forward: simd::swiglu, backward: simd::swiglu_backward }.apply(gate, up)
}

/// `gate (N, F)`, `up (N, F)` → `(N, F)`.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Glu { name: "geglu", gate: Gate::Gelu, forward: simd::geglu, backward: simd::geglu_backward }.apply(gate, up)
}

/// Of one row: `(y, gate, up)`.
type Forward = fn(&mut [f32], &[f32], &[f32]);

/// Of one row: `(dgate, dup, gate, up, dy)`.
type Backward = fn(&mut [f32], &mut [f32], &[f32], &[f32], &[f32]);

struct Glu {
    name: &'static str,
    gate: Gate,
    forward: Forward,
    backward: Backward,
}

impl Glu {
    fn apply(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let name = self.name;
        match (gate.dims(), up.dims()) {
            (&[n, f], up) if up == [n, f] && n * f > 0 => {}
            (gate, up) => bail!("{name}: gate is {gate:?} and up is {up:?}; expected (N, F) twice, none of them zero"),
        }
        if portable::is_portable(gate) {
            return portable::elementwise::glu(name, self.gate, gate, up);
        }
        tape::apply2([&prepare(name, "gate", gate)?, &prepare(name, "up", up)?], self, Saves::INPUTS_CHEAP)
    }
}

impl CustomOp2 for Glu {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (input(self.name(), gate, gl)?, input(self.name(), up, ul)?);
        let (n, f) = gl.shape().dims2()?;
        let y = fill_rows(n, f, |row, y| (self.forward)(y, &gate[row * f..][..f], &up[row * f..][..f]));
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (name, (n, f)) = (self.name(), gate.dims2()?);
        let (dgate, dup) = with_data(name, gate, |gate| {
            with_data(name, up, |up| {
                with_data(name, g, |g| {
                    fill_rows_pair(n, f, |row, dgate, dup| {
                        let at = row * f;
                        (self.backward)(dgate, dup, &gate[at..][..f], &up[at..][..f], &g[at..][..f]);
                    })
                })
            })
        })???;
        Ok((Some(tensor(dgate, gate.shape())?), Some(tensor(dup, up.shape())?)))
    }
}
