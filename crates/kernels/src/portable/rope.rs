//! Rotary positions. The angles of a batch are gathered once and kept for the calls that follow.

use super::{Backward, Op, apply, prepare, wide};
use crate::launch;
use crate::rope::RopeTable;
use crate::tape::Saves;
use candle_core::{DeviceLocation, Result, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// The cosines and sines of the positions asked for last, `(N, R/2)` each. Every block of a model asks for the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gathered(Arc<Mutex<Option<Angles>>>);

#[derive(Debug)]
struct Angles {
    positions: Vec<u32>,
    at: DeviceLocation,
    cos: Tensor,
    sin: Tensor,
}

impl Gathered {
    /// f32, on the device of `x`. The positions are inside the table.
    fn get(&self, table: &RopeTable, positions: &[u32], x: &Tensor) -> Result<(Tensor, Tensor)> {
        let device = x.device();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(angles) = kept.as_ref().filter(|a| a.positions == positions && a.at == device.location()) {
            return Ok((angles.cos.clone(), angles.sin.clone()));
        }
        let gather = |of: &[f32]| {
            let rows: Vec<f32> = positions.iter().flat_map(|p| row(of, *p, table.half)).copied().collect();
            Tensor::from_vec(rows, (positions.len(), table.half), device)
        };
        let (cos, sin) = (gather(&table.cos)?, gather(&table.sin)?);
        let angles =
            Angles { positions: positions.to_vec(), at: device.location(), cos: cos.clone(), sin: sin.clone() };
        *kept = Some(angles);
        Ok((cos, sin))
    }
}

fn row(table: &[f32], position: u32, half: usize) -> &[f32] {
    let from = usize::try_from(position).unwrap_or(usize::MAX).saturating_mul(half);
    table.get(from..from.saturating_add(half)).unwrap_or_default()
}

/// `x (N, H·D)`, checked against `positions (N)`.
pub(crate) fn rope(x: &Tensor, table: &RopeTable, positions: &[u32], head_dim: usize) -> Result<Tensor> {
    prepare("rope", "x", x)?;
    let (cos, sin) = table.gathered.get(table, positions, x)?;
    apply(&[x], Rope { cos, sin, head_dim }, Saves::NOTHING)
}

struct Rope {
    /// `(N, R/2)`
    cos: Tensor,
    sin: Tensor,
    head_dim: usize,
}

impl Rope {
    fn turn(&self, x: &Tensor, back: bool) -> Result<Tensor> {
        let ((n, c), d) = (x.dims2()?, self.head_dim);
        let sign = if back { -1.0 } else { 1.0 };
        if let Some(y) = launch::rope(x, &self.cos, &self.sin, d, sign)? {
            return Ok(y);
        }
        let half = self.cos.dim(1)?;
        let heads = wide(x)?.reshape((n, c / d, d))?; // (N, H·D) -> (N, H, D)
        let (cos, sin) = (self.cos.unsqueeze(1)?, self.sin.unsqueeze(1)?); // (N, 1, R/2)
        let sin = (sin * f64::from(sign))?;
        let (a, b) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let mut parts = vec![first, second];
        if d > 2 * half {
            parts.push(heads.narrow(2, 2 * half, d - 2 * half)?);
        }
        Tensor::cat(&parts, 2)?.reshape((n, c))?.to_dtype(x.dtype()) // (N, H, D) -> (N, H·D)
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x] = inputs else { candle_core::bail!("rope: {} inputs", inputs.len()) };
        self.turn(x, false)
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.turn(saved.grad, true)?)])
    }
}
