//! Merging an adapter into its base model: `W + scale · B·A`, with DoRA brought to the adapter's row lengths.
//!
//! The result is a model directory like the base: the same tensors in the same shards, tokenizer and configuration
//! beside them. One shard is in memory at a time.

use super::{
    TrainError, artifacts, files,
    lora::{Module, Saved},
    params::Params,
    weights::{INDEX, WeightFiles},
};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, View};
use serde_json::{Value, json};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Element type of the merged weights; the others stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MergedDtype {
    /// That of the base model.
    Base,
    /// 32 bits, for all tensors: the merged weights are then exact.
    F32,
}

/// Bytes of one tensor as they go into a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes the model directory `target`. Returns how many weights the adapter changed.
///
/// # Errors
/// `ModelCorrupt` for unusable files or an adapter of another model; a failed write. `target` then does not appear.
pub fn merge(model: &Path, adapter: &Path, target: &Path, dtype: MergedDtype) -> Result<usize, TrainError> {
    let base = WeightFiles::open_dir(model)?;
    let adapter = Saved::open(adapter)?;
    let linear = |name: &'_ str| -> Option<(String, (usize, usize))> {
        match base.shape(name)? {
            &[out, inner] => Some((name.strip_suffix(".weight")?.to_owned(), (out, inner))),
            _ => None,
        }
    };
    let linears: Vec<_> = base.names().filter_map(linear).collect();
    let adapted = adapter.check(linears.iter().map(|(path, shape)| (path.as_str(), *shape)), &Params::default())?;
    files::publish_dir(target, |dir| {
        let mut index = Index::default();
        for (file, names) in base.shards() {
            let tensors = names.into_iter().map(|name| {
                let path = name.strip_suffix(".weight").filter(|p| adapted.iter().any(|a| a == p));
                let stored = match path {
                    Some(path) => merged(&base, name, &adapter.module(path)?, dtype)?,
                    None => unchanged(&base, name, dtype)?,
                };
                Ok((name.to_owned(), stored))
            });
            let tensors: Vec<(String, Stored)> = tensors.collect::<Result<_, TrainError>>()?;
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            index.add(&file, &tensors);
            files::write_tensors(&dir.join(&*file), tensors)?;
        }
        artifacts::copy_model_files(model, dir)?;
        if model.join(INDEX).exists() {
            write_json(&dir.join(INDEX), &json!({"metadata": {"total_size": index.bytes}, "weight_map": index.files}))?;
        }
        if dtype == MergedDtype::F32 { say_f32(&dir.join("config.json")) } else { Ok(()) }
    })?;
    Ok(adapted.len())
}

/// Which tensor is in which file.
#[derive(Default)]
struct Index {
    files: BTreeMap<String, String>,
    bytes: usize,
}

impl Index {
    fn add(&mut self, file: &str, tensors: &[(String, Stored)]) {
        for (name, stored) in tensors {
            self.bytes = self.bytes.saturating_add(stored.bytes.len());
            self.files.insert(name.clone(), file.to_owned());
        }
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), TrainError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| TrainError::internal("cannot write JSON").caused_by(e))?;
    files::write(path, &bytes)
}

/// Transformers loads a model in the element type that `config.json` names.
fn say_f32(path: &Path) -> Result<(), TrainError> {
    let text = std::fs::read_to_string(path).map_err(|e| TrainError::io("read", path, e))?;
    let mut config: Value = serde_json::from_str(&text)
        .map_err(|e| TrainError::model(format!("`config.json` is not valid JSON: {e}")).caused_by(e))?;
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = json!("float32");
        }
    }
    write_json(path, &config)
}

fn merged(base: &WeightFiles, name: &str, module: &Module, dtype: MergedDtype) -> Result<Stored, TrainError> {
    let (values, shape) = base.load(name)?;
    let w = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
    let mut merged = (&w + (module.b.matmul(&module.a)? * module.scale)?)?;
    if let Some(magnitude) = &module.magnitude {
        let norms = kernels::merged_row_norms(&w, &module.a, &module.b, module.scale)?;
        merged = merged.broadcast_mul(&(magnitude / norms)?.unsqueeze(1)?)?;
    }
    let values: Vec<f32> = merged.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let stored = if dtype == MergedDtype::F32 { Dtype::F32 } else { base.dtype(name).unwrap_or(Dtype::F32) };
    Ok(narrow(&values, shape, stored))
}

fn unchanged(base: &WeightFiles, name: &str, dtype: MergedDtype) -> Result<Stored, TrainError> {
    if dtype == MergedDtype::F32 {
        let (values, shape) = base.load(name)?;
        return Ok(narrow(&values, shape, Dtype::F32));
    }
    let (dtype, shape, bytes) = base.bytes(name)?;
    Ok(Stored { dtype, shape, bytes })
}

/// `values` in the element type `wanted`; what is neither f16 nor bf16 becomes f32.
fn narrow(values: &[f32], shape: Vec<usize>, wanted: Dtype) -> Stored {
    let (dtype, bytes) = match wanted {
        Dtype::BF16 => (wanted, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        Dtype::F16 => (wanted, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        _ => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    Stored { dtype, shape, bytes }
}
