//! `hone-backend`: settings come from the environment, see `backend::config`.

use backend::jobs::supervisor;
use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == supervisor::SUBCOMMAND) {
        return Ok(supervisor::main(args));
    }
    // Two threads drive connections and background work; HTTP has workers of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(backend::run(service::Env::from_process()))?;
    Ok(ExitCode::SUCCESS)
}
