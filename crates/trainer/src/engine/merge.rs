//! Merging an adapter into its base model: `W + scale · B·A`, with DoRA brought to the adapter's row lengths.
//!
//! The result is a model directory like the base: the same tensors in the same shards, tokenizer and configuration
//! beside them. One shard is in memory at a time. An adapter with a classifier makes a classifier of the base model:
//! its head takes the place of the one that is there, of a masked language model's, too.

use super::{
    TrainError, artifacts,
    classify::Classes,
    files,
    lora::{Module, Saved},
    model::{is_class_bias, is_masked_lm_head},
    params::Params,
    weights::{INDEX, WeightFiles},
};
use candle_core::{DType, Device, Tensor, Var};
use half::{bf16, f16};
use safetensors::{Dtype, View};
use serde_json::json;
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
    let (adapter, adapter_dir) = (Saved::open(adapter)?, adapter);
    let heads = adapter.heads()?;
    let linear = |name: &'_ str| -> Option<(String, (usize, usize))> {
        match base.shape(name)? {
            &[out, inner] => Some((name.strip_suffix(".weight")?.to_owned(), (out, inner))),
            _ => None,
        }
    };
    let linears: Vec<_> = base.names().filter_map(linear).collect();
    let adapted = adapter.check(linears.iter().map(|(path, shape)| (path.as_str(), *shape)), &heads)?;
    files::publish_dir(target, |dir| {
        let mut index = Index::default();
        let shards = base.shards();
        let last = shards.keys().next_back().copied();
        for (file, names) in shards {
            let kept = names.into_iter().filter(|name| heads.is_empty() || !is_other_head(name, &heads));
            let tensors = kept.map(|name| {
                let path = name.strip_suffix(".weight").filter(|p| adapted.iter().any(|a| a == p));
                let stored = match path {
                    Some(path) => merged(&base, name, &adapter.module(path)?, dtype)?,
                    None => unchanged(&base, name, dtype)?,
                };
                Ok((name.to_owned(), stored))
            });
            let mut tensors: Vec<(String, Stored)> = tensors.collect::<Result<_, TrainError>>()?;
            if Some(file) == last {
                for (name, head) in heads.iter() {
                    tensors.push((name.to_owned(), whole(head, base.dtype(name), dtype)?));
                }
            }
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            index.add(&file, &tensors);
            files::write_tensors(&dir.join(&*file), tensors)?;
        }
        artifacts::copy_model_files(model, dir)?;
        if model.join(INDEX).exists() {
            let weights = json!({"metadata": {"total_size": index.bytes}, "weight_map": index.files});
            files::write_json(&dir.join(INDEX), &weights)?;
        }
        if let Some(bias) = heads.iter().find_map(|(name, var)| is_class_bias(name).then_some(var)) {
            let classes = Classes::of_adapter(adapter_dir, model, bias.elem_count());
            artifacts::write_config(&classes, dir)?;
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

/// A head that the adapter's takes the place of.
fn is_other_head(name: &str, heads: &Params) -> bool {
    heads.get(name).is_some() || is_masked_lm_head(name)
}

/// A tensor that is stored whole; one that the base does not have stays in 32 bits.
fn whole(head: &Var, of_base: Option<Dtype>, dtype: MergedDtype) -> Result<Stored, TrainError> {
    let stored = of_base.filter(|_| dtype == MergedDtype::Base).unwrap_or(Dtype::F32);
    Ok(narrow(&head.flatten_all()?.to_vec1::<f32>()?, head.dims().to_vec(), stored))
}

/// Transformers loads a model in the element type that `config.json` names.
fn say_f32(path: &Path) -> Result<(), TrainError> {
    let mut config = files::read_json(path)?;
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = json!("float32");
        }
    }
    files::write_json(path, &config)
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
