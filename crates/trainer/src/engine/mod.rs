//! The training engine: model and data in, adapter or weights out. It knows nothing of jobs, networks or
//! storage; the runtime around it stages the inputs, reports what an [`Observer`] hears, and uploads.
//!
//! Invariants: frozen weights never get a gradient; with the same [`Setup`] on the same CPU the outcome is
//! the same to the byte, whether or not the run was interrupted and resumed; everything below `work_dir`
//! appears under its final name only when it is complete.

pub mod artifacts;
pub mod best;
pub mod checkpoint;
pub mod classify;
pub mod data;
pub mod device;
pub mod dpo;
pub mod dropout;
pub mod error;
pub mod files;
pub mod generate;
pub mod gpu;
pub mod lora;
pub mod memory;
pub mod merge;
pub mod model;
pub mod optim;
pub mod params;
pub mod quantised;
mod recipe;
pub mod rng;
pub mod schedule;
pub mod step;
pub mod weights;

pub use device::{DeviceChoice, Place};
pub use error::TrainError;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use wire::{
    config::{BaseDtype, TrainingConfig},
    dataset::DatasetFormat,
    estimate::Estimate,
    event::{EventKind, StopReason, Summary},
};

/// Everything one training run needs, already on local disk.
#[derive(Debug, Clone)]
pub struct Setup {
    pub config: TrainingConfig,
    /// HF layout: `config.json`, `*.safetensors`, `tokenizer.json`, …
    pub model_dir: PathBuf,
    pub model_name: String,
    pub model_revision: String,
    pub format: DatasetFormat,
    pub train: PathBuf,
    pub validation: Option<PathBuf>,
    /// Directory of the adapter that `lora.init_from` names.
    pub adapter: Option<PathBuf>,
    /// `checkpoints/` and `artifacts/` are written below it.
    pub work_dir: PathBuf,
    /// A local checkpoint directory to continue from.
    pub resume: Option<PathBuf>,
    /// Compute threads; results are bit-equal only for equal counts.
    pub threads: usize,
    pub place: Place,
}

/// What the outside wants; asked before every step, and within long ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Control {
    #[default]
    Continue,
    /// Stop at once; nothing more is wanted.
    Cancel,
    /// Finish the step, write a checkpoint, stop.
    Pause,
    /// As [`Control::Pause`], on SIGTERM.
    Preempt,
}

/// Hears what happens and says whether to go on. Called on a training thread: it must not block.
pub trait Observer: Send {
    fn event(&mut self, kind: EventKind);

    /// A checkpoint of optimizer step `step` is complete on disk in `dir`. The engine removes checkpoints
    /// beyond `save_total_limit` once a newer one is complete (that limit may be 1), so an upload in the
    /// background should link or open the files it needs here.
    fn checkpoint(&mut self, step: u64, dir: &Path);

    fn control(&self) -> Control;
}

/// How a run that did not fail ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// `artifacts` holds the files to publish: the adapter in PEFT layout, or the model in HF layout.
    Finished { summary: Summary, artifacts: PathBuf },
    /// Stopped as [`Control`] asked; `checkpoint` is what to resume from (absent after a cancel).
    Stopped { reason: StopReason, step: u64, checkpoint: Option<PathBuf> },
}

/// Trains until done or told to stop. Blocks the calling thread, which should be a thread of its own.
///
/// # Errors
/// [`TrainError::code`] says what a caller can do; see its variants' documentation.
pub fn train(setup: &Setup, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    on_threads(setup, || recipe::run(setup, observer))
}

/// Finds out what the run of `setup` will need, by rehearsing some of it for about `at_least`; nothing is trained.
/// `resume` is not looked at.
///
/// # Errors
/// Those that training would fail with before its first step.
pub fn estimate(setup: &Setup, at_least: Duration) -> Result<Estimate, TrainError> {
    struct Silent;
    impl Observer for Silent {
        fn event(&mut self, _: EventKind) {}

        fn checkpoint(&mut self, _: u64, _: &Path) {}

        fn control(&self) -> Control {
            Control::Continue
        }
    }
    let setup = Setup { resume: None, ..setup.clone() };
    on_threads(&setup, || recipe::estimate(&setup, &mut Silent, at_least))
}

/// Runs `work` on the compute threads of `setup`.
fn on_threads<R: Send>(setup: &Setup, work: impl FnOnce() -> Result<R, TrainError> + Send) -> Result<R, TrainError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(setup.threads.max(1))
        .thread_name(|i| format!("train-{i}"))
        .stack_size(8 << 20)
        .build()
        .map_err(|e| TrainError::internal(format!("cannot start {} compute threads", setup.threads)).caused_by(e))?;
    // On a thread of the pool, so that the loop's own work runs beside the others' and not instead of it.
    pool.install(work)
}

/// Logits of a text, `{"logits": (T, V), "input_ids": (T)}`, for comparison with a reference.
///
/// # Errors
/// Unusable model or adapter files, or a text without tokens.
pub fn dump_logits(model_dir: &Path, adapter: Option<&Path>, text: &str) -> Result<files::Tensors, TrainError> {
    let encoder =
        dataset::Encoder::load(model_dir, usize::MAX).map_err(|e| TrainError::model(e.to_string()).caused_by(e))?;
    let tokens = encoder.tokenizer().encode(text, false).map_err(TrainError::config)?;
    let options = model::BuildOptions {
        train_weights: false,
        random: None,
        max_positions: tokens.len(),
        base_dtype: BaseDtype::Auto,
        place: Place::Cpu,
        classes: None,
    };
    let mut model = model::load(model_dir, options)?;
    if let Some(dir) = adapter {
        lora::load(model.as_mut(), dir)?;
    }
    let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
    let input_ids = candle_core::Tensor::from_vec(ids, tokens.len(), &candle_core::Device::Cpu)?;
    let logits = step::logits(model.as_ref(), &data::Batch::of(tokens)?)?;
    Ok(files::Tensors::from([("logits".to_owned(), logits), ("input_ids".to_owned(), input_ids)]))
}
