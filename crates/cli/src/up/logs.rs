//! Logs of the services: appended to by the services themselves, kept within bounds by us.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// A log that is larger is moved to `NAME.1`.
const LIMIT: u64 = 10 << 20;

/// Opens a log for a child process. Append mode makes [`bound`] possible while the child writes.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Moves the content of every log that grew too large to `NAME.1`. What a service writes in that moment may
/// be lost; nothing else is.
pub fn bound(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "log")) {
        if fs::metadata(&path).is_ok_and(|m| m.len() > LIMIT) {
            let old = PathBuf::from(format!("{}.1", path.display()));
            let moved = fs::copy(&path, old).and_then(|_| OpenOptions::new().write(true).open(&path)?.set_len(0));
            if let Err(error) = moved {
                tracing::warn!(%error, path = %path.display(), "cannot shorten the log");
            }
        }
    }
}

#[must_use]
pub fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}

/// What was written after byte `from`, at most 64 KiB of it, and where that ends.
#[must_use]
pub fn since(path: &Path, from: u64) -> (String, u64) {
    let read = || -> io::Result<(Vec<u8>, u64)> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        // Shorter than before: it was moved away.
        let start = if end < from { 0 } else { from };
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(64 << 10).read_to_end(&mut bytes)?;
        let read = u64::try_from(bytes.len()).unwrap_or(0);
        Ok((bytes, start.saturating_add(read)))
    };
    let (bytes, end) = read().unwrap_or((Vec::new(), from));
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

/// The lines after byte `from` that say most about a failure: errors if there are any, else the last ones.
#[must_use]
pub fn last_words(path: &Path, from: u64) -> String {
    let (text, _) = since(path, from.max(size(path).saturating_sub(32 << 10)));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|l| l.contains("ERROR") || l.starts_with("Error")).collect();
    let chosen = if errors.is_empty() { &lines } else { &errors };
    chosen.get(chosen.len().saturating_sub(5)..).unwrap_or_default().join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_log_is_moved_away_while_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut writer = open(&path).unwrap();
        writer.write_all(&vec![b'a'; usize::try_from(LIMIT).unwrap() + 1]).unwrap();
        bound(dir.path());
        writer.write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
        assert_eq!(size(&dir.path().join("x.log.1")), LIMIT + 1);
    }

    #[test]
    fn the_last_words_are_the_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        fs::write(&path, "INFO old\nINFO fine\nERROR it broke\nINFO bye\n").unwrap();
        assert_eq!(last_words(&path, 9), "ERROR it broke");
    }
}
