//! How much memory processes on this machine may have.

use std::{fs, path::Path};

/// Bytes that a trainer may have: those of the machine, or of the control group where that is less. `None` where the
/// system does not tell, or where trainers may compute on a GPU, whose memory is another one.
#[must_use]
pub fn of_trainers() -> Option<u64> {
    if Path::new("/dev/nvidiactl").exists() {
        return None;
    }
    let machine = total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = group(|name| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok());
    Some(group.unwrap_or(u64::MAX).min(machine))
}

/// `MemTotal`, which counts in KiB.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit of a control group of version 2 or 1, whose files `read` gives; `None` without one.
fn group(read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let files = ["memory.max", "memory/memory.limit_in_bytes"];
    files.iter().find_map(|name| read(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells_and_a_control_group_limits() {
        assert!(of_trainers().is_none_or(|bytes| bytes > 1 << 20));
        assert_eq!(total("MemTotal:       24000 kB\nMemFree: 1 kB\n"), Some(24_576_000));
        assert_eq!(group(|_| None), None);
        assert_eq!(group(|_| Some("max\n".into())), None);
        assert_eq!(group(|name| (name == "memory.max").then(|| "1000\n".into())), Some(1000));
        assert_eq!(group(|name| name.starts_with("memory/").then(|| "2000\n".into())), Some(2000));
    }
}
