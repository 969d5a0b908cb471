//! Dropout whose mask is a function of (seed, step, module, element): the backward pass and a recomputed
//! forward pass draw it again instead of keeping it, and a resumed run draws the same one.

use super::rng::Key;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Elements per parallel piece.
const PIECE: usize = 1 << 14;

/// Dropout of one micro-batch. [`Dropout::apply`] gives every module its own mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of elements set to zero, in `[0, 1)`.
    pub probability: f64,
    pub key: Key,
}

impl Dropout {
    /// Zeroes elements of `x` (any shape) and scales the others by `1 / (1 - p)`; `module` picks the mask.
    ///
    /// # Errors
    /// Tensor errors only.
    pub fn apply(self, x: &Tensor, module: u64) -> Result<Tensor> {
        if kernels::is_portable(x) {
            return kernels::dropout(x, self.probability, self.key.at(module).value());
        }
        x.contiguous()?.apply_op1(Mask { probability: self.probability, key: self.key.at(module) })
    }
}

struct Mask {
    probability: f64,
    key: Key,
}

impl Mask {
    fn masked(&self, x: &[f32]) -> Vec<f32> {
        #[expect(clippy::as_conversions, reason = "a factor of order one")]
        let keep = (1.0 / (1.0 - self.probability)) as f32;
        let mut y = vec![0.0_f32; x.len()];
        y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).enumerate().for_each(|(piece, (y, x))| {
            let first = u64::try_from(piece.saturating_mul(PIECE)).unwrap_or(u64::MAX);
            for (i, (y, x)) in (first..).zip(y.iter_mut().zip(x)) {
                *y = if self.key.unit(i) < self.probability { 0.0 } else { x * keep };
            }
        });
        y
    }
}

impl CustomOp1 for Mask {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = storage.as_slice::<f32>()?;
        let Some(x) = layout.contiguous_offsets().and_then(|(s, e)| x.get(s..e)) else {
            candle_core::bail!("dropout: the input must be contiguous");
        };
        Ok((CpuStorage::F32(self.masked(x)), layout.shape().clone()))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = Self { probability: self.probability, key: self.key };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_gradient_has_the_forward_mask_and_the_mean_is_kept() {
        let x = Var::ones((200, 100), candle_core::DType::F32, &Device::Cpu).unwrap();
        let dropout = Dropout { probability: 0.25, key: Key::new(7, "dropout") };
        let y = dropout.apply(&x, 3).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(grad, values);
        let mean = values.iter().sum::<f32>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert_ne!(values, dropout.apply(&x, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }

    #[test]
    fn the_portable_form_draws_the_same_mask() {
        let x = Var::from_tensor(&candle_core::Tensor::randn(0.0_f32, 1.0, (170, 190), &Device::Cpu).unwrap()).unwrap();
        for probability in [0.0, 0.1, 0.5] {
            let dropout = Dropout { probability, key: Key::new(3, "dropout") };
            let run = || {
                let y = dropout.apply(&x, 9).unwrap();
                let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                [&y, grads.get(&x).unwrap()].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            };
            assert_eq!(kernels::with_portable(run), run());
        }
    }
}
