//! The `hone` command: starts everything on one machine (`up`), and talks to a running Hone.
//!
//! Invariants: everything runs on the main thread (the kernel ties the services of `up` to it); results go
//! to standard output and the rest to standard error; a command either says what it did or why it failed.

pub mod api;
pub mod args;
pub mod artifacts;
pub mod chat;
pub mod context;
pub mod costs;
pub mod datasets;
pub mod dead_letters;
pub mod doctor;
pub mod error;
pub mod follow;
pub mod jobs;
pub mod keys;
pub mod models;
pub mod notifications;
pub mod packages;
pub mod postgres;
pub mod proc;
pub mod stream;
pub mod train;
pub mod transfer;
pub mod ui;
pub mod up;
pub mod webhooks;

use args::{Cli, Command};
use clap::Parser;
use context::Context;
use error::{CliError, CliResult};
use service::Env;
use std::{ffi::OsString, process::ExitCode};
use ui::Ui;

/// Runs the command line and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Prints help to standard output and errors to standard error, and knows the exit code.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let ui = Ui { json: cli.json, quiet: cli.quiet };
    match start(cli, ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            ui.error(&e);
            e.exit.into()
        }
    }
}

fn start(cli: Cli, ui: Ui) -> CliResult {
    let context = Context::new(Env::from_process(), ui, cli.data_dir.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CliError::failed(format!("cannot start: {e}")))?;
    runtime.block_on(run(&context, cli.command))
}

async fn run(context: &Context, command: Command) -> CliResult {
    match command {
        Command::Up(args) => up::up(context, &args).await,
        Command::Down => up::down(context),
        Command::Status => up::status(context).await,
        Command::Doctor => doctor::doctor(context).await,
        Command::Artifacts(command) => artifacts::run(context, command).await,
        Command::Models(command) => models::run(context, command).await,
        Command::Datasets(command) => datasets::run(context, command).await,
        Command::Packages(command) => packages::run(context, command).await,
        Command::Costs(args) => costs::costs(context, args).await,
        Command::Notifications(command) => notifications::run(context, command).await,
        Command::Webhooks(command) => webhooks::run(context, command).await,
        Command::Keys(command) => keys::run(context, command).await,
        Command::Train(args) => train::train(context, &args).await,
        Command::Jobs(command) => jobs::run(context, command).await,
        Command::Chat(args) => chat::chat(context, &args).await,
        Command::Completions { shell } => {
            args::completions(shell);
            Ok(())
        }
    }
}
