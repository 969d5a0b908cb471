//! Rotary settings of `config.json`, and the tables made from them.

use super::{
    BuildOptions,
    config::{Common, bad},
};
use crate::engine::TrainError;
use candle_core::{Result, Tensor};
use kernels::RopeTable;
use serde_json::Value;

/// How rotary frequencies are stretched beyond the original context.
#[derive(Debug, Clone, PartialEq)]
enum RopeScaling {
    None,
    /// Every frequency divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: see [`llama3`].
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    /// Phi-3: every frequency divided by a factor of its own, which depends on whether a sequence is longer
    /// than the original context; what turns is scaled (arXiv 2402.13753).
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original: usize,
        attention_factor: f64,
    },
    /// See [`Yarn`]: every frequency divided by a factor of its own; what turns is scaled.
    Yarn {
        factors: Vec<f64>,
        attention_factor: f64,
    },
}

/// YaRN (arXiv 2309.00071): frequencies that turn often within the original context are kept, those that turn
/// seldom divided by `factor`, with a ramp between (`transformers.modeling_rope_utils._compute_yarn_parameters`).
#[derive(Debug, Clone, Copy)]
struct Yarn {
    factor: f64,
    original: f64,
    /// Turns within the original context from which a frequency is kept, and below which it is divided.
    fast: f64,
    slow: f64,
    /// Whether the ramp begins and ends at whole channels.
    truncate: bool,
}

impl Yarn {
    /// What each of the frequencies of `rotated` channels is divided by.
    #[expect(clippy::as_conversions, reason = "head sizes are small")]
    fn factors(self, rotated: usize, theta: f64) -> Vec<f64> {
        let dim = rotated as f64;
        let channel = |turns: f64| dim * (self.original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (channel(self.fast), channel(self.slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let divided = |pair: usize| ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (0..rotated / 2).map(|pair| 1.0 / (divided(pair) / self.factor + 1.0 - divided(pair))).collect()
    }
}

/// Base frequency and scaling, from `rope_theta` and `rope_scaling`, or `rope_parameters` of newer files.
/// `rotated` channels of each head turn.
fn settings(config: &Value, rotated: usize) -> std::result::Result<(f64, RopeScaling), TrainError> {
    let get = |section: &str, key: &str| config.get(section).and_then(|s| s.get(key));
    let theta = [config.get("rope_theta"), get("rope_parameters", "rope_theta")];
    let theta = theta.into_iter().flatten().find_map(Value::as_f64).unwrap_or(10_000.0);
    let section = ["rope_scaling", "rope_parameters"].into_iter().find(|s| config.get(s).is_some_and(Value::is_object));
    let Some(section) = section else { return Ok((theta, RopeScaling::None)) };
    let kind = get(section, "rope_type").or_else(|| get(section, "type")).and_then(Value::as_str).unwrap_or("default");
    let positive = |value: Option<&Value>| value.and_then(Value::as_f64).filter(|n| *n > 0.0);
    let number = |key: &str| {
        // Phi-3 has its original context beside the section, where Transformers prefers it.
        positive(config.get(key))
            .or_else(|| positive(get(section, key)))
            .ok_or_else(|| bad(format!("{section}.{key} must be a positive number")))
    };
    let factors = |key: &str| {
        let list: Option<Vec<f64>> = get(section, key)
            .and_then(Value::as_array)
            .and_then(|list| list.iter().map(|n| positive(Some(n))).collect());
        list.filter(|list| list.len() == rotated / 2)
            .ok_or_else(|| bad(format!("{section}.{key} must be {} positive numbers", rotated / 2)))
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")?,
        },
        "longrope" | "su" => {
            let original = number("original_max_position_embeddings")?;
            let attention_factor = match positive(get(section, "attention_factor")) {
                Some(factor) => factor,
                None => {
                    let stretch = number("factor")
                        .or_else(|_| Ok::<_, TrainError>(number("max_position_embeddings")? / original))?;
                    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() }
                }
            };
            #[expect(clippy::as_conversions, reason = "a context length")]
            let original = original as usize;
            RopeScaling::LongRope {
                short: factors("short_factor")?,
                long: factors("long_factor")?,
                original,
                attention_factor,
            }
        }
        "yarn" => {
            let optional = |key: &str, default: f64| positive(get(section, key)).unwrap_or(default);
            let yarn = Yarn {
                factor: number("factor")?,
                original: number("original_max_position_embeddings")?,
                fast: optional("beta_fast", 32.0),
                slow: optional("beta_slow", 1.0),
                truncate: get(section, "truncate").and_then(Value::as_bool).unwrap_or(true),
            };
            let magnitude = |scale: f64| if yarn.factor <= 1.0 { 1.0 } else { 0.1 * scale * yarn.factor.ln() + 1.0 };
            let given = [positive(get(section, "mscale")), positive(get(section, "mscale_all_dim"))];
            let attention_factor = match (positive(get(section, "attention_factor")), given) {
                (Some(factor), _) => factor,
                (None, [Some(one), Some(all)]) => magnitude(one) / magnitude(all),
                (None, _) => magnitude(1.0),
            };
            RopeScaling::Yarn { factors: yarn.factors(rotated, theta), attention_factor }
        }
        other => {
            return Err(bad(format!(
                "{section} of type `{other}` is not supported; supported: default, linear, llama3, longrope, yarn"
            )));
        }
    };
    Ok((theta, scaling))
}

/// Angle per position of each pair of the `rotated` channels, `(R/2)`; `scale(pair, frequency)` stretches.
#[expect(clippy::as_conversions, reason = "head sizes are small; frequencies are f32 as in the reference")]
fn frequencies(rotated: usize, theta: f64, scale: impl Fn(usize, f64) -> f64) -> Vec<f32> {
    (0..rotated / 2).map(|i| scale(i, 1.0 / theta.powf((2 * i) as f64 / rotated as f64)) as f32).collect()
}

/// Low frequencies divided by `factor`, high ones kept, smooth between
/// (`transformers.modeling_rope_utils._compute_llama3_parameters`).
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = std::f64::consts::TAU / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// The rotary embedding of a model's heads. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    head_dim: usize,
    table: RopeTable,
    /// For passes with a sequence longer than the original context.
    long: Option<(usize, RopeTable)>,
}

impl Rotary {
    /// Heads that turn as a whole, at the positions that will be seen.
    ///
    /// # Errors
    /// As [`Rotary::load`].
    pub(super) fn whole(
        config: &Value,
        common: &Common,
        options: BuildOptions,
    ) -> std::result::Result<Self, TrainError> {
        let d = common.heads().head_dim;
        Self::load(config, d, d, common.positions(options))
    }

    /// From rotary settings as in `config.json`: the first `rotated` channels of each head turn, at positions below
    /// `positions`.
    ///
    /// # Errors
    /// `ModelCorrupt` for a scaling that is unknown or incomplete.
    pub(super) fn load(
        config: &Value,
        head_dim: usize,
        rotated: usize,
        positions: usize,
    ) -> std::result::Result<Self, TrainError> {
        let (theta, scaling) = settings(config, rotated)?;
        let make = |scale: &dyn Fn(usize, f64) -> f64| {
            RopeTable::from_inverse_frequencies(&frequencies(rotated, theta, scale), positions.max(1))
        };
        let (table, long) = match scaling {
            RopeScaling::None => (make(&|_, f| f)?, None),
            RopeScaling::Linear { factor } => (make(&|_, f| f / factor)?, None),
            RopeScaling::Llama3 { factor, low, high, original } => {
                (make(&|_, f| llama3(f, factor, low, high, original))?, None)
            }
            RopeScaling::Yarn { factors, attention_factor } => {
                #[expect(clippy::as_conversions, reason = "tables are f32")]
                let scale = attention_factor as f32;
                (make(&|i, f| f / factors.get(i).copied().unwrap_or(1.0))?.scaled(scale), None)
            }
            RopeScaling::LongRope { short, long, original, attention_factor } => {
                #[expect(clippy::as_conversions, reason = "tables are f32")]
                let stretched = |factors: &[f64]| -> Result<RopeTable> {
                    let table = make(&|i, f| f / factors.get(i).copied().unwrap_or(1.0))?;
                    Ok(table.scaled(attention_factor as f32))
                };
                (stretched(&short)?, Some((original, stretched(&long)?)))
            }
        };
        Ok(Self { head_dim, table, long })
    }

    /// `x (N, H·D)`, `positions (N)` → `(N, H·D)`
    pub(super) fn forward(&self, x: &Tensor, positions: &[u32]) -> Result<Tensor> {
        let end = positions.iter().max().map_or(0, |p| usize::try_from(*p).unwrap_or(usize::MAX).saturating_add(1));
        let table = match &self.long {
            Some((original, long)) if end > *original => long,
            _ => &self.table,
        };
        kernels::rope(x, table, positions, self.head_dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_and_new_spellings_of_rope_settings_are_read() {
        let rope = |config: serde_json::Value| settings(&config, 4);
        assert_eq!(rope(json!({"rope_theta": 5.0e5})).unwrap(), (5.0e5, RopeScaling::None));
        assert_eq!(
            rope(json!({"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}})).unwrap(),
            (100.0, RopeScaling::None)
        );
        let llama3 = json!({"rope_theta": 5.0e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let want = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        assert_eq!(rope(llama3).unwrap(), (5.0e5, want));
        let unknown = rope(json!({"rope_scaling": {"type": "dynamic"}})).unwrap_err();
        assert!(
            unknown.message.contains("`dynamic` is not supported; supported: default, linear, llama3, longrope, yarn")
        );
        let yarn = rope(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})).unwrap_err();
        assert!(yarn.message.contains("rope_scaling.original_max_position_embeddings must be a positive number"));
        let long = json!({"max_position_embeddings": 64, "rope_scaling": {"type": "su",
            "original_max_position_embeddings": 16, "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}});
        let want = RopeScaling::LongRope {
            short: vec![1.0, 1.5],
            long: vec![2.0, 4.0],
            original: 16,
            attention_factor: (1.5_f64).sqrt(),
        };
        assert_eq!(rope(long.clone()).unwrap(), (10_000.0, want));
        let short = settings(&long, 8).unwrap_err();
        assert!(short.message.contains("rope_scaling.short_factor must be 4 positive numbers"), "{}", short.message);
    }

    /// Expected values: `ROPE_INIT_FUNCTIONS["yarn"]` of transformers 5.23 with Qwen 2.5's settings for long contexts.
    #[test]
    fn yarn_factors_and_magnitude_equal_those_of_transformers() {
        let config = json!({"rope_theta": 1.0e6, "rope_scaling": {"type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32768}});
        let (theta, RopeScaling::Yarn { factors, attention_factor }) = settings(&config, 128).unwrap() else {
            panic!()
        };
        assert!((attention_factor - 1.138_629_436_111_989).abs() < 1e-12, "{attention_factor}");
        let got = frequencies(128, theta, |i, f| f / factors[i]);
        let want = [
            (0, 1.0),
            (10, 0.115_478_202_700_614_93),
            (23, 0.006_978_305_988_013_744),
            (24, 0.005_375_321_488_827_467),
            (30, 0.001_064_360_956_661_403_2),
            (36, 0.000_179_841_154_022_142_3),
            (40, 4.445_698_505_108_516e-5),
            (63, 3.102_344_408_034_696e-7),
        ];
        for (pair, want) in want {
            assert!((f64::from(got[pair]) - want).abs() <= 1e-6 * want, "{pair}: {} {want}", got[pair]);
        }
    }

    /// Expected values: `LlamaRotaryEmbedding(LlamaConfig(head_dim=16, rope_theta=5e5, rope_scaling=llama3 as
    /// above)).inv_freq`, transformers 5.23.
    #[test]
    fn llama3_frequencies_equal_those_of_transformers() {
        let got = frequencies(16, 5.0e5, |_, f| llama3(f, 8.0, 1.0, 4.0, 8192.0));
        let want = [
            1.0,
            0.193_922_76,
            0.037_606_03,
            0.007_292_665,
            0.000_524_846,
            3.428_102_4e-5,
            6.647_869_7e-6,
            1.289_173_2e-6,
        ];
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-6 * w, "{got:?}");
        }
    }
}
