//! The right side of a product, copied into panels in the order the inner kernels read it.

#![expect(clippy::indexing_slicing, reason = "offsets of checked shapes")]

use super::micro::Set;
use super::{Mat, MatMut, Write, block};
use crate::buffer::for_each_task;
use std::ops::Range;

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

impl Lines {
    /// What the last [`Lines::get`] gave.
    fn filled(&self, len: usize) -> &[f32] {
        let start = self.data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        &self.data[start..start + len]
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
    /// The row that a product begins with.
    pub(super) first: usize,
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
                let dst = whole.left(cols);
                let v = Packed::pack(set, small.get(Self::len(set, v.rows, cols)), v, None, false);
                block::compute(set, std::iter::once((dst, v)), Write::Add, low.scale, low.u);
            }
        };
        let panels = n.div_ceil(width);
        if parallel {
            for_each_task(panels, Lines::default, one);
        } else {
            let mut small = Lines::default();
            (0..panels).for_each(|p| one(&mut small, p));
        }
        Self { data, k, first: 0, n }
    }
}

fn copy_rows<const WIDTH: usize>(panel: &mut [f32], b: Mat<'_>) {
    for (k, to) in panel.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        if let Some(from) = b.row(k).first_chunk() {
            *to = *from;
        }
    }
}

/// A right side for several products, packed once.
pub(crate) struct Right<'a> {
    mat: Mat<'a>,
    lines: Lines,
}

impl<'a> Right<'a> {
    /// Packs `b` on this thread, into `lines`.
    pub(crate) fn new(b: Mat<'a>, mut lines: Lines) -> Self {
        if let Some(set) = block::kernels() {
            Packed::pack(set, lines.get(Packed::len(set, b.rows, b.cols)), b, None, false);
        }
        Self { mat: b, lines }
    }

    /// The buffer, to be used again.
    pub(crate) fn into_lines(self) -> Lines {
        self.lines
    }

    /// `dst = scale · a b`, or `dst += …`, on this thread, where `b` is the part of the packed matrix with the rows
    /// `inner` and the columns `cols`. The columns must begin at a multiple of [`Right::ALIGN`].
    pub(crate) fn multiply(
        &self,
        dst: &mut MatMut<'_>,
        write: Write,
        scale: f32,
        a: Mat<'_>,
        (inner, cols): (Range<usize>, Range<usize>),
    ) {
        let Some(set) = block::kernels().filter(|_| block::fits(a.rows)) else {
            let b = self.mat.block(inner.start, inner.len(), cols.start, cols.len());
            return super::gemm(dst, write, scale, a, b, super::Threads::One);
        };
        assert!(a.cols == inner.len() && inner.end <= self.mat.rows && cols.end <= self.mat.cols, "rows do not fit");
        assert!(cols.start.is_multiple_of(set.width()), "columns from {} are not whole panels", cols.start);
        let (k, width) = (self.mat.rows, set.width());
        let data = self.lines.filled(Packed::len(set, k, self.mat.cols));
        let from = cols.start * k;
        let packed = Packed { data: &data[from..], k, first: inner.start, n: cols.len() };
        debug_assert!(from.is_multiple_of(width));
        block::compute(set, std::iter::once((dst.whole(), packed)), write, scale, a);
    }

    /// Columns of a panel, on every machine a divisor of this.
    pub(crate) const ALIGN: usize = 32;
}

/// Rows and columns that [`transpose`] takes at a time.
#[cfg(target_arch = "x86_64")]
const EDGE: usize = 8;

/// `to[i * stride + j] = from[j][i]` for `i` and `j` below [`EDGE`].
///
/// # Safety
/// The machine has AVX2, and all of that is inside its allocations.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose(from: [*const f32; EDGE], to: *mut f32, stride: usize) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
        _mm256_unpacklo_ps,
    };
    // SAFETY: the caller's promise.
    let r = from.map(|p| unsafe { _mm256_loadu_ps(p) });
    // Pairs of rows, then fours, then all eight.
    let pair = |i: usize| (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
    let four = |i: usize| {
        let ((a, b), (c, d)) = (pair(i), pair(i + 2));
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    };
    for (i, (low, high)) in four(0).into_iter().zip(four(4)).enumerate() {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to.add(i * stride), _mm256_permute2f128_ps::<0x20>(low, high));
            _mm256_storeu_ps(to.add((i + 4) * stride), _mm256_permute2f128_ps::<0x31>(low, high));
        }
    }
}

/// `panel[k][j] = b[k][j]`, and zeros in the columns `b` lacks.
fn pack_panel(panel: &mut [f32], b: Mat<'_>, width: usize) {
    if b.col_stride == 1 {
        // Whole rows of the usual widths are copied as arrays: a few moves instead of a call.
        match b.cols {
            32 if width == 32 => copy_rows::<32>(panel, b),
            16 if width == 16 => copy_rows::<16>(panel, b),
            _ => {
                for (k, to) in panel.chunks_exact_mut(width).enumerate() {
                    let (live, pad) = to.split_at_mut(b.cols);
                    live.copy_from_slice(b.row(k));
                    pad.fill(0.0);
                }
            }
        }
        return;
    }
    // A transposed matrix: its columns are the slices. A few rows of the panel at a time stay in the cache.
    let columns = b.t();
    for (at, piece) in panel.chunks_mut(LINE * width).enumerate() {
        let rows = piece.len() / width;
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if rows == LINE {
            // Both kernel sets are for machines that have AVX2.
            while done + EDGE <= b.cols {
                let square: [&[f32]; EDGE] = std::array::from_fn(|j| &columns.row(done + j)[at * LINE..][..LINE]);
                for half in [0, EDGE] {
                    // SAFETY: `EDGE` floats from `half` on in each column; the panel has `EDGE` rows from there on, and
                    // `EDGE` floats from column `done` on in each.
                    unsafe {
                        transpose(square.map(|s| s[half..].as_ptr()), piece[half * width + done..].as_mut_ptr(), width)
                    };
                }
                done += EDGE;
            }
        }
        for j in done..b.cols {
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
