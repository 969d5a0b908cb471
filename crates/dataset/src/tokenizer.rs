//! A model's tokenizer with its special tokens, from the HF layout.

use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};
use tokenizers::{PostProcessor as _, TruncationDirection};

/// A tokenizer or chat template that cannot be loaded; the message names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not usable: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
}

/// Byte range of the text that each token came from.
type Offsets = Vec<(usize, usize)>;

/// Text to token ids and back. `Send + Sync`; cheap to share behind an `Arc`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens by their name in `tokenizer_config.json` (`bos_token`, `eos_token`, …), as text.
    pub(crate) special: Vec<(&'static str, String)>,
    special_ids: BTreeSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    stop: BTreeSet<u32>,
}

const SPECIAL_NAMES: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `generation_config.json` and `config.json` as
    /// far as they exist, from a model directory.
    pub fn load(model_dir: &Path) -> Result<Self, LoadError> {
        let path = model_dir.join("tokenizer.json");
        let bytes = fs::read(&path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
        let config = read_json(&model_dir.join("tokenizer_config.json"))?;
        let ids: Vec<Value> = ["generation_config.json", "config.json"]
            .iter()
            .map(|name| read_json(&model_dir.join(name)))
            .collect::<Result<_, _>>()?;
        Self::from_parts(&bytes, &config, &ids).map_err(|reason| LoadError::Malformed { path, reason })
    }

    /// From the bytes of `tokenizer.json`, the value of `tokenizer_config.json` (or null) and configurations
    /// that may name `eos_token_id` and `bos_token_id`, the most important first.
    pub fn from_parts(tokenizer_json: &[u8], config: &Value, id_configs: &[Value]) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|e| e.to_string())?;
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let mut special = Vec::new();
        for name in SPECIAL_NAMES {
            // Either the text itself or `{"content": text, …}`.
            let text = config.get(name).and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
            special.extend(text.map(|t| (name, t.to_owned())));
        }
        let id_of = |name: &str| {
            let text = special.iter().find(|(n, _)| *n == name).map(|(_, text)| text.as_str());
            text.and_then(|t| inner.token_to_id(t))
        };
        let configured = |key: &str| id_configs.iter().find_map(|c| ids(c.get(key)?));
        let eos_ids = configured("eos_token_id").unwrap_or_default();
        let eos = id_of("eos_token").or_else(|| eos_ids.first().copied());
        let bos = id_of("bos_token").or_else(|| configured("bos_token_id")?.first().copied());
        for (name, id) in [("bos_token", bos), ("eos_token", eos)] {
            if !special.iter().any(|(n, _)| *n == name) {
                special.extend(id.and_then(|id| inner.id_to_token(id)).map(|text| (name, text)));
            }
        }
        let special_ids = inner.get_added_tokens_decoder().into_iter().filter(|(_, t)| t.special).map(|(id, _)| id);
        let special_ids = special_ids.chain(bos).chain(eos).collect();
        Ok(Self { special, special_ids, bos, eos, stop: eos_ids.into_iter().chain(eos).collect(), inner })
    }

    /// Token ids of `text`. Special tokens written in the text are recognised; `add_special_tokens` adds what
    /// the tokenizer puts around every text (often a begin-of-text token).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Like [`Self::encode`] without added tokens, with the byte range of `text` each token came from.
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Offsets), String> {
        let encoding = self.inner.encode(text, false).map_err(|e| e.to_string())?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Like [`Self::encode`] with added tokens, at most `limit` of them: the text is cut, not what is added.
    /// Returns also how many tokens were cut.
    pub(crate) fn encode_within(&self, text: &str, limit: usize) -> Result<(Vec<u32>, usize), String> {
        let mut encoding = self.inner.encode_fast(text, false).map_err(|e| e.to_string())?;
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let room = limit.saturating_sub(added);
        let cut = encoding.len().saturating_sub(room);
        encoding.truncate(room, 0, TruncationDirection::Right);
        let encoding = self.inner.post_process(encoding, None, true).map_err(|e| e.to_string())?;
        Ok((encoding.get_ids().to_vec(), cut))
    }

    /// Text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| e.to_string())
    }

    /// Entries of the vocabulary, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Begin-of-text token.
    #[must_use]
    pub const fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-text (or end-of-turn) token.
    #[must_use]
    pub const fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Tokens that end a generation.
    #[must_use]
    pub const fn stop_ids(&self) -> &BTreeSet<u32> {
        &self.stop
    }

    /// Whether the token is a control token rather than text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }
}

/// Turns generated tokens into text as they come, holding back incomplete characters.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    ids: Vec<u32>,
    /// Tokens before this are only context (some decoders treat the first token of a text specially).
    context: usize,
    /// Tokens before this have been given out.
    given: usize,
}

impl StreamDecoder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token and returns the text that became certain, possibly empty. Special tokens give no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, String> {
        self.ids.push(id);
        self.drain(tokenizer, false)
    }

    /// The rest, with replacement characters where the bytes form no character.
    pub fn finish(mut self, tokenizer: &Tokenizer) -> Result<String, String> {
        self.drain(tokenizer, true)
    }

    fn drain(&mut self, tokenizer: &Tokenizer, all: bool) -> Result<String, String> {
        let known = tokenizer.decode(self.ids.get(self.context..self.given).unwrap_or_default(), true)?;
        let text = tokenizer.decode(self.ids.get(self.context..).unwrap_or_default(), true)?;
        if text.ends_with('\u{FFFD}') && !all {
            return Ok(String::new());
        }
        self.context = self.given;
        self.given = self.ids.len();
        Ok(text.get(known.len()..).unwrap_or_default().to_owned())
    }
}

/// The file's JSON, null where there is no file.
pub(crate) fn read_json(path: &Path) -> Result<Value, LoadError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(LoadError::Read { path: path.to_owned(), source }),
    };
    serde_json::from_str(&text).map_err(|e| LoadError::Malformed { path: path.to_owned(), reason: e.to_string() })
}

/// One id or a list of ids.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let list: Vec<u32> = match value {
        Value::Array(items) => items.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    };
    (!list.is_empty()).then_some(list)
}
