//! Segment files of the spool: append, sync, discard, recover.
//!
//! `{first seq}.log` holds one line per event: eight hex digits of the SHA-256 of the JSON, a space, the JSON.
//! `instance` holds the sender's identity and carries the lock.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};
use uuid::Uuid;
use wire::{Event, EventKind, InstanceId, event::Level};

const SEGMENT_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("another trainer process runs this attempt in {0}; it must end first")]
    Locked(PathBuf),
    #[error("cannot start the spool's thread")]
    Thread(#[source] io::Error),
}

/// What an earlier process of the same attempt left behind.
pub struct Recovered {
    pub instance: InstanceId,
    /// Gap-free, ascending.
    pub events: Vec<Event>,
    pub last_seq: u64,
}

#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    /// First seq and path of each segment; the last one is being written.
    segments: Vec<(u64, PathBuf)>,
    current: Option<(File, u64)>,
    /// The disk failed: nothing is written any more.
    broken: bool,
    /// Locked as long as this lives.
    _lock: Option<File>,
}

impl Files {
    pub fn open(dir: &Path) -> Result<(Self, Recovered), SpoolError> {
        let mut files = Self { dir: dir.to_owned(), segments: Vec::new(), current: None, broken: false, _lock: None };
        let fresh = || Recovered { instance: InstanceId::random(), events: Vec::new(), last_seq: 0 };
        match files.lock() {
            Ok((lock, instance)) => {
                files._lock = Some(lock);
                let (events, last_seq) = files.recover();
                Ok((files, Recovered { instance, events, last_seq }))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(SpoolError::Locked(dir.to_owned())),
            // `append` meets the same error and reports it.
            Err(_) => Ok((files, fresh())),
        }
    }

    fn lock(&self) -> io::Result<(File, InstanceId)> {
        fs::create_dir_all(&self.dir)?;
        let path = self.dir.join("instance");
        let mut file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        if let Ok(id) = fs::read_to_string(&path).unwrap_or_default().trim().parse::<Uuid>() {
            return Ok((file, InstanceId(id)));
        }
        let instance = InstanceId::random();
        file.set_len(0)?;
        file.write_all(instance.to_string().as_bytes())?;
        file.sync_all()?;
        Ok((file, instance))
    }

    /// Reads every whole line, cuts the unfinished end off, and fills holes that a damaged disk left (a hole would
    /// stop the backend from ever applying what follows).
    fn recover(&mut self) -> (Vec<Event>, u64) {
        let mut names: Vec<(u64, PathBuf)> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let first = entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()?;
                Some((first, entry.path()))
            })
            .collect();
        names.sort_unstable();
        let Some(first) = names.first().map(|(first, _)| *first) else { return (Vec::new(), 0) };
        let mut events: Vec<Event> = Vec::new();
        let mut last_seq = first.saturating_sub(1);
        for (start, path) in &names {
            let bytes = fs::read(path).unwrap_or_default();
            let mut whole: usize = 0;
            for line in bytes.split_inclusive(|b| *b == b'\n') {
                let Some(event) = parse_line(line) else {
                    tracing::warn!(path = %path.display(), offset = whole, "cut an unfinished line off the event spool");
                    continue;
                };
                whole = whole.saturating_add(line.len());
                fill(&mut events, last_seq, event.seq);
                if event.seq > last_seq {
                    last_seq = event.seq;
                    events.push(event);
                }
            }
            if last_seq < start.saturating_sub(1) {
                fill(&mut events, last_seq, *start);
                last_seq = start.saturating_sub(1);
            }
        }
        self.segments = names;
        (events, last_seq)
    }

    /// Writes and syncs `lines`, whose first event is `first_seq`. Returns the error the first time the disk fails;
    /// later calls do nothing.
    pub fn append(&mut self, lines: &str, first_seq: u64) -> Option<io::Error> {
        if self.broken || lines.is_empty() {
            return None;
        }
        let result = self.try_append(lines, first_seq);
        self.broken = result.is_err();
        result.err()
    }

    fn try_append(&mut self, lines: &str, first_seq: u64) -> io::Result<()> {
        if self.current.as_ref().is_none_or(|(_, size)| *size >= SEGMENT_BYTES) {
            let path = self.dir.join(format!("{first_seq:012}.log"));
            let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
            File::open(&self.dir)?.sync_all()?;
            self.segments.retain(|(_, p)| *p != path);
            self.segments.push((first_seq, path));
            self.current = Some((file, 0));
        }
        let Some((file, size)) = &mut self.current else { return Ok(()) };
        file.write_all(lines.as_bytes())?;
        file.sync_data()?;
        *size = size.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Removes segments that hold nothing above `acked`; never the last one, whose name keeps the sequence.
    pub fn discard(&mut self, acked: u64) {
        while let [(_, path), (next, _), ..] = self.segments.as_slice()
            && next.saturating_sub(1) <= acked
        {
            // A file that cannot be removed costs only disk space until the attempt's directory goes.
            let _ = fs::remove_file(path);
            self.segments.remove(0);
        }
    }
}

fn fill(events: &mut Vec<Event>, last_seq: u64, next: u64) {
    for seq in last_seq.saturating_add(1)..next {
        let message = "this event was lost with a damaged spool file".to_owned();
        events.push(Event { seq, at: chrono::Utc::now(), kind: EventKind::Log { level: Level::Warn, message } });
    }
}

pub fn push_line(out: &mut String, json: &str) {
    out.push_str(&check(json.as_bytes()));
    out.push(' ');
    out.push_str(json);
    out.push('\n');
}

fn parse_line(line: &[u8]) -> Option<Event> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, rest) = line.split_at_checked(8)?;
    let json = rest.strip_prefix(b" ")?;
    if sum != check(json).as_bytes() {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn check(json: &[u8]) -> String {
    let digest = Sha256::digest(json);
    digest.iter().take(4).fold(String::with_capacity(8), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}
