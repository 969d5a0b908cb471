//! Lengths of the rows of `W + s B A`, the norm that DoRA divides by (Liu et al., arXiv 2402.09353).

use crate::buffer::{fill_rows, prepare, prepare_weight, tensor, with_data, with_weight};
use crate::linear::check;
use crate::matmul::{Mat, MatMut, Threads, Write, gemm};
use crate::portable;
use candle_core::{Result, Tensor, bail};

/// Rows of the weight merged at a time; fixed, so that the result does not depend on the thread count.
const ROWS: usize = 64;

/// `w (out, in)`, `a (r, in)`, `b (out, r)` → `‖w_i + scale · b_i a‖₂` for every row `i`, `(out)`. Without a
/// gradient: DoRA treats the norm as a constant (section 4.3 of the paper).
///
/// # Errors
/// Shapes that do not fit together.
pub fn merged_row_norms(w: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    const OP: &str = "merged_row_norms";
    let (r, k, _) = check(OP, a, w)?;
    let out = w.dim(0)?;
    if b.dims() != [out, r] {
        bail!("{OP}: b is {:?}; expected ({out}, {r}) to fit a ({r}, {k}) and w ({out}, {k})", b.dims());
    }
    if portable::is_portable(w) {
        return portable::linear::merged_row_norms(w, a, b, scale);
    }
    #[expect(clippy::as_conversions, reason = "the factor is applied in f32")]
    let scale = scale as f32;
    let (w, a, b) = (prepare_weight(OP, w)?, prepare(OP, "a", &a.detach())?, prepare(OP, "b", &b.detach())?);
    let norms = with_weight(OP, &w, |w| {
        with_data(OP, &a, |a| {
            with_data(OP, &b, |b| {
                let blocks: Vec<(&[f32], &[f32])> = w.chunks(ROWS * k).zip(b.chunks(ROWS * r)).collect();
                let norms = fill_rows(blocks.len(), ROWS, |i, norms| {
                    let Some((w, b)) = blocks.get(i) else { return };
                    let mut merged = w.to_vec();
                    let mut view = MatMut::new(&mut merged, k);
                    gemm(&mut view, Write::Add, scale, Mat::new(b, r), Mat::new(a, k), Threads::One);
                    for (norm, row) in norms.iter_mut().zip(merged.chunks_exact(k)) {
                        *norm = length(row);
                    }
                });
                // The last block may have fewer rows.
                norms.into_iter().take(out).collect::<Vec<f32>>()
            })
        })
    })???;
    tensor(norms, out)
}

/// Euclidean length, summed in f64.
fn length(row: &[f32]) -> f32 {
    let sum: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    #[expect(clippy::as_conversions, reason = "results are f32")]
    let norm = sum.sqrt() as f32;
    norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn norms_are_those_of_the_merged_weight() {
        let device = Device::Cpu;
        let random = |rows: usize, cols: usize| Tensor::randn(0.0_f32, 1.0, (rows, cols), &device);
        for (out, k, r) in [(130, 40, 4), (64, 8, 1), (3, 5, 2)] {
            let (w, a, b) = match (random(out, k), random(r, k), random(out, r)) {
                (Ok(w), Ok(a), Ok(b)) => (w, a, b),
                other => panic!("{other:?}"),
            };
            let merged = (|| (&w + (b.matmul(&a)? * 0.7)?)?.sqr()?.sum(1)?.sqrt())();
            let difference = merged
                .and_then(|want| (want - merged_row_norms(&w, &a, &b, 0.7)?)?.abs()?.max_all()?.to_scalar::<f32>());
            assert!(difference.as_ref().is_ok_and(|d| *d < 1e-5), "{difference:?}");
        }
        let wrong = random(2, 3).and_then(|t| merged_row_norms(&t, &t, &t, 1.0));
        assert!(wrong.is_err_and(|e| e.to_string().contains("merged_row_norms: b is [2, 3]; expected (2, 2)")));
    }
}
