//! File work behind [`super::local`]: names, listings and atomic replacement, all blocking.
//!
//! s3s-fs keeps an object at `root/bucket/key` and describes it in sidecars in `root`, whose names carry
//! bucket and key in base64. An object's file is never changed in place, only replaced by rename; so hard
//! links between objects are safe.

use super::assembly;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};
use uuid::Uuid;

/// Longest file name of common file systems.
const NAME_MAX: usize = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sidecar {
    /// ETag and checksums.
    Info,
    /// User metadata and headers.
    Attributes,
}

pub(super) fn sidecar_name(bucket: &str, key: &str, kind: Sidecar) -> String {
    let end = match kind {
        Sidecar::Info => "internal",
        Sidecar::Attributes => "metadata",
    };
    format!(".bucket-{}.object-{}.{end}.json", BASE64.encode(bucket), BASE64.encode(key))
}

/// Whether s3s-fs can describe this key at all.
pub(super) fn key_fits(bucket: &str, key: &str) -> bool {
    sidecar_name(bucket, key, Sidecar::Attributes).len() <= NAME_MAX
}

pub(super) fn upload_info_name(upload: &Uuid) -> String {
    format!(".upload-{upload}.json")
}

/// Where s3s-fs keeps the metadata that the finished object is going to have.
pub(super) fn upload_attributes_name(bucket: &str, key: &str, upload: &Uuid) -> String {
    format!(".bucket-{}.object-{}.upload-{upload}.metadata.json", BASE64.encode(bucket), BASE64.encode(key))
}

pub(super) fn part_name(upload: &Uuid, number: u32) -> String {
    format!(".upload_id-{upload}.part-{number}")
}

/// Upload and part number of a part's file name.
fn parse_part_name(name: &str) -> Option<(Uuid, u32)> {
    let (upload, number) = name.strip_prefix(".upload_id-")?.split_once(".part-")?;
    Some((upload.parse().ok()?, number.parse().ok()?))
}

/// A name that s3s-fs removes at its next start if we die before renaming it.
pub(super) fn temporary(root: &Path) -> PathBuf {
    root.join(format!(".tmp.{}.internal.part", Uuid::new_v4()))
}

/// Replaces `path` by `content` in one step.
pub(super) fn write_atomically(root: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary(root);
    fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Gives the file `from` a second name `to`, replacing what was there; the content is shared, not copied.
pub(super) fn link(root: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let temporary = temporary(root);
    // Some file systems have no hard links, or only so many per file.
    let made = fs::hard_link(from, &temporary).or_else(|_| fs::copy(from, &temporary).map(drop));
    let done = made.and_then(|()| move_into_place(&temporary, to));
    // Renaming between two names of one file does nothing and leaves both.
    let _ = fs::remove_file(&temporary);
    done
}

/// Renames, making the directories above `to`, and makes it survive a power loss.
pub(super) fn move_into_place(temporary: &Path, to: &Path) -> io::Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent)?;
    File::open(temporary)?.sync_all()?;
    fs::rename(temporary, to)?;
    File::open(parent)?.sync_all()
}

/// Makes a file that s3s-fs has just written survive a power loss.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileInfo {
    pub size: u64,
    pub modified: SystemTime,
}

impl FileInfo {
    fn of(entry: &fs::DirEntry) -> io::Result<Self> {
        let meta = entry.metadata()?;
        Ok(Self { size: meta.len(), modified: meta.modified()? })
    }
}

/// The first `limit` keys after `after` that begin with `prefix`, and whether there are more. Only the
/// directory the prefix names is read; memory is bounded by `limit`.
pub(super) fn list(
    bucket_root: &Path,
    prefix: &str,
    after: &str,
    limit: usize,
) -> io::Result<(BTreeMap<String, FileInfo>, bool)> {
    let directory = prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut found = BTreeMap::new();
    let mut more = false;
    let mut queue = vec![directory.to_owned()];
    while let Some(directory) = queue.pop() {
        let entries = match fs::read_dir(bucket_root.join(&directory)) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let key = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            if entry.file_type()?.is_dir() {
                let below = format!("{key}/");
                if below.starts_with(prefix) || prefix.starts_with(&below) {
                    queue.push(key);
                }
            } else if key.starts_with(prefix) && key.as_str() > after {
                match FileInfo::of(&entry) {
                    Ok(info) => drop(found.insert(key, info)),
                    // Deleted since the directory was read.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
                if found.len() > limit {
                    found.pop_last();
                    more = true;
                }
            }
        }
    }
    Ok((found, more))
}

/// The parts of an upload by number; `None` when there is no such upload.
pub(super) fn parts(root: &Path, upload: &Uuid) -> io::Result<Option<BTreeMap<u32, FileInfo>>> {
    if !root.join(upload_info_name(upload)).try_exists()? {
        return Ok(None);
    }
    let mut parts = BTreeMap::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if let Some((_, number)) =
            entry.file_name().to_str().and_then(parse_part_name).filter(|(owner, _)| owner == upload)
        {
            parts.insert(number, FileInfo::of(&entry)?);
        }
    }
    assembly::add_taken(root, upload, &mut parts)?;
    Ok(Some(parts))
}

/// Open uploads to `bucket` below `prefix`: key, upload id and when it was opened.
pub(super) fn uploads(root: &Path, bucket: &str, prefix: &str) -> io::Result<Vec<(String, Uuid, SystemTime)>> {
    let start = format!(".bucket-{}.object-", BASE64.encode(bucket));
    let mut uploads = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let Some((key, upload)) = parse_upload_name(&name, &start) else { continue };
        let open = root.join(upload_info_name(&upload)).try_exists()?;
        if open && key.starts_with(prefix) {
            uploads.push((key, upload, FileInfo::of(&entry)?.modified));
        }
    }
    uploads.sort();
    Ok(uploads)
}

fn parse_upload_name(name: &str, start: &str) -> Option<(String, Uuid)> {
    let (key, upload) = name.strip_prefix(start)?.strip_suffix(".metadata.json")?.split_once(".upload-")?;
    let key = String::from_utf8(BASE64.decode(key).ok()?).ok()?;
    Some((key, upload.parse().ok()?))
}

/// Forgets an upload: first its record, so that it is gone even if we die in the middle.
pub(super) fn forget_upload(root: &Path, bucket: &str, key: &str, upload: &Uuid) -> io::Result<()> {
    remove_if_there(&root.join(upload_info_name(upload)))?;
    remove_if_there(&root.join(upload_attributes_name(bucket, key, upload)))?;
    assembly::forget(root, upload)?;
    remove_orphaned_parts(root)
}

/// Removes parts (and what was assembled of them) whose upload is gone.
pub(super) fn remove_orphaned_parts(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let upload =
            name.to_str().and_then(|n| parse_part_name(n).map(|(id, _)| id).or_else(|| assembly::parse_name(n)));
        let Some(upload) = upload else { continue };
        if !root.join(upload_info_name(&upload)).try_exists()? {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(keys: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for key in keys {
            let path = dir.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, key).unwrap();
        }
        dir
    }

    fn names(dir: &tempfile::TempDir, prefix: &str, after: &str, limit: usize) -> (Vec<String>, bool) {
        let (found, more) = list(dir.path(), prefix, after, limit).unwrap();
        (found.into_keys().collect(), more)
    }

    #[test]
    fn listings_are_in_key_order_although_directories_are_not() {
        let dir = tree(&["a/b/c", "a/b-c", "a/b.c", "a/b0", "z"]);
        assert_eq!(
            names(&dir, "", "", 10),
            (["a/b-c", "a/b.c", "a/b/c", "a/b0", "z"].map(String::from).to_vec(), false)
        );
        assert_eq!(names(&dir, "a/b", "a/b.c", 1), (vec!["a/b/c".into()], true));
        assert_eq!(names(&dir, "a/b/", "", 10), (vec!["a/b/c".into()], false));
        assert_eq!(names(&dir, "no/such", "", 10), (vec![], false));
        assert_eq!(names(&dir, "z/", "", 10), (vec![], false));
    }

    #[test]
    fn linking_a_file_onto_its_own_link_leaves_no_temporary_name() {
        let dir = tree(&["a"]);
        let (a, b) = (dir.path().join("a"), dir.path().join("d/b"));
        link(dir.path(), &a, &b).unwrap();
        link(dir.path(), &a, &b).unwrap();
        assert_eq!(fs::read(&b).unwrap(), b"a");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn orphaned_parts_are_removed_and_others_kept() {
        let dir = tree(&[]);
        let (gone, open) = (Uuid::new_v4(), Uuid::new_v4());
        fs::write(dir.path().join(part_name(&gone, 1)), "x").unwrap();
        fs::write(dir.path().join(part_name(&open, 1)), "x").unwrap();
        fs::write(dir.path().join(upload_info_name(&open)), "null").unwrap();
        remove_orphaned_parts(dir.path()).unwrap();
        assert_eq!(parts(dir.path(), &open).unwrap().unwrap().len(), 1);
        assert_eq!(parts(dir.path(), &gone).unwrap(), None);
        assert!(!dir.path().join(part_name(&gone, 1)).exists());
    }
}
