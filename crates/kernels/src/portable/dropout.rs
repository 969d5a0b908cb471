//! Dropout whose mask is a function of a key: it is drawn again in the backward pass, not kept.

use super::{Backward, Op, apply, prepare};
use crate::buffer::fill_rows;
use crate::launch;
use crate::tape::Saves;
use candle_core::{Result, Tensor, bail};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Zeroes elements of `x` (any shape) and scales the others by `1 / (1 − p)`. Element `i` is dropped when value `i`
/// of the sequence `key`, `mix(key + (i + 1) · golden)` as a fraction of 2⁶⁴, is below `probability`.
///
/// # Errors
/// A probability outside `[0, 1)`, or an element type that is no float.
pub fn dropout(x: &Tensor, probability: f64, key: u64) -> Result<Tensor> {
    prepare("dropout", "x", x)?;
    if !(0.0..1.0).contains(&probability) {
        bail!("dropout: the probability is {probability}; expected one in [0, 1)");
    }
    apply(&[x], Dropout { probability, key }, Saves::NOTHING)
}

struct Dropout {
    probability: f64,
    key: u64,
}

impl Dropout {
    /// Values below this are dropped: 53 bits of them are compared, as an `f64` in `[0, 1)` holds.
    #[expect(clippy::as_conversions, reason = "at most 2^53")]
    fn threshold(&self) -> u64 {
        (self.probability * (1_u64 << 53) as f64).ceil() as u64
    }

    #[expect(clippy::as_conversions, reason = "a factor of order one, and a column of a row")]
    fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let (keep, threshold) = ((1.0 / (1.0 - self.probability)) as f32, self.threshold());
        if let Some(y) = launch::dropout(x, keep, self.key, threshold)? {
            return Ok(y);
        }
        let cols = x.elem_count().min(1 << 14);
        let mut mask = fill_rows(x.elem_count().div_ceil(cols.max(1)), cols, |row, mask| {
            for (i, slot) in (row as u64 * cols as u64..).zip(mask) {
                let bits = mix(self.key.wrapping_add(i.wrapping_add(1).wrapping_mul(GOLDEN)));
                *slot = if bits >> 11 < threshold { 0.0 } else { keep };
            }
        });
        mask.truncate(x.elem_count());
        x * Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x] = inputs else { bail!("dropout: {} inputs", inputs.len()) };
        self.masked(x)
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.masked(saved.grad)?)])
    }
}
