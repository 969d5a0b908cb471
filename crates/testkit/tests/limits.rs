//! Less disk, less memory, another time, and signals.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::Duration,
};
use testkit::{
    Process,
    limits::{Clock, with_little_memory, with_small_disk},
};

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("PATH", std::env::var_os("PATH").unwrap());
    command
}

#[test]
fn a_small_disk_fills_up_and_is_gone_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let fill = sh(&format!("dd if=/dev/zero of={}/x bs=1M count=5 2>&1", dir.path().display()));
    let mut command = match with_small_disk(&fill, dir.path(), 2) {
        Ok(command) => command,
        Err(skip) => return eprintln!("{skip}"),
    };
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!out.status.success() && text.contains("No space left on device"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn memory_beyond_the_limit_is_refused() {
    let hungry = sh("head -c 200000000 /dev/zero | tail -c 200000000 | wc -c");
    let out = with_little_memory(&hungry, 64 << 20).stderr(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "0");
}

#[test]
fn a_clock_jumps_while_a_process_looks_at_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = match Clock::new(dir.path()) {
        Ok(clock) => clock,
        Err(skip) => return eprintln!("{skip}"),
    };
    let now = || {
        let out = Command::new("date").arg("+%s").envs(clock.environment()).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().parse::<i64>().unwrap()
    };
    let before = now();
    clock.set(3600).unwrap();
    let ahead = now() - before;
    assert!((3600..3620).contains(&ahead), "{ahead}");
    clock.set(-3600).unwrap();
    let behind = before - now();
    assert!((3580..=3600).contains(&behind), "{behind}");
}

#[test]
fn a_frozen_process_neither_ends_nor_works_until_it_is_woken() {
    let mut sleeper = Process::spawn(&mut sh("sleep 0.2; exit 3")).unwrap();
    sleeper.freeze().unwrap();
    assert!(sleeper.wait(Duration::from_millis(500)).is_err());
    sleeper.wake().unwrap();
    assert_eq!(sleeper.wait(Duration::from_secs(10)).unwrap().code(), Some(3));

    let mut sleeper = Process::spawn(Command::new("sleep").arg("100")).unwrap();
    sleeper.terminate().unwrap();
    assert_eq!(sleeper.wait(Duration::from_secs(10)).unwrap().signal(), Some(15));
    let mut sleeper = Process::spawn(Command::new("sleep").arg("100")).unwrap();
    assert_eq!(sleeper.kill().unwrap().signal(), Some(9));
}
