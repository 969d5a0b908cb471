//! Matrix products over checked views, whose bounds are proven when they are made.
//!
//! Products run on inner kernels of our own ([`block`]) where the machine has AVX2 or AVX-512, and else, as
//! those of a few rows, on the `gemm` crate.

mod block;
mod micro;
mod pack;
mod skinny;

use block::More;
pub(crate) use pack::{Lines, LowRank, Right};

use crate::buffer;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A strided matrix to read. Element `(i, j)` is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    ptr: *const f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    row_stride: usize,
    col_stride: usize,
    data: PhantomData<&'a [f32]>,
}

// SAFETY: a `Mat` is a shared borrow of a slice of floats.
unsafe impl Send for Mat<'_> {}
// SAFETY: as above; nothing is written through it.
unsafe impl Sync for Mat<'_> {}

impl<'a> Mat<'a> {
    /// All of a row-major matrix with `cols` columns.
    pub(crate) fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} floats are not rows of {cols}", data.len());
        let rows = data.len() / cols;
        Self { ptr: data.as_ptr(), rows, cols, row_stride: cols, col_stride: 1, data: PhantomData }
    }

    /// The transpose, without moving data.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `rows × cols` elements from `(row, col)` on.
    pub(crate) fn block(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "block leaves the matrix");
        // The offset is inside the matrix unless the block is empty, in which case nothing is read.
        let ptr = self.ptr.wrapping_add(row * self.row_stride + col * self.col_stride);
        Self { ptr, rows, cols, ..self }
    }

    /// Row `i` of a matrix that is not transposed.
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows && self.col_stride == 1, "row {i} of {} is not one slice", self.rows);
        // SAFETY: the row lies inside the borrowed slice and its elements are adjacent.
        unsafe { std::slice::from_raw_parts(self.ptr.add(i * self.row_stride), self.cols) }
    }
}

/// A row-major matrix to write, possibly a rectangle of a wider one, possibly not initialised yet.
pub(crate) struct MatMut<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    data: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// All of a row-major matrix with `cols` columns.
    pub(crate) fn new(data: &'a mut [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} floats are not rows of {cols}", data.len());
        Self { ptr: data.as_mut_ptr(), rows: data.len() / cols, cols, row_stride: cols, data: PhantomData }
    }

    /// Row `i`.
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row lies inside the exclusively borrowed matrix, which is initialised everywhere
        // but in `product`, where no row is taken.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.row_stride), self.cols) }
    }

    /// `rows` rows from row `from` on.
    pub(crate) fn rows(&mut self, from: usize, rows: usize) -> MatMut<'_> {
        assert!(from + rows <= self.rows, "rows {from} to {} of {}", from + rows, self.rows);
        // The offset is inside the matrix unless no row is left, in which case nothing is accessed.
        MatMut { ptr: self.ptr.wrapping_add(from * self.row_stride), rows, data: PhantomData, ..*self }
    }
}

/// Lets parallel tasks write disjoint rectangles of one row-major matrix.
pub(crate) struct Tiles<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    data: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `tile`, whose contract forbids overlapping rectangles.
unsafe impl Sync for Tiles<'_> {}

impl<'a> Tiles<'a> {
    pub(crate) fn new(data: &'a mut [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} floats are not rows of {cols}", data.len());
        Self { ptr: data.as_mut_ptr(), rows: data.len() / cols, cols, row_stride: cols, data: PhantomData }
    }

    /// The rectangle of `rows × cols` elements at `(row, col)`.
    ///
    /// # Safety
    /// No two tiles alive at the same time may overlap.
    pub(crate) unsafe fn tile(&self, row: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_> {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "tile leaves the matrix");
        // The offset is inside the matrix unless the tile is empty, in which case nothing is written.
        let ptr = self.ptr.wrapping_add(row * self.row_stride + col);
        MatMut { ptr, rows, cols, row_stride: self.row_stride, data: PhantomData }
    }
}

/// What happens to what the destination held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Add,
}

/// On how many threads a product runs.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    /// The caller is itself one of many parallel tasks.
    One,
    /// All threads of the current rayon pool.
    All,
}

/// `dst = scale · a b` or `dst += scale · a b`, with `a: (m, k)`, `b: (k, n)`, `dst: (m, n)`.
///
/// The result is deterministic: the inner dimension is never split between threads.
pub(crate) fn gemm(dst: &mut MatMut<'_>, write: Write, scale: f32, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(b.rows == k && dst.rows == m && dst.cols == n, "product of ({m}, {k}) and ({}, {n})", b.rows);
    if let Some(set) = skinny::fits(a, b) {
        return skinny::multiply(set, dst, write, scale, a, b, threads);
    }
    if let Some(set) = block::kernels().filter(|_| block::fits(m) && k * n > 0) {
        return match threads {
            Threads::One => block::serial(set, dst, write, scale, a, b),
            Threads::All => block::parallel(set, dst, write, scale, a, b, More::default()),
        };
    }
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    let signed = usize::cast_signed;
    // SAFETY: the views were checked against their slices when they were made, and `a`, `b` and `dst`
    // agree in shape (asserted above), so every access stays inside. `dst` is an exclusive borrow. With
    // `Write::Replace` the destination is not read, so it may be uninitialised.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.ptr,
            1,
            signed(dst.row_stride),
            write == Write::Add,
            a.ptr,
            signed(a.col_stride),
            signed(a.row_stride),
            b.ptr,
            signed(b.col_stride),
            signed(b.row_stride),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A new row-major `scale · a b` on all threads. `a: (m, k)`, `b: (k, n)` → `m * n` floats.
pub(crate) fn product(scale: f32, a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
    new_matrix(a.rows, a.cols, b.cols, |dst| gemm(dst, Write::Replace, scale, a, b, Threads::All))
}

/// New row-major `a (b + low)` and `a beside` on all threads, without making the sum in memory where there are kernels
/// for it. The second is empty when not asked for.
pub(crate) fn product_low_rank(
    a: Mat<'_>,
    b: Mat<'_>,
    low: LowRank<'_>,
    beside: Option<Mat<'_>>,
) -> (Vec<f32>, Vec<f32>) {
    assert!(low.u.rows == b.rows && low.v.cols == b.cols && low.u.cols == low.v.rows, "the correction does not fit");
    let mut second = Vec::new();
    let first = new_matrix(a.rows, a.cols, b.cols, |dst| {
        let Some(set) = block::kernels().filter(|_| block::fits(a.rows)) else {
            gemm(dst, Write::Replace, 1.0, a, b, Threads::All);
            let t = product(low.scale, a, low.u);
            gemm(dst, Write::Add, 1.0, Mat::new(&t, low.u.cols), low.v, Threads::All);
            if let Some(right) = beside {
                second = product(1.0, a, right);
            }
            return;
        };
        let Some(right) = beside else {
            return block::parallel(set, dst, Write::Replace, 1.0, a, b, More { low: Some(low), beside: None });
        };
        second = new_matrix(a.rows, a.cols, right.cols, |beside| {
            let more = More { low: Some(low), beside: Some((beside, right)) };
            block::parallel(set, dst, Write::Replace, 1.0, a, b, more);
        });
    });
    (first, second)
}

/// A new `m × n` matrix that `write` fills with a replacing product of inner dimension `k`.
fn new_matrix(m: usize, k: usize, n: usize, write: impl FnOnce(&mut MatMut<'_>)) -> Vec<f32> {
    if m * n * k == 0 {
        return vec![0.0; m * n];
    }
    let write = |out: &mut [MaybeUninit<f32>]| {
        write(&mut MatMut { ptr: out.as_mut_ptr().cast(), rows: m, cols: n, row_stride: n, data: PhantomData });
    };
    // SAFETY: a replacing product over the whole of `out` writes every element.
    unsafe { buffer::write_all(m * n, write) }
}
