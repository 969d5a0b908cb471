//! `hone-trainer estimate`: what a run on local files will need, before it runs.

use crate::{
    engine,
    local::{self, LocalRun},
};
use clap::Args;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use wire::estimate::Estimate;

#[derive(Debug, Args)]
pub struct EstimateArgs {
    /// Training configuration (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Model directory in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Training data; the format is detected.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Held-out data in the same format.
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// Compute threads; all cores when absent.
    #[arg(long, env = "HONE_THREADS", value_name = "N")]
    threads: Option<usize>,
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
pub fn run(args: &EstimateArgs) -> anyhow::Result<()> {
    let scratch = Scratch(std::env::temp_dir().join(format!("hone-estimate-{}", std::process::id())));
    let setup = local::setup(&LocalRun {
        config: args.config.clone(),
        model: args.model.clone(),
        data: args.data.clone(),
        validation: args.validation.clone(),
        out: scratch.0.clone(),
        resume: None,
        threads: args.threads,
    })?;
    let estimate = engine::estimate(&setup, Duration::try_from_secs_f64(args.rehearse)?)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&estimate)?)?;
    } else {
        write!(out, "{}", table(&estimate, &args.model))?;
    }
    anyhow::ensure!(
        estimate.fits(),
        "the run needs {} of memory and {} are available",
        gigabytes(estimate.peak_memory_bytes),
        estimate.available_memory_bytes.map_or_else(String::new, gigabytes)
    );
    Ok(())
}

#[expect(clippy::as_conversions, reason = "shown with two digits")]
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

fn table(e: &Estimate, model: &Path) -> String {
    let available = e.available_memory_bytes.map_or_else(String::new, |a| format!(" of {} available", gigabytes(a)));
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "model       {name}: {} parameters, {} of them trained\n\
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
