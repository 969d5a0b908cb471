//! The grammar of the command line, and its help.

mod account;

pub use account::{
    CostGroupArg, CostsArgs, CreateKeyArgs, CreateWebhookArgs, DeliveryStatusArg, KeysCommand, NotificationsCommand,
    WebhooksCommand,
};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use std::path::PathBuf;

const OVERVIEW: &str = "\
Examples:
  hone up                                         start everything on this machine
  hone models import ./SmolLM2-135M --name smol   add a base model (Hugging Face layout, safetensors)
  hone datasets upload chat.jsonl --name support  add a dataset
  hone train config.yaml --follow                 train, with live progress
  hone chat latest --compare                      talk to the result, next to the base model

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 invalid input, 5 server unreachable, 130 Ctrl-C";

/// Fine-tune language models on your own machines.
#[derive(Debug, Parser)]
#[command(name = "hone", version, after_help = OVERVIEW, max_term_width = 110, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// Print JSON instead of tables (streams print one object per line)
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Where `hone up` keeps its data, and where the other commands find the server's address and key
    /// [default: ~/.local/share/hone]
    #[arg(long, global = true, env = "HONE_DATA_DIR", value_name = "DIR", value_hint = ValueHint::DirPath, hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine: database, storage, API
    Up(UpArgs),
    /// Stop what `hone up` started; running jobs go on at the next `hone up`
    Down,
    /// Show what runs here
    Status,
    /// Check this machine, and say how to fix what is wrong
    Doctor,
    /// Base models: import, list
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Datasets: upload, validate, list
    #[command(subcommand)]
    Datasets(DatasetsCommand),
    /// Training packages: versions of what to train, published and launched
    #[command(subcommand)]
    Packages(PackagesCommand),
    /// Create a training job from a configuration file
    Train(TrainArgs),
    /// Training jobs: list, watch, cancel, download
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// What jobs made: list, download
    #[command(subcommand)]
    Artifacts(ArtifactsCommand),
    /// Talk to what a job has trained
    Chat(ChatArgs),
    /// What training has cost, by day, package, user or hardware, or of one job
    Costs(CostsArgs),
    /// What you were told: list, mark as read
    #[command(subcommand)]
    Notifications(NotificationsCommand),
    /// Addresses of yours that are told what happens: add, test, look at deliveries
    #[command(subcommand)]
    Webhooks(WebhooksCommand),
    /// API keys: list, make, revoke
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print a completion script for your shell
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
}

const UP: &str = "\
Examples:
  hone up                          on port 8700, data in ~/.local/share/hone, until Ctrl-C
  hone up --detach                 in the background; `hone down` stops it
  hone up --data-dir ./d --port 0  another place, any free port

Environment:
  DATABASE_URL          use this Postgres instead of starting one
  S3_ENDPOINT, AWS_*    use this object store instead of the embedded one
  MAX_CONCURRENT_JOBS   jobs that train at the same time (1)
  HONE_POSTGRES_BIN     directory of the Postgres programs to use";

#[derive(Debug, Args)]
#[command(after_help = UP)]
pub struct UpArgs {
    /// Port of the API on 127.0.0.1; 0 takes any free one [default: the port of the last time, else 8700]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Return as soon as everything is healthy
    #[arg(long)]
    pub detach: bool,
    /// Set by `--detach` for the process in the background
    #[arg(long, hide = true)]
    pub background: bool,
}

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Add a base model from a directory in Hugging Face layout
    #[command(
        after_help = "Example:\n  hone models import ./SmolLM2-135M-Instruct --name smollm2-135m\n\nThe directory holds config.json, tokenizer.json and *.safetensors. Pickled weights (.bin, .pt) are refused."
    )]
    Import(ImportArgs),
    /// Look for models on the Hugging Face Hub
    Search(SearchArgs),
    /// Fetch a model from the Hugging Face Hub into the registry
    #[command(
        after_help = "Example:\n  hone models pull HuggingFaceTB/SmolLM2-135M-Instruct --name smollm2-135m\n\nThe server fetches it; it goes on when this command is interrupted. Gated models need HF_TOKEN in the server's configuration."
    )]
    Pull(PullArgs),
    /// List the base models
    Ls,
    /// Show one base model
    Show { name: String },
}

#[derive(Debug, Subcommand)]
pub enum ArtifactsCommand {
    /// List adapters and models, newest first
    Ls,
    /// Download the files of one
    Download {
        id: wire::ids::ArtifactId,
        /// Directory to put them in
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// Part of the name
    pub text: Option<String>,
    /// Only of this user or organisation
    #[arg(long)]
    pub author: Option<String>,
    /// Only for this task, such as text-generation
    #[arg(long)]
    pub task: Option<String>,
    /// At most this many, up to 100
    #[arg(long, default_value_t = 20)]
    pub limit: u16,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// owner/name on the Hub
    pub id: String,
    /// Branch, tag or commit
    #[arg(long)]
    pub revision: Option<String>,
    /// Name in the registry [default: owner--name]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Directory with config.json, tokenizer.json and *.safetensors
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: PathBuf,
    /// Name in the registry
    #[arg(long)]
    pub name: String,
    /// Import the safetensors and leave pickled weights in the same directory behind
    #[arg(long)]
    pub skip_pickle: bool,
}

#[derive(Debug, Subcommand)]
pub enum DatasetsCommand {
    /// Upload and validate a dataset
    #[command(
        after_help = "Examples:\n  hone datasets upload train.jsonl --name support\n  hone datasets upload train.jsonl --validation heldout.jsonl --name support\n\nFormats: chat JSONL ({\"messages\": […]}), instruction JSONL ({\"instruction\", \"input\", \"output\"}), plain text.\nAn upload of more than 8 MiB that was broken off goes on where it stopped when the same command is given again."
    )]
    Upload(UploadArgs),
    /// Check a file on this machine, without a server
    Validate {
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// List the datasets
    Ls,
    /// Show one dataset
    Show { name: String },
    /// Print the first rows
    Preview {
        name: String,
        /// Rows
        #[arg(long, short = 'n', default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
        limit: u16,
        /// Which file
        #[arg(long, value_enum, default_value_t = SplitArg::Train)]
        split: SplitArg,
    },
    /// Divide the rows of a dataset by a seed into two new ones
    #[command(
        after_help = "Example:\n  hone datasets split support --ratio 0.95\n\nmakes support-train with 95 % of the rows and support-validation with the others. The same seed and ratio divide the\nsame rows in the same way; rows keep their bytes and their order."
    )]
    Split(SplitArgs),
    /// Delete a dataset
    Rm { name: String },
}

#[derive(Debug, Args)]
pub struct SplitArgs {
    pub name: String,
    /// Share of the rows that goes to the first of the two, above 0 and below 1
    #[arg(long, default_value_t = 0.9)]
    pub ratio: f64,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Which file is divided
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    pub file: SplitArg,
    /// Name of the first [default: NAME-train]
    #[arg(long, value_name = "NAME")]
    pub train_name: Option<String>,
    /// Name of the second [default: NAME-validation]
    #[arg(long, value_name = "NAME")]
    pub validation_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitArg {
    Train,
    Validation,
}

#[derive(Debug, Args)]
pub struct UploadArgs {
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Name to train with
    #[arg(long)]
    pub name: String,
    /// A file with held-out rows; without it training holds some rows back
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub validation: Option<PathBuf>,
}

const PACKAGES: &str = "\
Examples:
  hone packages draft support config.yaml         write down what to train, as a draft
  hone packages publish support                   fix it for good; it gets the next number
  hone packages launch support --follow           train what was published last
  hone packages launch support@3                  train version 3";

#[derive(Debug, Subcommand)]
#[command(after_help = PACKAGES)]
pub enum PackagesCommand {
    /// List the packages, newest first
    Ls,
    /// Show a package and its versions
    Show { name: String },
    /// Make a draft from a training configuration; the package is made when it is missing
    #[command(after_help = PACKAGES)]
    Draft {
        name: String,
        /// YAML (or JSON); `-` reads standard input
        #[arg(value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// What is different
        #[arg(long, value_name = "TEXT")]
        summary: Option<String>,
    },
    /// Publish the newest draft
    #[command(after_help = PACKAGES)]
    Publish {
        name: String,
        /// What is different
        #[arg(long, value_name = "TEXT")]
        summary: Option<String>,
    },
    /// Train a published version, the newest unless NAME@NUMBER says which
    #[command(after_help = PACKAGES)]
    Launch {
        /// NAME or NAME@NUMBER
        version: String,
        /// Show live progress until the job ends
        #[arg(long, short)]
        follow: bool,
        /// Attempts before the job fails [default: 3]
        #[arg(long, value_name = "N")]
        max_attempts: Option<u32>,
    },
}

const TRAIN: &str = "\
Examples:
  hone train config.yaml --follow
  hone train config.yaml --set training.max_steps=10 --set lora.r=8
  hone train config.yaml --estimate

A small configuration:
  model: smollm2-135m
  dataset: support
  method: sft                       # sft | full | pretrain | dpo | classification
  lora: {r: 16, lora_alpha: 32}
  training: {num_train_epochs: 1, learning_rate: 2.0e-4}";

#[derive(Debug, Args)]
#[command(after_help = TRAIN)]
pub struct TrainArgs {
    /// YAML (or JSON); `-` reads standard input
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Show live progress until the job ends
    #[arg(long, short)]
    pub follow: bool,
    /// Only tell what the job would need: memory, tokens, steps, duration
    #[arg(long, conflicts_with = "follow")]
    pub estimate: bool,
    /// Change a value of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Attempts before the job fails [default: 3]
    #[arg(long, value_name = "N")]
    pub max_attempts: Option<u32>,
    /// Hardware it runs on, which has the price: an id of `GET /api/gpu-configs` [default: this machine]
    #[arg(long, value_name = "ID")]
    pub gpu_config: Option<String>,
    /// Pause the job before it costs more than this
    #[arg(long, value_name = "AMOUNT")]
    pub budget: Option<f64>,
}

const JOB_IDS: &str = "ID is a job's id, the beginning of one, or `latest`.";

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List what could not be applied, newest first
    #[command(after_help = JOB_IDS)]
    Ls { id: String },
    /// Try again; what still cannot be applied stays
    #[command(after_help = JOB_IDS)]
    Replay {
        id: String,
        /// Only this letter, by its number in `ls`; may be given several times
        #[arg(long, value_name = "NUMBER")]
        letter: Vec<i64>,
    },
}

#[derive(Debug, Subcommand)]
#[command(after_help = JOB_IDS)]
pub enum JobsCommand {
    /// List the jobs, newest first
    Ls {
        /// Only jobs in this state (running, succeeded, failed, …)
        #[arg(long)]
        state: Option<String>,
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Show one job
    #[command(after_help = JOB_IDS)]
    Show {
        id: String,
        /// Live progress until it ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Reports of its trainers that could not be applied: list, try again
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Print what the trainer wrote
    #[command(after_help = JOB_IDS)]
    Logs {
        id: String,
        /// Go on until the job ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Print losses and speed per step
    #[command(after_help = JOB_IDS)]
    Metrics {
        id: String,
        /// Only steps after this one
        #[arg(long, value_name = "STEP")]
        after: Option<u64>,
    },
    /// Stop a job for good
    #[command(after_help = JOB_IDS)]
    Cancel { id: String },
    /// Stop a job at a checkpoint, to be resumed
    #[command(after_help = JOB_IDS)]
    Pause { id: String },
    /// Go on with a paused job
    #[command(after_help = JOB_IDS)]
    Resume { id: String },
    /// Change what a job may cost; a job paused at its limit goes on after `resume`
    #[command(after_help = JOB_IDS)]
    Budget {
        id: String,
        /// In the currency of its hardware, or `none`
        amount: String,
    },
    /// List what a job has made, or download it
    #[command(
        after_help = "Example:\n  hone jobs artifacts latest --download ./adapter\n\nThe files are what PEFT writes: PeftModel.from_pretrained(base, \"./adapter\")."
    )]
    Artifacts {
        id: String,
        /// Directory to write the files to; made when absent
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        download: Option<PathBuf>,
    },
}

const CHAT: &str = "\
Examples:
  hone chat latest                                   a conversation
  hone chat latest --prompt 'define: serendipity'    one answer
  hone chat latest --compare --prompt 'hello'        base and tuned model side by side";

#[derive(Debug, Args)]
#[command(after_help = CHAT)]
pub struct ChatArgs {
    /// A job's id, the beginning of one, or `latest`
    pub job: String,
    /// Answer this and end
    #[arg(long, short)]
    pub prompt: Option<String>,
    /// Also show what the base model says
    #[arg(long)]
    pub compare: bool,
    /// What the model is told to be
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[arg(long, default_value_t = 128)]
    pub max_tokens: u32,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f64,
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f64,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

/// Writes the completion script to standard output.
pub fn completions(shell: Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "hone", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }
}
