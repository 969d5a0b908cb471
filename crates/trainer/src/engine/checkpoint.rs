//! Checkpoints: one directory each, complete or absent.
//!
//! ```text
//! checkpoints/step-000050/
//!   adapter_model.safetensors + adapter_config.json   (LoRA; a usable adapter in itself)
//!   weights.safetensors                               (full training; f32, exact)
//!   optimizer.safetensors                             (moments, f32)
//!   state.json                                        (everything else)
//! ```
//! Shuffling and dropout are functions of seed and step, so there is no generator state to keep.

use super::{
    TrainError,
    files::{self, Tensors, Values},
    lora::{ADAPTER_CONFIG, ADAPTER_FILE, PEFT_PREFIX},
    optim::{AdamW, Moments},
    params::Params,
    weights::WeightFiles,
};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
};

const VERSION: u32 = 1;
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
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

/// Writes a checkpoint of `state.step` below `dir` and returns its directory. On failure nothing is left
/// under the final name.
///
/// # Errors
/// `DiskFull`, or another failed write.
pub fn save(dir: &Path, kind: &Kind, params: &Params, optimizer: &AdamW, state: &State) -> Result<PathBuf, TrainError> {
    fs::create_dir_all(dir).map_err(|e| TrainError::io("create", dir, e))?;
    let target = dir.join(dir_name(state.step));
    files::publish_dir(&target, |temp| {
        let weights: Tensors = params.iter().map(|(n, v)| (kind.stored_name(n), v.as_tensor().clone())).collect();
        files::write_tensors(&temp.join(kind.file()), weights)?;
        if let Kind::Adapter { config } = kind {
            files::write(&temp.join(ADAPTER_CONFIG), config)?;
        }
        let moments = optimizer.moments.iter().flat_map(|(name, m)| {
            let shape = params.get(name).map(|v| v.dims().to_vec()).unwrap_or_default();
            let first = Values { shape: shape.clone(), values: &m.exp_avg };
            let second = Values { shape, values: &m.exp_avg_sq };
            [(format!("{name}.exp_avg"), first), (format!("{name}.exp_avg_sq"), second)]
        });
        files::write_tensors(&temp.join(OPTIMIZER), moments)?;
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
    let weights = WeightFiles::open_file(&dir.join(kind.file()))?;
    let moments = WeightFiles::open_file(&dir.join(OPTIMIZER))?;
    let wanted = |suffix: &'static [&str], stored: bool| -> Vec<(String, Vec<usize>)> {
        let entry = |name: &str, shape: &[usize]| -> Vec<(String, Vec<usize>)> {
            let name = if stored { kind.stored_name(name) } else { name.to_owned() };
            suffix.iter().map(|s| (format!("{name}{s}"), shape.to_vec())).collect()
        };
        params.iter().flat_map(|(n, v)| entry(n, v.dims())).collect()
    };
    weights.check(&wanted(&[""], true), |_| false)?;
    if state.step > 0 {
        moments.check(&wanted(&[".exp_avg", ".exp_avg_sq"], false), |_| false)?;
    }
    for (name, var) in params.iter() {
        let (values, shape) = weights.load(&kind.stored_name(name))?;
        var.set(&Tensor::from_vec(values, shape, &Device::Cpu)?)?;
        if state.step > 0 {
            let exp_avg = moments.load(&format!("{name}.exp_avg"))?.0;
            let exp_avg_sq = moments.load(&format!("{name}.exp_avg_sq"))?.0;
            optimizer.moments.insert(name.to_owned(), Moments { exp_avg, exp_avg_sq });
        }
    }
    optimizer.step = state.step;
    Ok(state)
}

/// Removes all but the newest `limit` checkpoints, and remains of interrupted writes.
///
/// # Errors
/// A failed removal.
pub fn prune(dir: &Path, limit: usize) -> Result<(), TrainError> {
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
    steps.into_iter().take(old).try_for_each(|name| files::discard(&dir.join(name)))
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
