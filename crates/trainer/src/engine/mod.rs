//! The training engine: model and data in, adapter or weights out. It knows nothing of jobs, networks or
//! storage; the runtime around it stages the inputs, reports what an [`Observer`] hears, and uploads.
//!
//! Invariants: frozen weights never get a gradient; with the same [`Setup`] on the same CPU the outcome is
//! the same to the byte, whether or not the run was interrupted and resumed; everything below `work_dir`
//! appears under its final name only when it is complete.

pub mod error;
pub mod generate;

pub use error::TrainError;

use std::path::{Path, PathBuf};
use wire::{
    config::TrainingConfig,
    dataset::DatasetFormat,
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
    /// `checkpoints/` and `artifacts/` are written below it.
    pub work_dir: PathBuf,
    /// A local checkpoint directory to continue from.
    pub resume: Option<PathBuf>,
    /// Compute threads; results are bit-equal only for equal counts.
    pub threads: usize,
}

/// What the outside wants; asked before every step.
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

/// Hears what happens and says whether to go on. Called on the training thread: it must not block.
pub trait Observer {
    fn event(&mut self, kind: EventKind);

    /// A checkpoint of optimizer step `step` is complete on disk in `dir`. The engine removes old
    /// checkpoints (`save_total_limit`) but never the latest one, so an upload that runs in the background
    /// must either open its files here or cope with the directory's removal two checkpoints later.
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
pub fn train(_setup: &Setup, _observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    Err(TrainError::config("training is not wired up yet"))
}
