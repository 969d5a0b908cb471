//! Reading weights from safetensors files, and nothing else: no pickle, no memory mapping (a file that
//! shrinks under a mapping kills the process), every byte range checked before it is read.

use super::TrainError;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, tensor::Metadata};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};
use wire::config::BaseDtype;

/// Largest header read; the safetensors library uses the same cap.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes read at a time; a multiple of every element size.
const CHUNK: usize = 4 << 20;
const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

#[derive(Debug, Clone)]
struct Entry {
    file: PathBuf,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

/// The tensors of a model directory or of a single file, located but not loaded.
#[derive(Debug, Clone)]
pub struct WeightFiles {
    entries: BTreeMap<String, Entry>,
    keep: BaseDtype,
}

impl WeightFiles {
    /// Chooses what [`WeightFiles::frozen`] loads; f32 otherwise.
    #[must_use]
    pub fn keeping(self, keep: BaseDtype) -> Self {
        Self { keep, ..self }
    }

    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// `ModelCorrupt`, naming the file and what is wrong with it.
    pub fn open_dir(dir: &Path) -> Result<Self, TrainError> {
        let single = dir.join(SINGLE);
        let index = dir.join(INDEX);
        if index.exists() {
            return Self::open_sharded(dir, &index);
        }
        if single.exists() {
            return Self::open_file(&single);
        }
        let pickled = std::fs::read_dir(dir)
            .map_err(|e| TrainError::io("read the model directory", dir, e))?
            .filter_map(Result::ok)
            .map(|f| f.file_name().to_string_lossy().into_owned())
            .find(|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth") || n.ends_with(".ckpt"));
        Err(TrainError::model(match pickled {
            Some(name) => format!(
                "the model has its weights in `{name}`, which is a pickle and may run code when loaded; convert it to safetensors"
            ),
            None => format!("the model has neither `{SINGLE}` nor `{INDEX}`"),
        }))
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self, TrainError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read_to_string(index).map_err(|e| TrainError::io("read", index, e))?;
        let parsed: Index = serde_json::from_str(&text)
            .map_err(|e| TrainError::model(format!("`{INDEX}` cannot be read: {e}")).caused_by(e))?;
        let mut shards: Vec<&String> = parsed.weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        let mut entries = BTreeMap::new();
        for shard in shards {
            let plain = Path::new(shard).file_name().is_some_and(|n| n == shard.as_str());
            if !plain || !dir.join(shard).exists() {
                return Err(TrainError::model(format!("`{INDEX}` names the file `{shard}`, which is not there")));
            }
            entries.extend(Self::open_file(&dir.join(shard))?.entries);
        }
        match parsed.weight_map.keys().find(|name| !entries.contains_key(*name)) {
            Some(name) => Err(TrainError::model(format!("`{INDEX}` names the tensor `{name}`, which no shard has"))),
            None => Ok(Self { entries, keep: BaseDtype::F32 }),
        }
    }

    /// Reads the header of one safetensors file and checks it against the file's size.
    ///
    /// # Errors
    /// `ModelCorrupt`, naming the file and what is wrong with it.
    pub fn open_file(path: &Path) -> Result<Self, TrainError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bad = |what: String| TrainError::model(format!("`{name}` is no usable safetensors file: {what}"));
        let mut file = File::open(path).map_err(|e| TrainError::io("open", path, e))?;
        let size = file.metadata().map_err(|e| TrainError::io("inspect", path, e))?.len();
        let mut length = [0_u8; 8];
        file.read_exact(&mut length).map_err(|_| bad(format!("it has only {size} bytes")))?;
        let header_len = u64::from_le_bytes(length);
        if header_len > MAX_HEADER || header_len.saturating_add(8) > size {
            return Err(bad(format!("its header claims {header_len} bytes of a file of {size}")));
        }
        let mut header = vec![0_u8; usize::try_from(header_len).map_err(|e| bad(e.to_string()))?];
        file.read_exact(&mut header).map_err(|e| TrainError::io("read", path, e))?;
        let meta: Metadata = serde_json::from_slice(&header).map_err(|e| bad(format!("its header is broken: {e}")))?;
        let start = header_len.saturating_add(8);
        let expected = start.saturating_add(u64::try_from(meta.data_len()).unwrap_or(u64::MAX));
        if expected != size {
            let how = if size < expected { "truncated" } else { "longer than its header says" };
            return Err(bad(format!("it is {how}: {size} bytes instead of {expected}")));
        }
        let mut entries = BTreeMap::new();
        for (tensor, info) in meta.tensors() {
            let (from, to) = info.data_offsets;
            let bytes = to.checked_sub(from).ok_or_else(|| bad(format!("`{tensor}` has a negative size")))?;
            let offset = start.saturating_add(u64::try_from(from).unwrap_or(u64::MAX));
            let (dtype, shape) = (info.dtype, info.shape.clone());
            entries.insert(tensor, Entry { file: path.to_owned(), dtype, shape, offset, bytes });
        }
        Ok(Self { entries, keep: BaseDtype::F32 })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The files, each with the names of its tensors.
    #[must_use]
    pub fn shards(&self) -> BTreeMap<&Path, Vec<&str>> {
        let mut shards: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
        for (name, entry) in &self.entries {
            shards.entry(&entry.file).or_default().push(name);
        }
        shards
    }

    /// Bytes of all tensors when frozen and kept as `keep` says.
    #[must_use]
    pub fn kept_bytes(&self, keep: BaseDtype) -> u64 {
        let wide = |e: &Entry| match keep {
            BaseDtype::Auto => !matches!(e.dtype, Dtype::BF16 | Dtype::F16),
            BaseDtype::F32 => true,
            BaseDtype::Bf16 | BaseDtype::F16 => false,
        };
        let bytes = |e: &Entry| e.shape.iter().product::<usize>().saturating_mul(if wide(e) { 4 } else { 2 });
        self.entries.values().map(|e| u64::try_from(bytes(e)).unwrap_or(u64::MAX)).sum()
    }

    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// Element type of `name` as stored.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.entries.get(name).map(|e| e.dtype)
    }

    /// Checks that exactly the `expected` tensors are there, in their shapes. `ignored` tells which
    /// additional names are harmless.
    ///
    /// # Errors
    /// `ModelCorrupt`, naming the first few missing, unexpected and misshapen tensors.
    pub fn check(&self, expected: &[(String, Vec<usize>)], ignored: impl Fn(&str) -> bool) -> Result<(), TrainError> {
        let missing = expected.iter().filter(|(n, _)| !self.contains(n)).map(|(n, _)| format!("`{n}`"));
        let known: std::collections::BTreeSet<&str> = expected.iter().map(|(n, _)| n.as_str()).collect();
        let unexpected = self.names().filter(|n| !known.contains(n) && !ignored(n)).map(|n| format!("`{n}`"));
        let shapes = expected.iter().filter_map(|(n, want)| {
            let have = self.shape(n)?;
            (have != want.as_slice()).then(|| format!("`{n}` is {have:?} instead of {want:?}"))
        });
        let problems: Vec<String> =
            [listed("missing", missing), listed("unexpected", unexpected), listed("wrong shape:", shapes)]
                .into_iter()
                .flatten()
                .collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(TrainError::model(format!("the weights do not fit `config.json`: {}", problems.join("; "))))
    }

    /// One tensor as it is stored.
    ///
    /// # Errors
    /// `ModelCorrupt` for an absent tensor.
    pub fn bytes(&self, name: &str) -> Result<(Dtype, Vec<usize>, Vec<u8>), TrainError> {
        let entry = self.entry(name)?;
        let failed = |e| TrainError::io("read", &entry.file, e);
        let mut file = File::open(&entry.file).map_err(failed)?;
        file.seek(SeekFrom::Start(entry.offset)).map_err(failed)?;
        let mut bytes = vec![0_u8; entry.bytes];
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok((entry.dtype, entry.shape.clone(), bytes))
    }

    fn entry(&self, name: &str) -> Result<&Entry, TrainError> {
        self.entries.get(name).ok_or_else(|| TrainError::model(format!("the weights have no tensor named `{name}`")))
    }

    /// Loads one tensor to be kept in memory as [`WeightFiles::keeping`] says.
    ///
    /// # Errors
    /// As [`WeightFiles::load`]; `ConfigInvalid` for values beyond the range of f16.
    pub fn frozen(&self, name: &str) -> Result<Tensor, TrainError> {
        let stored = self.dtype(name);
        let wanted = match (self.keep, stored) {
            (BaseDtype::Auto, Some(Dtype::BF16)) | (BaseDtype::Bf16, _) => DType::BF16,
            (BaseDtype::Auto, Some(Dtype::F16)) | (BaseDtype::F16, _) => DType::F16,
            (BaseDtype::Auto | BaseDtype::F32, _) => DType::F32,
        };
        if let (DType::BF16, Some(Dtype::BF16)) | (DType::F16, Some(Dtype::F16)) = (wanted, stored) {
            let (_, shape, bytes) = self.bytes(name)?;
            return Ok(Tensor::from_raw_buffer(&bytes, wanted, &shape, &Device::Cpu)?);
        }
        let (values, shape) = self.load(name)?;
        if wanted == DType::F16 && values.iter().any(|v| v.abs() > f16::MAX.to_f32()) {
            return Err(TrainError::config(format!(
                "training.base_dtype: `{name}` has values beyond the range of f16; use bf16 or f32"
            )));
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(wanted)?)
    }

    /// Loads one tensor as f32 (f16 and bf16 are widened exactly).
    ///
    /// # Errors
    /// `ModelCorrupt` for an absent tensor or an element type that is no float of 16 to 64 bits.
    pub fn load(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), TrainError> {
        let entry = self.entry(name)?;
        let path = &entry.file;
        let failed = |e| TrainError::io("read", path, e);
        let mut file = File::open(path).map_err(failed)?;
        file.seek(SeekFrom::Start(entry.offset)).map_err(failed)?;
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        let mut buffer = vec![0_u8; CHUNK.min(entry.bytes)];
        let mut left = entry.bytes;
        while left > 0 {
            let Some(part) = buffer.get_mut(..CHUNK.min(left)) else { break };
            file.read_exact(part).map_err(failed)?;
            left = left.saturating_sub(part.len());
            widen(part, entry.dtype, &mut values).ok_or_else(|| {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                TrainError::model(format!(
                    "`{name}` in `{file}` has element type {:?}; F32, F16, BF16 and F64 can be read",
                    entry.dtype
                ))
            })?;
        }
        Ok((values, entry.shape.clone()))
    }
}

/// At most five of `items` behind `what`.
fn listed(what: &str, items: impl Iterator<Item = String>) -> Option<String> {
    let items: Vec<String> = items.collect();
    let first: Vec<&str> = items.iter().take(5).map(String::as_str).collect();
    let more = items.len().saturating_sub(first.len());
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!items.is_empty()).then(|| format!("{what} {}{tail}", first.join(", ")))
}

/// Appends little-endian elements to `values`; `None` for a type that is no float.
fn widen(bytes: &[u8], dtype: Dtype, values: &mut Vec<f32>) -> Option<()> {
    match dtype {
        Dtype::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::F16 => values.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        Dtype::BF16 => values.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        Dtype::F64 => {
            #[expect(clippy::as_conversions, reason = "rounding to f32 is the point")]
            values.extend(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32));
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;
    use wire::job::FailureCode;

    fn file(dir: &Path) -> PathBuf {
        let data: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2, 2], &data).unwrap();
        let path = dir.join(SINGLE);
        safetensors::serialize_to_file([("a", view)], None, &path).unwrap();
        path
    }

    fn message(result: Result<WeightFiles, TrainError>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.code, FailureCode::ModelCorrupt);
        error.message
    }

    #[test]
    fn a_good_file_is_read_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path());
        let weights = WeightFiles::open_dir(dir.path()).unwrap();
        assert_eq!(weights.load("a").unwrap(), (vec![1.0, 2.0, 3.0, 4.0], vec![2, 2]));
        let error = weights.check(&[("a".into(), vec![4]), ("b".into(), vec![1])], |_| false).unwrap_err();
        assert_eq!(
            error.message,
            "the weights do not fit `config.json`: missing `b`; wrong shape: `a` is [2, 2] instead of [4]"
        );
        let error = weights.check(&[], |_| false).unwrap_err();
        assert_eq!(error.message, "the weights do not fit `config.json`: unexpected `a`");
    }

    #[test]
    fn corrupt_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, good.get(..good.len() - 3).unwrap()).unwrap();
        assert!(
            message(WeightFiles::open_file(&path))
                .contains("`model.safetensors` is no usable safetensors file: it is truncated")
        );
        std::fs::write(&path, [0xff; 32]).unwrap();
        assert!(
            message(WeightFiles::open_file(&path))
                .contains("its header claims 18446744073709551615 bytes of a file of 32")
        );
        std::fs::write(&path, b"abc").unwrap();
        assert!(message(WeightFiles::open_file(&path)).contains("it has only 3 bytes"));
        let mut flipped = good;
        if let Some(byte) = flipped.get_mut(9) {
            *byte ^= 0x40;
        }
        std::fs::write(&path, flipped).unwrap();
        assert!(message(WeightFiles::open_file(&path)).contains("its header is broken"));
    }

    #[test]
    fn pickled_weights_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
        assert!(message(WeightFiles::open_dir(dir.path())).contains("`pytorch_model.bin`, which is a pickle"));
    }

    #[test]
    fn a_missing_shard_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(INDEX), r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#).unwrap();
        assert!(
            message(WeightFiles::open_dir(dir.path()))
                .contains("`model-00001-of-00002.safetensors`, which is not there")
        );
        std::fs::write(dir.path().join(INDEX), r#"{"weight_map":{"a":"../x.safetensors"}}"#).unwrap();
        assert!(message(WeightFiles::open_dir(dir.path())).contains("`../x.safetensors`, which is not there"));
    }
}
