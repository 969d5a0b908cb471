//! Randomness as a pure function of (seed, purpose, indices): nothing to save in a checkpoint, and a block
//! recomputed in the backward pass draws the same dropout mask again.
#![expect(clippy::as_conversions, reason = "bit manipulation; every conversion is exact or a documented truncation")]

/// One step of SplitMix64 (Steele, Lea, Flood 2014): a bijection that passes BigCrush as a counter hash.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Names an endless sequence of random values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The sequence for one purpose under a user's seed.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a: any stable string hash will do.
        let hash =
            purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self(mix(mix(seed.wrapping_add(GOLDEN)) ^ hash))
    }

    /// A sequence of its own for index `n`.
    #[must_use]
    pub const fn at(self, n: u64) -> Self {
        Self(mix(self.0 ^ mix(n.wrapping_add(GOLDEN))))
    }

    /// The sequence as [`kernels::dropout`] takes it.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// Value `i` of the sequence.
    #[must_use]
    pub const fn bits(self, i: u64) -> u64 {
        mix(self.0.wrapping_add(i.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Value `i` as a uniform number in `[0, 1)`.
    #[must_use]
    pub fn unit(self, i: u64) -> f64 {
        (self.bits(i) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Value `i` as a standard normal number (Box–Muller on two uniform ones).
    #[must_use]
    pub fn normal(self, i: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit(i.wrapping_mul(2))).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit(i.wrapping_mul(2).wrapping_add(1))).cos()
    }

    /// A uniformly random order of `0..n` (Fisher–Yates). The bias of the modulus is below `n / 2^64`.
    #[must_use]
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let j = (self.bits(i as u64) % (i as u64 + 1)) as usize;
            order.swap(i, j);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_index_once_and_depends_on_seed_and_epoch() {
        let key = Key::new(42, "shuffle");
        let a = key.at(0).permutation(1000);
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(a, Key::new(42, "shuffle").at(0).permutation(1000));
        assert_ne!(a, key.at(1).permutation(1000));
        assert_ne!(a, Key::new(43, "shuffle").at(0).permutation(1000));
    }

    #[test]
    fn uniform_and_normal_values_have_the_right_moments() {
        let key = Key::new(1, "test");
        let n = 100_000_u64;
        let mean = (0..n).map(|i| key.unit(i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        let normal: Vec<f64> = (0..n).map(|i| key.normal(i)).collect();
        let mean = normal.iter().sum::<f64>() / n as f64;
        let var = normal.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "{mean} {var}");
    }
}
