//! HTTP errors: a public [`Problem`] for the client and a private cause for the log.

use actix_web::{HttpRequest, HttpResponse, ResponseError, http::StatusCode, web};
use std::{error::Error, fmt};
use wire::problem::{Code, FieldError, PROBLEM_JSON, Problem};

pub type ApiResult<T> = Result<T, ApiError>;

/// What a handler fails with. `source` is logged once, here, and never sent.
pub struct ApiError {
    problem: Problem,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ApiError {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// Keeps `source` for the log.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A defect or an unexpected failure: the client sees only a trace id.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(
            Code::Internal,
            "something went wrong on our side; the server's log has the cause under this trace id",
        )
        .caused_by(source)
    }

    #[must_use]
    pub const fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self { problem, source: None }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.detail)
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiError").field("problem", &self.problem).field("source", &self.source).finish()
    }
}

impl Error for ApiError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

/// `error: cause: cause of the cause`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut problem = self.problem.clone();
        problem.trace_id = crate::telemetry::current_trace_id();
        if problem.status >= 500 {
            tracing::error!(code = ?problem.code, error = %chain(self), "request failed");
        }
        let mut reply = HttpResponse::build(self.status_code());
        if matches!(problem.code, Code::Overloaded | Code::Unavailable) {
            reply.insert_header(("retry-after", "1"));
        }
        reply.content_type(PROBLEM_JSON).json(problem)
    }
}

/// Extractor settings that answer malformed input with a problem. `limit` caps JSON bodies in bytes.
pub fn extractors(limit: usize) -> impl Fn(&mut web::ServiceConfig) + Clone {
    fn invalid(what: &'static str) -> impl Fn(String) -> actix_web::Error {
        move |detail| ApiError::new(Code::Invalid, format!("{what}: {detail}")).into()
    }
    move |config| {
        config
            .app_data(web::JsonConfig::default().limit(limit).content_type_required(false).error_handler(
                |e, _: &HttpRequest| {
                    let status = e.status_code();
                    if status == StatusCode::PAYLOAD_TOO_LARGE {
                        return ApiError::new(Code::TooLarge, format!("request body: {e}")).into();
                    }
                    invalid("request body")(e.to_string())
                },
            ))
            .app_data(web::QueryConfig::default().error_handler(|e, _| invalid("query string")(e.to_string())))
            .app_data(web::PathConfig::default().error_handler(|e, req| {
                let problem = Problem::new(Code::NotFound, format!("no such resource: {}", req.path()));
                ApiError::from(problem.with_errors(vec![FieldError::new("path", e.to_string())])).into()
            }));
    }
}
