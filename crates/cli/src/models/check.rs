//! What can be said about a model directory before a byte is uploaded.

use crate::{
    error::{CliError, CliResult},
    ui::Ui,
};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};
use wire::problem::FieldError;

/// Larger headers are an attack or a mistake; the largest known models stay far below.
const HEADER_LIMIT: u64 = 100 << 20;

/// A file to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Name in the registry.
    pub path: String,
    pub source: PathBuf,
    pub size: u64,
}

/// The files to import from a directory in Hugging Face layout, or everything that is wrong with it.
pub fn model_dir(dir: &Path, skip_pickle: bool, ui: Ui) -> CliResult<Vec<LocalFile>> {
    let meta = fs::metadata(dir).map_err(|e| CliError::file("read", dir, &e))?;
    if !meta.is_dir() {
        return Err(CliError::invalid(format!("{} is a file; give the directory it is in", dir.display())));
    }
    let mut files = list(dir)?;
    let (pickled, rest): (Vec<_>, Vec<_>) = files.drain(..).partition(|f| is_pickle(&f.path));
    let files: Vec<LocalFile> = rest.into_iter().filter(|f| is_wanted(&f.path)).collect();
    let has_weights = files.iter().any(|f| f.path.ends_with(".safetensors"));
    let mut errors = Vec::new();
    if !(skip_pickle && has_weights) {
        errors.extend(pickled.iter().map(|f| {
            FieldError::new(
                &f.path,
                "holds pickled weights, which can run code when they are loaded; Hone takes safetensors only",
            )
        }));
    } else if !pickled.is_empty() {
        let names: Vec<&str> = pickled.iter().map(|f| f.path.as_str()).collect();
        ui.note(format!("  leaving {} behind", names.join(", ")));
    }
    for (name, what) in [("config.json", "the shape of the model"), ("tokenizer.json", "the tokenizer")] {
        if !files.iter().any(|f| f.path == name) {
            errors.push(FieldError::new(name, format!("is missing; it holds {what}")));
        }
    }
    if !has_weights && pickled.is_empty() {
        errors.push(FieldError::new("*.safetensors", "is missing: there are no weights"));
    }
    for file in files.iter().filter(|f| f.path.ends_with(".safetensors")) {
        if let Err(reason) = check_safetensors(&file.source, file.size) {
            errors.push(FieldError::new(&file.path, reason));
        }
    }
    if errors.is_empty() {
        return Ok(files);
    }
    let hint = match (pickled.is_empty(), has_weights) {
        (false, true) => Some("`--skip-pickle` imports the safetensors and leaves the pickled files behind"),
        (false, false) => {
            Some("convert them first, e.g. with `model.save_pretrained(DIR, safe_serialization=True)` of Transformers")
        }
        _ => None,
    };
    let error = CliError::invalid(format!("{} cannot be imported", dir.display())).located(errors);
    Err(match hint {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// Regular files (links are followed: Hugging Face's cache consists of them), sorted by name.
fn list(dir: &Path) -> CliResult<Vec<LocalFile>> {
    let entries = fs::read_dir(dir).map_err(|e| CliError::file("read", dir, &e))?;
    let mut files = Vec::new();
    for entry in entries {
        let source = entry.map_err(|e| CliError::file("read", dir, &e))?.path();
        let Some(name) = source.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
        let meta = fs::metadata(&source).map_err(|e| CliError::file("read", &source, &e))?;
        if meta.is_file() && !name.starts_with('.') {
            files.push(LocalFile { path: name, source, size: meta.len() });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"].iter().any(|e| name.ends_with(e))
}

/// What the Hugging Face layout consists of, and what tells people about it.
fn is_wanted(name: &str) -> bool {
    let kinds = [".safetensors", ".json", ".jinja", ".txt", ".md", ".model"];
    kinds.iter().any(|e| name.ends_with(e)) || name.starts_with("LICENSE")
}

/// Compares the header with the file's size: catches truncated and foreign files without reading the weights.
fn check_safetensors(path: &Path, size: u64) -> Result<(), String> {
    let unreadable = |e: io::Error| format!("cannot be read: {e}");
    let mut file = File::open(path).map_err(unreadable)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| "is no safetensors file: it is shorter than 8 bytes".to_owned())?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT || length > size.saturating_sub(8) {
        return Err(format!(
            "is no safetensors file, or truncated: its header should have {length} bytes, and the file has {size}"
        ));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(unreadable)?;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|e| format!("is corrupt: its header is no JSON object ({e})"))?;
    let ends = header.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, tensor)| {
        let end = tensor.pointer("/data_offsets/1").and_then(serde_json::Value::as_u64);
        end.ok_or_else(|| format!("is corrupt: tensor `{name}` has no data_offsets"))
    });
    let end = ends.collect::<Result<Vec<u64>, String>>()?.into_iter().max();
    let Some(end) = end else { return Err("holds no tensors".into()) };
    let expected = end.saturating_add(length).saturating_add(8);
    match expected.cmp(&size) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => {
            Err(format!("is truncated: its header describes {expected} bytes, and the file has {size}"))
        }
        std::cmp::Ordering::Less => {
            Err(format!("is corrupt: {} bytes follow its last tensor", size.saturating_sub(expected)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UI: Ui = Ui { json: false, quiet: true };

    fn safetensors(data: usize) -> Vec<u8> {
        let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(vec![0; data]);
        bytes
    }

    fn model(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let whole = safetensors(8);
        let base: [(&str, &[u8]); 3] =
            [("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &whole)];
        for (name, bytes) in base.iter().chain(files) {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    fn error(dir: &tempfile::TempDir) -> String {
        let text = model_dir(dir.path(), false, UI).unwrap_err().to_string();
        text.replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn a_complete_directory_is_taken_without_hidden_and_foreign_files() {
        let dir = model(&[("README.md", b"card"), (".gitattributes", b""), ("notes.docx", b"")]);
        let files = model_dir(dir.path(), false, UI).unwrap();
        let names: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(names, ["README.md", "config.json", "model.safetensors", "tokenizer.json"]);
    }

    #[test]
    fn pickled_weights_are_refused_and_can_be_left_behind() {
        let dir = model(&[("pytorch_model.bin", b"\x80\x02")]);
        assert_eq!(
            error(&dir),
            "DIR cannot be imported\n  pytorch_model.bin: holds pickled weights, which can run code when they are loaded; \
             Hone takes safetensors only\nhint: `--skip-pickle` imports the safetensors and leaves the pickled files behind"
        );
        assert_eq!(model_dir(dir.path(), true, UI).unwrap().len(), 3);
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        assert!(model_dir(dir.path(), true, UI).is_err(), "there is nothing but pickled weights");
    }

    #[test]
    fn a_truncated_or_foreign_file_is_named_with_its_defect() {
        let dir = model(&[("model.safetensors", &safetensors(3))]);
        assert!(
            error(&dir).contains("model.safetensors: is truncated: its header describes 70 bytes, and the file has 65")
        );
        let dir = model(&[("model.safetensors", &safetensors(9))]);
        assert!(error(&dir).contains("1 bytes follow its last tensor"));
        let dir = model(&[("model.safetensors", b"version https://git-lfs.github.com/spec/v1")]);
        assert!(error(&dir).contains("is no safetensors file, or truncated"));
    }

    #[test]
    fn missing_files_are_listed_together() {
        let dir = tempfile::tempdir().unwrap();
        let text = error(&dir);
        for missing in ["config.json", "tokenizer.json", "*.safetensors"] {
            assert!(text.contains(&format!("{missing}: is missing")), "{text}");
        }
    }
}
