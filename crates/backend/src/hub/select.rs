//! Which files of a repository make a model that can be trained.

use serde::Deserialize;
use wire::{
    model::is_valid_name,
    problem::{Code, Problem},
};

/// Besides `*.safetensors` and their index.
const WANTED: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// An entry of `GET /api/models/{repo}/tree/{commit}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
    #[serde(default)]
    pub size: u64,
    /// The file's name in git: of a large file, that of the pointer to it.
    #[serde(default)]
    pub oid: String,
    pub lfs: Option<Lfs>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Lfs {
    /// SHA-256.
    pub oid: String,
    pub size: u64,
}

impl Entry {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lfs.as_ref().map_or(self.size, |lfs| lfs.size)
    }
}

/// The files to fetch; a problem when they are no model or have more than `limit` bytes.
pub fn select(repo: &str, entries: Vec<Entry>, limit: u64) -> Result<Vec<Entry>, Problem> {
    let refuse = |code, detail: String| Err(Problem::new(code, detail));
    let weights = |e: &Entry| e.path.ends_with(".safetensors") || e.path.ends_with(".safetensors.index.json");
    let wanted = |e: &Entry| {
        e.kind == "file" && is_valid_name(&e.path) && e.bytes() > 0 && (weights(e) || WANTED.contains(&e.path.as_str()))
    };
    let has_pickle = entries.iter().any(|e| e.path.ends_with(".bin") || e.path.ends_with(".pth"));
    let mut files: Vec<Entry> = entries.into_iter().filter(wanted).collect();
    // Some repositories hold the same weights twice.
    if files.iter().any(|e| e.path.starts_with("model") && e.path.ends_with(".safetensors")) {
        files.retain(|e| !weights(e) || e.path.starts_with("model"));
    }
    if !files.iter().any(|e| e.path.ends_with(".safetensors")) {
        let why = if has_pickle { "; it has pickled weights, which can run code when they are loaded" } else { "" };
        return refuse(Code::ModelCorrupt, format!("`{repo}` has no .safetensors file{why}"));
    }
    if !files.iter().any(|e| e.path == "config.json") {
        return refuse(Code::ModelCorrupt, format!("`{repo}` has no config.json"));
    }
    let total = files.iter().map(Entry::bytes).fold(0_u64, u64::saturating_add);
    if total > limit {
        let detail = format!("`{repo}` has {total} bytes of model files; at most {limit} are pulled (PULL_MAX_BYTES)");
        return refuse(Code::TooLarge, detail);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, size: u64) -> Entry {
        Entry { kind: "file".into(), path: path.into(), size, oid: String::new(), lfs: None }
    }

    fn names(files: &[Entry]) -> Vec<&str> {
        files.iter().map(|f| f.path.as_str()).collect()
    }

    #[test]
    fn only_what_a_model_needs_is_fetched() {
        let all = [
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "README.md",
            "run.py",
            "onnx/model.safetensors",
            "consolidated.safetensors",
            "../config.json",
        ];
        let chosen = select("o/m", all.map(|n| file(n, 10)).to_vec(), 100).unwrap();
        assert_eq!(names(&chosen), ["config.json", "model.safetensors", "tokenizer.json"]);
    }

    #[test]
    fn what_is_no_model_or_too_large_is_refused() {
        let pickle = [file("config.json", 1), file("pytorch_model.bin", 1)].to_vec();
        assert!(select("o/m", pickle, 100).unwrap_err().detail.contains("pickled"));
        let large = [file("config.json", 1), file("model.safetensors", 100)].to_vec();
        assert_eq!(select("o/m", large, 100).unwrap_err().code, Code::TooLarge);
    }
}
