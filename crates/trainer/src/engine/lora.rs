//! LoRA adapters: which projections get one, how they start, and PEFT's names for them.

use super::{
    TrainError,
    model::{CausalLm, Linear, Lora},
    params::Params,
    rng::Key,
    weights::WeightFiles,
};
use candle_core::{DType, Device, Tensor, Var};
use regex::Regex;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use wire::config::{LoraConfig, TargetModules};

/// What PEFT puts before a module path in adapter files.
pub const PEFT_PREFIX: &str = "base_model.model.";
pub const ADAPTER_FILE: &str = "adapter_model.safetensors";
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Values of some modules, by patterns with PEFT's meaning: a regular expression that matches a module's path or,
/// after a dot, its end (`peft.utils.other.get_pattern_key`). PEFT takes the first match of an ordered mapping;
/// ours has no order, so patterns that disagree about a module are refused.
#[derive(Debug)]
struct Patterns<T> {
    field: &'static str,
    entries: Vec<(String, Regex, T)>,
}

impl<T: Copy + PartialEq> Patterns<T> {
    fn new(field: &'static str, map: &BTreeMap<String, T>) -> Result<Self, TrainError> {
        let entry = |(pattern, value): (&String, &T)| {
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|e| {
                TrainError::config(format!("{field}: `{pattern}` is no regular expression: {e}")).caused_by(e)
            })?;
            Ok((pattern.clone(), regex, *value))
        };
        Ok(Self { field, entries: map.iter().map(entry).collect::<Result<_, TrainError>>()? })
    }

    /// The value for the module at `path`, if a pattern names it.
    fn of(&self, path: &str) -> Result<Option<T>, TrainError> {
        let mut hits = self.entries.iter().filter(|(_, regex, _)| regex.is_match(path));
        let Some((first, _, value)) = hits.next() else { return Ok(None) };
        match hits.find(|(_, _, other)| other != value) {
            None => Ok(Some(*value)),
            Some((second, _, _)) => Err(TrainError::config(format!(
                "{}: `{first}` and `{second}` both match {path} with different values; let only one of them match",
                self.field
            ))),
        }
    }

    /// Refuses a pattern that matches none of `paths`: a misspelt one would silently do nothing.
    fn check_used(&self, paths: &[String]) -> Result<(), TrainError> {
        match self.entries.iter().find(|(_, regex, _)| !paths.iter().any(|p| regex.is_match(p))) {
            None => Ok(()),
            Some((pattern, _, _)) => {
                let some: Vec<&str> = paths.iter().take(3).map(String::as_str).collect();
                let some = some.join(", ");
                Err(TrainError::config(format!(
                    "{}: `{pattern}` matches no module that gets an adapter; those are {some}, …",
                    self.field
                )))
            }
        }
    }
}

/// One projection, apart from the model it belongs to.
struct Site {
    /// Position in the model, which picks the dropout mask.
    index: u64,
    path: String,
    /// `(out, in)`
    weight: Tensor,
    shape: (usize, usize),
}

fn sites(model: &dyn CausalLm) -> Vec<Site> {
    let site =
        |(index, l): (u64, &Linear)| Site { index, path: l.path().to_owned(), weight: l.weight(), shape: l.shape() };
    (0_u64..).zip(model.linears()).map(site).collect()
}

/// Puts a fresh adapter on every projection that `config` names: A uniform in ±1/√in (PEFT's
/// `kaiming_uniform_(a=√5)`), B zero, with DoRA the magnitudes of the base weight. Returns the names of the targets.
///
/// # Errors
/// `ConfigInvalid` for a target or pattern that names no module, or patterns that contradict each other.
pub fn attach(model: &mut dyn CausalLm, config: &LoraConfig, seed: u64) -> Result<Vec<String>, TrainError> {
    let all = sites(model);
    let matches = |path: &str, target: &str| path == target || path.ends_with(&format!(".{target}"));
    if let TargetModules::Names(targets) = &config.target_modules {
        for target in targets {
            if !all.iter().any(|site| matches(&site.path, target)) {
                return Err(TrainError::config(format!(
                    "lora.target_modules: the model has no projection named `{target}`; it has {}",
                    last_segments(all.iter().map(|s| s.path.as_str())).join(", ")
                )));
            }
        }
    }
    let wanted = |site: &Site| match &config.target_modules {
        TargetModules::Preset(_) => true,
        TargetModules::Names(targets) => targets.iter().any(|t| matches(&site.path, t)),
    };
    let every: Vec<String> = all.iter().map(|s| s.path.clone()).collect();
    let chosen: Vec<Site> = all.into_iter().filter(wanted).collect();
    let paths: Vec<String> = chosen.iter().map(|s| s.path.clone()).collect();
    let ranks = Patterns::new("lora.rank_pattern", &config.rank_pattern)?;
    let alphas = Patterns::new("lora.alpha_pattern", &config.alpha_pattern)?;
    ranks.check_used(&paths)?;
    alphas.check_used(&paths)?;
    for Site { index, path, weight, shape: (out, inner) } in chosen {
        let r = ranks.of(&path)?.unwrap_or(config.r);
        let scale = config.scale_of(r, alphas.of(&path)?.unwrap_or(config.lora_alpha));
        let key = Key::new(seed, &format!("lora_A {path}"));
        #[expect(clippy::as_conversions, reason = "widths are far below 2^53; weights are f32")]
        let a: Vec<f32> = {
            let bound = 1.0 / (inner as f64).sqrt();
            (0_u64..).take(r.saturating_mul(inner)).map(|i| ((2.0 * key.unit(i) - 1.0) * bound) as f32).collect()
        };
        let a = Var::from_vec(a, (r, inner), weight.device())?;
        let b = Var::zeros((out, r), DType::F32, weight.device())?;
        let magnitude = if config.use_dora {
            Some(Var::from_tensor(&kernels::merged_row_norms(&weight, &a, &b, scale)?)?)
        } else {
            None
        };
        model.attach(&path, Lora { a, b, magnitude, scale, index });
    }
    Ok(target_names(&paths, &every))
}

/// Last path segments, each once, sorted.
fn last_segments<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let names: BTreeSet<&str> = paths.map(|p| p.rsplit('.').next().unwrap_or(p)).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// What PEFT has to be told to find exactly the modules at `paths`: their last segments, or whole paths where a
/// segment would also match a module without an adapter.
fn target_names(paths: &[String], every: &[String]) -> Vec<String> {
    let names = last_segments(paths.iter().map(String::as_str));
    let matched = every.iter().filter(|p| p.rsplit('.').next().is_some_and(|n| names.iter().any(|m| m == n))).count();
    if matched == paths.len() { names } else { paths.to_vec() }
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
    rank_pattern: Option<BTreeMap<String, usize>>,
    #[serde(default)]
    alpha_pattern: Option<BTreeMap<String, f64>>,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    task_type: Option<String>,
}

/// One module's adapter as stored. `a (r, in)`, `b (out, r)`, `magnitude (out)`.
#[derive(Debug)]
pub struct Module {
    pub a: Tensor,
    pub b: Tensor,
    pub magnitude: Option<Tensor>,
    pub scale: f64,
}

/// A PEFT adapter directory, opened.
#[derive(Debug)]
pub struct Saved {
    /// What `adapter_config.json` says, as far as we know it; the targets are not filled in.
    pub config: LoraConfig,
    alphas: Patterns<f64>,
    files: WeightFiles,
    /// Whether it was trained to classify sequences, with a classifier of its own.
    classifies: bool,
}

impl Saved {
    /// # Errors
    /// `ModelCorrupt` for unreadable files or an adapter kind that is not supported.
    pub fn open(dir: &Path) -> Result<Self, TrainError> {
        let path = dir.join(ADAPTER_CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|e| TrainError::io("read", &path, e))?;
        let saved: SavedConfig = serde_json::from_str(&text)
            .map_err(|e| TrainError::model(format!("`{ADAPTER_CONFIG}` cannot be read: {e}")).caused_by(e))?;
        if saved.peft_type != "LORA" || saved.fan_in_fan_out || saved.bias.is_some_and(|b| b != "none") {
            return Err(TrainError::model(format!(
                "`{ADAPTER_CONFIG}`: only LoRA and DoRA adapters of linear layers can be loaded (no other PEFT kind, no trained biases)"
            )));
        }
        let config = LoraConfig {
            r: saved.r,
            lora_alpha: saved.lora_alpha,
            use_rslora: saved.use_rslora,
            use_dora: saved.use_dora,
            rank_pattern: saved.rank_pattern.unwrap_or_default(),
            alpha_pattern: saved.alpha_pattern.unwrap_or_default(),
            ..LoraConfig::default()
        };
        let alphas = Patterns::new("alpha_pattern of the adapter", &config.alpha_pattern)?;
        let classifies = saved.task_type.as_deref() == Some("SEQ_CLS");
        Ok(Self { config, alphas, files: WeightFiles::open_file(&dir.join(ADAPTER_FILE))?, classifies })
    }

    /// What is stored whole beside the adapter (PEFT's `modules_to_save`), under its names in the model: the
    /// classifier.
    ///
    /// # Errors
    /// `ModelCorrupt` for an unreadable tensor.
    pub fn heads(&self) -> Result<Params, TrainError> {
        let mut heads = Params::default();
        let whole = self.files.names().filter(|name| self.classifies && !name.contains(".lora_"));
        for name in whole {
            let (values, shape) = self.files.load(name)?;
            let var = Var::from_vec(values, shape, &Device::Cpu)?;
            heads.insert(name.strip_prefix(PEFT_PREFIX).unwrap_or(name), var);
        }
        Ok(heads)
    }

    /// Checks that every stored tensor belongs to one of the projections `(path, (out, in))` and fits it. Returns
    /// the paths that have an adapter. `heads` must be stored whole.
    ///
    /// # Errors
    /// `ModelCorrupt`, naming what does not fit.
    pub fn check<'a>(
        &self,
        linears: impl IntoIterator<Item = (&'a str, (usize, usize))>,
        heads: &Params,
    ) -> Result<Vec<String>, TrainError> {
        let mut expected: Vec<(String, Vec<usize>)> =
            heads.iter().map(|(name, v)| (format!("{PEFT_PREFIX}{name}"), v.dims().to_vec())).collect();
        let mut found = Vec::new();
        for (path, (out, inner)) in linears {
            let [a, b, magnitude] = names(path);
            if !self.files.contains(&a) && !self.files.contains(&b) {
                continue;
            }
            let r = self.files.shape(&a).and_then(|s| s.first().copied()).unwrap_or(self.config.r);
            expected.extend([(a, vec![r, inner]), (b, vec![out, r])]);
            if self.config.use_dora {
                expected.push((magnitude, vec![out]));
            }
            found.push(path.to_owned());
        }
        self.files
            .check(&expected, |_| false)
            .map_err(|e| TrainError::model(format!("the adapter does not fit this model: {}", e.message)))?;
        if found.is_empty() {
            return Err(TrainError::model(format!(
                "`{ADAPTER_FILE}` holds no adapter for any projection of this model"
            )));
        }
        Ok(found)
    }

    /// Loads what is stored for the projection at `path`.
    ///
    /// # Errors
    /// `ModelCorrupt` for an absent or unreadable tensor.
    pub fn module(&self, path: &str) -> Result<Module, TrainError> {
        let tensor = |name: &str| -> Result<Tensor, TrainError> {
            let (values, shape) = self.files.load(name)?;
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        let [a, b, magnitude] = names(path);
        let a = tensor(&a)?;
        let alpha = self.alphas.of(path)?.unwrap_or(self.config.lora_alpha);
        let scale = self.config.scale_of(a.dim(0)?, alpha);
        let magnitude = if self.config.use_dora { Some(tensor(&magnitude)?) } else { None };
        Ok(Module { a, b: tensor(&b)?, magnitude, scale })
    }
}

/// Stored names of A, B and the magnitudes of the projection at `path`.
fn names(path: &str) -> [String; 3] {
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|part| format!("{PEFT_PREFIX}{path}.{part}"))
}

/// Loads a PEFT adapter directory onto the model. Returns its configuration with the targets filled in.
///
/// # Errors
/// `ModelCorrupt` for unreadable files, an adapter kind that is not supported, or one of another model.
pub fn load(model: &mut dyn CausalLm, dir: &Path) -> Result<LoraConfig, TrainError> {
    let saved = Saved::open(dir)?;
    let all = sites(model);
    let heads = model.params().clone();
    let found = saved.check(all.iter().map(|s| (s.path.as_str(), s.shape)), &heads)?;
    for (name, var) in heads.iter() {
        let (values, shape) = saved.files.load(&format!("{PEFT_PREFIX}{name}"))?;
        var.set(&Tensor::from_vec(values, shape, var.device())?)?;
    }
    let every: Vec<String> = all.iter().map(|s| s.path.clone()).collect();
    for site in all.into_iter().filter(|s| found.contains(&s.path)) {
        let Module { a, b, magnitude, scale } = saved.module(&site.path)?;
        let variable = |t: Tensor| Var::from_tensor(&t.to_device(site.weight.device())?);
        let magnitude = magnitude.map(variable).transpose()?;
        let lora = Lora { a: variable(a)?, b: variable(b)?, magnitude, scale, index: site.index };
        model.attach(&site.path, lora);
    }
    Ok(LoraConfig { target_modules: TargetModules::Names(target_names(&found, &every)), ..saved.config })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `peft.utils.other.get_pattern_key` (0.21) answers for these keys.
    #[test]
    fn patterns_match_as_in_peft() {
        let map = [("q_proj", 1), (r"layers\.1\.mlp\.down_proj", 2), (".*layers.0.*gate_proj", 3), ("^model.norm", 4)];
        let patterns = Patterns::new("p", &map.map(|(k, v)| (k.to_owned(), v)).into()).unwrap();
        let of = |path: &str| patterns.of(path).unwrap();
        assert_eq!(of("model.layers.3.self_attn.q_proj"), Some(1));
        assert_eq!(of("q_proj"), Some(1));
        assert_eq!(of("model.layers.3.self_attn.xq_proj"), None, "a whole segment, not its end");
        assert_eq!(of("model.layers.1.mlp.down_proj"), Some(2));
        assert_eq!(of("model.layers.11.mlp.down_proj"), None);
        assert_eq!(of("model.layers.0.mlp.gate_proj"), Some(3));
        assert_eq!(of("model.norm"), Some(4));
        assert_eq!(of("x.model.norm"), None);
    }

    #[test]
    fn patterns_that_disagree_or_match_nothing_are_refused() {
        let map = |entries: &[(&str, usize)]| entries.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        let both = Patterns::new("lora.rank_pattern", &map(&[("q_proj", 1), ("attn.q_proj", 2)])).unwrap();
        let error = both.of("model.attn.q_proj").unwrap_err();
        assert!(error.message.contains("`attn.q_proj` and `q_proj` both match model.attn.q_proj"), "{error}");
        let error = both.check_used(&["model.v_proj".into()]).unwrap_err();
        assert!(error.message.contains("matches no module that gets an adapter; those are model.v_proj"), "{error}");
        let error = Patterns::new("lora.rank_pattern", &map(&[("(", 1)])).unwrap_err();
        assert!(error.message.starts_with("lora.rank_pattern: `(` is no regular expression"), "{error}");
    }

    #[test]
    fn targets_are_named_so_that_nothing_else_matches() {
        let every = ["a.0.q", "a.0.v", "a.1.q", "a.1.v"].map(str::to_owned);
        assert_eq!(target_names(&["a.0.q".into(), "a.1.q".into()], &every), ["q"]);
        assert_eq!(target_names(&["a.0.q".into()], &every), ["a.0.q"]);
    }
}
