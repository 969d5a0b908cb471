//! Errors on the wire: RFC 9457 problem details with a stable `code`.

use serde::{Deserialize, Serialize};

/// Media type of a [`Problem`] body.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Stable, machine-readable error codes. A code never changes its [`Code::meaning`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    Unauthorized,
    Forbidden,
    InsufficientScope,
    NotFound,
    MethodNotAllowed,
    Conflict,
    Invalid,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
    StaleAttempt,
    Unsupported,
    InsufficientMemory,
    DatasetInvalid,
    ModelCorrupt,
    ChecksumMismatch,
    Overloaded,
    RateLimited,
    Unavailable,
    TargetNotServed,
    Internal,
}

impl Code {
    pub const ALL: [Self; 21] = [
        Self::Unauthorized,
        Self::Forbidden,
        Self::InsufficientScope,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::Invalid,
        Self::PreconditionFailed,
        Self::PreconditionRequired,
        Self::TooLarge,
        Self::StaleAttempt,
        Self::Unsupported,
        Self::InsufficientMemory,
        Self::DatasetInvalid,
        Self::ModelCorrupt,
        Self::ChecksumMismatch,
        Self::Overloaded,
        Self::RateLimited,
        Self::Unavailable,
        Self::TargetNotServed,
        Self::Internal,
    ];

    /// As it is written on the wire.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// What it tells, in a sentence without a final period.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Unauthorized => "Missing, unknown or expired credentials",
            Self::Forbidden => "Valid credentials without the right to do this",
            Self::InsufficientScope => "The key lacks the scope this needs; the detail and WWW-Authenticate name it",
            Self::NotFound => "The named thing does not exist (or is not yours)",
            Self::MethodNotAllowed => "The path is served, but not with this method; Allow has those that are",
            Self::Conflict => "The request contradicts the current state",
            Self::Invalid => "The body or a parameter is malformed or out of range; errors says where",
            Self::PreconditionFailed => {
                "Someone else has changed the thing since the revision in If-Match; current is the newer one"
            }
            Self::PreconditionRequired => "This needs If-Match with the revision that was read",
            Self::TooLarge => "Larger than the limit for its kind",
            Self::StaleAttempt => "The attempt that sent this is no longer the current one",
            Self::Unsupported => "Base model, method and data do not go together; errors says what would do",
            Self::InsufficientMemory => {
                "The run needs more memory than a trainer has; errors says what would make it smaller"
            }
            Self::DatasetInvalid => "The dataset failed validation; errors has located samples",
            Self::ModelCorrupt => "Model weights or configuration are corrupt, unsafe or unsupported",
            Self::ChecksumMismatch => "Size or digest differs from what was declared",
            Self::Overloaded => "Too many requests or a full queue; retry after the given time",
            Self::RateLimited => "More requests than this key or address may send; Retry-After says when it may go on",
            Self::Unavailable => "A dependency (database, storage, trainer) cannot be reached",
            Self::TargetNotServed => "The deploy target is not served by this installation yet",
            Self::Internal => "A defect of ours; the log has the details under the trace id",
        }
    }

    /// The HTTP status this code is sent with.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden | Self::InsufficientScope => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::StaleAttempt => 410,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::Invalid
            | Self::Unsupported
            | Self::InsufficientMemory
            | Self::DatasetInvalid
            | Self::ModelCorrupt
            | Self::ChecksumMismatch => 422,
            Self::PreconditionRequired => 428,
            Self::Overloaded | Self::RateLimited => 429,
            Self::Internal => 500,
            Self::TargetNotServed => 501,
            Self::Unavailable => 503,
        }
    }

    /// Short human title, the same for every problem with this code.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Unauthorized => "not authenticated",
            Self::Forbidden => "not allowed",
            Self::InsufficientScope => "scope missing",
            Self::NotFound => "not found",
            Self::MethodNotAllowed => "method not allowed",
            Self::Conflict => "conflict with the current state",
            Self::PreconditionFailed => "changed in the meantime",
            Self::PreconditionRequired => "precondition required",
            Self::TargetNotServed => "deploy target not served",
            Self::StaleAttempt => "this attempt is over",
            Self::TooLarge => "too large",
            Self::Invalid => "invalid request",
            Self::Unsupported => "unsupported combination",
            Self::InsufficientMemory => "not enough memory",
            Self::DatasetInvalid => "invalid dataset",
            Self::ModelCorrupt => "unusable model files",
            Self::ChecksumMismatch => "checksum mismatch",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "too many requests",
            Self::Internal => "internal error",
            Self::Unavailable => "temporarily unavailable",
        }
    }
}

/// One located error inside a request: a configuration path, a dataset line, a file name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Where: `training.learning_rate`, `line 12`, `model.safetensors`.
    pub path: String,
    /// What is wrong, in one sentence without a final period.
    pub message: String,
    /// What the user probably meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

impl FieldError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), suggestion: None }
    }

    #[must_use]
    pub fn suggest(mut self, suggestion: Option<impl Into<String>>) -> Self {
        self.suggestion = suggestion.map(Into::into);
        self
    }
}

/// RFC 9457 problem details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// `about:blank` is avoided: the type is a documentation path, `/docs/errors#CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What happened here, and what to do about it.
    pub detail: String,
    pub code: Code,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// What is there now, where that tells how to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub current: Option<serde_json::Value>,
    /// Trace id of the request, to find it in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/docs/errors#{}", code.name()),
            title: code.title().into(),
            status: code.status(),
            detail: detail.into(),
            code,
            errors: Vec::new(),
            current: None,
            trace_id: None,
        }
    }

    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    /// Shows what is there now.
    #[must_use]
    pub fn with_current(mut self, current: serde_json::Value) -> Self {
        self.current = Some(current);
        self
    }

    /// Not found, naming up to three near matches among `known`.
    pub fn not_found<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known: Vec<&str> = known.into_iter().collect();
        known.sort_unstable();
        known.dedup();
        let near = near(name, known.iter().copied());
        let detail = if let Some((last, rest)) = near.split_last() {
            let list = if rest.is_empty() { (*last).to_owned() } else { format!("{} or {last}", rest.join(", ")) };
            format!("no {what} named `{name}`; did you mean {list}?")
        } else if known.is_empty() {
            format!("no {what} named `{name}`; there is no {what} yet")
        } else {
            let some: Vec<&str> = known.iter().copied().take(5).collect();
            format!("no {what} named `{name}`; known: {}", some.join(", "))
        };
        Self::new(Code::NotFound, detail)
    }
}

/// Up to three of `known` that look like `name`, best first (Jaro-Winkler ≥ 0.8).
pub fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(score, _)| *score >= 0.8)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, k)| k).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_names_near_matches() {
        let p = Problem::not_found("model", "hone-tny", ["hone-tiny", "llama-3"]);
        assert_eq!(p.detail, "no model named `hone-tny`; did you mean hone-tiny?");
        assert_eq!(p.status, 404);
        assert_eq!(p.kind, "/docs/errors#NOT_FOUND");
    }

    #[test]
    fn not_found_without_a_near_match_lists_what_there_is() {
        assert_eq!(Problem::not_found("model", "zzz", ["abc"]).detail, "no model named `zzz`; known: abc");
        assert_eq!(Problem::not_found("model", "zzz", []).detail, "no model named `zzz`; there is no model yet");
    }
}
