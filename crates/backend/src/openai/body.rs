//! JSON bodies, with errors that name the field.

use super::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use wire::{problem::FieldError, strict};

pub fn json(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(|e| {
        Error::invalid("body", "invalid_json", format!("We could not parse the JSON body of your request: {e}"))
    })
}

/// `body` as a `T` that refuses unknown fields.
pub fn read<T: DeserializeOwned>(body: &Value) -> Result<T> {
    strict::from_value(body.clone()).map_err(|e| {
        let FieldError { path, message: why, .. } = e;
        let quoted = |prefix: &str| why.strip_prefix(prefix).and_then(|rest| rest.split('`').next());
        if let Some(field) = quoted("unknown field `") {
            let message = format!("Unrecognized request argument supplied: {field}");
            return Error::invalid(field, "unknown_parameter", message);
        }
        if let Some(field) = quoted("missing field `") {
            let message = format!("Missing required parameter: '{field}'.");
            return Error::invalid(field, "missing_required_parameter", message);
        }
        Error::invalid(&path, "invalid_type", format!("Invalid value for '{path}': {why}"))
    })
}
