//! `y = x + b`, the same `b` for every row.
//!
//! Backward: `dx = g`, and for a trained bias `db = Σ g` over the rows.

#![expect(clippy::indexing_slicing, reason = "row offsets of checked shapes")]

use crate::buffer::{fill_rows, input, prepare, tensor, with_data};
use crate::portable;
use crate::simd;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows whose gradients are summed in one piece. The pieces are fixed, so the sum is too.
const ROWS_PER_SUM: usize = 256;

/// `x (N, C)`, `b (C)` → `(N, C)`. The gradient flows to `b` only when it is tracked.
pub fn add_bias(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "add_bias";
    match (x.dims(), b.dims()) {
        (&[n, c], &[b]) if c == b && n * c > 0 => {}
        (x, b) => bail!("{OP}: x is {x:?} and b is {b:?}; expected (N, C) and (C), none of them zero"),
    }
    if portable::is_portable(x) {
        return portable::elementwise::add_bias(x, b);
    }
    let op = AddBias { wants_dx: x.track_op(), wants_db: b.track_op() };
    tape::apply2([&prepare(OP, "x", x)?, &prepare(OP, "b", b)?], op, Saves::NOTHING)
}

struct AddBias {
    wants_dx: bool,
    wants_db: bool,
}

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, b) = (input(self.name(), x, xl)?, input(self.name(), b, bl)?);
        let (n, c) = xl.shape().dims2()?;
        let y = fill_rows(n, c, |row, y| {
            y.copy_from_slice(&x[row * c..][..c]);
            simd::add(y, b);
        });
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _b: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let c = g.dim(1)?;
        let db = || tensor(with_data(self.name(), g, |g| column_sums(g, c))?, c);
        Ok((self.wants_dx.then(|| g.clone()), if self.wants_db { Some(db()?) } else { None }))
    }
}

fn column_sums(g: &[f32], c: usize) -> Vec<f32> {
    let sum_rows = |rows: &[f32]| {
        let mut sum = vec![0.0; c];
        rows.chunks_exact(c).for_each(|row| simd::add(&mut sum, row));
        sum
    };
    let sums: Vec<Vec<f32>> = g.par_chunks(ROWS_PER_SUM * c).map(sum_rows).collect();
    sum_rows(&sums.concat())
}
