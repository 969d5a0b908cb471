//! The command line of `hone-trainer`.

use crate::{
    engine::{self, DeviceChoice, device::HONE_DEVICE, merge::MergedDtype},
    estimate::{self, EstimateArgs},
    generate::{self, GenerateArgs},
    local::{self, LocalRun},
    run, serve,
};
use clap::{Args, Parser, Subcommand};
use service::Env;
use std::{path::PathBuf, process::ExitCode};
use wire::job_env::exit;

/// Trains language models: one attempt of a Hone job, a service that runs attempts, or a run on local files.
#[derive(Debug, Parser)]
#[command(name = "hone-trainer", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train: one attempt of a job (from the environment), or local files (with --config, --model, --data, --out).
    #[command(after_long_help = RUN_HELP)]
    Run(RunArgs),
    /// Serve HTTP: start attempts on request, each in a process of its own.
    #[command(after_long_help = SERVE_HELP)]
    Serve,
    /// Generate text with a model and, optionally, an adapter.
    #[command(after_long_help = GENERATE_HELP)]
    Generate(GenerateArgs),
    /// Tell what a run will need, in memory and time, by rehearsing a part of it: local files, or (without --config)
    /// the attempt that the environment describes as for `run`.
    Estimate(EstimateArgs),
    /// Merge an adapter into its base model: a model directory that needs no adapter.
    Merge(MergeArgs),
}

const RUN_HELP: &str = "\
As part of a job, a launcher gives everything in the environment:
  JOB_SPEC or JOB_SPEC_FILE   what to train (JSON)
  CALLBACK_URL                where to report
  STORAGE_GATEWAY_URL         where inputs are and results go
  JOB_TOKEN or JOB_TOKEN_FILE the credential for both
  SCRATCH_DIR                 cache, event spool, checkpoints; may be lost (default: a temporary directory)
  HONE_THREADS                compute threads (default: all cores)
  HONE_DEVICE                 auto, cpu, cuda or cuda:N (default: auto)
  CACHE_MAX_BYTES             bound on cached models and data (default: 50 GB)

Exit codes: 0 succeeded, 64 failed for good, 65 failed but may succeed when tried again, 66 cancelled, 67 paused,
68 another process owns the job, 75 stopped by SIGTERM after a durable checkpoint.

Without a backend:
  hone-trainer run --config sft.yaml --model ./hone-tiny --data chat.jsonl --out ./result
  hone-trainer run --config sft.yaml --model ./hone-tiny --data chat.jsonl --out ./result --resume";

const SERVE_HELP: &str = "\
Environment:
  HONE_LISTEN            address and port (default: 127.0.0.1:8702)
  TRAINER_SERVICE_TOKEN  bearer token every caller must give (also TRAINER_SERVICE_TOKEN_FILE)
  MAX_CONCURRENT_JOBS    attempts at once; more are answered 409 with retry-after (default: 1)
  SCRATCH_DIR, HONE_THREADS, HONE_DEVICE, CACHE_MAX_BYTES are passed on to the attempts.

Routes: POST /training/start, GET /training/{job}/{attempt}, POST /training/{job}/{attempt}/stop, POST /estimate,
GET /models, GET /health, GET /ready, GET /metrics. SIGTERM stops the attempts in order: each writes a checkpoint first.";

const GENERATE_HELP: &str = "\
Examples:
  hone-trainer generate --model ./hone-tiny --prompt 'Once upon a time'
  hone-trainer generate --model ./hone-tiny --adapter ./result --messages chat.json --compare
  echo '{\"prompt\": \"Once\", \"max_tokens\": 16}' | hone-trainer generate --model ./hone-tiny --stdio";

#[derive(Debug, Args)]
struct RunArgs {
    /// Training configuration (YAML or JSON); `model` and `dataset` in it are only names here.
    #[arg(long, value_name = "FILE", requires_all = ["model", "data", "out"])]
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
    /// Where the artifacts go; checkpoints go to `work/checkpoints` below it.
    #[arg(long, value_name = "DIR", requires = "config")]
    out: Option<PathBuf>,
    /// Checkpoint directory to continue from; without DIR the newest one below --out, if there is any.
    #[arg(long, value_name = "DIR", requires = "config", num_args = 0..=1, default_missing_value = local::NEWEST)]
    resume: Option<PathBuf>,
    /// Compute threads; all cores when absent.
    #[arg(long, env = "HONE_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// Where to train: auto (the first CUDA device, else the CPU), cpu, cuda or cuda:N.
    #[arg(long, env = HONE_DEVICE, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
}

#[derive(Debug, Args)]
struct MergeArgs {
    /// The adapter's base model, a directory in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Adapter directory in PEFT layout (LoRA or DoRA).
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Where the merged model goes; must not exist yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Element type of the weights. With `base` merged weights are rounded to it.
    #[arg(long, value_enum, default_value = "base")]
    dtype: MergedDtype,
}

/// Runs the program; the exit code is the one of [`wire::job_env::exit`] for `run`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = Env::from_process();
    let result = match cli.command {
        Command::Generate(args) => generate::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Estimate(args) => block_on(estimate::run(args, env)),
        Command::Merge(args) => merge(&args),
        Command::Serve => {
            // Actix wants to make its own runtime.
            actix_web::rt::System::new().block_on(serve::run(&env)).map(|()| ExitCode::SUCCESS)
        }
        Command::Run(args) => block_on(train(args, env)),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("hone-trainer: {error:#}"));
        ExitCode::from(u8::try_from(exit::FATAL).unwrap_or(1))
    })
}

fn merge(args: &MergeArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(!args.out.exists(), "{} exists already; give a new directory as --out", args.out.display());
    let merged = engine::merge::merge(&args.model, &args.adapter, &args.out, args.dtype)?;
    complain(&format!("merged the adapters of {merged} weights into {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// Two threads carry the network; the training has its own.
fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(work);
    // An engine or a transfer that was given up must not keep the process.
    runtime.shutdown_background();
    result
}

async fn train(args: RunArgs, env: Env) -> anyhow::Result<ExitCode> {
    match args {
        RunArgs { config: Some(config), model: Some(model), data: Some(data), out: Some(out), .. } => {
            let RunArgs { validation, resume, threads, device, .. } = args;
            local::run(LocalRun { config, model, data, validation, out, resume, threads, device }).await
        }
        _ => run::run(&env).await,
    }
}

#[expect(clippy::print_stderr, reason = "a command line tool's report to its user")]
fn complain(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn local_training_needs_all_of_its_options() {
        assert!(Cli::try_parse_from(["hone-trainer", "run", "--config", "a", "--model", "b"]).is_err());
        assert!(Cli::try_parse_from(["hone-trainer", "run", "--model", "b"]).is_err());
        assert!(Cli::try_parse_from(["hone-trainer", "run"]).is_ok());
    }

    #[test]
    fn generating_needs_one_source_of_text() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["hone-trainer", "generate", "--model", "m"], args].concat());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--prompt", "a", "--messages", "b"]).is_err());
        assert!(parse(&["--prompt", "a", "--compare"]).is_err());
        assert!(parse(&["--stdio"]).is_ok());
    }
}
