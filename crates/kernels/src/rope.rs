//! Rotary position embedding (Su et al., arXiv 2104.09864), in the "rotate half" form of Llama: in each
//! head, the first `R` channels turn, the pair `(i, i + R/2)` by `position · inv_freq[i]`. Mostly `R` is the
//! head size `D`; where it is less (Phi), the other channels pass through.
//!
//! A rotation is orthogonal, so the backward pass turns the gradient back by the same angles. A table may
//! scale what it turns (LongRoPE, arXiv 2402.13753); then the gradient is scaled too.

#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "row offsets of checked shapes")]

use crate::buffer::{fill_rows, input, prepare};
use crate::portable;
use crate::portable::rope::Gathered;
use crate::simd;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// Cosines and sines of every angle: `(max_positions, R/2)` each. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RopeTable {
    pub(crate) cos: Arc<[f32]>,
    pub(crate) sin: Arc<[f32]>,
    pub(crate) half: usize,
    /// What the portable op gathered last.
    pub(crate) gathered: Gathered,
}

impl RopeTable {
    /// The plain table: `inv_freq[i] = theta^(−2i/D)`.
    pub fn new(theta: f64, head_dim: usize, max_positions: usize) -> Result<Self> {
        let theta = theta as f32;
        let inv_freq: Vec<f32> =
            (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32)).collect();
        Self::from_inverse_frequencies(&inv_freq, max_positions)
    }

    /// From frequencies that were scaled for long contexts. `inv_freq (R/2)`. Angles are computed in f32,
    /// as Transformers does.
    pub fn from_inverse_frequencies(inv_freq: &[f32], max_positions: usize) -> Result<Self> {
        if inv_freq.is_empty() || max_positions == 0 {
            bail!("rope: a table needs frequencies and positions, got {} and {max_positions}", inv_freq.len());
        }
        let angles = || (0..max_positions).flat_map(|p| inv_freq.iter().map(move |f| p as f32 * f));
        let (cos, sin) = (angles().map(f32::cos).collect(), angles().map(f32::sin).collect());
        Ok(Self { cos, sin, half: inv_freq.len(), gathered: Gathered::default() })
    }

    /// Multiplies what the table turns by `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f32) -> Self {
        let scale = |values: &[f32]| values.iter().map(|x| x * factor).collect();
        Self { cos: scale(&self.cos), sin: scale(&self.sin), half: self.half, gathered: Gathered::default() }
    }

    /// Number of positions the table covers.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

/// `x (N, H·D)`, `positions (N)` → `(N, H·D)`.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &[u32], head_dim: usize) -> Result<Tensor> {
    let &[n, c] = x.dims() else { bail!("rope: x is {:?}; expected (N, H·D)", x.dims()) };
    if n * c == 0 || head_dim < 2 * table.half || !c.is_multiple_of(head_dim) || positions.len() != n {
        bail!(
            "rope: x is ({n}, {c}) with head size {head_dim} and {} positions, the table turns {} channels",
            positions.len(),
            2 * table.half
        );
    }
    if let Some(at) = positions.iter().position(|&p| p as usize >= table.max_positions()) {
        bail!("rope: token {at} has position {}, the table ends at {}", positions[at], table.max_positions());
    }
    if portable::is_portable(x) {
        return portable::rope::rope(x, table, positions, head_dim);
    }
    let op = Rope { table: table.clone(), positions: positions.into(), head_dim, sign: 1.0 };
    tape::apply1(&prepare("rope", "x", x)?, op, Saves::NOTHING)
}

#[derive(Clone)]
struct Rope {
    table: RopeTable,
    positions: Arc<[u32]>,
    head_dim: usize,
    sign: f32,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = input(self.name(), x, layout)?;
        let (n, c) = layout.shape().dims2()?;
        let (half, d) = (self.table.half, self.head_dim);
        let y = fill_rows(n, c, |row, y| {
            let at = self.positions[row] as usize * half;
            let (cos, sin) = (&self.table.cos[at..][..half], &self.table.sin[at..][..half]);
            for (y, x) in y.chunks_exact_mut(d).zip(x[row * c..][..c].chunks_exact(d)) {
                simd::rotate(&mut y[..2 * half], &x[..2 * half], cos, sin, self.sign);
                y[2 * half..].copy_from_slice(&x[2 * half..]);
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(g.contiguous()?.apply_op1_no_bwd(&Self { sign: -self.sign, ..self.clone() })?))
    }
}
