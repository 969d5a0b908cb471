//! Texts with a label, for classification.

use super::{Parsed, quoted, row_object, shorten};
use crate::row::{Label, LabelledRow};
use wire::problem::near;

/// Keys that make a row look like a labelled text, when both are there.
pub(crate) const LABELLED_KEYS: [&str; 2] = ["text", "label"];

/// Largest label given as a number: classes are counted from 0.
const MAX_CLASS: u32 = 9_999;

pub(super) fn parse_labelled(text: &str) -> Parsed<LabelledRow> {
    let (row, map) = row_object(text)?;
    let required = |key: &str| match map.get(key) {
        Some(node) => Ok(*node),
        None => {
            let keys = || map.keys().map(String::as_str);
            let hint = match near(key, keys()).first() {
                Some(n) => format!("; did you mean `{n}` to be `{key}`?"),
                None => format!("; it has {}", quoted(keys())),
            };
            row.error(format!("the row has no `{key}`{hint}"))
        }
    };
    let (text_node, label) = (required("text")?, required("label")?);
    let text = text_node.string("`text`")?;
    if text.trim().is_empty() {
        return text_node.error("empty `text`");
    }
    let label = if label.raw.starts_with('"') {
        let name: String = label.read()?;
        if name.trim().is_empty() {
            return label.error("empty `label`");
        }
        Label::Name(name)
    } else {
        match label.raw.parse::<u32>() {
            Ok(class) if class <= MAX_CLASS => Label::Class(class),
            _ => {
                let what = shorten(label.raw);
                return label
                    .error(format!("`label` must be the name of a class or its number, 0 to {MAX_CLASS}, not {what}"));
            }
        }
    };
    Ok(LabelledRow { text, label })
}
