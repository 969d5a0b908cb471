//! What `/proc` says about processes.
//!
//! A pid alone names nothing: it is reused. A process is named by (boot id, pid, start time). A session id
//! is the pid of its leader, and the kernel does not reuse a pid while a session of that id has members.

use std::{fs, io, path::Path};

/// A process as `/proc/{pid}/stat` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    /// Ended, but not yet reaped by its parent.
    pub zombie: bool,
    pub group: i32,
    pub session: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// Changes with every boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The name of this machine, to tell runtimes of other machines apart.
#[must_use]
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// None when there is no such process.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(pid, &text)
}

/// The program name may hold spaces and parentheses, so fields count from the last `)`.
fn parse(pid: i32, text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // state is field 3, session 6, starttime 22.
    let start_time = fields.nth(15)?.parse().ok()?;
    Some(Stat { pid, zombie: matches!(state, "Z" | "X" | "x"), group, session, start_time })
}

/// Living processes of the session `leader` led when it started at `start_time`.
#[must_use]
pub fn session_members(leader: i32, start_time: u64) -> Vec<Stat> {
    if stat(leader).is_some_and(|now| now.start_time != start_time) {
        // The number was free to be used again, so nobody of the old session is left.
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(stat)
        .filter(|p| p.session == leader && !p.zombie)
        .collect()
}

/// How often the kernel killed for memory since boot, here or in any container of this machine.
#[must_use]
pub fn oom_kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// Whether `path` is a file that somebody may execute.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_is_parsed() {
        let line = "42 (a) b (c) S 1 40 39 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 10";
        let stat = parse(42, line).unwrap();
        assert_eq!(stat, Stat { pid: 42, zombie: false, group: 40, session: 39, start_time: 777 });
    }

    #[test]
    fn this_process_is_in_its_own_session_listing() {
        let me = stat(i32::try_from(std::process::id()).unwrap()).unwrap();
        let leader = stat(me.session);
        let start = leader.map_or(0, |l| l.start_time);
        assert!(session_members(me.session, start).contains(&me));
        if leader.is_some() {
            assert!(session_members(me.session, start + 1).is_empty());
        }
    }
}
