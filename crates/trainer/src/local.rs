//! Training on local files, without backend or storage: `hone-trainer run --config … --model … --data … --out …`.

use crate::{
    engine::{self, Control, DeviceChoice, Observer, Outcome, Setup, checkpoint, lora::ADAPTER_CONFIG},
    gateway::hash_file,
    run::observer::describe,
};
use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fs,
    io::Read,
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::available_parallelism,
};
use wire::{
    EventKind, TrainingConfig,
    dataset::DatasetFormat,
    event::{Phase, StopReason, metric},
    job_env::exit,
    layout,
    storage::{FileRef, Manifest},
};

/// Value of [`LocalRun::resume`] that means the newest checkpoint of an earlier run with the same `out`.
pub const NEWEST: &str = "newest";

/// What to train on what.
#[derive(Debug, Clone)]
pub struct LocalRun {
    pub config: PathBuf,
    pub model: PathBuf,
    pub data: PathBuf,
    pub validation: Option<PathBuf>,
    pub out: PathBuf,
    pub resume: Option<PathBuf>,
    pub threads: Option<usize>,
    pub device: DeviceChoice,
}

/// Trains and leaves the artifacts in `out`. Ctrl-C finishes the step and writes a checkpoint first.
///
/// # Errors
/// Unreadable inputs, or whatever ends a training; the message says what to do.
pub async fn run(options: LocalRun) -> anyhow::Result<ExitCode> {
    let setup = setup(&options)?;
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            say("finishing the step and writing a checkpoint; press Ctrl-C again to leave at once");
            raised.store(true, Ordering::Relaxed);
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    let mut progress = Progress::new(stop);
    let bar = progress.bar.clone();
    let outcome = tokio::task::spawn_blocking(move || engine::train(&setup, &mut progress)).await;
    bar.finish_and_clear();
    match outcome.context("the training engine crashed")? {
        Ok(Outcome::Finished { summary, artifacts }) => {
            publish(&artifacts, &options.out).await?;
            let losses = |name: &str, value: Option<f64>| value.map(|v| format!(", {name} {v:.4}")).unwrap_or_default();
            say(&format!(
                "{} steps in {:.1} s{}{}; artifacts in {}",
                summary.steps,
                summary.train_seconds,
                losses("loss", summary.train_loss),
                losses("validation loss", summary.eval_loss),
                options.out.display()
            ));
            Ok(code(exit::SUCCEEDED))
        }
        Ok(Outcome::Stopped { reason, step, checkpoint }) => {
            let resume = checkpoint.map(|c| format!("; continue with --resume {}", c.display())).unwrap_or_default();
            say(&format!("stopped at step {step}{resume}"));
            Ok(code(if reason == StopReason::Cancelled { exit::CANCELLED } else { exit::PREEMPTED }))
        }
        Err(error) => {
            say(&format!("training failed: {error}"));
            Ok(code(if error.code.is_retryable() { exit::RETRYABLE } else { exit::FATAL }))
        }
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Reads the configuration and looks at the inputs.
///
/// # Errors
/// Unreadable inputs, or a configuration with mistakes.
pub fn setup(options: &LocalRun) -> anyhow::Result<Setup> {
    let name = |path: &Path| path.file_stem().map_or_else(|| "local".into(), |n| n.to_string_lossy().into_owned());
    let text = fs::read_to_string(&options.config)
        .with_context(|| format!("cannot read the configuration {}", options.config.display()))?;
    // `model` and `dataset` name registry entries, of which there are none here.
    let mut value: serde_json::Value = serde_yaml_ng::from_str(&text).context("the configuration is not valid YAML")?;
    if let Some(map) = value.as_object_mut() {
        map.entry("model").or_insert_with(|| name(&options.model).into());
        map.entry("dataset").or_insert_with(|| name(&options.data).into());
    }
    let config = TrainingConfig::from_value(&value).map_err(|problem| anyhow::anyhow!(problem.detail))?;
    if config.validation_dataset.is_some() {
        bail!(
            "validation_dataset names a registry entry, of which there are none here; give the file with --validation"
        );
    }
    if !options.model.join("config.json").is_file() {
        bail!("{} is no model directory: it has no config.json", options.model.display());
    }
    fs::create_dir_all(&options.out).with_context(|| format!("cannot create {}", options.out.display()))?;
    let adapter = config.lora.init_from.as_ref().map(PathBuf::from);
    if let Some(dir) = adapter.as_ref().filter(|dir| !dir.join(ADAPTER_CONFIG).is_file()) {
        bail!("lora.init_from: {} is no adapter directory: it has no {ADAPTER_CONFIG}", dir.display());
    }
    let work_dir = options.out.join("work");
    let resume = match &options.resume {
        Some(dir) if dir.as_os_str() == NEWEST => {
            let found = checkpoint::newest(&work_dir.join("checkpoints"));
            say(&match &found {
                Some(dir) => format!("continuing from {}", dir.display()),
                None => format!("no checkpoint below {} yet; starting from the beginning", work_dir.display()),
            });
            found
        }
        other => other.clone(),
    };
    Ok(Setup {
        config,
        model_dir: options.model.clone(),
        model_name: name(&options.model),
        model_revision: "local".to_owned(),
        format: format(&options.data)?,
        train: options.data.clone(),
        validation: options.validation.clone(),
        adapter,
        work_dir,
        resume,
        place: options.device.place()?,
        threads: options.threads.unwrap_or_else(|| available_parallelism().map_or(1, NonZero::get)),
    })
}

fn format(data: &Path) -> anyhow::Result<DatasetFormat> {
    let mut sample = Vec::new();
    fs::File::open(data)
        .and_then(|f| f.take(64 << 10).read_to_end(&mut sample))
        .with_context(|| format!("cannot read the data {}", data.display()))?;
    Ok(dataset::detect(&sample))
}

/// Moves the artifacts to where the user wants them; a file of the same name is replaced. The manifest comes last, as
/// in storage: with it the set is complete.
async fn publish(artifacts: &Path, out: &Path) -> anyhow::Result<()> {
    let manifest = out.join(layout::MANIFEST);
    if manifest.exists() {
        fs::remove_file(&manifest).with_context(|| format!("cannot replace {}", manifest.display()))?;
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(artifacts)? {
        let entry = entry?;
        let target = out.join(entry.file_name());
        fs::rename(entry.path(), &target).with_context(|| format!("cannot write {}", target.display()))?;
        let (size, sha256) = hash_file(target).await?;
        files.push(FileRef { key: entry.file_name().to_string_lossy().into_owned(), size, sha256 });
    }
    files.sort_by(|a, b| a.key.cmp(&b.key));
    engine::files::write(&manifest, &serde_json::to_vec_pretty(&Manifest { files, step: None })?)?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "this is a command line tool's report to its user")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// A progress bar on standard error; plain lines where there is no terminal.
struct Progress {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Progress {
    fn new(stop: Arc<AtomicBool>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self { bar, stop }
    }

    fn line(&self, text: &str) {
        if self.bar.is_hidden() { say(text) } else { self.bar.println(text) }
    }
}

impl Observer for Progress {
    fn event(&mut self, kind: EventKind) {
        match &kind {
            EventKind::Plan { total_steps, .. } => {
                self.line(&describe(&kind));
                let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed} (eta {eta}) {msg}");
                self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                self.bar.set_length(*total_steps);
            }
            EventKind::Metrics { step, values, .. } if !values.contains_key(metric::EVAL_LOSS) => {
                self.bar.set_position(*step);
                let value = |name: &str| values.get(name).copied().unwrap_or(f64::NAN);
                let (loss, speed) = (value(metric::TRAIN_LOSS), value(metric::TOKENS_PER_SECOND));
                self.bar.set_message(format!("loss {loss:.4}, {speed:.0} tokens/s"));
            }
            EventKind::Phase { phase: Phase::Training | Phase::Evaluating | Phase::Checkpointing, .. } => {}
            _ => self.line(&describe(&kind)),
        }
    }

    fn checkpoint(&mut self, step: u64, dir: &Path) {
        self.line(&format!("checkpoint of step {step} in {}", dir.display()));
    }

    fn control(&self) -> Control {
        if self.stop.load(Ordering::Relaxed) { Control::Preempt } else { Control::Continue }
    }
}
