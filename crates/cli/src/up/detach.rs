//! `hone up --detach`: the same `hone up` as a session of its own, and a parent that watches it start.

use super::{
    Started, announce,
    datadir::{self, DataDir},
    describe, logs,
};
use crate::{
    args::UpArgs,
    context::{Connection, Context},
    error::{CliError, CliResult, Exit},
};
use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(300);

pub async fn up_in_background(context: &Context, args: &UpArgs) -> CliResult {
    let begun = Instant::now();
    let dir = &context.data_dir;
    let first_start = !dir.join("secrets/api-key").exists();
    let program = std::env::current_exe().map_err(|e| CliError::failed(format!("cannot find this program: {e}")))?;
    // The child writes here until it is healthy: only then is it certain that the data directory is ours.
    let log_file =
        tempfile::NamedTempFile::new().map_err(|e| CliError::failed(format!("cannot make a temporary file: {e}")))?;
    let writer = log_file.reopen().and_then(|w| Ok((w.try_clone()?, w)));
    let (out, err) = writer.map_err(|e| CliError::io("write", log_file.path(), &e))?;
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(dir).args(["up", "--background"]);
    if let Some(port) = args.port {
        command.args(["--port", &port.to_string()]);
    }
    for (flag, set) in [("--json", context.ui.json), ("--quiet", context.ui.quiet)] {
        if set {
            command.arg(flag);
        }
    }
    command.stdin(Stdio::null()).stdout(out).stderr(err).current_dir("/");
    // SAFETY: setsid is async-signal-safe and touches no memory of ours.
    #[expect(unsafe_code, reason = "a session of its own can only be made in the child")]
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    let mut child =
        command.spawn().map_err(|e| CliError::failed(format!("cannot start `hone` in the background: {e}")))?;
    let mut seen = 0;
    loop {
        seen = relay(log_file.path(), seen);
        if let Some(state) = datadir::state(dir).filter(|s| s.hone.pid == child.id() && s.healthy) {
            relay(log_file.path(), seen);
            let connection = Connection::read(dir)?.filter(|c| c.url == state.url);
            let connection =
                connection.ok_or_else(|| CliError::failed("connection.json was changed while Hone started"))?;
            announce(context, &Started { connection, first_start }, begun);
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(failure(log_file.path(), seen, status));
        }
        if begun.elapsed() > PATIENCE {
            return Err(CliError::failed(format!("Hone was not up within {} s", PATIENCE.as_secs())).hint(format!(
                "`hone --data-dir {0} status` shows what runs, the logs are in {0}/logs",
                dir.display()
            )));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Passes on what the child has written since `seen`.
fn relay(log: &Path, seen: u64) -> u64 {
    let (text, end) = logs::since(log, seen);
    let _ = std::io::stderr().write_all(text.as_bytes());
    end
}

/// The child has said why it failed; only its exit code is left to pass on.
fn failure(log: &Path, seen: u64, status: ExitStatus) -> CliError {
    let end = relay(log, seen);
    match status.code().and_then(Exit::from_code) {
        Some(exit) if end > 0 => CliError::new(exit, ""),
        _ => CliError::failed(format!("Hone ended with {} while it started", describe(status))),
    }
}

/// From now on the process in the background writes into the data directory's log.
pub fn write_to_log(dir: &DataDir) -> CliResult {
    let path = dir.join("logs/hone.log");
    let log = logs::open(&path).map_err(|e| CliError::io("write", &path, &e))?;
    let moved = nix::unistd::dup2_stdout(&log).and_then(|()| nix::unistd::dup2_stderr(&log));
    moved.map_err(|e| CliError::io("write", &path, &e.into()))
}
