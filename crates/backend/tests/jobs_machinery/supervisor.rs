//! The supervisor alone, with shell scripts as trainers.

use backend::jobs::{
    supervisor::{
        self, procfs,
        record::{self, Created, ExitRecord, Record, State},
    },
    verdict::Ending,
};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use wire::JobId;

/// Runs `script` under a supervisor; returns when the supervisor has detached.
fn supervise(dir: &Path, job: JobId, script: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_hone-backend"))
        .args(["supervise", "--record"])
        .arg(dir)
        .args(["--", "/bin/sh", "-c", script])
        .env("JOB_ID", job.to_string())
        .env("ATTEMPT", "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn exit(dir: &Path) -> ExitRecord {
    until("the exit record", || record::read(dir, record::EXIT).unwrap())
}

#[test]
fn the_exit_status_and_the_output_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let job = JobId::random();
    supervise(dir.path(), job, "echo to stdout; echo to stderr >&2; exit 75");
    let ended = exit(dir.path());
    assert_eq!(ended.ending, Ending::Code { code: 75 });
    assert!(ended.peak_memory.is_some_and(|bytes| bytes > 100_000), "{ended:?}");
    let log = std::fs::read_to_string(dir.path().join(record::LOG)).unwrap();
    assert!(log.contains("to stdout\n") && log.contains("to stderr\n"), "{log}");
    let found: Record = record::read(dir.path(), record::RECORD).unwrap().unwrap();
    assert_eq!((found.job, found.attempt, found.boot_id), (job, 1, procfs::boot_id().unwrap()));
    assert_eq!(record::observe(dir.path()).unwrap(), State::Ended(ended));
}

#[test]
fn a_signal_is_recorded_as_one() {
    let dir = tempfile::tempdir().unwrap();
    supervise(dir.path(), JobId::random(), "kill -SEGV $$");
    assert_eq!(exit(dir.path()).ending, Ending::Signal { signal: libc::SIGSEGV, out_of_memory: false });
}

#[test]
fn an_attempt_that_was_called_off_never_starts() {
    let dir = tempfile::tempdir().unwrap();
    let job = JobId::random();
    assert_eq!(record::withdraw(dir.path(), job, 1, Ending::Withdrawn).unwrap(), Created::Now);
    let mark = dir.path().join("ran");
    supervise(dir.path(), job, &format!("touch {}", mark.display()));
    // A second supervisor, of another attempt, is the clock: when it is done the first one is, too.
    let other = tempfile::tempdir().unwrap();
    supervise(other.path(), job, "true");
    exit(other.path());
    assert!(!mark.exists());
    assert_eq!(exit(dir.path()).ending, Ending::Withdrawn);
}

#[test]
fn of_many_supervisors_one_runs_the_trainer() {
    let dir = tempfile::tempdir().unwrap();
    let job = JobId::random();
    let script = "echo ran; while [ ! -e go ]; do sleep 0.02; done";
    let script = format!("cd {}; {script}", dir.path().display());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| supervise(dir.path(), job, &script));
        }
    });
    until("the trainer", || (!read_log(dir.path()).is_empty()).then_some(()));
    assert_eq!(record::withdraw(dir.path(), job, 1, Ending::Withdrawn).unwrap(), Created::Before);
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(exit(dir.path()).ending, Ending::Code { code: 0 });
    assert_eq!(read_log(dir.path()), "ran\n");
}

fn read_log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join(record::LOG)).unwrap_or_default()
}

#[test]
fn stopping_is_polite_first_and_proves_the_end() {
    let dir = tempfile::tempdir().unwrap();
    supervise(dir.path(), JobId::random(), "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done");
    until("the trainer", || read_log(dir.path()).contains("up").then_some(()));
    let patience = Duration::from_secs(20);
    let ended = until("the end", || match supervisor::stop_step(dir.path(), patience).unwrap() {
        State::Ended(exit) => Some(exit),
        State::Alive { .. } | State::Unclaimed => None,
    });
    assert_eq!(ended.ending, Ending::Code { code: 3 });
    assert!(read_log(dir.path()).contains("bye"));
}

#[test]
fn a_trainer_that_ignores_requests_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    supervise(dir.path(), JobId::random(), "trap '' TERM; sleep 1000 & echo up; wait; wait");
    until("the trainer", || read_log(dir.path()).contains("up").then_some(()));
    let found: Record = record::read(dir.path(), record::RECORD).unwrap().unwrap();
    let leader = found.supervisor.unwrap();
    let grace = Duration::from_millis(300);
    let ended = until("the end", || match supervisor::stop_step(dir.path(), grace).unwrap() {
        State::Ended(exit) => Some(exit),
        State::Alive { .. } | State::Unclaimed => None,
    });
    assert_eq!(ended.ending, Ending::Signal { signal: libc::SIGKILL, out_of_memory: false });
    until("the session to be empty", || {
        procfs::session_members(leader.pid, leader.start_time).is_empty().then_some(())
    });
}

#[test]
fn a_record_of_another_boot_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let me = procfs::stat(i32::try_from(std::process::id()).unwrap()).unwrap();
    let process = record::Process { pid: me.pid, start_time: me.start_time };
    let mut old = Record {
        job: JobId::random(),
        attempt: 1,
        boot_id: procfs::boot_id().unwrap(),
        supervisor: Some(process),
        trainer: None,
        created_at: chrono::Utc::now(),
    };
    record::create(dir.path(), record::RECORD, &old).unwrap();
    assert_eq!(record::observe(dir.path()).unwrap(), State::Alive { supervisor: process });
    old.boot_id = "another boot".into();
    record::replace(dir.path(), record::RECORD, &serde_json::to_vec(&old).unwrap()).unwrap();
    let State::Ended(exit) = record::observe(dir.path()).unwrap() else { panic!("it cannot live") };
    assert_eq!(exit.ending, Ending::Lost);
}
