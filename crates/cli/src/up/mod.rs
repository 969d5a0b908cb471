//! `hone up`, `down` and `status`: everything on this machine.

pub mod datadir;
mod detach;
mod logs;
pub mod ports;
mod service;
mod settings;
mod stack;
mod trainers;

use crate::{
    args::UpArgs,
    context::Context,
    error::{CliError, CliResult, Exit},
    proc::ProcessId,
    ui::{self, Style, paint},
};
use datadir::DataDir;
use nix::sys::signal::Signal;
use stack::{Stack, Started};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

pub use service::describe;

/// Trainers get half a minute, the services some seconds each.
const DOWN_PATIENCE: Duration = Duration::from_secs(75);

pub async fn up(context: &Context, args: &UpArgs) -> CliResult {
    if args.detach {
        return detach::up_in_background(context, args).await;
    }
    let begun = Instant::now();
    let dir = DataDir::open(&context.data_dir)?;
    let mut signals = Signals::new()?;
    let mut stack = Stack::new(context, &dir);
    let started = tokio::select! {
        started = stack.start(args.port) => started,
        () = signals.next() => Err(CliError::new(Exit::Interrupted, "stopped before everything was up")),
    };
    let started = match started {
        Ok(started) => started,
        Err(e) => {
            stack.stop(signals.next()).await;
            return Err(e);
        }
    };
    if args.background {
        detach::write_to_log(&dir)?;
    } else {
        announce(context, &started, begun);
        context.ui.note("Press Ctrl-C to stop.");
    }
    let ended = stack.supervise(signals.next()).await;
    context.ui.note("\nstopping");
    stack.stop(signals.next()).await;
    context.ui.note("stopped");
    ended
}

/// The final word of a successful start, on standard output.
fn announce(context: &Context, started: &Started, begun: Instant) {
    let url = &started.connection.url;
    let key = started.first_start.then_some(&started.connection.api_key);
    if context.ui.json {
        context.ui.json_line(&serde_json::json!({"url": url, "data_dir": context.data_dir, "api_key": key}));
        return;
    }
    let mut rows = Vec::new();
    if let Some(key) = key {
        rows.push((
            "api key",
            format!("{key}\nshown this once; kept in {}", context.data_dir.join("connection.json").display()),
        ));
    }
    rows.push(("data", context.data_dir.display().to_string()));
    rows.push(("logs", context.data_dir.join("logs").display().to_string()));
    let up = paint(&format!("Hone is up at {url}"), Style::Bold);
    context.ui.line(format!("\n{up}  ({})\n\n{}\n", ui::duration(begun.elapsed()), ui::fields(&rows)));
    let dir = if is_default(context) {
        String::new()
    } else {
        format!("  export HONE_DATA_DIR={}\n", context.data_dir.display())
    };
    context.ui.line(format!(
        "In another terminal:\n{dir}  hone models import DIR --name NAME\n  hone datasets upload FILE --name NAME\n  hone train CONFIG.yaml --follow\n"
    ));
}

/// Whether the other commands find the data directory without being told.
fn is_default(context: &Context) -> bool {
    Context::new(context.env.clone(), context.ui, None).is_ok_and(|c| c.data_dir == context.data_dir)
}

/// SIGINT, SIGTERM and SIGHUP, each of which means: stop.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn new() -> CliResult<Self> {
        let listen = |kind| signal(kind).map_err(|e| CliError::failed(format!("cannot listen for signals: {e}")));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    }
}

pub fn down(context: &Context) -> CliResult {
    let dir = &context.data_dir;
    let Some(hone) = datadir::holder(dir) else {
        let left = stop_orphans(dir);
        let note = if left > 0 {
            format!("stopped {left} services that a killed `hone` left behind")
        } else {
            "nothing was running".to_owned()
        };
        context
            .ui
            .show(&serde_json::json!({"stopped": left > 0}), |ui| ui.line(format!("{note} on {}", dir.display())));
        return Ok(());
    };
    context.ui.note("stopping; running jobs store a checkpoint first");
    let begun = Instant::now();
    hone.signal(Signal::SIGTERM);
    if !hone.wait_gone(DOWN_PATIENCE) {
        return Err(CliError::failed(format!(
            "`hone` (pid {}) did not stop within {} s",
            hone.pid,
            DOWN_PATIENCE.as_secs()
        ))
        .hint(format!(
            "its log is {}; `kill -9 {}` ends it, and the next `hone up` cleans up",
            dir.join("logs/hone.log").display(),
            hone.pid
        )));
    }
    context.ui.show(&serde_json::json!({"stopped": true}), |ui| {
        ui.line(format!("stopped in {}; everything is kept in {}", ui::duration(begun.elapsed()), dir.display()));
    });
    Ok(())
}

/// What a killed `hone` left running. Returns how many processes there were.
fn stop_orphans(dir: &Path) -> usize {
    let services = datadir::state(dir).map(|s| s.services).unwrap_or_default();
    let alive: Vec<ProcessId> = services.into_iter().map(|s| s.process).filter(ProcessId::is_alive).collect();
    for process in alive.iter().rev() {
        // SIGINT is Postgres's clean and quick stop, and the others take it as SIGTERM.
        process.stop(Signal::SIGINT, Duration::from_secs(10));
    }
    alive.len()
}

pub async fn status(context: &Context) -> CliResult {
    let dir = &context.data_dir;
    let running = datadir::holder(dir).is_some();
    let state = datadir::state(dir).filter(|_| running);
    let Some(state) = state else {
        let what = if running { "Hone is starting" } else { "Hone is not running" };
        return Err(
            CliError::new(Exit::Unreachable, format!("{what} on {}", dir.display())).hint("`hone up` starts it")
        );
    };
    let jobs = match context.client() {
        Ok(client) => crate::api::Api { client }.jobs(None, 50).await,
        Err(e) => Err(e),
    };
    let active = jobs.as_ref().map(|jobs| jobs.iter().filter(|j| !j.state.is_terminal()).count()).ok();
    let value = serde_json::json!({
        "url": state.url, "pid": state.hone.pid, "data_dir": dir, "started_at": state.started_at, "healthy": jobs.is_ok(),
        "services": state.services.iter().map(|s| serde_json::json!({"name": s.name, "pid": s.process.pid, "running": s.process.is_alive(), "url": s.url})).collect::<Vec<_>>(),
        "active_jobs": active,
    });
    context.ui.show(&value, |ui| {
        ui.line(ui::fields(&[
            ("url", state.url.clone()),
            ("data", dir.display().to_string()),
            ("started", ui::ago(state.started_at)),
            ("jobs", active.map_or_else(|| "unknown".into(), |n| format!("{n} active"))),
        ]));
        let rows = state.services.iter().map(|s| {
            let alive = if s.process.is_alive() { "running" } else { "not running" };
            vec![
                s.name.clone(),
                alive.into(),
                s.process.pid.to_string(),
                memory(s.process.pid),
                s.url.clone().unwrap_or_default(),
            ]
        });
        ui.line(format!("\n{}", ui::table(&["service", "state", "pid", "memory", "address"], &[2, 3], rows)));
    });
    jobs.map(drop)
}

/// Resident memory (Linux only).
fn memory(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| ui::bytes(kib.saturating_mul(1024))).unwrap_or_default()
}
