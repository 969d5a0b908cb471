//! The right side of a product, copied into panels in the order the inner kernels read it.

#![expect(clippy::indexing_slicing, reason = "offsets of checked shapes")]

use super::micro::Set;
use super::{Mat, MatMut, Write, block};
use crate::buffer::for_each_task;

/// Floats from one row of a copied left side to the next: a multiple of a cache line, but no power of two,
/// so that rows do not compete for the same places in the cache.
pub(super) const ROW: usize = super::block::KC + 16;

/// Floats of a cache line. Panels begin on one: an inner kernel's loads must not straddle lines.
const LINE: usize = 16;

/// A buffer of floats that begins on a cache line and keeps its memory.
#[derive(Default)]
pub(crate) struct Lines {
    data: Vec<f32>,
}

impl Lines {
    /// `len` floats with old contents.
    pub(crate) fn get(&mut self, len: usize) -> &mut [f32] {
        if self.data.len() < len + LINE {
            // Freed first, so that both never exist at once.
            self.data = Vec::new();
            self.data = vec![0.0; len + LINE];
        }
        let start = self.data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        &mut self.data[start..start + len]
    }
}

/// A low-rank correction of a right side: `right + scale · u v`, with `u (k, r)` and `v (r, n)`.
#[derive(Clone, Copy)]
pub(crate) struct LowRank<'a> {
    pub(crate) u: Mat<'a>,
    pub(crate) v: Mat<'a>,
    pub(crate) scale: f32,
}

/// A packed right side `(k, n)`: panels of `2 · lanes` columns, each `k` rows of adjacent floats; the last one
/// padded with zeros.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub(super) data: &'a [f32],
    pub(super) k: usize,
    pub(super) n: usize,
}

impl<'a> Packed<'a> {
    /// Floats needed for a right side of `(k, n)`.
    pub(super) fn len(set: &Set, k: usize, n: usize) -> usize {
        n.div_ceil(set.width()) * set.width() * k
    }

    /// Panel `p`.
    pub(super) fn panel(&self, set: &Set, p: usize) -> &'a [f32] {
        &self.data[p * self.k * set.width()..][..self.k * set.width()]
    }

    /// Packs `b` into `data`, on all threads or on the caller's.
    pub(super) fn pack(set: &Set, data: &'a mut [f32], b: Mat<'_>, low: Option<LowRank<'_>>, parallel: bool) -> Self {
        let (k, n, width) = (b.rows, b.cols, set.width());
        let tiles = super::Tiles::new(data, k * width);
        let one = |small: &mut Lines, p: usize| {
            let cols = width.min(n - p * width);
            // SAFETY: every panel is packed once.
            let mut panel = unsafe { tiles.tile(p, 1, 0, k * width) };
            pack_panel(panel.row(0), b.block(0, k, p * width, cols), width);
            if let Some(low) = low {
                let v = low.v.block(0, low.v.rows, p * width, cols);
                let mut whole = MatMut::new(panel.row(0), width);
                let mut dst = whole.left(cols);
                let v = Packed::pack(set, small.get(Self::len(set, v.rows, cols)), v, None, false);
                block::compute(set, &mut dst, Write::Add, low.scale, low.u, v);
            }
        };
        let panels = n.div_ceil(width);
        if parallel {
            for_each_task(panels, Lines::default, one);
        } else {
            let mut small = Lines::default();
            (0..panels).for_each(|p| one(&mut small, p));
        }
        Self { data, k, n }
    }
}

/// `panel[k][j] = b[k][j]`, and zeros in the columns `b` lacks.
fn pack_panel(panel: &mut [f32], b: Mat<'_>, width: usize) {
    if b.col_stride == 1 {
        for (k, to) in panel.chunks_exact_mut(width).enumerate() {
            let (live, pad) = to.split_at_mut(b.cols);
            live.copy_from_slice(b.row(k));
            pad.fill(0.0);
        }
        return;
    }
    // A transposed matrix: its columns are the slices. A few rows of the panel at a time stay in the cache.
    let columns = b.t();
    for (at, piece) in panel.chunks_mut(LINE * width).enumerate() {
        let rows = piece.len() / width;
        for j in 0..b.cols {
            let column = &columns.row(j)[at * LINE..][..rows];
            for (to, x) in piece[j..].iter_mut().step_by(width).zip(column) {
                *to = *x;
            }
        }
        if b.cols < width {
            piece.chunks_exact_mut(width).for_each(|row| row[b.cols..].fill(0.0));
        }
    }
}
