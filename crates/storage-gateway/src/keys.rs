//! Keys, buckets and size limits. Every key that enters the gateway goes through [`Key::parse`].

use service::{ApiError, ApiResult};
use std::fmt;
use wire::{problem::Code, storage::UploadKind};

/// Where uploads wait until they are verified; never addressable from outside.
pub const STAGING: &str = "_staging/";

/// What keys begin with.
pub const ROOTS: [&str; 3] = ["datasets/", "models/", "jobs/"];

/// Longest key in bytes; S3 allows 1024, and the staging area needs some of it.
pub const MAX_KEY: usize = 512;

/// A well-formed object key below `datasets/`, `models/` or `jobs/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Refuses keys that are empty, absolute, too long, climb (`..`), have empty or `.` segments, control
    /// characters, or another root than `datasets/`, `models/` and `jobs/` (so also the staging area).
    pub fn parse(key: &str) -> ApiResult<Self> {
        check_characters(key)?;
        if key.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(refuse(key, "it has an empty, `.` or `..` segment"));
        }
        root(key)?;
        Ok(Self(key.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What this key holds, which decides its size limit.
    #[must_use]
    pub fn kind(&self) -> UploadKind {
        // A parsed key always has a root.
        root(&self.0).unwrap_or(UploadKind::Job)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a prefix of keys; it may be empty and its last segment may be incomplete.
pub fn check_prefix(prefix: &str) -> ApiResult<()> {
    if prefix.is_empty() {
        return Ok(());
    }
    check_characters(prefix)?;
    let mut segments: Vec<&str> = prefix.split('/').collect();
    let last = segments.pop().unwrap_or_default();
    if last == ".." || segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
        return Err(refuse(prefix, "it has an empty, `.` or `..` segment"));
    }
    if ROOTS.iter().any(|root| root.starts_with(prefix) || prefix.starts_with(root)) {
        return Ok(());
    }
    Err(refuse(prefix, "it must begin with datasets/, models/ or jobs/"))
}

/// A prefix that is going to be deleted must name a directory, so that `models/a` does not take `models/ab`.
pub fn check_delete_prefix(prefix: &str) -> ApiResult<()> {
    check_prefix(prefix)?;
    if prefix.ends_with('/') && prefix.matches('/').count() >= 2 {
        return Ok(());
    }
    Err(refuse(prefix, "a prefix to delete must end in `/` and lie below its root, as in models/name/revision/"))
}

fn check_characters(key: &str) -> ApiResult<()> {
    if key.is_empty() {
        return Err(refuse(key, "it is empty"));
    }
    if key.len() > MAX_KEY {
        return Err(refuse("…", &format!("it has {} bytes, more than {MAX_KEY}", key.len())));
    }
    if key.split('/').any(|segment| segment.len() > 255) {
        return Err(refuse("…", "one of its segments has more than 255 bytes"));
    }
    // What URL decoding puts in place of bytes that are no UTF-8.
    if key.contains(char::REPLACEMENT_CHARACTER) {
        return Err(refuse(key, "it is not valid UTF-8"));
    }
    // XML, which S3 speaks, cannot carry these.
    if key.chars().any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')) {
        return Err(refuse(&key.escape_debug().to_string(), "it has control characters"));
    }
    Ok(())
}

fn root(key: &str) -> ApiResult<UploadKind> {
    match key.split_once('/') {
        Some(("datasets", _)) => Ok(UploadKind::Dataset),
        Some(("models", _)) => Ok(UploadKind::Model),
        Some(("jobs", _)) => Ok(UploadKind::Job),
        _ => Err(refuse(key, "it must begin with datasets/, models/ or jobs/")),
    }
}

fn refuse(key: &str, why: &str) -> ApiError {
    ApiError::new(Code::Invalid, format!("`{key}` cannot be a key: {why}"))
}

/// The two logical buckets; they may be the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// Keys under `datasets/`.
    pub datasets: String,
    /// Keys under `models/` and `jobs/`.
    pub models: String,
}

impl Buckets {
    #[must_use]
    pub fn of(&self, kind: UploadKind) -> &str {
        match kind {
            UploadKind::Dataset => &self.datasets,
            UploadKind::Model | UploadKind::Job => &self.models,
        }
    }

    /// Each bucket once, in the order of the keys they hold (`datasets` sorts before `jobs` and `models`).
    #[must_use]
    pub fn distinct(&self) -> Vec<&str> {
        if self.datasets == self.models { vec![&self.datasets] } else { vec![&self.datasets, &self.models] }
    }

    /// The buckets that can hold keys with this prefix, in key order.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Vec<&str> {
        if prefix.starts_with("datasets/") {
            vec![&self.datasets]
        } else if prefix.starts_with("models/") || prefix.starts_with("jobs/") {
            vec![&self.models]
        } else {
            self.distinct()
        }
    }
}

/// Largest object of each kind in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub dataset: u64,
    /// Also for what jobs produce: a merged model is as large as its base.
    pub model: u64,
}

impl Limits {
    #[must_use]
    pub const fn of(&self, kind: UploadKind) -> u64 {
        match kind {
            UploadKind::Dataset => self.dataset,
            UploadKind::Model | UploadKind::Job => self.model,
        }
    }

    /// Refuses `size` bytes of `kind` with `TOO_LARGE`.
    pub fn check(&self, kind: UploadKind, size: u64) -> ApiResult<()> {
        if size <= self.of(kind) { Ok(()) } else { Err(self.exceeded(kind, &format!("{size} bytes"))) }
    }

    /// The refusal itself; `size` says how much was announced or seen.
    #[must_use]
    pub fn exceeded(&self, kind: UploadKind, size: &str) -> ApiError {
        let (what, setting) = match kind {
            UploadKind::Dataset => ("a dataset file", "DATASET_MAX_BYTES"),
            UploadKind::Model => ("a model file", "MODEL_MAX_BYTES"),
            UploadKind::Job => ("a file of a job", "MODEL_MAX_BYTES"),
        };
        let limit = self.of(kind);
        ApiError::new(
            Code::TooLarge,
            format!(
                "{what} may have {limit} bytes, this one has {size}; nothing was stored ({setting} sets the limit)"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_keys_are_refused() {
        let long = format!("jobs/{}", "x/".repeat(MAX_KEY));
        let segment = format!("jobs/{}", "x".repeat(256));
        for key in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "jobs/../models/a",
            "jobs/..",
            "../jobs/a",
            "jobs//a",
            "jobs/a/",
            "jobs/./a",
            "jobs/a\nb",
            "jobs/\0",
            "jobs/\u{7f}",
            "jobs/\u{fffd}",
            "_staging/a",
            "other/a",
            "jobs",
            long.as_str(),
            segment.as_str(),
        ] {
            assert!(Key::parse(key).is_err(), "{key:?} was accepted");
        }
    }

    #[test]
    fn ordinary_keys_are_accepted() {
        for key in ["jobs/u/j/attempt-1/logs/trainer.log", "datasets/ü/a b+c%20.jsonl", "models/..a/r/x...y"] {
            assert_eq!(Key::parse(key).unwrap().as_str(), key);
        }
    }

    #[test]
    fn prefixes_may_end_inside_a_segment_but_not_climb_or_leave_the_roots() {
        for prefix in ["", "d", "datasets/", "jobs/u/j", "models/a/."] {
            assert!(check_prefix(prefix).is_ok(), "{prefix:?} was refused");
        }
        for prefix in ["_staging/", "_", "/", "jobs/../", "jobs/..", "jobs//", "x"] {
            assert!(check_prefix(prefix).is_err(), "{prefix:?} was accepted");
        }
    }

    #[test]
    fn only_a_directory_below_a_root_can_be_deleted_as_a_prefix() {
        assert!(check_delete_prefix("models/a/").is_ok());
        for prefix in ["", "models/", "models/a", "m"] {
            assert!(check_delete_prefix(prefix).is_err(), "{prefix:?} was accepted");
        }
    }
}
