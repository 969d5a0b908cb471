//! What differs between two versions, field by field.

use crate::error::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use wire::package::{FieldChange, Steps};

/// Changes from `a` to `b`, sorted by path.
pub fn changes(a: &Steps, b: &Steps) -> Result<Vec<FieldChange>> {
    let (mut before, mut after) = (fields(a)?, fields(b)?);
    let paths: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    let change = |path: String| {
        let (before, after) = (before.remove(&path), after.remove(&path));
        (before != after).then_some(FieldChange { path, before, after })
    };
    Ok(paths.into_iter().filter_map(change).collect())
}

fn fields(steps: &Steps) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    flatten(serde_json::to_value(steps)?, "", &mut found);
    Ok(found)
}

/// Leaves by path. An empty object or list is a leaf: it says something else than being absent.
fn flatten(value: Value, path: &str, found: &mut BTreeMap<String, Value>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, inner) in fields {
                flatten(inner, &below(&key), found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, inner) in items.into_iter().enumerate() {
                flatten(inner, &below(&index.to_string()), found);
            }
        }
        leaf => {
            if !path.is_empty() {
                found.insert(path.to_owned(), leaf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn steps(value: Value) -> Steps {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn added_removed_and_changed_fields_are_told_apart() {
        let a = steps(json!({"model": {"name": "tiny"}, "config": {"lora": {"r": 8}, "method": "sft", "x": []}}));
        let b = steps(json!({"model": {"name": "tiny", "revision": "r1"}, "config": {"lora": {"r": 16}, "x": [1]}}));
        let lines: Vec<String> = changes(&a, &b)
            .unwrap()
            .into_iter()
            .map(|c| format!("{} {:?} {:?}", c.path, c.before.map(|v| v.to_string()), c.after.map(|v| v.to_string())))
            .collect();
        assert_eq!(
            lines,
            [
                r#"config.lora.r Some("8") Some("16")"#,
                r#"config.method Some("\"sft\"") None"#,
                r#"config.x Some("[]") None"#,
                r#"config.x.0 None Some("1")"#,
                r#"model.revision None Some("\"r1\"")"#,
            ]
        );
        assert!(changes(&a, &a).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn the_other_way_round_swaps_the_sides(a in -3..3i64, b in -3..3i64, key in "[a-c]", other in "[a-c]") {
            let (a, b) = (steps(json!({"config": {key: a}})), steps(json!({"config": {other: b}})));
            let swapped = changes(&b, &a).unwrap().into_iter();
            let back: Vec<_> =
                swapped.map(|c| FieldChange { path: c.path, before: c.after, after: c.before }).collect();
            prop_assert_eq!(changes(&a, &b).unwrap(), back);
        }
    }
}
