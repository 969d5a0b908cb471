//! `config.json` as Transformers writes it, and the rotary settings all its models share.

use crate::engine::TrainError;
use serde_json::Value;
use std::path::Path;

/// Reads `config.json` in a model directory.
pub(super) fn read(dir: &Path) -> Result<Value, TrainError> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path)
        .map_err(|e| TrainError::model(format!("the model has no readable `config.json`: {e}")).caused_by(e))?;
    serde_json::from_str(&text)
        .map_err(|e| TrainError::model(format!("`config.json` is not valid JSON: {e}")).caused_by(e))
}

/// How rotary frequencies are stretched beyond the original context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by a factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, smooth between
    /// (`transformers.modeling_rope_utils._compute_llama3_parameters`).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

/// Base frequency and scaling, from `rope_theta` and `rope_scaling`, or `rope_parameters` of newer files.
pub(super) fn rope(config: &Value) -> Result<(f64, RopeScaling), TrainError> {
    let get = |section: &str, key: &str| config.get(section).and_then(|s| s.get(key));
    let theta = [config.get("rope_theta"), get("rope_parameters", "rope_theta")];
    let theta = theta.into_iter().flatten().find_map(Value::as_f64).unwrap_or(10_000.0);
    let section = ["rope_scaling", "rope_parameters"].into_iter().find(|s| config.get(s).is_some_and(Value::is_object));
    let Some(section) = section else { return Ok((theta, RopeScaling::None)) };
    let kind = get(section, "rope_type").or_else(|| get(section, "type")).and_then(Value::as_str).unwrap_or("default");
    let number = |key: &str| {
        get(section, key)
            .and_then(Value::as_f64)
            .filter(|n| *n > 0.0)
            .ok_or_else(|| TrainError::model(format!("`config.json`: {section}.{key} must be a positive number")))
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
        other => {
            return Err(TrainError::model(format!(
                "`config.json`: {section} of type `{other}` is not supported; supported: default, linear, llama3"
            )));
        }
    };
    Ok((theta, scaling))
}

/// Angle per position of each pair of a head's channels, `(D/2)`.
#[expect(clippy::as_conversions, reason = "head sizes are small; frequencies are f32 as in the reference")]
pub(super) fn inverse_frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f64 / head_dim as f64));
    let scale = |f: f64| match scaling {
        RopeScaling::None => f,
        RopeScaling::Linear { factor } => f / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
            let wavelength = std::f64::consts::TAU / f;
            if wavelength < original / high {
                f
            } else if wavelength > original / low {
                f / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
    };
    plain.map(|f| scale(f) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_and_new_spellings_of_rope_settings_are_read() {
        assert_eq!(rope(&json!({"rope_theta": 5.0e5})).unwrap(), (5.0e5, RopeScaling::None));
        assert_eq!(
            rope(&json!({"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}})).unwrap(),
            (100.0, RopeScaling::None)
        );
        let llama3 = json!({"rope_theta": 5.0e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let want = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        assert_eq!(rope(&llama3).unwrap(), (5.0e5, want));
        let yarn = rope(&json!({"rope_scaling": {"type": "yarn"}})).unwrap_err();
        assert!(yarn.message.contains("`yarn` is not supported; supported: default, linear, llama3"));
    }

    /// Expected values: `LlamaRotaryEmbedding(LlamaConfig(head_dim=16, rope_theta=5e5, rope_scaling=llama3 as
    /// above)).inv_freq`, transformers 5.23.
    #[test]
    fn llama3_frequencies_equal_those_of_transformers() {
        let got =
            inverse_frequencies(16, 5.0e5, RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 });
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
