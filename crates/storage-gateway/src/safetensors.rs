//! The header of a safetensors file, checked without reading the tensors.
//!
//! A file is `n: u64 little-endian`, `n` bytes of JSON, data. Nothing the header says is trusted: lengths,
//! shapes and offsets are checked against each other and against the size of the file.

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use std::{collections::BTreeMap, fmt};

/// Largest header; real ones have some 100 bytes per tensor.
pub const MAX_HEADER: u64 = 16 << 20;
/// Most tensors in one file.
pub const MAX_TENSORS: usize = 100_000;

/// One tensor as its header entry describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<u64>,
    /// Start and end in the data after the header.
    pub data_offsets: (u64, u64),
}

impl Tensor {
    /// Number of elements; `None` when it does not fit.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim))
    }

    fn check(&self, data: u64) -> Result<(), String> {
        let bits = bits(&self.dtype).ok_or_else(|| format!("unknown dtype `{}`", self.dtype))?;
        let size = self.elements().and_then(|n| n.checked_mul(bits)).filter(|bits| bits % 8 == 0);
        let size = size.ok_or("its shape is too large")? / 8;
        let (start, end) = self.data_offsets;
        if start > end || end > data {
            return Err(format!("its bytes {start}..{end} lie outside the {data} bytes of data"));
        }
        if end - start != size {
            return Err(format!("shape and dtype need {size} bytes, it has {}", end - start));
        }
        Ok(())
    }
}

/// Bits per element of the dtypes that safetensors knows.
pub fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Length of the header from the first eight bytes, for a file of `size` bytes.
pub fn header_length(first: &[u8], size: u64) -> Result<u64, String> {
    let Ok(bytes) = <[u8; 8]>::try_from(first) else {
        return Err(format!("the file has {size} bytes, too few for a safetensors header; it is truncated"));
    };
    if first.starts_with(b"PK\x03\x04") || first.starts_with(b"\x80\x02") {
        return Err("this is a pickle (a PyTorch checkpoint), not safetensors; convert it".into());
    }
    let length = u64::from_le_bytes(bytes);
    if length > MAX_HEADER {
        return Err(format!("its header claims {length} bytes, more than {MAX_HEADER} are not accepted"));
    }
    if length > size.saturating_sub(8) {
        return Err(format!("its header claims {length} bytes, but the file has {size}; it is truncated"));
    }
    if length < 2 {
        return Err("its header is empty".into());
    }
    Ok(length)
}

/// Tensors by name, from the header's JSON; they must cover `data` bytes without gap or overlap.
pub fn parse_header(json: &[u8], data: u64) -> Result<BTreeMap<String, Tensor>, String> {
    let header: Header = serde_json::from_slice(json).map_err(|e| format!("its header is not valid: {e}"))?;
    let mut spans = Vec::with_capacity(header.tensors.len());
    for (name, tensor) in &header.tensors {
        tensor.check(data).map_err(|reason| format!("tensor `{name}`: {reason}"))?;
        spans.push((tensor.data_offsets, name));
    }
    spans.sort_unstable();
    let mut covered = 0;
    for ((start, end), name) in spans {
        if start != covered {
            let what = if start > covered { "a gap before" } else { "an overlap at" };
            return Err(format!("{what} tensor `{name}`: it begins at byte {start} of the data, not {covered}"));
        }
        covered = end;
    }
    if covered != data {
        let what = if covered > data { "truncated" } else { "followed by other data" };
        return Err(format!("its tensors end at byte {covered} of {data} bytes of data; the file is {what}"));
    }
    Ok(header.tensors)
}

/// Like a map, but refuses duplicate names and too many of them while it reads.
struct Header {
    tensors: BTreeMap<String, Tensor>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if tensors.len() >= MAX_TENSORS {
                        return Err(M::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    } else {
                        let tensor = map.next_value::<Tensor>()?;
                        if tensors.contains_key(&name) {
                            return Err(M::Error::custom(format!("tensor `{name}` appears twice")));
                        }
                        tensors.insert(name, tensor);
                    }
                }
                Ok(Header { tensors })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str, data: u64) -> String {
        parse_header(json.as_bytes(), data).unwrap_err()
    }

    const A: &str = r#""a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}"#;

    #[test]
    fn a_sound_header_gives_its_tensors() {
        let json = format!(r#"{{"__metadata__": {{"format": "pt"}}, {A}}}"#);
        let tensors = parse_header(json.as_bytes(), 16).unwrap();
        assert_eq!(tensors.get("a").unwrap().elements(), Some(4));
    }

    #[test]
    fn each_defect_is_named() {
        let tensor = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
        };
        let cases = [
            ("[".to_owned(), 0, "its header is not valid: "),
            (tensor("Q8", "[1]", "[0, 1]"), 1, "tensor `a`: unknown dtype `Q8`"),
            (tensor("F32", "[4]", "[0, 12]"), 12, "tensor `a`: shape and dtype need 16 bytes, it has 12"),
            (tensor("F32", "[4]", "[16, 0]"), 16, "tensor `a`: its bytes 16..0 lie outside"),
            (tensor("F32", "[4]", "[0, 16]"), 8, "tensor `a`: its bytes 0..16 lie outside the 8 bytes"),
            (tensor("F32", "[9223372036854775807, 9]", "[0, 4]"), 4, "tensor `a`: its shape is too large"),
            (tensor("F32", "[-1]", "[0, 4]"), 4, "its header is not valid: "),
            (tensor("F32", "[1]", "[4, 8]"), 8, "a gap before tensor `a`"),
            (format!("{{{A}}}"), 20, "its tensors end at byte 16 of 20 bytes of data; the file is followed by"),
            (format!("{{{A}, {A}}}"), 16, "its header is not valid: tensor `a` appears twice"),
            (format!("{{{A}, {}}}", A.replacen('a', "b", 1)), 16, "an overlap at tensor `b`"),
        ];
        for (json, data, expected) in cases {
            let reason = refusal(&json, data);
            assert!(reason.starts_with(expected), "{json}: {reason}");
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        let header = |n: u64, size| header_length(&n.to_le_bytes(), size);
        assert_eq!(header(10, 18), Ok(10));
        assert!(header(10, 17).unwrap_err().contains("truncated"));
        assert!(header(u64::MAX, 100).unwrap_err().contains("more than"));
        assert!(header(0, 100).unwrap_err().contains("empty"));
        assert!(header_length(b"abc", 3).unwrap_err().contains("too few"));
        assert!(header_length(b"PK\x03\x04\0\0\0\0", 100).unwrap_err().contains("pickle"));
    }
}
