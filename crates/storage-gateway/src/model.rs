//! `POST /models/inspect`: is this prefix a complete, safe model in the Hugging Face layout?
//!
//! Every defect is collected, so that one answer names all files to fix. Nothing is ever unpickled.

use crate::{
    digest::read_failed,
    gateway::{Gateway, store_failed},
    keys::Key,
    rows,
    safetensors::{self, Tensor},
    store::ByteRange,
};
use futures::TryStreamExt;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use service::{ApiError, ApiResult};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufReader,
};
use wire::{
    memory::{ModelShape, TensorShape},
    model::ModelInfo,
    problem::{Code, FieldError, Problem},
};

/// Files a model may have.
const MAX_FILES: usize = 1000;
/// Largest JSON file but the tokenizer.
const MAX_JSON: u64 = 16 << 20;
/// Largest tokenizer.json; those of 256k-token vocabularies have about 35 MB. It is not kept in memory.
const MAX_TOKENIZER: u64 = 64 << 20;
/// Defects in one answer.
const MAX_DEFECTS: usize = 20;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Endings of formats that can run code when loaded, or usually do.
const UNSAFE: [&str; 12] = ["bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib", "dill", "npy", "npz", "h5", "keras"];

/// Describes the model below `prefix`, or answers `MODEL_CORRUPT` naming each bad file and why.
pub async fn inspect(gateway: &Gateway, prefix: &str) -> ApiResult<ModelInfo> {
    let _turn = gateway.parsing_turn().await?;
    let prefix = if prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") };
    let mut model = Model { gateway, files: list(gateway, &prefix).await?, prefix, defects: Vec::new() };
    let info = model.inspect().await?;
    match info {
        Some(info) if model.defects.is_empty() => Ok(info),
        _ => Err(corrupt(&model.prefix, model.defects)),
    }
}

async fn list(gateway: &Gateway, prefix: &str) -> ApiResult<BTreeMap<String, u64>> {
    let page = crate::objects::list(gateway, prefix, "", None).await?;
    if page.objects.is_empty() {
        return Err(ApiError::new(Code::NotFound, format!("there are no files below `{prefix}`")));
    }
    if page.next_after.is_some() || page.objects.len() > MAX_FILES {
        let error = FieldError::new(prefix, format!("it has more than {MAX_FILES} files"));
        return Err(corrupt(prefix, vec![error]));
    }
    let relative = |key: String| key.strip_prefix(prefix).map(str::to_owned).unwrap_or(key);
    Ok(page.objects.into_iter().map(|object| (relative(object.key), object.size)).collect())
}

fn corrupt(prefix: &str, mut defects: Vec<FieldError>) -> ApiError {
    let first = defects.first().map(|d| format!("{}: {}", d.path, d.message)).unwrap_or_default();
    let more = match defects.len() {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    defects.truncate(MAX_DEFECTS);
    Problem::new(Code::ModelCorrupt, format!("`{prefix}` is not a usable model: {first}{more}"))
        .with_errors(defects)
        .into()
}

/// What `config.json` must say.
#[derive(Deserialize)]
struct Config {
    architectures: Option<Vec<String>>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

struct Model<'a> {
    gateway: &'a Gateway,
    prefix: String,
    /// Sizes by path below the prefix.
    files: BTreeMap<String, u64>,
    defects: Vec<FieldError>,
}

impl Model<'_> {
    /// `None` only together with defects.
    async fn inspect(&mut self) -> ApiResult<Option<ModelInfo>> {
        self.refuse_unsafe_files();
        let config: Option<Config> = self.json(CONFIG, MAX_JSON).await?;
        let tokenizer: Option<BTreeMap<String, IgnoredAny>> = self.json(TOKENIZER, MAX_TOKENIZER).await?;
        if tokenizer.is_some_and(|t| !t.contains_key("model")) {
            self.defect(TOKENIZER, "it has no `model`; it is not a tokenizer of the tokenizers library");
        }
        let weights = self.weights().await?;
        let has_chat_template = self.has_chat_template().await?;
        Ok(config.and_then(|config| self.describe(config, &weights, has_chat_template)))
    }

    fn defect(&mut self, path: &str, reason: impl Into<String>) {
        self.defects.push(FieldError::new(path, reason));
    }

    fn refuse_unsafe_files(&mut self) {
        let ending = |path: &str| path.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase()).unwrap_or_default();
        let unsafe_files = self.files.keys().filter(|path| UNSAFE.contains(&ending(path).as_str()));
        let defects: Vec<FieldError> = unsafe_files
            .map(|path| {
                FieldError::new(path, "files of this kind can run code when loaded; only safetensors are accepted")
            })
            .collect();
        self.defects.extend(defects);
    }

    /// The parsed file; a missing or malformed one becomes a defect.
    async fn json<T: DeserializeOwned + Send + 'static>(&mut self, path: &str, limit: u64) -> ApiResult<Option<T>> {
        let Some(size) = self.files.get(path).copied() else {
            self.defect(path, "the file is missing");
            return Ok(None);
        };
        if size > limit {
            self.defect(path, format!("it has {size} bytes, more than {limit} are not accepted"));
            return Ok(None);
        }
        let key = Key::parse(&format!("{}{path}", self.prefix))?;
        let parsed = rows::parse_now(self.gateway, &key, |reader| {
            match serde_json::from_reader::<_, T>(BufReader::with_capacity(1 << 16, reader)) {
                Err(e) if e.is_io() => Err(e.into()),
                other => Ok(other.map_err(|e| e.to_string())),
            }
        });
        match parsed.await? {
            Ok(value) => Ok(Some(value)),
            Err(reason) => {
                self.defect(path, format!("it is not what it should be: {reason}"));
                Ok(None)
            }
        }
    }

    async fn bytes(&self, path: &str, range: std::ops::Range<u64>) -> ApiResult<Vec<u8>> {
        let place = self.gateway.place(&Key::parse(&format!("{}{path}", self.prefix))?);
        let download = self.gateway.store.get(&place, Some(&ByteRange::Bounded(range))).await;
        let body = download.map_err(|e| store_failed(e, &place.key))?.body;
        let bytes = body.try_fold(Vec::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        });
        bytes.await.map_err(|e| read_failed(e, &place.key))
    }

    /// All tensors of the model; every safetensors file is checked, also those that are not part of it.
    async fn weights(&mut self) -> ApiResult<BTreeMap<String, Tensor>> {
        let paths: Vec<String> = self.files.keys().filter(|p| p.ends_with(".safetensors")).cloned().collect();
        let mut headers = BTreeMap::new();
        for path in paths {
            match self.header(&path).await? {
                Ok(tensors) => drop(headers.insert(path, tensors)),
                Err(reason) => self.defect(&path, reason),
            }
        }
        if self.files.contains_key(INDEX) {
            return self.sharded(headers).await;
        }
        if !self.files.contains_key(WEIGHTS) {
            self.defect(WEIGHTS, format!("the file is missing, and there is no {INDEX} either"));
        }
        Ok(headers.remove(WEIGHTS).unwrap_or_default())
    }

    async fn header(&self, path: &str) -> ApiResult<Result<BTreeMap<String, Tensor>, String>> {
        let size = self.files.get(path).copied().unwrap_or(0);
        let first = if size < 8 { Vec::new() } else { self.bytes(path, 0..8).await? };
        let length = match safetensors::header_length(&first, size) {
            Ok(length) => length,
            Err(reason) => return Ok(Err(reason)),
        };
        let end = length.saturating_add(8);
        let json = self.bytes(path, 8..end).await?;
        Ok(safetensors::parse_header(&json, size.saturating_sub(end)))
    }

    /// Checks the index against the shards: each tensor is where the index says, and nowhere else.
    async fn sharded(
        &mut self,
        mut headers: BTreeMap<String, BTreeMap<String, Tensor>>,
    ) -> ApiResult<BTreeMap<String, Tensor>> {
        let Some(index) = self.json::<Index>(INDEX, MAX_JSON).await? else { return Ok(BTreeMap::new()) };
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        let mut tensors = BTreeMap::new();
        for shard in shards {
            if !self.files.contains_key(shard) {
                self.defect(shard, format!("{INDEX} names this file, but it is missing"));
                continue;
            }
            // A shard that could not be read is a defect already.
            let Some(header) = headers.remove(shard) else { continue };
            let expected = index.weight_map.iter().filter(|(_, s)| *s == shard).map(|(name, _)| name);
            if let Some(name) = expected.clone().find(|name| !header.contains_key(*name)) {
                self.defect(shard, format!("{INDEX} says it holds tensor `{name}`, but it does not"));
            }
            if let Some(name) = header.keys().find(|name| index.weight_map.get(*name) != Some(shard)) {
                self.defect(shard, format!("it holds tensor `{name}`, which {INDEX} does not place there"));
            }
            tensors.extend(header);
        }
        Ok(tensors)
    }

    async fn has_chat_template(&mut self) -> ApiResult<bool> {
        if self.files.contains_key("chat_template.jinja") {
            return Ok(true);
        }
        if !self.files.contains_key(TOKENIZER_CONFIG) {
            return Ok(false);
        }
        let config: Option<serde_json::Value> = self.json(TOKENIZER_CONFIG, MAX_JSON).await?;
        Ok(config.is_some_and(|c| c.get("chat_template").is_some_and(|t| !t.is_null())))
    }

    fn describe(
        &mut self,
        config: Config,
        tensors: &BTreeMap<String, Tensor>,
        has_chat_template: bool,
    ) -> Option<ModelInfo> {
        let architecture = config.architectures.and_then(|a| a.into_iter().next());
        let fields = [
            ("architectures", architecture.is_some()),
            ("vocab_size", config.vocab_size.is_some()),
            ("max_position_embeddings", config.max_position_embeddings.is_some()),
        ];
        for (name, _) in fields.iter().filter(|(_, present)| !present) {
            self.defect(CONFIG, format!("it has no `{name}`"));
        }
        let mut by_dtype: BTreeMap<&str, u64> = BTreeMap::new();
        for tensor in tensors.values() {
            let n = by_dtype.entry(&tensor.dtype).or_default();
            *n = n.saturating_add(tensor.elements().unwrap_or(0));
        }
        let dtype = by_dtype.iter().max_by_key(|(_, n)| **n).map(|(dtype, _)| (*dtype).to_owned());
        if dtype.is_none() && self.defects.is_empty() {
            self.defect(WEIGHTS, "it holds no tensors");
        }
        Some(ModelInfo {
            architecture: architecture?,
            parameters: by_dtype.values().fold(0, |sum: u64, n| sum.saturating_add(*n)),
            dtype: dtype?,
            vocab_size: config.vocab_size?,
            context_length: config.max_position_embeddings?,
            has_chat_template,
            shape: Some(ModelShape::of(tensors.iter().map(|(name, t)| TensorShape {
                name,
                shape: &t.shape,
                bits: safetensors::bits(&t.dtype).and_then(|b| u32::try_from(b).ok()).unwrap_or(u32::MAX),
            }))),
        })
    }
}
