//! A frozen linear layer with a low-rank adapter: `y = x Wᵀ + s (x Aᵀ) Bᵀ` (Hu et al., arXiv 2106.09685).
//!
//! Backward, with `u = s g B` and `t = s x Aᵀ`, both `(N, r)`:
//! `dA = uᵀ x`, `dB = gᵀ t`, `dx = g W + u A`. `W` gets no gradient.
//!
//! Products with an inner or outer dimension of `r` run at a fraction of the speed of square ones. With
//! many tokens it is cheaper to fold the adapter into the weight, `M = W + s B A`, and to compute `y = x Mᵀ`
//! and `dx = g M`. `M` exists only in the form a product packs its right side into, a part at a time.

use crate::buffer::{input, prepare, prepare_weight, tensor, with_data, with_weight};
use crate::linear::check;
use crate::matmul::{LowRank, Mat, MatMut, Threads, Write, gemm, product, product_low_rank};
use crate::portable;
use crate::tape::{self, Saves};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

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
    let op = LoraLinear { w: prepare_weight(OP, w)?, scale: scale as f32 };
    tape::apply3([&prepare(OP, "x", x)?, &prepare(OP, "a", a)?, &prepare(OP, "b", b)?], op, Saves::INPUTS)
}

struct LoraLinear {
    w: Tensor,
    scale: f32,
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
            return product_low_rank(x, w.t(), LowRank { u: a.t(), v: b.t(), scale: self.scale });
        }
        let mut y = product(1.0, x, w.t());
        let t = product(self.scale, x, a.t());
        gemm(&mut MatMut::new(&mut y, s.out), Write::Add, 1.0, Mat::new(&t, s.r), b.t(), Threads::All);
        y
    }

    fn gradient_of_input(&self, s: Sizes, g: Mat<'_>, u: &[f32], w: &[f32], a: &[f32], b: &[f32]) -> Vec<f32> {
        let (w, a, b) = (Mat::new(w, s.k), Mat::new(a, s.k), Mat::new(b, s.r));
        if s.merging_pays() {
            return product_low_rank(g, w, LowRank { u: b, v: a, scale: self.scale });
        }
        let mut dx = product(1.0, g, w);
        gemm(&mut MatMut::new(&mut dx, s.k), Write::Add, 1.0, Mat::new(u, s.r), a, Threads::All);
        dx
    }
}

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
                            let (xm, gm) = (Mat::new(x_data, k), Mat::new(g_data, out));
                            let u = product(self.scale, gm, Mat::new(b_data, r));
                            let t = product(self.scale, xm, Mat::new(a_data, k).t());
                            let da = product(1.0, Mat::new(&u, r).t(), xm);
                            // As (r, out): a long and narrow product would read `g` column by column.
                            let db = transposed(&product(1.0, Mat::new(&t, r).t(), gm), out);
                            let dx = x.track_op().then(|| self.gradient_of_input(s, gm, &u, w, a_data, b_data));
                            (dx, da, db)
                        })
                    })
                })
            })
        })?????;
        let dx = dx.map(|dx| tensor(dx, x.shape())).transpose()?;
        Ok((dx, Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
