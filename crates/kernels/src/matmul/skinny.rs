//! Products of a few transposed rows with a long matrix, `aᵀ b`, as the gradients of an adapter are.
//!
//! Packing the right side would cost more than such a product itself. Its rows are read where they are instead, once,
//! a vector of columns at a time, for as many rows of the product as there are registers.

use super::block::{KC, kernels};
use super::micro::{Kernel, Left, Set, Target};
use super::{Mat, MatMut, Threads, Write};
use crate::buffer::for_each_task;

/// Times the right side may be read: reading it strided more often costs more than packing it.
const PASSES: usize = 2;
/// Tasks per thread.
const TASKS: usize = 8;

/// The kernels of this machine if the product is for this module: `a (m, k)` the transpose of a row-major matrix, `b
/// (k, n)` row-major, of whole vectors.
pub(super) fn fits(a: Mat<'_>, b: Mat<'_>) -> Option<&'static Set> {
    let turned = a.row_stride == 1 && a.col_stride >= a.rows && b.col_stride == 1 && a.rows * a.cols * b.cols > 0;
    kernels().filter(|set| {
        let (rows, _) = set.skinny;
        turned && a.rows.is_multiple_of(rows) && a.rows <= PASSES * rows && b.cols.is_multiple_of(set.lanes)
    })
}

/// `dst = scale · a b`, or `dst += …`, for what [`fits`].
pub(super) fn multiply(
    set: &Set,
    dst: &mut MatMut<'_>,
    write: Write,
    scale: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: Threads,
) {
    let (rows, kernel) = set.skinny;
    let vectors = b.cols / set.lanes;
    let tasks = match threads {
        Threads::One => 1,
        Threads::All => vectors.min(TASKS * rayon::current_num_threads()),
    };
    let tiles = dst.tiles();
    let work = |task: usize| {
        let (from, to) = (task * vectors / tasks * set.lanes, (task + 1) * vectors / tasks * set.lanes);
        // SAFETY: every task has its own columns.
        let mut dst = unsafe { tiles.tile(0, a.rows, from, to - from) };
        let b = b.block(0, b.rows, from, to - from);
        for inner in (0..a.cols).step_by(KC) {
            let depth = KC.min(a.cols - inner);
            let add = write == Write::Add || inner > 0;
            for row in (0..a.rows).step_by(rows) {
                let a = a.block(row, rows, inner, depth);
                for col in (0..b.cols).step_by(set.lanes) {
                    let target = Target { add, scale, ..dst.at(row, rows, col, set.lanes) };
                    tile(kernel, a, b.block(inner, depth, col, set.lanes), target);
                }
            }
        }
    };
    match threads {
        Threads::One => work(0),
        Threads::All => for_each_task(tasks, || (), |(), task| work(task)),
    }
}

fn tile(kernel: Kernel, a: Mat<'_>, b: Mat<'_>, target: Target) {
    // SAFETY: the kernels are those of this machine; both views were checked when they were cut, have the kernel's rows
    // and one vector of columns, and so has the target.
    unsafe { kernel(a.cols, Left::Columns(a.ptr, a.col_stride), b.ptr, b.row_stride, target) };
}

#[cfg(test)]
mod tests {
    use super::super::{gemm, product};
    use super::*;

    fn noise(seed: usize, len: usize) -> Vec<f32> {
        #[expect(clippy::as_conversions, reason = "small numbers")]
        (0..len).map(|i| (((i + seed) * 7919 % 1009) as f32 - 504.0) / 504.0).collect()
    }

    /// Against sums in f64, over several passes of the inner dimension and several heights.
    #[test]
    fn few_rows_times_a_long_matrix() {
        for (m, k, n) in [(16, 1100, 64), (32, 40, 48), (8, 513, 16), (16, 7, 16)] {
            let (a, b) = (noise(1, k * m), noise(2, k * n));
            let (at, b_mat) = (Mat::new(&a, m).t(), Mat::new(&b, n));
            let want =
                |i: usize, j: usize| -> f64 { (0..k).map(|l| f64::from(a[l * m + i]) * f64::from(b[l * n + j])).sum() };
            let y = product(0.5, at, b_mat);
            let mut twice = y.clone();
            gemm(&mut MatMut::new(&mut twice, n), Write::Add, 0.5, at, b_mat, Threads::One);
            for (at, (&y, &twice)) in y.iter().zip(&twice).enumerate() {
                let want = 0.5 * want(at / n, at % n);
                assert!((f64::from(y) - want).abs() < 1e-3, "({m}, {k}, {n})[{at}]: {y}, expected {want}");
                assert!((f64::from(twice) - 2.0 * want).abs() < 2e-3, "({m}, {k}, {n})[{at}]: {twice} added");
            }
        }
        if let Some(set) = kernels() {
            let (a, b) = (noise(1, 16 * 32), noise(2, 32 * set.lanes));
            let b = Mat::new(&b, set.lanes);
            assert!(fits(Mat::new(&a, 16).t(), b).is_some(), "an adapter's gradient is not for this module");
            assert!(fits(Mat::new(&a, 32), b).is_none(), "rows that are not turned");
        }
    }
}
