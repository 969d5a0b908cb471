//! The attempt's own log, `trainer.log`: every log line as text, bounded, uploaded while it grows.

use service::telemetry::LogSink;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// At this size the older half is dropped.
const MAX_BYTES: u64 = 4 << 20;
const GAP: &[u8] = b"[... earlier lines were dropped to keep this log small ...]\n";

#[derive(Debug)]
struct Inner {
    /// `None`: the disk refused, lines only go to standard error.
    file: Option<File>,
    size: u64,
    /// Grows with every write.
    version: u64,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogFile(Arc<Mutex<Inner>>);

impl LogFile {
    /// Starts an empty log at `path`. A disk that refuses costs the file, not the run.
    #[must_use]
    pub fn create(path: &Path) -> Self {
        if let Some(parent) = path.parent() {
            // Opening the file meets the same error.
            let _ = std::fs::create_dir_all(parent);
        }
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path).ok();
        Self(Arc::new(Mutex::new(Inner { file, size: 0, version: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where telemetry writes its lines.
    #[must_use]
    pub fn sink(&self) -> LogSink {
        let log = self.clone();
        Arc::new(move || Box::new(log.clone()))
    }

    /// The content if it changed since version `seen`, with its version.
    #[must_use]
    pub fn changed_since(&self, seen: u64) -> Option<(u64, Vec<u8>)> {
        let mut inner = self.lock();
        if inner.version == seen {
            return None;
        }
        let version = inner.version;
        inner.read_from(0).ok().map(|bytes| (version, bytes))
    }
}

impl Inner {
    fn read_from(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Keeps the newer half, from the start of a line on.
    fn halve(&mut self) -> io::Result<()> {
        let tail = self.read_from(self.size / 2)?;
        let start = tail.iter().position(|b| *b == b'\n').map_or(0, |i| i.saturating_add(1));
        let Some(file) = &mut self.file else { return Ok(()) };
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(GAP)?;
        file.write_all(tail.get(start..).unwrap_or_default())?;
        self.size = file.stream_position()?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        inner.version = inner.version.saturating_add(1);
        if inner.size > MAX_BYTES && inner.halve().is_err() {
            inner.file = None;
        }
        if let Some(file) = &mut inner.file {
            let written = file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(buf));
            match written {
                Ok(()) => inner.size = inner.size.saturating_add(u64::try_from(buf.len()).unwrap_or(0)),
                // A full disk must not make logging fail; the lines are on standard error as well.
                Err(_) => inner.file = None,
            }
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_its_newest_lines_and_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::create(&dir.path().join("trainer.log"));
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..10_000 {
            log.write_all(line.as_bytes()).unwrap();
        }
        log.write_all(b"the end\n").unwrap();
        let (version, bytes) = log.changed_since(0).unwrap();
        assert!(bytes.len() < 5 << 20 && bytes.starts_with(GAP) && bytes.ends_with(b"x\nthe end\n"), "{}", bytes.len());
        assert!(bytes.split(|b| *b == b'\n').skip(1).all(|l| l.is_empty() || l.len() == 1023 || l == b"the end"));
        assert_eq!(log.changed_since(version), None);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_error() {
        let mut log = LogFile::create(Path::new("/proc/no/such/trainer.log"));
        log.write_all(b"line\n").unwrap();
        assert_eq!(log.changed_since(0), None);
    }
}
