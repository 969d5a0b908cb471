//! Residual, bias and activations. The maths stands with the CPU ops of the same names.

use super::{Backward, Op, apply, prepare, wide};
use crate::launch;
use crate::tape::Saves;
use candle_core::{Result, Tensor};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    prepare("add", "a", a)?;
    prepare("add", "b", b)?;
    apply(&[a, b], Add, Saves::NOTHING)
}

struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [a, b] = inputs else { candle_core::bail!("add: {} inputs", inputs.len()) };
        a + b
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(saved.grad.clone()), Some(saved.grad.clone())])
    }
}

/// `x (N, C)`, `b (C)`.
pub(crate) fn add_bias(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    prepare("add_bias", "x", x)?;
    prepare("add_bias", "b", b)?;
    apply(&[x, b], AddBias { bias: b.dtype() }, Saves::NOTHING)
}

struct AddBias {
    bias: candle_core::DType,
}

impl Op for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x, b] = inputs else { candle_core::bail!("add_bias: {} inputs", inputs.len()) };
        x.broadcast_add(&b.to_dtype(x.dtype())?)
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let db = saved.when(1, || wide(saved.grad)?.sum(0)?.to_dtype(self.bias))?;
        Ok(vec![saved.wants(0).then(|| saved.grad.clone()), db])
    }
}

/// What a gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Silu,
    /// In its tanh form.
    Gelu,
}

/// `√(2/π)`, and the factor of the cube in gelu's tanh form.
const GELU: (f64, f64) = (0.797_884_560_802_865_4, 0.044_715);

impl Gate {
    /// `σ(z)` of silu, `σ(2u)` of gelu; `z` in f32.
    fn sigmoid(self, z: &Tensor) -> Result<Tensor> {
        let inner = match self {
            Self::Silu => z.clone(),
            Self::Gelu => (z * (2.0 * GELU.0))?.mul(&z.sqr()?.affine(GELU.1, 1.0)?)?,
        };
        (inner.neg()?.exp()? + 1.0)?.recip()
    }

    /// Slope of the sigmoid's argument by `z`.
    fn slope(self, z: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => z.ones_like(),
            Self::Gelu => z.sqr()?.affine(3.0 * GELU.1, 1.0)? * (2.0 * GELU.0),
        }
    }
}

/// `gate (N, F)`, `up (N, F)`.
pub(crate) fn glu(name: &'static str, kind: Gate, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    prepare(name, "gate", gate)?;
    prepare(name, "up", up)?;
    apply(&[gate, up], Glu { name, kind }, Saves::INPUTS_CHEAP)
}

struct Glu {
    name: &'static str,
    kind: Gate,
}

impl Op for Glu {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [gate, up] = inputs else { candle_core::bail!("{}: {} inputs", self.name, inputs.len()) };
        if let Some(y) = launch::glu(gate, up, self.kind == Gate::Gelu)? {
            return Ok(y);
        }
        let z = wide(gate)?;
        (self.kind.sigmoid(&z)? * z)?.mul(&wide(up)?)?.to_dtype(gate.dtype())
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gate, up) = (saved.input(0)?, saved.input(1)?);
        if let Some([dgate, dup]) = launch::glu_backward(gate, up, saved.grad, self.kind == Gate::Gelu)? {
            return Ok(vec![Some(dgate), Some(dup)]);
        }
        let (z, g) = (wide(gate)?, wide(saved.grad)?);
        let sigmoid = self.kind.sigmoid(&z)?;
        let activated = (&sigmoid * &z)?;
        let dup = (&g * &activated)?.to_dtype(up.dtype())?;
        // f' = σ + z a' σ (1 − σ), with a the argument of σ; an infinite slope only where 1 − σ or σ is 0.
        let rest = ((1.0 - &sigmoid)? * activated)?.mul(&self.kind.slope(&z)?)?;
        let dgate = (sigmoid + rest)?.mul(&(g * wide(up)?)?)?.to_dtype(gate.dtype())?;
        Ok(vec![Some(dgate), Some(dup)])
    }
}

/// `x (N, F)`.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    prepare("gelu", "x", x)?;
    apply(&[x], Gelu, Saves::INPUTS)
}

struct Gelu;

/// The normal distribution's `Φ(x)`.
fn phi(x: &Tensor) -> Result<Tensor> {
    ((x * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5
}

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x] = inputs else { candle_core::bail!("gelu: {} inputs", inputs.len()) };
        let z = wide(x)?;
        phi(&z)?.mul(&z)?.to_dtype(x.dtype())
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let x = saved.input(0)?;
        let z = wide(x)?;
        let density = ((z.sqr()? * -0.5)?.exp()? / (2.0 * PI).sqrt())?;
        let slope = (phi(&z)? + (density * z)?)?;
        Ok(vec![Some((slope * wide(saved.grad)?)?.to_dtype(x.dtype())?)])
    }
}
