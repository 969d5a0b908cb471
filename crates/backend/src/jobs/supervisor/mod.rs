//! The supervisor of one trainer: `hone-backend supervise --record DIR -- PROGRAM ARGS…`.
//!
//! It is a session of its own and a child of init, so it outlives the backend; it claims the record
//! directory, runs the trainer, keeps what the trainer writes within bounds, and records how it ended. All
//! processes of the attempt stay in its session; that is how they are found again and proven gone.

pub mod log;
mod oom;
pub mod procfs;
pub mod record;

use super::verdict::Ending;
use chrono::Utc;
use log::BoundedLog;
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        signal::{Signal, kill},
    },
    unistd::{Pid, setsid},
};
use record::{Created, ExitRecord, Process, Record};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use wire::{JobId, job_env};

/// The hidden subcommand of the backend.
pub const SUBCOMMAND: &str = "supervise";
const DETACHED: &str = "--detached";

/// Entry point of the subcommand; `args` are those after `supervise`. Must run before any thread exists.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = Arguments::parse(args).and_then(|args| match args.stage {
        Stage::Detach => detach(&args),
        Stage::Supervise => supervise(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the supervisor failed");
            // Standard error is the record directory's supervisor.log.
            let _ = io::Write::write_all(&mut io::stderr(), format!("the supervisor failed: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Starts the second stage and ends, so that init becomes the parent.
    Detach,
    Supervise,
}

#[derive(Debug)]
struct Arguments {
    stage: Stage,
    record: PathBuf,
    program: OsString,
    rest: Vec<OsString>,
}

impl Arguments {
    fn parse(args: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        let usage = || io::Error::other("usage: hone-backend supervise --record DIR -- PROGRAM ARGS…");
        let mut args = args.into_iter();
        let (mut stage, mut record) = (Stage::Detach, None);
        loop {
            match args.next().as_deref().and_then(|a| a.to_str()) {
                Some("--record") => record = args.next().map(PathBuf::from),
                Some(DETACHED) => stage = Stage::Supervise,
                Some("--") => break,
                _ => return Err(usage()),
            }
        }
        let program = args.next().ok_or_else(usage)?;
        Ok(Self { stage, record: record.ok_or_else(usage)?, program, rest: args.collect() })
    }
}

fn detach(args: &Arguments) -> io::Result<()> {
    let log = File::options().append(true).create(true).open(args.record.join("supervisor.log"))?;
    Command::new(own_program())
        .arg(SUBCOMMAND)
        .arg(DETACHED)
        .arg("--record")
        .arg(&args.record)
        .arg("--")
        .arg(&args.program)
        .args(&args.rest)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map(drop)
}

/// This program, also when its file was replaced by an upgrade.
#[must_use]
pub fn own_program() -> PathBuf {
    std::env::current_exe().ok().filter(|p| p.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

fn supervise(args: &Arguments) -> io::Result<()> {
    setsid()?;
    let mut record = own_record()?;
    if record::create(&args.record, record::RECORD, &record)? == Created::Before {
        // Another supervisor runs this attempt, or it was called off.
        return Ok(());
    }
    let ooms = procfs::oom_kills();
    let exit = match start(args, &mut record) {
        Ok(child) => run(args, child, ooms)?,
        Err(error) => {
            let reason = format!("cannot execute {}: {error}", args.program.to_string_lossy());
            ExitRecord::now(Ending::StartFailed { reason })
        }
    };
    record::create(&args.record, record::EXIT, &exit).map(drop)
}

fn own_record() -> io::Result<Record> {
    let variable = |name: &str| {
        let value = std::env::var(name).ok();
        value.ok_or_else(|| io::Error::other(format!("{name} is not set")))
    };
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let stat = procfs::stat(pid).ok_or_else(|| io::Error::other("cannot read /proc/self/stat"))?;
    Ok(Record {
        job: variable(job_env::JOB_ID)?.parse::<JobId>().map_err(io::Error::other)?,
        attempt: variable(job_env::ATTEMPT)?.parse().map_err(io::Error::other)?,
        boot_id: procfs::boot_id()?,
        supervisor: Some(Process { pid, start_time: stat.start_time }),
        trainer: None,
        created_at: Utc::now(),
    })
}

fn start(args: &Arguments, record: &mut Record) -> io::Result<std::process::Child> {
    let child = Command::new(&args.program)
        .args(&args.rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: one signal reaches the trainer and its children, and not the supervisor.
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    record.trainer = procfs::stat(pid).map(|s| Process { pid, start_time: s.start_time });
    // The session finds the trainer too, so failing to note its pid is no reason to kill it.
    if let Ok(bytes) = serde_json::to_vec(record) {
        let _ = record::replace(&args.record, record::RECORD, &bytes);
    }
    Ok(child)
}

fn run(args: &Arguments, mut child: std::process::Child, ooms: u64) -> io::Result<ExitRecord> {
    let log = Arc::new(BoundedLog::open(&args.record));
    let watch = i32::try_from(child.id()).map_or(None, |pid| Some(oom::Watch::start(pid, ooms)));
    let copies: Vec<_> = [
        child.stdout.take().map(|pipe| copy(pipe, Arc::clone(&log))),
        child.stderr.take().map(|pipe| copy(pipe, Arc::clone(&log))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let status = child.wait()?;
    let struck = watch.is_some_and(|watch| watch.struck());
    end_stragglers();
    // A grandchild that left the group may hold a pipe open; it must not hold up the exit record.
    let patience = Instant::now() + Duration::from_secs(1);
    while copies.iter().any(|c| !c.is_finished()) && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(ExitRecord { ending: ending(status, struck), peak_memory: peak_memory(), finished_at: Utc::now() })
}

/// Drains `pipe` to its end, also when the log cannot be written: a full disk must not stop the trainer.
fn copy(mut pipe: impl Read + Send + 'static, log: Arc<BoundedLog>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => log.write(buffer.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    })
}

/// Whatever the trainer left running in the session ends with it.
fn end_stragglers() {
    let own = std::process::id();
    let Some(me) = i32::try_from(own).ok().and_then(procfs::stat) else { return };
    for process in procfs::session_members(me.pid, me.start_time) {
        if process.pid != me.pid {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

fn ending(status: ExitStatus, struck: bool) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code { code },
        (None, Some(signal)) => Ending::Signal { signal, out_of_memory: struck && signal == libc::SIGKILL },
        (None, None) => Ending::Lost,
    }
}

/// Largest resident size in bytes of any child that was waited for.
fn peak_memory() -> Option<u64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
    u64::try_from(usage.max_rss()).ok().map(|kib| kib.saturating_mul(1024))
}

/// One step of stopping the attempt in `dir`: SIGTERM at the first call, SIGKILL once `grace` has passed
/// since then. Returns what is left. Call again until it is `Ended`.
pub fn stop_step(dir: &Path, grace: Duration) -> io::Result<record::State> {
    let state = record::observe(dir)?;
    let record::State::Alive { supervisor } = &state else { return Ok(state) };
    let request = record::StopRequest { requested_at: Utc::now() };
    if record::create(dir, record::STOP, &request)? == Created::Now {
        signal(*supervisor, Signal::SIGTERM);
        return Ok(state);
    }
    let since = record::read::<record::StopRequest>(dir, record::STOP)?.unwrap_or(request).requested_at;
    // A clock that jumped back must not turn into endless patience.
    let waited = (Utc::now() - since).to_std().unwrap_or(Duration::MAX);
    if waited >= grace {
        signal(*supervisor, Signal::SIGKILL);
        if waited >= grace.saturating_add(Duration::from_secs(3)) {
            // The supervisor did not record the end: it is stuck and nothing is lost with it.
            let _ = kill(Pid::from_raw(supervisor.pid), Signal::SIGKILL);
        }
    }
    record::observe(dir)
}

/// Signals every process of the session except its leader.
fn signal(supervisor: Process, signal: Signal) {
    let members = procfs::session_members(supervisor.pid, supervisor.start_time);
    for process in members.into_iter().filter(|p| p.pid != supervisor.pid) {
        // Looked up again: between the listing and now the pid may have got a new owner.
        if procfs::stat(process.pid).is_some_and(|p| p.start_time == process.start_time) {
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
    }
}
