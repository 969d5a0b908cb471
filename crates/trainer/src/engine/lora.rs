//! LoRA adapters: which projections get one, how they start, and PEFT's names for them.

use super::{
    TrainError,
    model::{CausalLm, Lora},
    rng::Key,
    weights::WeightFiles,
};
use candle_core::{DType, Device, Var};
use serde::Deserialize;
use std::path::Path;
use wire::config::{LoraConfig, TargetModules};

/// What PEFT puts before a module path in adapter files.
pub const PEFT_PREFIX: &str = "base_model.model.";
pub const ADAPTER_FILE: &str = "adapter_model.safetensors";
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Puts a fresh adapter on every projection that `config` names: A uniform in ±1/√in (PEFT's
/// `kaiming_uniform_(a=√5)`), B zero. Returns the targets' last path segments, each once, sorted.
///
/// # Errors
/// `ConfigInvalid` for a target that names no module, listing those there are.
pub fn attach(model: &mut dyn CausalLm, config: &LoraConfig, seed: u64) -> Result<Vec<String>, TrainError> {
    let all: Vec<(String, (usize, usize))> = model.linears().iter().map(|l| (l.path().to_owned(), l.shape())).collect();
    let matches = |path: &str, target: &str| path == target || path.ends_with(&format!(".{target}"));
    if let TargetModules::Names(targets) = &config.target_modules {
        for target in targets {
            if !all.iter().any(|(path, _)| matches(path, target)) {
                return Err(TrainError::config(format!(
                    "lora.target_modules: the model has no projection named `{target}`; it has {}",
                    names(all.iter().map(|(p, _)| p.as_str())).join(", ")
                )));
            }
        }
    }
    let mut chosen = Vec::new();
    for (index, (path, (out, inner))) in (0_u64..).zip(all) {
        let wanted = match &config.target_modules {
            TargetModules::Preset(_) => true,
            TargetModules::Names(targets) => targets.iter().any(|t| matches(&path, t)),
        };
        if !wanted {
            continue;
        }
        let key = Key::new(seed, &format!("lora_A {path}"));
        #[expect(clippy::as_conversions, reason = "widths are far below 2^53; weights are f32")]
        let a: Vec<f32> = {
            let bound = 1.0 / (inner as f64).sqrt();
            (0_u64..).take(config.r.saturating_mul(inner)).map(|i| ((2.0 * key.unit(i) - 1.0) * bound) as f32).collect()
        };
        let a = Var::from_vec(a, (config.r, inner), &Device::Cpu)?;
        let b = Var::zeros((out, config.r), DType::F32, &Device::Cpu)?;
        model.attach(&path, Lora { a, b, scale: config.scale(), index });
        chosen.push(path);
    }
    Ok(names(chosen.iter().map(String::as_str)))
}

/// Last path segments, each once, sorted.
fn names<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = paths.map(|p| p.rsplit('.').next().unwrap_or(p).to_owned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The part of `adapter_config.json` that loading needs.
#[derive(Debug, Deserialize)]
struct SavedConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: serde_json::Map<String, serde_json::Value>,
}

/// Loads a PEFT adapter directory onto the model.
///
/// # Errors
/// `ModelCorrupt` for unreadable files, an adapter kind that is not supported, or one of another model.
pub fn load(model: &mut dyn CausalLm, dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(ADAPTER_CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|e| TrainError::io("read", &path, e))?;
    let saved: SavedConfig = serde_json::from_str(&text)
        .map_err(|e| TrainError::model(format!("`{ADAPTER_CONFIG}` cannot be read: {e}")).caused_by(e))?;
    if saved.peft_type != "LORA" || saved.use_dora || !saved.rank_pattern.is_empty() || !saved.alpha_pattern.is_empty()
    {
        return Err(TrainError::model(format!(
            "`{ADAPTER_CONFIG}`: only plain LoRA adapters can be loaded (no DoRA, no rank or alpha patterns)"
        )));
    }
    let config =
        LoraConfig { r: saved.r, lora_alpha: saved.lora_alpha, use_rslora: saved.use_rslora, ..LoraConfig::default() };
    let files = WeightFiles::open_file(&dir.join(ADAPTER_FILE))?;
    let linears: Vec<(String, (usize, usize))> =
        model.linears().iter().map(|l| (l.path().to_owned(), l.shape())).collect();
    let mut expected = Vec::new();
    let mut found = Vec::new();
    for (index, (path, (out, inner))) in (0_u64..).zip(linears) {
        let (a, b) = (format!("{PEFT_PREFIX}{path}.lora_A.weight"), format!("{PEFT_PREFIX}{path}.lora_B.weight"));
        if files.contains(&a) || files.contains(&b) {
            expected.push((a.clone(), vec![saved.r, inner]));
            expected.push((b.clone(), vec![out, saved.r]));
            found.push((index, path, a, b));
        }
    }
    files
        .check(&expected, |_| false)
        .map_err(|e| TrainError::model(format!("the adapter does not fit this model: {}", e.message)))?;
    if found.is_empty() {
        return Err(TrainError::model(format!("`{ADAPTER_FILE}` holds no adapter for any projection of this model")));
    }
    for (index, path, a, b) in found {
        let var = |name: &str| -> Result<Var, TrainError> {
            let (values, shape) = files.load(name)?;
            Ok(Var::from_vec(values, shape, &Device::Cpu)?)
        };
        model.attach(&path, Lora { a: var(&a)?, b: var(&b)?, scale: config.scale(), index });
    }
    Ok(())
}
