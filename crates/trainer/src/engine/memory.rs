//! How much memory the process uses, as the kernel counts it, and how much it may use.

use std::{fs, path::Path};

/// Resident bytes now and at most so far; `None` where the system does not tell.
#[must_use]
pub fn resident() -> Option<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some((kilobytes(&status, "VmRSS:")?, kilobytes(&status, "VmHWM:")?))
}

/// Bytes this process may have in all: what it has, plus what machine and control group have left. `None` where
/// the system does not tell.
#[must_use]
pub fn available() -> Option<u64> {
    let (resident, _) = resident()?;
    let free = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let group = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")];
    let group = group.into_iter().filter_map(|(limit, used)| left(Path::new("/sys/fs/cgroup"), limit, used)).min();
    Some(resident.saturating_add(group.unwrap_or(u64::MAX).min(free)))
}

/// Bytes left in a control group; `None` without a limit.
fn left(root: &Path, limit: &str, used: &str) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(root.join(name)).ok()?.trim().parse::<u64>().ok();
    read(limit)?.checked_sub(read(used)?)
}

/// The field of that name in a `/proc` file, which counts in KiB.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_includes_what_is_used() {
        let (now, peak) = resident().unwrap();
        assert!(now > 0 && peak >= now);
        assert!(available().unwrap() > now);
    }

    #[test]
    fn a_control_group_limits() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("max"), "max\n").unwrap();
        fs::write(dir.path().join("limit"), "1000\n").unwrap();
        fs::write(dir.path().join("used"), "400\n").unwrap();
        assert_eq!(left(dir.path(), "limit", "used"), Some(600));
        assert_eq!(left(dir.path(), "max", "used"), None);
    }
}
