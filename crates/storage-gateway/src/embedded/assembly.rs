//! Turning the parts of an upload into its object without keeping the bytes twice.
//!
//! The parts are appended, a few at a time, to one file, and removed once that file and the record of what it holds
//! are on disk. Nothing is lost wherever a crash or a full disk interrupts it: what the record does not mention is cut
//! off and appended again, because those parts are still there.
//!
//! ```text
//! .upload_id-{upload}.assembly        the bytes so far
//! .upload_id-{upload}.assembled.json  numbers and sizes of the parts in it
//! ```

use super::files::{self, FileInfo};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};
use uuid::Uuid;

/// Bytes appended before parts are removed: how much more disk an upload needs while it is completed.
const BATCH: u64 = 256 << 20;

/// A part that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Taken {
    number: u32,
    size: u64,
}

fn assembly(root: &Path, upload: &Uuid) -> PathBuf {
    root.join(format!(".upload_id-{upload}.assembly"))
}

fn record(root: &Path, upload: &Uuid) -> PathBuf {
    root.join(format!(".upload_id-{upload}.assembled.json"))
}

/// Upload of the name of an assembly or its record.
pub(super) fn parse_name(name: &str) -> Option<Uuid> {
    let (upload, end) = name.strip_prefix(".upload_id-")?.split_once('.')?;
    matches!(end, "assembly" | "assembled.json").then(|| upload.parse().ok())?
}

/// Whether parts of the upload have been taken, so that none can be replaced any more.
pub(super) fn has_begun(root: &Path, upload: &Uuid) -> io::Result<bool> {
    record(root, upload).try_exists()
}

fn taken(root: &Path, upload: &Uuid) -> io::Result<Vec<Taken>> {
    match fs::read(record(root, upload)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Adds the parts that only the assembly holds.
pub(super) fn add_taken(root: &Path, upload: &Uuid, parts: &mut BTreeMap<u32, FileInfo>) -> io::Result<()> {
    for part in taken(root, upload)? {
        parts.entry(part.number).or_insert(FileInfo { size: part.size, modified: SystemTime::now() });
    }
    Ok(())
}

/// Makes `to` of the parts `numbers`, in this order. Repeating it goes on where it stopped.
pub(super) fn assemble(root: &Path, upload: &Uuid, numbers: &[u32], to: &Path) -> io::Result<()> {
    assemble_by(root, upload, numbers, to, BATCH)
}

fn assemble_by(root: &Path, upload: &Uuid, numbers: &[u32], to: &Path, batch: u64) -> io::Result<()> {
    let mut done = taken(root, upload)?;
    if let ([only], true) = (numbers, done.is_empty()) {
        return files::link(root, &root.join(files::part_name(upload, *only)), to);
    }
    if !numbers.iter().zip(&done).all(|(number, taken)| *number == taken.number) || done.len() > numbers.len() {
        return Err(io::Error::other("the list of parts is another one than that of the completion it repeats"));
    }
    let path = assembly(root, upload);
    let mut held: u64 = done.iter().map(|taken| taken.size).sum();
    let mut out = match OpenOptions::new().write(true).create(done.is_empty()).truncate(false).open(&path) {
        // Parts were taken and the file is gone: it was moved into its place.
        Err(e) if e.kind() == io::ErrorKind::NotFound && to.is_file() => return Ok(()),
        other => other?,
    };
    out.set_len(held)?;
    out.seek(SeekFrom::Start(held))?;
    let mut fresh: Vec<Taken> = Vec::new();
    let mut recorded = held;
    for number in numbers.get(done.len()..).unwrap_or_default() {
        if held.saturating_sub(recorded) >= batch {
            out.sync_data()?;
            done.append(&mut fresh);
            write_durably(root, &record(root, upload), &serde_json::to_vec(&done)?)?;
            recorded = held;
            remove_parts(root, upload, &done)?;
        }
        // Between files this is a copy inside the kernel.
        let size = io::copy(&mut File::open(root.join(files::part_name(upload, *number)))?, &mut out)?;
        held = held.saturating_add(size);
        fresh.push(Taken { number: *number, size });
    }
    drop(out);
    files::move_into_place(&path, to)
}

fn remove_parts(root: &Path, upload: &Uuid, taken: &[Taken]) -> io::Result<()> {
    taken.iter().try_for_each(|part| files::remove_if_there(&root.join(files::part_name(upload, part.number))))
}

/// As [`files::write_atomically`], and still there after a power loss.
fn write_durably(root: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = files::temporary(root);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(root)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Removes the assembly and its record.
pub(super) fn forget(root: &Path, upload: &Uuid) -> io::Result<()> {
    files::remove_if_there(&assembly(root, upload))?;
    files::remove_if_there(&record(root, upload))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: u32 = 6;

    fn content(number: u32) -> Vec<u8> {
        vec![u8::try_from(number).unwrap(); 10]
    }

    fn upload(root: &Path) -> Uuid {
        let upload = Uuid::new_v4();
        fs::write(root.join(files::upload_info_name(&upload)), "null").unwrap();
        for number in 1..=PARTS {
            fs::write(root.join(files::part_name(&upload, number)), content(number)).unwrap();
        }
        upload
    }

    fn whole() -> Vec<u8> {
        (1..=PARTS).flat_map(content).collect()
    }

    #[test]
    fn parts_go_as_they_are_appended_and_are_listed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (root, to) = (dir.path(), dir.path().join("bucket/object"));
        let upload = upload(root);
        // The last part is missing, so it stops there.
        let last = root.join(files::part_name(&upload, PARTS));
        fs::remove_file(&last).unwrap();
        let numbers: Vec<u32> = (1..=PARTS).collect();
        assert!(assemble_by(root, &upload, &numbers, &to, 20).is_err());
        assert!(!root.join(files::part_name(&upload, 1)).exists() && !to.exists());
        let listed = files::parts(root, &upload).unwrap().unwrap();
        assert_eq!(listed.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(listed.values().all(|part| part.size == 10) && has_begun(root, &upload).unwrap());

        fs::write(&last, content(PARTS)).unwrap();
        assert!(assemble_by(root, &upload, &[2, 1, 3, 4, 5, 6], &to, 20).is_err(), "another order");
        assemble_by(root, &upload, &numbers, &to, 20).unwrap();
        assert_eq!(fs::read(&to).unwrap(), whole());
        // As after a crash before the upload was forgotten.
        assemble_by(root, &upload, &numbers, &to, 20).unwrap();
        assert_eq!(fs::read(&to).unwrap(), whole());
        files::forget_upload(root, "bucket", "object", &upload).unwrap();
        let left = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).filter(|name| name != "bucket").count();
        assert_eq!(left, 0);
    }

    #[test]
    fn what_was_appended_without_a_record_is_cut_off_and_appended_again() {
        let dir = tempfile::tempdir().unwrap();
        let (root, to) = (dir.path(), dir.path().join("object"));
        let upload = upload(root);
        fs::write(assembly(root, &upload), b"half of something").unwrap();
        assemble_by(root, &upload, &(1..=PARTS).collect::<Vec<_>>(), &to, 1).unwrap();
        assert_eq!(fs::read(&to).unwrap(), whole());
    }

    #[test]
    fn names_are_told_from_those_of_parts() {
        let id = Uuid::new_v4();
        assert_eq!(parse_name(&format!(".upload_id-{id}.assembly")), Some(id));
        assert_eq!(parse_name(&format!(".upload_id-{id}.assembled.json")), Some(id));
        assert_eq!(parse_name(&files::part_name(&id, 3)), None);
    }
}
