//! A process that passes a fail point.

use service::fail_point;
use std::{os::unix::process::ExitStatusExt, process::Command};

/// Set in the process that passes points.
const INNER: &str = "FAILPOINT_TEST_INNER";

#[test]
fn the_armed_point_ends_the_process_at_the_passing_that_was_asked_for() {
    if std::env::var_os(INNER).is_some() {
        for _ in 0..3 {
            fail_point!("test.first");
            fail_point!("test.second");
        }
        std::process::exit(7);
    }
    let run = |point: &str| {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "the_armed_point_ends_the_process_at_the_passing_that_was_asked_for"]);
        again.env(INNER, "1").env("HONE_FAIL_POINT", point).output().unwrap().status
    };
    assert_eq!(run("test.none").code(), Some(7));
    assert_eq!(run("test.second:4").code(), Some(7));
    assert_eq!(run("test.first").signal(), Some(6));
    assert_eq!(run("test.second:3").signal(), Some(6));
}
