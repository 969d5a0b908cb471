//! The trainer's output within bounds: two files, the older one dropped when the newer one is full.

use super::record::{LOG, OLD_LOG};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Bytes of one file; both together are twice that.
pub const SEGMENT_BYTES: u64 = 8 << 20;

#[derive(Debug)]
pub struct BoundedLog {
    dir: PathBuf,
    limit: u64,
    current: Mutex<Option<(File, u64)>>,
}

impl BoundedLog {
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self::with_limit(dir, SEGMENT_BYTES)
    }

    fn with_limit(dir: &Path, limit: u64) -> Self {
        let log = Self { dir: dir.into(), limit, current: Mutex::new(None) };
        *log.current.lock().unwrap_or_else(PoisonError::into_inner) = log.segment().ok();
        log
    }

    fn segment(&self) -> io::Result<(File, u64)> {
        let file = File::options().append(true).create(true).open(self.dir.join(LOG))?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }

    /// Appends; what cannot be written is dropped, and the next write tries again.
    pub fn write(&self, bytes: &[u8]) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let added = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if current.as_ref().is_some_and(|(_, size)| size.saturating_add(added) > self.limit) {
            *current = None;
            let _ = fs::rename(self.dir.join(LOG), self.dir.join(OLD_LOG));
        }
        if current.is_none() {
            *current = self.segment().ok();
        }
        if let Some((file, size)) = current.as_mut() {
            match file.write_all(bytes) {
                Ok(()) => *size = size.saturating_add(added),
                Err(_) => *current = None,
            }
        }
    }
}

/// Everything kept, oldest first.
pub fn read_all(dir: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = read_if_there(&dir.join(OLD_LOG))?;
    bytes.extend(read_if_there(&dir.join(LOG))?);
    Ok(bytes)
}

fn read_if_there(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// The last `lines` lines within the last 16 KiB.
#[must_use]
pub fn tail(dir: &Path, lines: usize) -> String {
    const REACH: u64 = 16 << 10;
    let mut bytes = end_of(&dir.join(LOG), REACH);
    let read = u64::try_from(bytes.len()).unwrap_or(REACH);
    if read < REACH {
        // Just after a rotation most of the tail is in the older file.
        let newer = std::mem::replace(&mut bytes, end_of(&dir.join(OLD_LOG), REACH - read));
        bytes.extend(newer);
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

fn end_of(path: &Path, bytes: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(bytes)))?;
        let mut end = Vec::new();
        file.take(bytes).read_to_end(&mut end)?;
        Ok(end)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_part_within_its_bound() {
        let dir = std::env::temp_dir().join(format!("hone-log-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).unwrap();
        let log = BoundedLog::with_limit(&dir, 100);
        for line in 0..100 {
            log.write(format!("line {line:03}\n").as_bytes());
        }
        let text = String::from_utf8(read_all(&dir).unwrap()).unwrap();
        assert!(text.len() <= 200 && text.len() > 100, "{}", text.len());
        assert!(text.ends_with("line 098\nline 099\n"), "{text}");
        assert_eq!(tail(&dir, 2), "line 098\nline 099");
        fs::remove_dir_all(&dir).unwrap();
    }
}
