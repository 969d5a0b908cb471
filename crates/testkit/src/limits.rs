//! Less disk, less memory, another time for a command. What the machine does not allow says why.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Why a test cannot run on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("skipped: {0}")]
pub struct Skip(String);

/// The command with an empty file system of `mebibytes` over `dir`, which only it sees.
pub fn with_small_disk(command: &Command, dir: &Path, mebibytes: u32) -> Result<Command, Skip> {
    let mount = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(dir);
        unshare
    };
    let mut probe = mount("mount -t tmpfs -o size=1m tmpfs \"$1\"");
    let allowed = probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !allowed {
        return Err(Skip("mounting a tmpfs in a namespace of its own is not allowed here".into()));
    }
    let script = format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$1\" && shift && exec \"$@\"");
    Ok(wrap(mount(&script), command))
}

/// A small file system that everybody sees, and that can be filled up; it ends with this value.
#[derive(Debug)]
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// An empty one of `mebibytes` over `dir`.
    pub fn mount(dir: &Path, mebibytes: u32) -> Result<Self, Skip> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(dir);
        match mount.output() {
            Ok(out) if out.status.success() => Ok(Self { dir: dir.to_owned() }),
            Ok(out) => {
                Err(Skip(format!("mounting is not allowed here: {}", String::from_utf8_lossy(&out.stderr).trim())))
            }
            Err(e) => Err(Skip(format!("there is no mount program: {e}"))),
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Uses up all room that is left.
    pub fn fill(&self) -> io::Result<()> {
        let mut ballast = File::create(self.ballast())?;
        for size in [1 << 20, 4096] {
            let zeros = vec![0; size];
            while ballast.write_all(&zeros).is_ok() {}
        }
        Ok(())
    }

    /// Gives back what [`Self::fill`] took.
    pub fn free(&self) -> io::Result<()> {
        fs::remove_file(self.ballast())
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also with files still open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
    }
}

/// The command with at most so many bytes of address space, after which allocations fail in it.
///
/// It stands in for a control group, which a test may not make on every machine.
#[must_use]
pub fn with_little_memory(command: &Command, bytes: u64) -> Command {
    let mut limit = Command::new("prlimit");
    limit.arg(format!("--as={bytes}")).arg("--");
    wrap(limit, command)
}

fn wrap(mut outer: Command, command: &Command) -> Command {
    outer.arg(command.get_program()).args(command.get_args()).env_clear();
    // The wrapper is looked up there.
    outer.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(dir) = command.get_current_dir() {
        outer.current_dir(dir);
    }
    outer
}

/// Another time of day for processes, by libfaketime; their monotonic clock stays.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    /// Holds the offset; processes look into it again and again.
    file: PathBuf,
}

impl Clock {
    /// A clock without offset, whose file lies in `dir`.
    pub fn new(dir: &Path) -> Result<Self, Skip> {
        let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
        let library = places.iter().map(|p| Path::new(p).join("faketime/libfaketime.so.1")).find(|p| p.is_file());
        let library = library.ok_or_else(|| Skip("libfaketime is missing; `apt-get install libfaketime`".into()))?;
        let clock = Self { library, file: dir.join("clock") };
        clock.set(0).map_err(|e| Skip(format!("cannot write below {}: {e}", dir.display())))?;
        Ok(clock)
    }

    /// From now on the processes live `seconds` in the future, or in the past.
    pub fn set(&self, seconds: i64) -> io::Result<()> {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{seconds:+}"))?;
        fs::rename(next, &self.file)
    }

    /// What a process needs in its environment.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, &OsStr); 4] {
        [
            ("LD_PRELOAD", self.library.as_os_str()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.as_os_str()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", OsStr::new("1")),
            // Looked at every time instead of every ten seconds.
            ("FAKETIME_NO_CACHE", OsStr::new("1")),
        ]
    }
}
