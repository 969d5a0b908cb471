//! `hone-trainer estimate`: what a run will need, before it runs.

use crate::{
    engine::{self, DeviceChoice, device::HONE_DEVICE},
    local::{self, LocalRun},
    run,
};
use clap::Args;
use service::Env;
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};
use wire::estimate::Estimate;

#[derive(Debug, Args)]
pub struct EstimateArgs {
    /// Training configuration (YAML or JSON).
    #[arg(long, value_name = "FILE", requires_all = ["model", "data"])]
    config: Option<PathBuf>,
    /// Model directory in Hugging Face layout.
    #[arg(long, value_name = "DIR", requires = "config")]
    model: Option<PathBuf>,
    /// Training data; the format is detected.
    #[arg(long, value_name = "FILE", requires = "config")]
    data: Option<PathBuf>,
    /// Held-out data in the same format.
    #[arg(long, value_name = "FILE", requires = "config")]
    validation: Option<PathBuf>,
    /// Compute threads; all cores when absent.
    #[arg(long, env = "HONE_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// Where to train: auto, cpu, cuda or cuda:N.
    #[arg(long, env = HONE_DEVICE, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Rehearse training steps for about this long, after one pass over the largest batch.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    rehearse: f64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// A directory that goes when this goes.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the system's directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Estimates and prints. A run that does not fit into memory is an error, with the numbers.
///
/// # Errors
/// Unreadable inputs, a configuration that cannot run, or too little memory for it.
pub async fn run(args: EstimateArgs, env: Env) -> anyhow::Result<ExitCode> {
    let at_least = Duration::try_from_secs_f64(args.rehearse)?;
    let (estimate, model) = match (args.config, args.model, args.data) {
        (Some(config), Some(model), Some(data)) => {
            let scratch = Scratch(std::env::temp_dir().join(format!("hone-estimate-{}", std::process::id())));
            let (out, validation, threads, device) = (scratch.0.clone(), args.validation, args.threads, args.device);
            let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let setup =
                local::setup(&LocalRun { config, model, data, validation, out, resume: None, threads, device })?;
            (tokio::task::spawn_blocking(move || engine::estimate(&setup, at_least)).await??, name)
        }
        _ => run::estimate(&env, at_least).await?,
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&estimate)?)?;
    } else {
        write!(out, "{}", table(&estimate, &model))?;
    }
    anyhow::ensure!(
        estimate.fits(),
        "the run needs {} of memory and {} are available",
        gigabytes(estimate.peak_memory_bytes),
        estimate.available_memory_bytes.map_or_else(String::new, gigabytes)
    );
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::as_conversions, reason = "shown with two digits")]
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

fn table(e: &Estimate, model: &str) -> String {
    let available = e.available_memory_bytes.map_or_else(String::new, |a| format!(" of {} available", gigabytes(a)));
    format!(
        "model       {model}: {} parameters, {} of them trained\n\
         steps       {}, {} tokens, at most {} at once\n\
         memory      {}{available}\n\
         training    {:.1} s\n\
         everything  {:.1} s (the rehearsal took {:.1} s)\n",
        e.total_parameters,
        e.trainable_parameters,
        e.total_steps,
        e.total_tokens,
        e.largest_batch_tokens,
        gigabytes(e.peak_memory_bytes),
        e.train_seconds,
        e.total_seconds,
        e.rehearsal_seconds,
    )
}
