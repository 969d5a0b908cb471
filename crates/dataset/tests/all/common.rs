//! The tokenizer of assets/hone-tiny, with more special tokens where a template needs them.

use dataset::{ChatTemplate, Encoder, Tokenizer};
use serde_json::{Value, json};
use std::path::PathBuf;

pub fn base_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/hone-tiny")
}

pub fn template_source(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/templates/{name}.jinja"));
    std::fs::read_to_string(path).unwrap()
}

/// hone-tiny's tokenizer that also knows `special` as control tokens.
pub fn tokenizer(special: &[&str], eos: &str) -> Tokenizer {
    let text = std::fs::read_to_string(base_model().join("tokenizer.json")).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    let added = value["added_tokens"].as_array_mut().unwrap();
    for (index, token) in special.iter().enumerate() {
        added.push(json!({"id": 4096 + index, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}));
    }
    Tokenizer::from_parts(value.to_string().as_bytes(), &json!({ "eos_token": eos }), &[]).unwrap()
}

/// An encoder for one of the templates in tests/templates, whose turns end with `eos`.
pub fn encoder(template: &str, bos: &'static str, eos: &'static str, max_length: usize) -> Encoder {
    let tokenizer = tokenizer(&[bos, eos], eos);
    let template = ChatTemplate::new(&template_source(template), &[("bos_token", bos), ("eos_token", eos)]).unwrap();
    Encoder::new(tokenizer, Some(template), max_length)
}
