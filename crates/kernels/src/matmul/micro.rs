//! The inner kernels: a tile of the product held in registers while the inner dimension runs.
//!
//! A tile is `MR` rows of `NV` vectors. Per step it loads `NV` vectors of the packed right side and
//! broadcasts `MR` floats of the left side, each feeding `NV` fused multiply-adds. 12 rows of 2 vectors fill 24 of
//! AVX-512's 32 registers, 6 of 2 fill 12 of AVX2's 16: enough independent sums to keep the multipliers busy.

#![expect(clippy::indexing_slicing, reason = "constant indices into arrays of constant size")]

#[cfg(target_arch = "x86_64")]
use super::pack::ROW;

/// Where a tile's left side is.
#[derive(Clone, Copy)]
pub(super) enum Left {
    /// Rows of [`ROW`] floats each: element `(i, k)` at `i * ROW + k`.
    Rows(*const f32),
    /// Element `(i, k)` at `k * stride + i`.
    Columns(*const f32, usize),
}

/// Where a tile of the product goes: row `i` at `i * stride`.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) ptr: *mut f32,
    pub(super) stride: usize,
    /// Added to what is there instead of replacing it.
    pub(super) add: bool,
    pub(super) scale: f32,
}

/// `target (MR × NV vectors) = scale · left (MR × k) · right (k × panel)`.
///
/// # Safety
/// The machine has the instruction set; all `k` columns of `left`, `k` rows of `width` floats at `right`,
/// and the tile at `target` are inside their allocations; `target` is initialised if `add`.
pub(super) type Kernel = unsafe fn(k: usize, left: Left, right: *const f32, width: usize, target: Target);

macro_rules! kernels {
    ($module:ident, $feature:literal, $lanes:literal, $zero:ident, $load:ident, $store:ident,
     $splat:ident, $fma:ident, $mul:ident, $add:ident) => {
        #[cfg(target_arch = "x86_64")]
        pub(super) mod $module {
            use super::{Left, ROW, Target};
            use std::arch::x86_64::{$add, $fma, $load, $mul, $splat, $store, $zero};

            pub(in super::super) const LANES: usize = $lanes;

            /// See [`Kernel`](super::Kernel).
            ///
            /// # Safety
            /// As there.
            #[target_feature(enable = $feature)]
            pub(in super::super) unsafe fn kernel<const MR: usize, const NV: usize>(
                k: usize,
                left: Left,
                right: *const f32,
                width: usize,
                target: Target,
            ) {
                // SAFETY: the caller's promise.
                unsafe {
                    match left {
                        Left::Rows(a) => run::<MR, NV, true>(k, a, 1, right, width, target),
                        Left::Columns(a, stride) => run::<MR, NV, false>(k, a, stride, right, width, target),
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn run<const MR: usize, const NV: usize, const ROWS: bool>(
                k: usize,
                mut a: *const f32,
                a_step: usize,
                mut b: *const f32,
                width: usize,
                target: Target,
            ) {
                let mut sums = [[$zero(); NV]; MR];
                for _ in 0..k {
                    // SAFETY: this step's column of the left and row of the right side are inside.
                    unsafe {
                        let mut row = [$zero(); NV];
                        for j in 0..NV {
                            row[j] = $load(b.add(j * LANES));
                        }
                        for i in 0..MR {
                            let x = $splat(*a.add(if ROWS { i * ROW } else { i }));
                            for j in 0..NV {
                                sums[i][j] = $fma(x, row[j], sums[i][j]);
                            }
                        }
                        a = a.wrapping_add(a_step);
                        b = b.wrapping_add(width);
                    }
                }
                let scale = $splat(target.scale);
                for i in 0..MR {
                    for j in 0..NV {
                        // SAFETY: the tile is inside its allocation.
                        unsafe {
                            let at = target.ptr.add(i * target.stride + j * LANES);
                            let value = $mul(sums[i][j], scale);
                            $store(at, if target.add { $add($load(at), value) } else { value });
                        }
                    }
                }
            }
        }
    };
}

kernels!(
    avx512,
    "avx512f",
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_mul_ps,
    _mm512_add_ps
);
kernels!(
    avx2,
    "avx2,fma",
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_mul_ps,
    _mm256_add_ps
);

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Set {
    /// Floats per vector; a panel of the right side is two vectors wide.
    pub(super) lanes: usize,
    /// Rows of a tall and of a low tile.
    pub(super) tall: usize,
    pub(super) low: usize,
    /// By height (tall, low), then by vectors (1, 2).
    pub(super) kernels: [[Kernel; 2]; 2],
    /// The height of a tile of one vector, and its kernel, for a right side that is not packed.
    pub(super) skinny: (usize, Kernel),
}

#[cfg(target_arch = "x86_64")]
pub(super) const AVX512: Set = Set {
    lanes: avx512::LANES,
    tall: 12,
    low: 8,
    kernels: [[avx512::kernel::<12, 1>, avx512::kernel::<12, 2>], [avx512::kernel::<8, 1>, avx512::kernel::<8, 2>]],
    skinny: (16, avx512::kernel::<16, 1>),
};

#[cfg(target_arch = "x86_64")]
pub(super) const AVX2: Set = Set {
    lanes: avx2::LANES,
    tall: 6,
    low: 4,
    kernels: [[avx2::kernel::<6, 1>, avx2::kernel::<6, 2>], [avx2::kernel::<4, 1>, avx2::kernel::<4, 2>]],
    skinny: (8, avx2::kernel::<8, 1>),
};
