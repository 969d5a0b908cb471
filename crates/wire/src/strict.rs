//! JSON read as its schema says: serde takes `["a", 1]` for a struct with two fields, and `[]` for one whose fields
//! have defaults. Here a struct is an object, and no number is beyond what 64 signed bits hold (`int64`).

use crate::problem::FieldError;
use serde::{
    Deserializer,
    de::{
        DeserializeOwned, Error as _, IntoDeserializer, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

/// Reads `value`.
///
/// # Errors
/// What is wrong first, and its path.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|e| {
        let path = e.path().to_string();
        FieldError::new(if path == "." { String::new() } else { path }, e.inner().to_string())
    })
}

struct Strict(Value);

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(b),
            Value::Number(n) if n.as_u64().is_some_and(|n| i64::try_from(n).is_err()) => {
                Err(Error::custom(format!("{n} is too large; at most {} is accepted", i64::MAX)))
            }
            Value::Number(n) => n.deserialize_any(visitor),
            Value::String(s) => visitor.visit_string(s),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Strict))),
            Value::Object(map) => {
                visitor.visit_map(MapDeserializer::new(map.into_iter().map(|(key, value)| (key, Strict(value)))))
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::{AutoSave, Draft};
    use serde_json::json;

    fn refusal(value: Value) -> String {
        from_value::<AutoSave>(value).map_err(|e| format!("{}: {}", e.path, e.message)).unwrap_err()
    }

    #[test]
    fn what_serde_would_take_for_a_struct_is_refused() {
        assert!(serde_json::from_value::<Draft>(json!([])).is_ok(), "serde is as strict: this module can go");
        assert_eq!(refusal(json!([])), ": invalid type: sequence, expected an object");
        assert_eq!(refusal(json!({"draft": []})), "draft: invalid type: sequence, expected an object");
        assert_eq!(
            refusal(json!({"draft": {"steps": [null, null, null, null]}})),
            "draft.steps: invalid type: sequence, expected an object"
        );
        assert_eq!(
            refusal(json!({"draft": {"steps": {"config": "sft"}}})),
            "draft.steps.config: invalid type: string \"sft\", expected a map"
        );
        let large = json!({"draft": {"steps": {"model": {"name": "m", "size": 9_223_372_036_854_775_808_u64}}}});
        assert!(refusal(large).starts_with("draft.steps.model.size: 9223372036854775808 is too large"));
        assert_eq!(
            refusal(json!({"draft": {"nam": 1}})),
            "draft.nam: unknown field `nam`, expected one of `name`, `change_summary`, `steps`"
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let whole = json!({
            "version_id": "01a2000f-26b6-7078-9229-fa7e09ecc300",
            "draft": {"name": "n", "steps": {
                "model": {"name": "m", "size": 9_223_372_036_854_775_807_u64},
                "config": {"training": {"learning_rate": 1e-4}},
                "dataset": {"datasets": [{"id": "01a2000f-26b6-7078-9229-fa7e09ecc301"}], "train_split": 90},
                "deploy": {"target": "hf_space", "budget_limit": 1.5}
            }}
        });
        let strict: AutoSave = from_value(whole.clone()).unwrap();
        assert_eq!(strict, serde_json::from_value(whole).unwrap());
    }
}
