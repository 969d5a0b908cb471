//! Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, and the headers that tell
//! them whether and when to try again.

use crate::error::Error as Cause;
use actix_web::{HttpRequest, HttpResponse, ResponseError, http::StatusCode, web};
use serde::Serialize;
use std::fmt;
use wire::problem::Code;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ErrorObject {
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error`, `server_error` …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that is at fault.
    #[schema(required)]
    pub param: Option<String>,
    #[schema(required)]
    pub code: Option<&'static str>,
}

/// Body of every error below `/v1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ErrorReply {
    pub error: ErrorObject,
}

#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    object: ErrorObject,
    /// Whether the clients should give up at once, where they would not by themselves.
    hopeless: bool,
    /// For the log only.
    cause: Option<Cause>,
}

impl Error {
    fn new(status: StatusCode, code: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        let object =
            ErrorObject { message: message.into(), kind: "invalid_request_error", param: None, code: code.into() };
        // The clients try a conflict again, but what stands against the request seldom goes away by itself.
        Self { status, object, hopeless: status == StatusCode::CONFLICT, cause: None }
    }

    /// 400: `param` is missing, malformed or not served.
    pub fn invalid(param: &str, code: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message).about(param)
    }

    pub fn not_found(code: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "insufficient_permissions", message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 422: the content is not what was declared.
    pub fn mismatch(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "checksum_mismatch", message).about(param)
    }

    #[must_use]
    pub fn about(mut self, param: &str) -> Self {
        self.object.param = Some(param.to_owned());
        self
    }

    /// It may be gone when the client tries again.
    #[must_use]
    pub const fn passing(mut self) -> Self {
        self.hopeless = false;
        self
    }

    /// The code of the refusal this was made from.
    #[must_use]
    pub fn cause_code(&self) -> Option<Code> {
        self.cause.as_ref().and_then(Cause::code)
    }

    #[must_use]
    pub fn message(&self) -> &str {
        &self.object.message
    }
}

/// Status, type and code of our own codes. The status is OpenAI's: what it calls a bad request is 422 elsewhere in Hone.
const fn outside(code: Code) -> (StatusCode, &'static str, Option<&'static str>) {
    const REQUEST: &str = "invalid_request_error";
    const SERVER: &str = "server_error";
    match code {
        Code::Unauthorized => (StatusCode::UNAUTHORIZED, REQUEST, Some("invalid_api_key")),
        Code::Forbidden => (StatusCode::FORBIDDEN, REQUEST, Some("insufficient_permissions")),
        Code::InsufficientScope => (StatusCode::FORBIDDEN, REQUEST, Some("missing_scope")),
        Code::NotFound => (StatusCode::NOT_FOUND, REQUEST, Some("not_found")),
        Code::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, Some("method_not_allowed")),
        // Preconditions and deployments belong to the native routes.
        Code::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, REQUEST, None),
        Code::PreconditionRequired => (StatusCode::PRECONDITION_REQUIRED, REQUEST, None),
        Code::TargetNotServed => (StatusCode::NOT_IMPLEMENTED, SERVER, None),
        Code::Conflict | Code::StaleAttempt => (StatusCode::CONFLICT, REQUEST, Some("conflict")),
        Code::Invalid | Code::ModelCorrupt => (StatusCode::BAD_REQUEST, REQUEST, Some("invalid_value")),
        Code::Unsupported => (StatusCode::BAD_REQUEST, REQUEST, Some("unsupported_value")),
        Code::InsufficientMemory => (StatusCode::BAD_REQUEST, REQUEST, Some("insufficient_memory")),
        Code::DatasetInvalid => (StatusCode::BAD_REQUEST, REQUEST, Some("invalid_file")),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, Some("file_too_large")),
        Code::ChecksumMismatch => (StatusCode::UNPROCESSABLE_ENTITY, REQUEST, Some("checksum_mismatch")),
        Code::Overloaded | Code::RateLimited => {
            (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"))
        }
        Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("service_unavailable")),
        Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let public = cause.public();
        let problem = public.problem();
        let (status, kind, code) = outside(problem.code);
        let param = problem.errors.first().map(|e| e.path.clone()).filter(|path| !path.starts_with("line "));
        let object = ErrorObject { message: problem.detail.clone(), kind, param, code };
        Self { status, object, hopeless: status == StatusCode::CONFLICT, cause: Some(cause) }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Cause::from(error).into()
    }
}

impl From<service::ClientError> for Error {
    fn from(error: service::ClientError) -> Self {
        Cause::from(error).into()
    }
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Cause::from(error).into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object.message)
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        if self.status.is_server_error() {
            let cause = self.cause.as_ref().map_or_else(|| self.to_string(), |cause| service::error::chain(cause));
            tracing::error!(error = %cause, "request failed");
        }
        let mut reply = HttpResponse::build(self.status);
        if let Some(id) = service::telemetry::current_trace_id() {
            reply.insert_header(("x-request-id", id));
        }
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            reply.insert_header(("retry-after", "1"));
        }
        if self.hopeless {
            reply.insert_header(("x-should-retry", "false"));
        }
        reply.json(ErrorReply { error: self.object.clone() })
    }
}

/// The answer to what is not served.
pub fn unknown_route(req: &HttpRequest) -> Error {
    let message = format!("Unknown request URL: {} {}. Please check the URL for typos.", req.method(), req.path());
    Error::not_found("unknown_url", message)
}

/// The answer to a method that a path does not take.
pub fn method_not_allowed(req: &HttpRequest, allowed: &str) -> Error {
    let message = format!("Invalid method for URL ({} {}); it takes {allowed}.", req.method(), req.path());
    Error::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Extractor settings that answer malformed input with an error object. `limit` caps bodies in bytes.
pub fn extractors(limit: usize) -> (web::PayloadConfig, web::PathConfig) {
    let path = web::PathConfig::default().error_handler(|e, _| Error::not_found(None, e.to_string()).into());
    (web::PayloadConfig::new(limit), path)
}
