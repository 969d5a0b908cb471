//! The hot loops, compiled once per instruction set and chosen at run time.
//!
//! The loops are plain Rust over lanes of [`LANES`] floats, which LLVM turns into vector code when it may
//! assume the features. Results differ in the last bits between instruction sets (with and without fused
//! multiply-add) but not between runs on one machine.

#![expect(clippy::indexing_slicing, reason = "lane loops over windows of checked lengths")]

use std::sync::OnceLock;

const LANES: usize = 16;

/// An instruction set this machine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Whatever the binary was compiled for.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All levels this machine can run, best last.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            levels.push(Self::Avx2);
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// The best level, found once.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().copied().unwrap_or(Self::Portable))
    }
}

/// Defines `fn name(args)` that runs `body` compiled for the best level, and `at::name(level, args)` that
/// runs it at a chosen one. `body` sees a constant `FMA`: whether [`fma`] may fuse.
macro_rules! dispatched {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {
        $($(#[$doc])*
        #[inline]
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            at::$name(Level::best(), $($arg),*)
        })*

        /// The same loops at a level of the caller's choice.
        pub(crate) mod at {
            use super::*;
            $(#[inline]
            pub(crate) fn $name(level: Level, $($arg: $ty),*) $(-> $ret)? {
                #[inline(always)]
                fn generic<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { generic::<true>($($arg),*) }

                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { generic::<true>($($arg),*) }

                match level {
                    // aarch64 always has a fused multiply-add.
                    Level::Portable => generic::<{ cfg!(target_arch = "aarch64") }>($($arg),*),
                    // SAFETY: `Level::available` names only what this machine detected.
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => unsafe { avx512($($arg),*) },
                }
            })*
        }
    };
}

/// `a * b + c`, fused where that is one instruction. (Elsewhere `mul_add` would be a library call.)
#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// eˣ by Cephes' polynomial, relative error below 2e-7; saturates outside ±87, keeps NaN.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Written as comparisons so that NaN passes through.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in few bits.
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, r, 1.398_199_9e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 0.5);
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// tanh x by Cephes' polynomial near zero and by eˣ elsewhere, error below 2e-7 of the result; keeps NaN.
#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_989e-3;
    p = fma::<FMA>(p, z, 2.063_909e-2);
    p = fma::<FMA>(p, z, -5.373_971_6e-2);
    p = fma::<FMA>(p, z, 1.333_144_2e-1);
    p = fma::<FMA>(p, z, -3.333_328e-1);
    let near = fma::<FMA>(p * z, x, x);
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0);
    if x.abs() < 0.625 { near } else { far }
}

/// `2 √(2/π)` and the cubic coefficient of gelu's tanh form.
const GELU_LINEAR: f32 = 1.595_769_2;
const GELU_CUBIC: f32 = 0.044_715;

/// Runs `$body` for every index of slices of one length, in lanes and then one by one for what is left over.
/// Inside `$body` the slices are windows, and `$i` is an index into them: arrays, so that no bound is checked.
macro_rules! by_lanes {
    ([$($out:ident),*], [$($input:ident),*], |$i:ident| $body:expr) => {{
        let len = by_lanes!(@first $($out,)* $($input,)*).len();
        let mut start = 0;
        while start + LANES <= len {
            $(let Some($out) = $out[start..].first_chunk_mut::<LANES>() else { break };)*
            $(let Some($input) = $input[start..].first_chunk::<LANES>() else { break };)*
            for $i in 0..LANES {
                $body;
            }
            start += LANES;
        }
        $(let $out = &mut $out[start..len];)*
        $(let $input = &$input[start..len];)*
        for $i in 0..len - start {
            $body;
        }
    }};
    (@first $first:ident, $($rest:ident,)*) => { $first };
}

/// Like `by_lanes`, with the value of `$body` added to one of [`LANES`] running sums named `$sum`.
macro_rules! sum_by_lanes {
    ([$($out:ident),*], [$($input:ident),*], |$i:ident, $sum:ident| $body:expr) => {{
        let mut sums = [0f32; LANES];
        by_lanes!([$($out),*], [$($input),*], |$i| {
            let $sum = sums[$i];
            sums[$i] = $body;
        });
        fold(sums)
    }};
}

/// Pairwise sum of the lanes.
#[inline(always)]
fn fold(sums: [f32; LANES]) -> f32 {
    let mut s = sums;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            s[i] += s[i + half];
        }
        half /= 2;
    }
    s[0]
}

dispatched! {
    /// `Σ aᵢ bᵢ`.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        sum_by_lanes!([], [a, b], |i, sum| fma::<FMA>(a[i], b[i], sum))
    }

    /// The largest element; NaN is ignored (it comes back out of [`exp_sum`]).
    fn max(a: &[f32]) -> f32 {
        let mut best = [f32::NEG_INFINITY; LANES];
        by_lanes!([], [a], |i| best[i] = if a[i] > best[i] { a[i] } else { best[i] });
        best.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }

    /// `a ← exp(a − shift)`; returns the sum.
    fn exp_sum(a: &mut [f32], shift: f32) -> f32 {
        sum_by_lanes!([a], [], |i, sum| {
            a[i] = exp::<FMA>(a[i] - shift);
            sum + a[i]
        })
    }

    /// `Σ exp(a − shift)`.
    fn sum_exp(a: &[f32], shift: f32) -> f32 {
        sum_by_lanes!([], [a], |i, sum| sum + exp::<FMA>(a[i] - shift))
    }

    /// `a ← factor · a`.
    fn scale(a: &mut [f32], factor: f32) {
        by_lanes!([a], [], |i| a[i] *= factor)
    }

    /// `a ← a + b`.
    fn add(a: &mut [f32], b: &[f32]) {
        by_lanes!([a], [b], |i| a[i] += b[i])
    }

    /// One row of RMSNorm: `y = r x ⊙ w`.
    fn scale_by(y: &mut [f32], x: &[f32], w: &[f32], r: f32) {
        by_lanes!([y], [x, w], |i| y[i] = x[i] * r * w[i])
    }

    /// `Σ gᵢ wᵢ xᵢ`.
    fn dot3(g: &[f32], w: &[f32], x: &[f32]) -> f32 {
        sum_by_lanes!([], [g, w, x], |i, sum| fma::<FMA>(g[i] * w[i], x[i], sum))
    }

    /// One row of RMSNorm's backward: `dx = r (g ⊙ w − c x)`.
    fn rms_backward(dx: &mut [f32], g: &[f32], w: &[f32], x: &[f32], r: f32, c: f32) {
        by_lanes!([dx], [g, w, x], |i| dx[i] = r * fma::<FMA>(-c, x[i], g[i] * w[i]))
    }

    /// `acc ← acc + r g ⊙ x`.
    fn add_scaled_product(acc: &mut [f32], g: &[f32], x: &[f32], r: f32) {
        by_lanes!([acc], [g, x], |i| acc[i] = fma::<FMA>(g[i] * r, x[i], acc[i]))
    }

    /// Rotates one head by the angles whose cosines and sines are given (`sign` −1 rotates back):
    /// the pair `(i, i + D/2)` turns by angle `i`.
    fn rotate(y: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (y0, y1) = y.split_at_mut(cos.len());
        let (x0, x1) = x.split_at(cos.len());
        by_lanes!([y0, y1], [x0, x1, cos, sin], |i| {
            let s = sin[i] * sign;
            y0[i] = fma::<FMA>(x0[i], cos[i], -(x1[i] * s));
            y1[i] = fma::<FMA>(x1[i], cos[i], x0[i] * s);
        })
    }

    /// `y = silu(gate) ⊙ up`.
    fn swiglu(y: &mut [f32], gate: &[f32], up: &[f32]) {
        by_lanes!([y], [gate, up], |i| y[i] = gate[i] / (1.0 + exp::<FMA>(-gate[i])) * up[i])
    }

    /// Gradients of [`swiglu`] for the output gradient `dy`.
    fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        by_lanes!([dgate, dup], [gate, up, dy], |i| {
            let sigmoid = 1.0 / (1.0 + exp::<FMA>(-gate[i]));
            let silu = gate[i] * sigmoid;
            dup[i] = dy[i] * silu;
            dgate[i] = dy[i] * up[i] * fma::<FMA>(silu, 1.0 - sigmoid, sigmoid);
        })
    }

    /// `a ← c tanh(a / c)`.
    fn soft_cap(a: &mut [f32], cap: f32) {
        let inverse = 1.0 / cap;
        by_lanes!([a], [], |i| a[i] = cap * tanh::<FMA>(a[i] * inverse))
    }

    /// [`attention_backward`] where the scores passed through [`soft_cap`]. In: scores before the cap.
    fn capped_attention_backward(scores: &mut [f32], dp: &mut [f32], lse: f32, delta: f32, cap: f32) {
        let inverse = 1.0 / cap;
        by_lanes!([scores, dp], [], |i| {
            let t = tanh::<FMA>(scores[i] * inverse);
            let p = exp::<FMA>(fma::<FMA>(cap, t, -lse));
            scores[i] = p;
            dp[i] = p * (dp[i] - delta) * fma::<FMA>(-t, t, 1.0);
        })
    }

    /// `y = gelu(gate) ⊙ up`, the tanh form of gelu.
    fn geglu(y: &mut [f32], gate: &[f32], up: &[f32]) {
        by_lanes!([y], [gate, up], |i| {
            let z = gate[i];
            let twice = GELU_LINEAR * z * fma::<FMA>(GELU_CUBIC * z, z, 1.0);
            y[i] = z / (1.0 + exp::<FMA>(-twice)) * up[i];
        })
    }

    /// Gradients of [`geglu`] for the output gradient `dy`.
    fn geglu_backward(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
        by_lanes!([dgate, dup], [gate, up, dy], |i| {
            let z = gate[i];
            let twice = GELU_LINEAR * z * fma::<FMA>(GELU_CUBIC * z, z, 1.0);
            let slope = GELU_LINEAR * fma::<FMA>(3.0 * GELU_CUBIC * z, z, 1.0);
            let sigmoid = 1.0 / (1.0 + exp::<FMA>(-twice));
            let gelu = z * sigmoid;
            dup[i] = dy[i] * gelu;
            dgate[i] = dy[i] * up[i] * fma::<FMA>(gelu * (1.0 - sigmoid), slope, sigmoid);
        })
    }

    /// `a ← factor · exp(a − shift) ⊙ (1 − (a / cap)²)`: gradient of a softmax behind [`soft_cap`].
    fn capped_softmax(a: &mut [f32], shift: f32, factor: f32, cap: f32) {
        let inverse = 1.0 / cap;
        by_lanes!([a], [], |i| {
            let t = a[i] * inverse;
            a[i] = factor * exp::<FMA>(a[i] - shift) * fma::<FMA>(-t, t, 1.0);
        })
    }

    /// One row of attention's backward. In: scores and `dP`; out: `P = exp(score − lse)` and
    /// `dS = P ⊙ (dP − delta)`.
    fn attention_backward(scores: &mut [f32], dp: &mut [f32], lse: f32, delta: f32) {
        by_lanes!([scores, dp], [], |i| {
            let p = exp::<FMA>(scores[i] - lse);
            scores[i] = p;
            dp[i] = p * (dp[i] - delta);
        })
    }
}

#[cfg(test)]
#[expect(clippy::as_conversions, reason = "small numbers")]
mod tests {
    use super::*;

    fn samples(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect()
    }

    fn assert_close(got: &[f32], want: impl Iterator<Item = f64>, what: &str) {
        for (i, (&got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                (f64::from(got) - want).abs() <= 1e-6 * want.abs().max(1.0),
                "{what}[{i}] is {got}, expected {want}"
            );
        }
    }

    #[test]
    fn exp_is_right_over_its_whole_range_on_every_level() {
        for level in Level::available() {
            for x in (-870..880).map(|i| i as f32 / 10.0) {
                let mut y = [x];
                at::exp_sum(level, &mut y, 0.0);
                let want = f64::from(x).exp();
                assert!((f64::from(y[0]) - want).abs() <= 3e-7 * want, "{level:?}: exp({x}) = {}, not {want}", y[0]);
            }
            let mut odd = [f32::NAN, f32::NEG_INFINITY, -1e30, f32::INFINITY];
            at::exp_sum(level, &mut odd, 0.0);
            assert!(odd[0].is_nan() && odd[1] < 1e-37 && odd[2] < 1e-37 && odd[3] > 1e38, "{level:?}: {odd:?}");
        }
    }

    #[test]
    fn the_soft_cap_is_right_near_zero_and_far_from_it_on_every_level() {
        for level in Level::available() {
            for x in (-4000..4000).map(|i| i as f32 / 100.0).chain([1e-6, -3e-20, 0.0]) {
                let mut y = [x];
                at::soft_cap(level, &mut y, 2.0);
                let want = 2.0 * (f64::from(x) / 2.0).tanh();
                assert!(
                    (f64::from(y[0]) - want).abs() <= 4e-7 * want.abs(),
                    "{level:?}: {x} gives {}, not {want}",
                    y[0]
                );
            }
            let mut odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            at::soft_cap(level, &mut odd, 2.0);
            assert!(odd[0].is_nan() && odd[1..] == [2.0, -2.0], "{level:?}: {odd:?}");
        }
    }

    /// Lengths on both sides of the lane width.
    #[test]
    fn every_level_computes_the_same_within_rounding() {
        for level in Level::available() {
            for len in [1, 15, 16, 17, 48, 100] {
                let (a, b) = (samples(len), samples(len + 3)[3..].to_vec());
                let wide = || a.iter().zip(&b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
                let what = format!("{level:?} {len}");
                let total: f64 = wide().map(|(a, b)| a * b).sum();
                assert!((f64::from(at::dot(level, &a, &b)) - total).abs() < 1e-4, "{what}");
                assert_eq!(at::max(level, &a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{what}");
                let mut y = vec![0.0; len];
                at::swiglu(level, &mut y, &a, &b);
                assert_close(&y, wide().map(|(a, b)| a / (1.0 + (-a).exp()) * b), &what);
                y.copy_from_slice(&a);
                at::add(level, &mut y, &b);
                assert_close(&y, wide().map(|(a, b)| a + b), &what);
                at::scale(level, &mut y, 0.5);
                assert_close(&y, wide().map(|(a, b)| (a + b) / 2.0), &what);
            }
        }
    }
}
