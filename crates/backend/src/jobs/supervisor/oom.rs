//! Whether the kernel killed the trainer for memory: by the counter of its control group, because the machine's also
//! counts what happens to others.

use super::procfs;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// A dead process does not tell its group on every system, so it is looked at while it lives; often at first, when it may
/// still be moved to its group, and may not live long there.
const FIRST: Duration = Duration::from_secs(3);
const OFTEN: Duration = Duration::from_millis(5);
const EVERY: Duration = Duration::from_millis(100);

/// The counter of a group, and where it stood when it was first seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    counter: PathBuf,
    first: u64,
}

/// Watches one process.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Option<Seen>>>,
    over: Arc<AtomicBool>,
    /// The machine's counter before.
    machine: u64,
}

impl Watch {
    /// `machine` is the machine's counter from before the process started.
    pub fn start(pid: i32, machine: u64) -> Self {
        let watch = Self { seen: Arc::default(), over: Arc::default(), machine };
        let (seen, over) = (Arc::clone(&watch.seen), Arc::clone(&watch.over));
        thread::spawn(move || {
            let started = Instant::now();
            while !over.load(Ordering::Relaxed) {
                look(pid, &seen);
                thread::sleep(if started.elapsed() < FIRST { OFTEN } else { EVERY });
            }
        });
        watch
    }

    /// Whether the kernel has killed for memory in the group of the process since.
    pub fn struck(&self) -> bool {
        self.over.store(true, Ordering::Relaxed);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match seen.and_then(|seen| Some(count(&seen.counter)? > seen.first)) {
            Some(struck) => struck,
            // No group that counts, or it is gone.
            None => procfs::oom_kills() > self.machine,
        }
    }
}

fn look(pid: i32, seen: &Mutex<Option<Seen>>) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let Some(counter) = groups.lines().find_map(|line| counter_of(Path::new("/sys/fs/cgroup"), line)) else { return };
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.as_ref().is_none_or(|known| known.counter != counter)
        && let Some(first) = count(&counter)
    {
        *seen = Some(Seen { counter, first });
    }
}

/// The file with the counter of the group in a line of `/proc/{pid}/cgroup`. The group of everything, which dead
/// processes of version 1 seem to be in, does not count.
fn counter_of(root: &Path, line: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?.trim_start_matches('/'));
    let file = if controllers.split(',').any(|c| c == "memory") {
        root.join("memory").join(group).join("memory.oom_control")
    } else if controllers.is_empty() {
        root.join(group).join("memory.events")
    } else {
        return None;
    };
    (!group.is_empty() && file.is_file()).then_some(file)
}

fn count(counter: &Path) -> Option<u64> {
    fs::read_to_string(counter).ok()?.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let old = make("memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        let new = make("b/c/memory.events", "low 0\noom 4\noom_kill 2\noom_group_kill 0\n");
        make("memory/memory.oom_control", "oom_kill 9\n");
        let found = |line: &str| counter_of(root.path(), line);
        assert_eq!((found("4:memory:/a"), count(&old)), (Some(old.clone()), Some(3)));
        assert_eq!((found("0::/b/c"), count(&new)), (Some(new.clone()), Some(2)));
        for line in ["4:memory:/", "3:cpuset:/a", "0::/", "0::/gone", ""] {
            assert_eq!(found(line), None, "{line}");
        }
    }

    #[test]
    fn only_kills_since_the_first_look_count() {
        let dir = tempfile::tempdir().unwrap();
        let counter = dir.path().join("memory.events");
        fs::write(&counter, "oom_kill 5\n").unwrap();
        let watch = Watch { seen: Arc::default(), over: Arc::default(), machine: u64::MAX };
        *watch.seen.lock().unwrap() = Some(Seen { counter: counter.clone(), first: 5 });
        assert!(!watch.struck());
        fs::write(&counter, "oom_kill 6\n").unwrap();
        assert!(watch.struck());
        fs::remove_file(&counter).unwrap();
        assert!(!watch.struck(), "without the group the machine's counter decides");
    }
}
