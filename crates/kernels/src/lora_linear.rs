//! A frozen linear layer with a low-rank adapter: `y = x Wᵀ + s (x Aᵀ) Bᵀ` (Hu et al., arXiv 2106.09685).
//!
//! Backward, with `u = g B` and `t = x Aᵀ`, both `(N, r)`:
//! `dA = s uᵀ x`, `dB = s gᵀ t`, `dx = g W + s u A`. `W` gets no gradient.
//!
//! Products with an inner or outer dimension of `r` run at a fraction of the speed of square ones. With
//! many tokens it is cheaper to fold the adapter into the weight, `M = W + s B A`, and to compute `y = x Mᵀ`
//! and `dx = g M`. `M` exists only in the form a product packs its right side into, a part at a time. The narrow
//! `x Aᵀ` and `g B` are made beside these products, from rows that are in the cache already; the former is kept for
//! the backward pass.

use crate::buffer::{input, prepare, prepare_weight, tensor, with_data, with_weight};
use crate::linear::check;
use crate::matmul::{LowRank, Mat, MatMut, Threads, Write, gemm, product, product_low_rank};
use crate::portable;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

/// `x (N, in)`, `w (out, in)` frozen, f32 or 16 bits, `a (r, in)`, `b (out, r)` → `(N, out)`.
pub fn lora_linear(x: &Tensor, w: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    const OP: &str = "lora_linear";
    let (_, k, out) = check(OP, x, w)?;
    match (a.dims(), b.dims()) {
        (&[r, a_in], &[b_out, b_r]) if r == b_r && r > 0 && a_in == k && b_out == out => {}
        (a, b) => bail!("{OP}: a is {a:?} and b is {b:?}; expected (r, {k}) and ({out}, r) to fit w ({out}, {k})"),
    }
    if portable::is_portable(x) {
        return portable::linear::lora_linear(x, w, a, b, scale);
    }
    #[expect(clippy::as_conversions, reason = "the factor is applied in f32")]
    let scale = scale as f32;
    let trains = a.track_op() || b.track_op();
    let op = LoraLinear { w: prepare_weight(OP, w)?, scale, trains, low: OnceLock::new() };
    tape::apply3([&prepare(OP, "x", x)?, &prepare(OP, "a", a)?, &prepare(OP, "b", b)?], op, Saves::INPUTS)
}

struct LoraLinear {
    w: Tensor,
    scale: f32,
    trains: bool,
    /// `x Aᵀ (N, r)`, where the forward pass made it for the backward pass.
    low: OnceLock<Vec<f32>>,
}

/// One call's sizes.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    k: usize,
    out: usize,
    r: usize,
}

impl Sizes {
    /// Whether making `M` (`out · in · r` multiplications) costs less than the low-rank products
    /// (`N · r · (in + out)`).
    fn merging_pays(self) -> bool {
        self.out * self.k < self.n * (self.k + self.out)
    }
}

impl LoraLinear {
    fn forward(&self, s: Sizes, x: &[f32], w: &[f32], a: &[f32], b: &[f32]) -> Vec<f32> {
        let (x, w, a, b) = (Mat::new(x, s.k), Mat::new(w, s.k), Mat::new(a, s.k), Mat::new(b, s.r));
        if s.merging_pays() {
            let correction = LowRank { u: a.t(), v: b.t(), scale: self.scale };
            let (y, low) = product_low_rank(x, w.t(), correction, self.trains.then(|| a.t()));
            if self.trains {
                // Empty, as an op runs forward once; another time gives the same.
                let _ = self.low.set(low);
            }
            return y;
        }
        let mut y = product(1.0, x, w.t());
        let t = product(self.scale, x, a.t());
        gemm(&mut MatMut::new(&mut y, s.out), Write::Add, 1.0, Mat::new(&t, s.r), b.t(), Threads::All);
        y
    }

    /// `g B (N, r)` and the gradient of the input.
    fn gradient_of_input(&self, s: Sizes, g: Mat<'_>, w: Mat<'_>, a: Mat<'_>, b: Mat<'_>) -> (Vec<f32>, Vec<f32>) {
        if s.merging_pays() {
            let (dx, u) = product_low_rank(g, w, LowRank { u: b, v: a, scale: self.scale }, Some(b));
            return (u, dx);
        }
        let u = product(1.0, g, b);
        let mut dx = product(1.0, g, w);
        gemm(&mut MatMut::new(&mut dx, s.k), Write::Add, self.scale, Mat::new(&u, s.r), a, Threads::All);
        (u, dx)
    }

    /// Gradients of the input, unless it is not `tracked`, and of both parts of the adapter.
    fn backward(&self, s: Sizes, [x, a, b, g]: [Mat<'_>; 4], w: Mat<'_>, tracked: bool) -> Gradients {
        let (u, dx) = if tracked {
            let (u, dx) = self.gradient_of_input(s, g, w, a, b);
            (u, Some(dx))
        } else {
            (product(1.0, g, b), None)
        };
        let made;
        let t = match self.low.get() {
            Some(low) => low,
            None => {
                made = product(1.0, x, a.t());
                &made
            }
        };
        let da = product(self.scale, Mat::new(&u, s.r).t(), x);
        // As (r, out): a long and narrow product would read `g` column by column.
        let db = transposed(&product(self.scale, Mat::new(t, s.r).t(), g), s.out);
        (dx, da, db)
    }
}

/// `dx`, `dA`, `dB`.
type Gradients = (Option<Vec<f32>>, Vec<f32>, Vec<f32>);

/// The transpose of a matrix with `cols` columns.
fn transposed(m: &[f32], cols: usize) -> Vec<f32> {
    let row = |j: usize| m.iter().skip(j).step_by(cols).copied();
    (0..cols).flat_map(row).collect()
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (n, k) = xl.shape().dims2()?;
        let (out, r) = bl.shape().dims2()?;
        let (x, a, b) = (input(name, x, xl)?, input(name, a, al)?, input(name, b, bl)?);
        let y = with_weight(name, &self.w, |w| self.forward(Sizes { n, k, out, r }, x, w, a, b))?;
        Ok((CpuStorage::F32(y), Shape::from((n, out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let name = self.name();
        let (n, k) = x.dims2()?;
        let (out, r) = b.dims2()?;
        let s = Sizes { n, k, out, r };
        let (dx, da, db) = with_data(name, x, |x_data| {
            with_data(name, a, |a_data| {
                with_data(name, b, |b_data| {
                    with_data(name, g, |g_data| {
                        with_weight(name, &self.w, |w| {
                            let (x_mat, a_mat) = (Mat::new(x_data, k), Mat::new(a_data, k));
                            let (b_mat, g_mat) = (Mat::new(b_data, r), Mat::new(g_data, out));
                            self.backward(s, [x_mat, a_mat, b_mat, g_mat], Mat::new(w, k), x.track_op())
                        })
                    })
                })
            })
        })?????;
        let dx = dx.map(|dx| tensor(dx, x.shape())).transpose()?;
        Ok((dx, Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
