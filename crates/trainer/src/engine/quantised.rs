//! Numbers in eight bits, in blocks with a scale each: the dynamic type of Dettmers et al., "8-bit Optimizers via
//! Block-wise Quantization" (arXiv 2110.02861), as bitsandbytes has it (`create_dynamic_map`).
//!
//! A code stands for a value in [-1, 1] (or [0, 1]); small values keep a relative precision of about two digits
//! over seven orders of magnitude, which a linear grid would round to zero.
#![expect(clippy::indexing_slicing, clippy::as_conversions, reason = "tables of 256 entries, indexed by bytes")]

use std::sync::OnceLock;

/// Elements that share a scale (bitsandbytes' default for optimizers).
pub const BLOCK: usize = 256;

/// The values that codes stand for, ascending.
#[derive(Debug)]
pub struct Map {
    values: [f32; 256],
    /// Halfway between neighbours: where rounding changes its mind.
    middles: [f32; 255],
}

impl Map {
    /// For values of both signs.
    #[must_use]
    pub fn signed() -> &'static Self {
        static MAP: OnceLock<Map> = OnceLock::new();
        MAP.get_or_init(|| Self::dynamic(true))
    }

    /// For values from zero.
    #[must_use]
    pub fn unsigned() -> &'static Self {
        static MAP: OnceLock<Map> = OnceLock::new();
        MAP.get_or_init(|| Self::dynamic(false))
    }

    /// Seven decades; each has twice as many values as the one below it.
    fn dynamic(signed: bool) -> Self {
        let mut values = vec![0.0_f64, 1.0];
        for decade in 0..7_i32 {
            let count = if signed { 1_u32 << decade } else { 2 << decade };
            let step = 0.9 / f64::from(count);
            for i in 0..count {
                let value = 10_f64.powi(decade - 6) * (0.1 + step * (f64::from(i) + 0.5));
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_unstable_by(f64::total_cmp);
        let values: [f32; 256] = std::array::from_fn(|i| values[i] as f32);
        Self { values, middles: std::array::from_fn(|i| 0.5 * (values[i] + values[i + 1])) }
    }

    /// The value of a code.
    #[must_use]
    pub fn value(&self, code: u8) -> f32 {
        self.values[usize::from(code)]
    }

    /// The code of the nearest value; NaN becomes the highest one.
    #[must_use]
    pub fn code(&self, x: f32) -> u8 {
        let above = self.middles.partition_point(|m| *m < x);
        if x.is_nan() { u8::MAX } else { above as u8 }
    }
}

/// A vector in eight bits: one code per element, one scale per [`BLOCK`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Quantised {
    pub codes: Vec<u8>,
    /// Largest magnitude of each block.
    pub scales: Vec<f32>,
}

impl Quantised {
    /// `n` zeros.
    #[must_use]
    pub fn zeros(n: usize, map: &Map) -> Self {
        Self { codes: vec![map.code(0.0); n], scales: vec![0.0; n.div_ceil(BLOCK)] }
    }
}

/// Writes what a block stands for into `values`.
pub fn read_block(map: &Map, codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = map.value(*code) * scale;
    }
}

/// Rounds a block's `values` into `codes`; returns its scale.
pub fn write_block(map: &Map, values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.code(value * inverse);
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bitsandbytes.functional.create_dynamic_map(signed)`: some of its 256 values.
    #[test]
    fn the_map_is_that_of_bitsandbytes() {
        let (signed, unsigned) = (Map::signed(), Map::unsigned());
        for (map, code, want) in [
            (signed, 255, 1.0),
            (signed, 254, 0.992_968_74),
            (signed, 127, 0.0),
            (signed, 128, 5.5e-7),
            (signed, 126, -5.5e-7),
            (signed, 0, -0.992_968_74),
            (unsigned, 0, 0.0),
            (unsigned, 1, 3.25e-7),
            (unsigned, 254, 0.996_484_4),
            (unsigned, 255, 1.0),
        ] {
            assert!((map.value(code) - want).abs() <= 1e-6 * want.abs(), "{code}: {} {want}", map.value(code));
        }
    }

    #[test]
    fn every_value_is_its_own_code_and_others_go_to_the_nearest() {
        for map in [Map::signed(), Map::unsigned()] {
            assert!(map.values.is_sorted());
            for code in 0..=u8::MAX {
                assert_eq!(map.code(map.value(code)), code);
            }
            let nearest = |x: f32| {
                (0..=u8::MAX).min_by(|a, b| (map.value(*a) - x).abs().total_cmp(&(map.value(*b) - x).abs())).unwrap()
            };
            for i in 0..1000_u16 {
                let x = f32::from(i) / 999.0;
                assert!((map.value(map.code(x)) - x).abs() <= (map.value(nearest(x)) - x).abs() + f32::EPSILON);
            }
        }
    }

    #[test]
    fn a_block_comes_back_within_its_precision() {
        let values: Vec<f32> = (0..BLOCK).map(|i| (i as f32 * 0.7).sin() * 3e-4).collect();
        let mut codes = vec![0; BLOCK];
        let scale = write_block(Map::signed(), &values, &mut codes);
        let mut back = vec![0.0; BLOCK];
        read_block(Map::signed(), &codes, scale, &mut back);
        for (a, b) in values.iter().zip(&back) {
            assert!((a - b).abs() <= 0.008 * scale, "{a} {b}");
        }
        assert_eq!(write_block(Map::signed(), &[0.0; 4], &mut [0; 4]), 0.0);
    }
}
