//! Checkpoints: one directory each, complete or absent.
//!
//! ```text
//! checkpoints/step-000050/
//!   adapter_model.safetensors + adapter_config.json   (LoRA; a usable adapter in itself)
//!   weights.safetensors                               (full training; f32, exact)
//!   optimizer.safetensors                             (moments, f32 or eight bits)
//!   best.safetensors                                  (with `load_best_model_at_end`: what is trained, as it was at
//!                                                      the best evaluation, when that was at an earlier step)
//!   state.json                                        (everything else)
//! ```
//! Shuffling and dropout are functions of seed and step, so there is no generator state to keep.

use super::{
    TrainError,
    best::Best,
    files::{self, Tensors, Values},
    lora::{ADAPTER_CONFIG, ADAPTER_FILE, PEFT_PREFIX},
    optim::{AdamW, Moments},
    params::Params,
    quantised::{BLOCK, Quantised},
    weights::WeightFiles,
};
use candle_core::{Tensor, Var};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
};

const VERSION: u32 = 2;
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const BEST: &str = "best.safetensors";
/// Steps of metrics kept in a checkpoint.
const TAIL: usize = 100;

/// Metrics of one past step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    pub step: u64,
    pub train_loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
}

/// Where a run stands, apart from its tensors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Optimizer steps done.
    pub step: u64,
    pub tokens_seen: u64,
    pub train_seconds: f64,
    /// Compute threads; bits are only promised for an equal count.
    pub threads: usize,
    /// What must be equal for resuming to mean anything.
    pub digest: String,
    pub initial_eval_loss: Option<f64>,
    /// Step and loss of the last evaluation.
    pub last_eval: Option<(u64, f64)>,
    #[serde(default)]
    pub best: Best,
    pub metrics: VecDeque<StepMetrics>,
}

impl State {
    #[must_use]
    pub fn new(digest: String, threads: usize) -> Self {
        Self { version: VERSION, digest, threads, ..Self::default() }
    }

    pub fn record(&mut self, metrics: StepMetrics) {
        self.metrics.push_back(metrics);
        while self.metrics.len() > TAIL {
            self.metrics.pop_front();
        }
    }

    /// Mean loss of the last `n` steps.
    #[must_use]
    pub fn recent_loss(&self, n: usize) -> Option<f64> {
        let losses: Vec<f64> = self.metrics.iter().rev().take(n).map(|m| m.train_loss).collect();
        #[expect(clippy::as_conversions, reason = "at most a hundred steps")]
        let count = losses.len() as f64;
        (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / count)
    }
}

/// What is trained: decides the names in the files.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// With the bytes of `adapter_config.json`.
    Adapter {
        config: Vec<u8>,
    },
    Weights,
}

impl Kind {
    const fn file(&self) -> &'static str {
        match self {
            Self::Adapter { .. } => ADAPTER_FILE,
            Self::Weights => WEIGHTS,
        }
    }

    fn stored_name(&self, name: &str) -> String {
        match self {
            Self::Adapter { .. } => format!("{PEFT_PREFIX}{name}"),
            Self::Weights => name.to_owned(),
        }
    }
}

/// Optimizer steps done in the checkpoint in `dir`, if it can be read.
#[must_use]
pub fn step_in(dir: &Path) -> Option<u64> {
    serde_json::from_slice::<State>(&fs::read(dir.join(STATE)).ok()?).ok().map(|state| state.step)
}

/// Name of the checkpoint directory of `step`.
#[must_use]
pub fn dir_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// Where the values of the best evaluation are, given a checkpoint of `state` in `dir`.
#[must_use]
pub fn best_file(dir: &Path, kind: &Kind, state: &State) -> Option<PathBuf> {
    let (step, _) = state.best.at?;
    Some(dir.join(if step == state.step { kind.file() } else { BEST }))
}

/// Sets `params` to what `file` holds.
///
/// # Errors
/// `ModelCorrupt` for a broken file, or one of other parameters.
pub fn load_weights(file: &Path, kind: &Kind, params: &Params) -> Result<(), TrainError> {
    let weights = WeightFiles::open_file(file)?;
    let expected: Vec<_> = params.iter().map(|(n, v)| (kind.stored_name(n), v.dims().to_vec())).collect();
    weights.check(&expected, |_| false)?;
    for (name, var) in params.iter() {
        let (values, shape) = weights.load(&kind.stored_name(name))?;
        var.set(&Tensor::from_vec(values, shape, var.device())?)?;
    }
    Ok(())
}

/// Writes a checkpoint of `state.step` below `dir` and returns its directory; `best` is a file to keep in it as
/// that of the best evaluation. On failure nothing is left under the final name.
///
/// # Errors
/// `DiskFull`, or another failed write.
pub fn save(
    dir: &Path,
    kind: &Kind,
    params: &Params,
    optimizer: &AdamW,
    state: &State,
    best: Option<&Path>,
) -> Result<PathBuf, TrainError> {
    fs::create_dir_all(dir).map_err(|e| TrainError::io("create", dir, e))?;
    let target = dir.join(dir_name(state.step));
    files::publish_dir(&target, |temp| {
        let weights: Tensors = params.iter().map(|(n, v)| (kind.stored_name(n), v.as_tensor().clone())).collect();
        files::write_tensors(&temp.join(kind.file()), weights)?;
        if let Kind::Adapter { config } = kind {
            files::write(&temp.join(ADAPTER_CONFIG), config)?;
        }
        let moments = optimizer.moments()?;
        files::write_tensors(&temp.join(OPTIMIZER), moments.iter().flat_map(|(n, m)| stored_moments(n, m)))?;
        if let Some(best) = best {
            files::copy(best, &temp.join(BEST))?;
        }
        let json = serde_json::to_vec_pretty(state)
            .map_err(|e| TrainError::internal("cannot write the state").caused_by(e))?;
        files::write(&temp.join(STATE), &json)
    })?;
    Ok(target)
}

/// Reads a checkpoint into `params` and `optimizer` and returns its state. `digest` is this run's.
///
/// # Errors
/// `ModelCorrupt` for a broken checkpoint, `ConfigInvalid` for one of another run.
pub fn load(
    dir: &Path,
    kind: &Kind,
    params: &Params,
    optimizer: &mut AdamW,
    digest: &str,
) -> Result<State, TrainError> {
    let path = dir.join(STATE);
    let text = fs::read_to_string(&path).map_err(|e| TrainError::io("read the checkpoint's", &path, e))?;
    let state: State = serde_json::from_str(&text)
        .map_err(|e| TrainError::model(format!("the checkpoint's `{STATE}` cannot be read: {e}")).caused_by(e))?;
    if state.version != VERSION {
        let found = state.version;
        return Err(TrainError::config(format!(
            "the checkpoint has format version {found}; this trainer reads {VERSION}"
        )));
    }
    if state.digest != digest {
        return Err(TrainError::config(
            "the checkpoint was made with another model, dataset or configuration; start a new job instead of resuming",
        ));
    }
    load_weights(&dir.join(kind.file()), kind, params)?;
    let moments = WeightFiles::open_file(&dir.join(OPTIMIZER))?;
    if state.step > 0 {
        let optim = optimizer.config.optim;
        let quantised = |v: &Var| Moments::are_quantised(optim, v.elem_count());
        let shapes = |(name, var): (&str, &Var)| moment_shapes(name, var.elem_count(), quantised(var));
        moments.check(&params.iter().flat_map(shapes).collect::<Vec<_>>(), |_| false)?;
        for (name, var) in params.iter() {
            optimizer.restore(name, load_moments(&moments, name, quantised(var))?);
        }
    }
    optimizer.step = state.step;
    Ok(state)
}

/// Suffixes of the tensors that hold a parameter's moments.
const FULL: [&str; 2] = ["exp_avg", "exp_avg_sq"];
const EIGHT: [&str; 4] = ["exp_avg.codes", "exp_avg.scales", "root.codes", "root.scales"];

fn stored_moments<'a>(name: &str, moments: &'a Moments) -> Vec<(String, Values<'a>)> {
    let named = |suffix: &str, values: Values<'a>| (format!("{name}.{suffix}"), values);
    match moments {
        Moments::Full { exp_avg, exp_avg_sq } => {
            FULL.iter().zip([exp_avg, exp_avg_sq]).map(|(s, v)| named(s, Values::f32(v))).collect()
        }
        Moments::Eight { exp_avg, root } => {
            let parts = [exp_avg, root].into_iter().flat_map(|q| [Values::u8(&q.codes), Values::f32(&q.scales)]);
            EIGHT.iter().zip(parts).map(|(s, v)| named(s, v)).collect()
        }
    }
}

fn moment_shapes(name: &str, elements: usize, quantised: bool) -> Vec<(String, Vec<usize>)> {
    let named = |suffix: &str| format!("{name}.{suffix}");
    if quantised {
        let lengths = [elements, elements.div_ceil(BLOCK)].into_iter().cycle();
        EIGHT.iter().zip(lengths).map(|(s, n)| (named(s), vec![n])).collect()
    } else {
        FULL.iter().map(|s| (named(s), vec![elements])).collect()
    }
}

fn load_moments(files: &WeightFiles, name: &str, quantised: bool) -> Result<Moments, TrainError> {
    let floats = |suffix: &str| files.load(&format!("{name}.{suffix}")).map(|(values, _)| values);
    if !quantised {
        return Ok(Moments::Full { exp_avg: floats("exp_avg")?, exp_avg_sq: floats("exp_avg_sq")? });
    }
    let read = |part: &str| -> Result<Quantised, TrainError> {
        let (dtype, _, codes) = files.bytes(&format!("{name}.{part}.codes"))?;
        if dtype != Dtype::U8 {
            return Err(TrainError::model(format!("the checkpoint's `{name}.{part}.codes` are {dtype:?}, not U8")));
        }
        Ok(Quantised { codes, scales: floats(&format!("{part}.scales"))? })
    };
    Ok(Moments::Eight { exp_avg: read("exp_avg")?, root: read("root")? })
}

/// Removes all but the newest `limit` checkpoints and that of step `best`, and remains of interrupted writes.
///
/// # Errors
/// A failed removal.
pub fn prune(dir: &Path, limit: usize, best: Option<u64>) -> Result<(), TrainError> {
    let entries = fs::read_dir(dir).map_err(|e| TrainError::io("list", dir, e))?;
    let names: Vec<String> =
        entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let mut steps: Vec<&String> = names.iter().filter(|n| step_of(n).is_some()).collect();
    steps.sort_unstable_by_key(|n| step_of(n));
    let old = steps.len().saturating_sub(limit.max(1));
    for name in names.iter().filter(|n| files::is_temporary(n)) {
        let path = dir.join(name);
        fs::remove_dir_all(&path).map_err(|e| TrainError::io("remove the unfinished checkpoint", &path, e))?;
    }
    let old = steps.into_iter().take(old).filter(|n| best.is_none() || step_of(n) != best);
    old.into_iter().try_for_each(|name| files::discard(&dir.join(name)))
}

/// The checkpoint with the most steps in `dir`, if there is any.
#[must_use]
pub fn newest(dir: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned());
    let (_, name) = names.filter_map(|n| Some((step_of(&n)?, n))).max()?;
    Some(dir.join(name))
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}
