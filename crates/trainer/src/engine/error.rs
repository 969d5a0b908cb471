//! Why training failed, in the terms of the job: one code a caller can act on, one sentence for the user.

use std::{io, path::Path};
use wire::job::{Failure, FailureCode};

/// A failed run.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TrainError {
    pub code: FailureCode,
    /// What happened, where, what to do; safe to show to the user.
    pub message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl TrainError {
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), source: None }
    }

    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn config(message: impl Into<String>) -> Self {
        Self::new(FailureCode::ConfigInvalid, message)
    }

    pub fn model(message: impl Into<String>) -> Self {
        Self::new(FailureCode::ModelCorrupt, message)
    }

    pub fn data(message: impl Into<String>) -> Self {
        Self::new(FailureCode::DatasetInvalid, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(FailureCode::Internal, message)
    }

    /// A failed file operation: a full disk is told apart from everything else.
    pub fn io(what: &str, path: &Path, source: io::Error) -> Self {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let code = if full { FailureCode::DiskFull } else { FailureCode::Internal };
        let hint = if full { "; free some space and resume" } else { "" };
        Self::new(code, format!("cannot {what} {}: {source}{hint}", path.display())).caused_by(source)
    }
}

/// A tensor operation that should have worked: a defect of ours.
impl From<candle_core::Error> for TrainError {
    fn from(source: candle_core::Error) -> Self {
        Self::internal(format!("tensor operation failed: {source}")).caused_by(source)
    }
}

impl From<&TrainError> for Failure {
    fn from(error: &TrainError) -> Self {
        Self { code: error.code, message: error.message.clone() }
    }
}
