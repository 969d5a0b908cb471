//! Writing files so that a crash or a full disk leaves either the old state or the new one.

use super::TrainError;
use candle_core::Tensor;
use safetensors::{Dtype, View};
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Write,
    path::Path,
};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

const TEMPORARY: &str = ".partial-";

/// Whether a directory of this name is the remains of an interrupted [`publish_dir`].
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}

/// Creates the directory `target` with what `fill` writes into it: under a temporary name beside it,
/// synced, then renamed. An older `target` is replaced.
///
/// # Errors
/// Whatever `fill` fails with, or a failed file operation; then nothing is left behind.
pub fn publish_dir(target: &Path, fill: impl FnOnce(&Path) -> Result<(), TrainError>) -> Result<(), TrainError> {
    // The parent of a bare name is empty.
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| TrainError::io("create", parent, e))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temp = parent.join(format!("{TEMPORARY}{name}"));
    let result = (|| {
        remove(&temp)?;
        fs::create_dir(&temp).map_err(|e| TrainError::io("create", &temp, e))?;
        fill(&temp)?;
        sync_dir(&temp)?;
        discard(target)?;
        fs::rename(&temp, target).map_err(|e| TrainError::io("rename", &temp, e))?;
        sync_dir(parent)
    })();
    if result.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&temp);
    }
    result
}

/// Removes a directory so that no half of it is ever seen under its name.
///
/// # Errors
/// A failed renaming or removal.
pub fn discard(dir: &Path) -> Result<(), TrainError> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let doomed = dir.with_file_name(format!("{TEMPORARY}old-{name}"));
    remove(&doomed)?;
    match fs::rename(dir, &doomed) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(TrainError::io("rename", dir, e)),
        Ok(()) => remove(&doomed),
    }
}

fn remove(dir: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io("remove", dir, e)),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> Result<(), TrainError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| TrainError::io("sync", dir, e))
}

/// Writes and syncs one file.
///
/// # Errors
/// `DiskFull`, or another failed write.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut file = File::create(path).map_err(|e| TrainError::io("create", path, e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| TrainError::io("write", path, e))
}

/// Writes and syncs a JSON file.
///
/// # Errors
/// `DiskFull`, or another failed write.
pub fn write_json(path: &Path, value: &Value) -> Result<(), TrainError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| TrainError::internal("cannot write JSON").caused_by(e))?;
    write(path, &bytes)
}

/// Reads a JSON file of a model.
///
/// # Errors
/// `ModelCorrupt` for what is no JSON; a failed read.
pub fn read_json(path: &Path) -> Result<Value, TrainError> {
    let text = fs::read(path).map_err(|e| TrainError::io("read", path, e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    serde_json::from_slice(&text)
        .map_err(|e| TrainError::model(format!("`{name}` is not valid JSON: {e}")).caused_by(e))
}

/// Writes and syncs a safetensors file with the metadata PyTorch tools expect. The same tensors give the
/// same bytes.
///
/// # Errors
/// `DiskFull`, or another failed write.
pub fn write_tensors<V: View>(path: &Path, tensors: impl IntoIterator<Item = (String, V)>) -> Result<(), TrainError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => TrainError::io("write", path, e),
        e => TrainError::internal(format!("cannot write {}: {e}", path.display())).caused_by(e),
    })?;
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| TrainError::io("sync", path, e))
}

/// A vector to be written as a tensor, turned into bytes only when its turn comes.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    shape: [usize; 1],
    elements: Elements<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
}

impl<'a> Values<'a> {
    #[must_use]
    pub const fn f32(values: &'a [f32]) -> Self {
        Self { shape: [values.len()], elements: Elements::F32(values) }
    }

    #[must_use]
    pub const fn u8(values: &'a [u8]) -> Self {
        Self { shape: [values.len()], elements: Elements::U8(values) }
    }
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        match self.elements {
            Elements::F32(_) => Dtype::F32,
            Elements::U8(_) => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.elements {
            Elements::F32(values) => Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Elements::U8(values) => Cow::Borrowed(values),
        }
    }

    fn data_len(&self) -> usize {
        match self.elements {
            Elements::F32(values) => size_of_val(values),
            Elements::U8(values) => values.len(),
        }
    }
}

/// Copies a file and syncs the copy.
///
/// # Errors
/// A failed read or write.
pub fn copy(from: &Path, to: &Path) -> Result<(), TrainError> {
    fs::copy(from, to).map_err(|e| TrainError::io("copy", from, e))?;
    File::open(to).and_then(|f| f.sync_all()).map_err(|e| TrainError::io("sync", to, e))
}
