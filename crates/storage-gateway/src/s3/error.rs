//! From rusoto's errors to ours.

use crate::store::StoreError;
use rusoto_core::{RusotoError, request::BufferedHttpResponse};
use std::error::Error;

/// Says whether trying again can help.
pub(super) fn failure<E: Error + 'static>(op: &'static str, error: RusotoError<E>) -> StoreError {
    match error {
        // The only errors S3's description names for the calls we make are "no such key, upload or bucket".
        RusotoError::Service(_) => StoreError::NotFound { op },
        RusotoError::Unknown(reply) => by_status(op, &reply),
        RusotoError::HttpDispatch(e) => StoreError::Unavailable { op, reason: e.to_string() },
        RusotoError::ParseError(e) => StoreError::Unavailable { op, reason: format!("unreadable reply: {e}") },
        RusotoError::Credentials(e) => StoreError::Refused { op, reason: e.to_string() },
        RusotoError::Validation(e) => StoreError::Refused { op, reason: e },
        RusotoError::Blocking => StoreError::Refused { op, reason: "called from blocking code".into() },
    }
}

fn by_status(op: &'static str, reply: &BufferedHttpResponse) -> StoreError {
    let status = reply.status.as_u16();
    let body = reply.body_as_str();
    let code = element(body, "Code").unwrap_or("no error code");
    let message = element(body, "Message").unwrap_or_default();
    let reason = format!("{status} {code} {message}").trim_end().to_owned();
    match (status, code) {
        (400, "KeyTooLongError" | "InvalidArgument" | "InvalidURI") => StoreError::Key { reason },
        (501, _) => StoreError::Refused { op, reason },
        (404, _) => StoreError::NotFound { op },
        (416, _) => StoreError::Range { op },
        (408 | 429 | 500..=599, _) | (400, "RequestTimeout" | "IncompleteBody") => {
            StoreError::Unavailable { op, reason }
        }
        _ => StoreError::Refused { op, reason },
    }
}

/// Text of the first `<name>` in an error body.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_has_status_code_and_message() {
        let body = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>";
        assert_eq!(element(body, "Code"), Some("AccessDenied"));
        assert_eq!(element(body, "Message"), Some("no"));
        assert_eq!(element("<html>", "Code"), None);
    }
}
