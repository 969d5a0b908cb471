//! Products on this crate's own inner kernels: how the operands are cut to fit the caches and the threads.
//!
//! The right side is packed in parts of at most [`PART`] floats (last-level cache). A task multiplies some rows
//! by some panels: [`KC`] of the inner dimension at a time, panels in groups that fit the second-level cache,
//! left rows copied together beside them, a tile at a time through the first. Every element of the product is summed in the same order however
//! the work is cut.

#![expect(clippy::indexing_slicing, reason = "offsets of checked shapes")]

#[cfg(target_arch = "x86_64")]
use super::micro::{AVX2, AVX512};
use super::micro::{Left, Set, Target};
use super::pack::{Lines, LowRank, Packed, ROW};
use super::{Mat, MatMut, Tiles, Write};
use crate::buffer::for_each_task;
use crate::simd::Level;
use std::cell::RefCell;
use std::ops::RangeInclusive;

/// Steps of the inner dimension per pass over a tile of the product.
pub(super) const KC: usize = 768;
/// Floats of packed panels that stay in the second-level cache while left rows pass.
const GROUP: usize = 128 << 10;
/// Floats of the right side packed at once.
const PART: usize = 2 << 20;
/// Fewer left rows are not worth packing the right side for.
const MIN_ROWS: usize = 8;
/// Rows per task.
const ROWS: RangeInclusive<usize> = 24..=192;
/// A task takes this part of the rows that are left per thread: large ones first, small ones to even out the end.
const SHARE: usize = 4;
/// Columns are cut too where rows make fewer tasks per thread. Left rows are copied once for every cut of the columns.
const TASKS: usize = 4;
/// Rows and floats of the largest tile.
const TALLEST: usize = 12;
const TILE: usize = TALLEST * 32;

thread_local! {
    /// The packed right side of products that a thread makes or shares out.
    static PACKED: RefCell<Lines> = RefCell::default();
    /// The copied left side.
    static LEFT: RefCell<Lines> = RefCell::default();
}

/// The kernels of this machine; none where it has no vector set they are written for.
pub(super) fn kernels() -> Option<&'static Set> {
    match Level::best() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Some(&AVX512),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Some(&AVX2),
        Level::Portable => None,
    }
}

impl Set {
    /// Columns of a panel.
    pub(super) const fn width(&self) -> usize {
        2 * self.lanes
    }
}

/// Whether a product of `m` rows is for this module.
pub(super) fn fits(m: usize) -> bool {
    m >= MIN_ROWS
}

/// What a product may do beside `a b`.
#[derive(Default)]
pub(super) struct More<'a, 'd> {
    /// A correction of `b`.
    pub(super) low: Option<LowRank<'a>>,
    /// The same product with another right side of a few columns, and where it goes: no second reading of `a`.
    pub(super) beside: Option<(&'a mut MatMut<'d>, Mat<'a>)>,
}

/// `dst = scale · a (b + low)`, or `dst += …`, on all threads.
pub(super) fn parallel(
    set: &Set,
    dst: &mut MatMut<'_>,
    write: Write,
    scale: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    more: More<'_, '_>,
) {
    let More { low, mut beside } = more;
    let (m, k, n, width) = (a.rows, a.cols, b.cols, set.width());
    let round = |x: usize, to: usize| x.div_ceil(to).max(1) * to;
    let (part_k, part_n) = match PART {
        part if k * n <= part => (k, n),
        part if n >= k => (k, round(part / k, width).min(n)),
        part => (round(part / n, KC).min(k), n),
    };
    let threads = rayon::current_num_threads();
    let rows = cut_rows(m, set.tall, threads);
    let mut packed = PACKED.take();
    let mut packed_beside = Lines::default();
    for col in (0..n).step_by(part_n) {
        let cols = part_n.min(n - col);
        let panels = cols.div_ceil(width);
        let per_task = panels.div_ceil((TASKS * threads).div_ceil(rows.len()).min(panels));
        let col_tasks = panels.div_ceil(per_task);
        for inner in (0..k).step_by(part_k) {
            let depth = part_k.min(k - inner);
            let data = packed.get(Packed::len(set, depth, cols));
            let low = low.map(|l| LowRank {
                u: l.u.block(inner, depth, 0, l.u.cols),
                v: l.v.block(0, l.v.rows, col, cols),
                ..l
            });
            let right = Packed::pack(set, data, b.block(inner, depth, col, cols), low, true);
            let write = if inner == 0 { write } else { Write::Add };
            let tiles = dst.tiles();
            let beside = beside.as_mut().filter(|_| col == 0).map(|(dst, b)| {
                let data = packed_beside.get(Packed::len(set, depth, b.cols));
                (dst.tiles(), Packed::pack(set, data, b.block(inner, depth, 0, b.cols), None, false))
            });
            for_each_task(
                rows.len() * col_tasks,
                || (),
                |(), task| {
                    let ((row, height), first) = (rows[task / col_tasks], task % col_tasks * per_task);
                    let right = right.panels(set, first, per_task);
                    // SAFETY: every task has its own rectangle.
                    let tile = unsafe { tiles.tile(row, height, col + first * width, right.n) };
                    let beside = beside.as_ref().filter(|_| first == 0).map(|(tiles, right)| {
                        // SAFETY: the first task of these rows alone has their rectangle.
                        (unsafe { tiles.tile(row, height, 0, right.n) }, *right)
                    });
                    let pairs = std::iter::once((tile, right)).chain(beside);
                    compute(set, pairs, write, scale, a.block(row, height, inner, depth));
                },
            );
        }
    }
    PACKED.set(packed);
}

/// The rows of each task, first and count, in whole tiles but for the last.
fn cut_rows(m: usize, tall: usize, threads: usize) -> Vec<(usize, usize)> {
    let mut cuts = Vec::new();
    let mut row = 0;
    while row < m {
        let rows = ((m - row) / (SHARE * threads) / tall * tall).clamp(*ROWS.start(), *ROWS.end()).min(m - row);
        cuts.push((row, rows));
        row += rows;
    }
    cuts
}

/// `dst = scale · a b`, or `dst += …`, on this thread.
pub(super) fn serial(set: &Set, dst: &mut MatMut<'_>, write: Write, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    let mut packed = PACKED.take();
    let data = packed.get(Packed::len(set, b.rows, b.cols));
    let right = Packed::pack(set, data, b, None, false);
    compute(set, std::iter::once((dst.whole(), right)), write, scale, a);
    PACKED.set(packed);
}

/// Products of one left side with packed right sides, each with its destination, on this thread.
pub(super) fn compute<'d, 'p>(
    set: &Set,
    pairs: impl Iterator<Item = (MatMut<'d>, Packed<'p>)>,
    write: Write,
    scale: f32,
    a: Mat<'_>,
) {
    let (width, k) = (set.width(), a.cols);
    let mut copies = LEFT.take();
    let mut pairs: Vec<_> = pairs.collect();
    let tiles: Vec<(usize, usize, bool)> = tiles_of(set, a.rows).collect();
    let passes = k.div_ceil(KC).max(1);
    let pass = k.div_ceil(passes).max(1);
    for inner in (0..k).step_by(pass) {
        let depth = pass.min(k - inner);
        let add = write == Write::Add || inner > 0;
        let group = (GROUP / (depth * width)).max(1);
        let places = copies.get(tiles.len() * TALLEST * ROW).chunks_exact_mut(TALLEST * ROW);
        let lefts: Vec<Left> = tiles
            .iter()
            .zip(places)
            .map(|(&(row, height, _), copy)| {
                left_side(a.block(row, height.min(a.rows - row), inner, depth), height, copy)
            })
            .collect();
        for (dst, b) in &mut pairs {
            let panels = b.n.div_ceil(width);
            for first in (0..panels).step_by(group) {
                for (&(row, height, low), &left) in tiles.iter().zip(&lefts) {
                    let live = height.min(a.rows - row);
                    for p in first..panels.min(first + group) {
                        let right = &b.panel(set, p)[(b.first + inner) * width..][..depth * width];
                        let cols = width.min(b.n - p * width);
                        let target = Target { add, scale, ..dst.at(row, live, p * width, cols) };
                        tile(set, (height, low), left, right, (live, cols), target);
                    }
                }
            }
        }
    }
    LEFT.set(copies);
}

/// Tiles of `m` rows: `(first row, height, whether it is a low one)`. The last may reach beyond `m`.
fn tiles_of(set: &Set, m: usize) -> impl Iterator<Item = (usize, usize, bool)> {
    let (tall, low) = (set.tall, set.low);
    let waste = move |t: &usize| t * tall + (m - t * tall).div_ceil(low) * low;
    let talls = (0..=m / tall).rev().take(low).min_by_key(waste).unwrap_or(0);
    let lows = (m - talls * tall).div_ceil(low);
    let low_tiles = (0..lows).map(move |i| (talls * tall + i * low, low, true));
    (0..talls).map(move |i| (i * tall, tall, false)).chain(low_tiles)
}

/// A tile's left side. Transposed rows are read where they are; others are copied, and so are those of a tile
/// that is cut off.
fn left_side(a: Mat<'_>, height: usize, copy: &mut [f32]) -> Left {
    if a.row_stride == 1 && a.col_stride != 1 && a.rows == height {
        return Left::Columns(a.ptr, a.col_stride);
    }
    if a.col_stride == 1 {
        for (i, to) in copy.chunks_exact_mut(ROW).enumerate().take(a.rows) {
            to[..a.cols].copy_from_slice(a.row(i));
        }
    } else {
        let columns = a.t();
        for k in 0..a.cols {
            for (to, x) in copy[k..].iter_mut().step_by(ROW).zip(columns.row(k)) {
                *to = *x;
            }
        }
    }
    Left::Rows(copy.as_ptr())
}

/// One tile of the product, through a buffer when it is cut off.
fn tile(
    set: &Set,
    (height, low): (usize, bool),
    left: Left,
    right: &[f32],
    (rows, cols): (usize, usize),
    target: Target,
) {
    let width = set.width();
    let vectors = cols.div_ceil(set.lanes);
    let kernel = set.kernels[usize::from(low)][vectors - 1];
    let k = right.len() / width;
    if rows == height && cols == vectors * set.lanes {
        // SAFETY: `kernels` chose what the machine has, and the views checked all bounds.
        return unsafe { kernel(k, left, right.as_ptr(), width, target) };
    }
    let mut buffer = [0.0; TILE];
    let whole = Target { ptr: buffer.as_mut_ptr(), stride: width, add: false, ..target };
    // SAFETY: as above; the buffer holds the largest tile, and rows of `left` beyond `rows` hold old copies.
    unsafe { kernel(k, left, right.as_ptr(), width, whole) };
    for (i, from) in buffer.chunks_exact(width).enumerate().take(rows) {
        for (j, &x) in from[..cols].iter().enumerate() {
            // SAFETY: `rows` by `cols` elements at the target are inside, and initialised if `add`.
            unsafe {
                let at = target.ptr.add(i * target.stride + j);
                *at = if target.add { *at + x } else { x };
            }
        }
    }
}

impl MatMut<'_> {
    /// The first `cols` columns.
    pub(super) fn left(&mut self, cols: usize) -> MatMut<'_> {
        assert!(cols <= self.cols, "{cols} columns of {}", self.cols);
        MatMut { cols, data: std::marker::PhantomData, ..*self }
    }

    /// All of it, borrowed for shorter.
    pub(super) fn whole(&mut self) -> MatMut<'_> {
        MatMut { data: std::marker::PhantomData, ..*self }
    }

    /// A rectangle as a kernel's target; the caller sets what to do with it.
    pub(super) fn at(&mut self, row: usize, rows: usize, col: usize, cols: usize) -> Target {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "target leaves the matrix");
        let ptr = self.ptr.wrapping_add(row * self.row_stride + col);
        Target { ptr, stride: self.row_stride, add: false, scale: 1.0 }
    }

    /// The same rectangle for several tasks.
    pub(super) fn tiles(&mut self) -> Tiles<'_> {
        Tiles { ptr: self.ptr, rows: self.rows, cols: self.cols, row_stride: self.row_stride, data: self.data }
    }
}

impl<'a> Packed<'a> {
    /// `count` panels from `first` on, or those there are.
    fn panels(&self, set: &Set, first: usize, count: usize) -> Packed<'a> {
        let width = set.width();
        let n = (self.n - first * width).min(count * width);
        Packed { data: &self.data[first * width * self.k..], n, ..*self }
    }
}

#[cfg(test)]
#[expect(clippy::as_conversions, reason = "small numbers")]
mod tests {
    use super::*;

    fn sets() -> Vec<Set> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        for level in Level::available() {
            match level {
                Level::Avx2 => sets.push(AVX2),
                Level::Avx512 => sets.push(AVX512),
                Level::Portable => {}
            }
        }
        sets
    }

    fn noise(seed: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| (((i + seed) * 7919 % 1009) as f32 - 504.0) / 504.0).collect()
    }

    fn transposed(x: &[f32], cols: usize) -> Vec<f32> {
        (0..cols).flat_map(|j| x.iter().skip(j).step_by(cols).copied()).collect()
    }

    fn naive(a: &[f32], b: &[f32], k: usize, n: usize) -> Vec<f64> {
        let mut out = Vec::new();
        for row in a.chunks(k) {
            let mut sums = vec![0.0; n];
            for (&x, b) in row.iter().zip(b.chunks(n)) {
                sums.iter_mut().zip(b).for_each(|(s, &y)| *s += f64::from(x) * f64::from(y));
            }
            out.extend(sums);
        }
        out
    }

    fn assert_close(got: &[f32], want: impl Iterator<Item = f64>, k: usize, what: &str) {
        for (i, (&got, want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(got) - want).abs() < 2e-6 * k as f64, "{what}: [{i}] is {got}, expected {want}");
        }
    }

    /// Cut-off tiles, several passes over the inner dimension, several parts of the right side, both
    /// orientations of both sides.
    #[test]
    fn every_kernel_set_multiplies() {
        let shapes = [(8, 1, 1), (9, 3, 5), (12, 16, 32), (20, 513, 33), (29, 64, 70), (250, 40, 48), (9, 1500, 1450)];
        for set in sets() {
            for (m, k, n) in shapes {
                let what = format!("{} lanes, ({m}, {k}, {n})", set.lanes);
                let (a, b) = (noise(1, m * k), noise(2, k * n));
                let want = naive(&a, &b, k, n);
                let (at, bt) = (transposed(&a, k), transposed(&b, n));
                for a in [Mat::new(&a, k), Mat::new(&at, m).t()] {
                    for b in [Mat::new(&b, n), Mat::new(&bt, k).t()] {
                        let mut y = vec![f32::NAN; m * n];
                        parallel(&set, &mut MatMut::new(&mut y, n), Write::Replace, 1.0, a, b, More::default());
                        assert_close(&y, want.iter().copied(), k, &what);
                        let mut alone = vec![f32::NAN; m * n];
                        serial(&set, &mut MatMut::new(&mut alone, n), Write::Replace, 1.0, a, b);
                        if k * n <= PART {
                            assert!(y == alone, "{what}: cut differently, other bits");
                        }
                        serial(&set, &mut MatMut::new(&mut alone, n), Write::Add, 0.5, a, b);
                        assert_close(&alone, want.iter().map(|y| 1.5 * y), k, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn a_low_rank_correction_joins_the_packed_side() {
        for set in sets() {
            for (m, k, n, r) in [(9, 40, 37, 3), (30, 700, 64, 16), (8, 1500, 1450, 2)] {
                let (a, b, u, v) = (noise(1, m * k), noise(2, k * n), noise(3, k * r), noise(4, r * n));
                let low = LowRank { u: Mat::new(&u, r), v: Mat::new(&v, n), scale: 0.5 };
                let mut y = vec![f32::NAN; m * n];
                let (a_mat, b_mat) = (Mat::new(&a, k), Mat::new(&b, n));
                let mut t = vec![f32::NAN; m * r];
                let u_mat = Mat::new(&u, r);
                let more = More { low: Some(low), beside: Some((&mut MatMut::new(&mut t, r), u_mat)) };
                parallel(&set, &mut MatMut::new(&mut y, n), Write::Replace, 1.0, a_mat, b_mat, more);
                assert_close(&t, naive(&a, &u, k, r).into_iter(), k, "beside");
                let correction: Vec<f32> = naive(&u, &v, r, n).iter().map(|&x| x as f32).collect();
                let want = naive(&a, &b, k, n);
                let want = want.iter().zip(naive(&a, &correction, k, n)).map(|(x, y)| x + 0.5 * y);
                assert_close(&y, want, k * r, &format!("{} lanes, ({m}, {k}, {n}, {r})", set.lanes));
            }
        }
    }
}
