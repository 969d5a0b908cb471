//! Guessing the format from the first bytes.

use crate::parse::{CHAT_KEYS, INSTRUCTION_KEYS, LABELLED_KEYS, PREFERENCE_KEYS};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use wire::dataset::DatasetFormat;

/// Bytes [`detect`] needs at most.
pub(crate) const SAMPLE: usize = 64 << 10;

/// Lines of the sample that are looked at.
const LINES: usize = 32;

/// The format of a file that begins with `sample` (64 KiB are plenty).
///
/// Anything that does not look like JSON is text. JSON that fits no format is called chat JSONL, whose
/// validation then says what is missing.
#[must_use]
pub fn detect(sample: &[u8]) -> DatasetFormat {
    let sample = sample.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(sample);
    let text = String::from_utf8_lossy(sample);
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(LINES).peekable();
    let Some(first) = lines.peek() else {
        return DatasetFormat::ChatJsonl;
    };
    if !looks_like_json(first) {
        return DatasetFormat::Text;
    }
    lines.find_map(format_of_line).unwrap_or(DatasetFormat::ChatJsonl)
}

/// The kind of archive or compressed file that begins with `sample`. Nothing of it is ever unpacked.
pub(crate) fn archive(sample: &[u8]) -> Option<&'static str> {
    let magic: [(&[u8], &str); 7] = [
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstandard"),
        (b"7z\xbc\xaf\x27\x1c", "7-zip"),
    ];
    let known = magic.iter().find(|(start, _)| sample.starts_with(start)).map(|(_, kind)| *kind);
    known.or_else(|| (sample.get(257..262) == Some(b"ustar")).then_some("tar"))
}

/// `{`, or a `[` that opens a JSON array of objects rather than bracketed prose.
fn looks_like_json(line: &str) -> bool {
    match line.strip_prefix('[') {
        Some(rest) => rest.trim_start().is_empty() || rest.trim_start().starts_with('{'),
        None => line.strip_prefix('{').is_some_and(|r| {
            let r = r.trim_start();
            r.is_empty() || r.starts_with(['"', '\'', '}'])
        }),
    }
}

fn format_of_line(line: &str) -> Option<DatasetFormat> {
    let keys = serde_json::from_str::<BTreeMap<String, IgnoredAny>>(line);
    let has = |key: &&str| match &keys {
        Ok(map) => map.contains_key(*key),
        // Broken or cut off: look for the quoted key.
        Err(_) => line.contains(&format!("\"{key}\"")),
    };
    if CHAT_KEYS.iter().any(has) && keys.is_ok() {
        Some(DatasetFormat::ChatJsonl)
    } else if PREFERENCE_KEYS.iter().any(has) {
        Some(DatasetFormat::PreferenceJsonl)
    } else if CHAT_KEYS.iter().any(has) {
        Some(DatasetFormat::ChatJsonl)
    } else if LABELLED_KEYS.iter().all(has) {
        Some(DatasetFormat::LabelledJsonl)
    } else if INSTRUCTION_KEYS.iter().any(has) {
        Some(DatasetFormat::InstructionJsonl)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_first_rows_tell_the_format() {
        let chat = br#"{"messages": [{"role": "user", "content": "instruction"}]}"#;
        assert_eq!(detect(chat), DatasetFormat::ChatJsonl);
        assert_eq!(
            detect(b"\xEF\xBB\xBF\r\n {\"instruction\": \"a\", \"output\": \"b\"}"),
            DatasetFormat::InstructionJsonl
        );
        assert_eq!(detect(br#"{"prompt": "a", "completion": "b"}"#), DatasetFormat::InstructionJsonl);
        let pair = br#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
        assert_eq!(detect(pair), DatasetFormat::PreferenceJsonl);
        assert_eq!(detect(&pair[..25]), DatasetFormat::PreferenceJsonl);
        let openai = br#"{"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}"#;
        assert_eq!(detect(openai), DatasetFormat::PreferenceJsonl);
        assert_eq!(detect(&openai[..60]), DatasetFormat::PreferenceJsonl);
        assert_eq!(detect(br#"{"text": "a", "label": 1}"#), DatasetFormat::LabelledJsonl);
        assert_eq!(detect(b"{broken\": 1}\nnothing"), DatasetFormat::Text);
        assert_eq!(detect(b"{\"broken\nnothing\n{\"prompt\": \"a\"}"), DatasetFormat::InstructionJsonl);
    }

    #[test]
    fn archives_are_told_from_text() {
        assert_eq!(archive(b"PK\x03\x04rest"), Some("zip"));
        assert_eq!(archive(b"\x1f\x8b\x08"), Some("gzip"));
        let mut tar = vec![b'a'; 257];
        tar.extend(b"ustar\x0000");
        assert_eq!(archive(&tar), Some("tar"));
        assert_eq!(archive(b"PKs are primary keys"), None);
        assert_eq!(archive(b""), None);
    }

    #[test]
    fn prose_is_text_even_with_brackets_or_bad_bytes() {
        assert_eq!(detect(b"In the beginning"), DatasetFormat::Text);
        assert_eq!(detect(b"[Illustration]\n\nCall me Ishmael."), DatasetFormat::Text);
        assert_eq!(detect(b"\xff\xfe\x00"), DatasetFormat::Text);
    }

    #[test]
    fn a_json_array_and_an_empty_file_are_left_to_validation_to_explain() {
        assert_eq!(detect(b"[\n  {\"messages\": []}\n]"), DatasetFormat::ChatJsonl);
        assert_eq!(detect(b"[{\"prompt\": \"a\"}]"), DatasetFormat::InstructionJsonl);
        assert_eq!(detect(b""), DatasetFormat::ChatJsonl);
    }
}
