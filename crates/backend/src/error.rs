//! What a handler fails with, and how that looks from outside.

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as QueryError};
use service::{ApiError, ClientError};
use wire::problem::{Code, Problem};

pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Variants differ in what the caller can do about them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Refused, with words for the user.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// The database did not give a connection or an answer in time; the same call may succeed later.
    #[error("the database cannot be reached")]
    DatabaseDown(#[source] Cause),
    /// A query failed for a reason no user can do anything about.
    #[error("a query failed")]
    Query(#[source] QueryError),
    /// The storage gateway refused or cannot be reached.
    #[error("a call to another service failed")]
    Peer(#[from] ClientError),
    /// A defect of ours, such as a stored value that cannot be read.
    #[error("an invariant does not hold")]
    Defect(#[source] Cause),
}

impl Error {
    pub fn refused(code: Code, detail: impl Into<String>) -> Self {
        Self::Refused(Problem::new(code, detail))
    }

    pub fn defect(cause: impl Into<Cause>) -> Self {
        Self::Defect(cause.into())
    }

    /// The code of a refusal, of our own or of a peer.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(problem) | Self::Peer(ClientError::Problem { problem, .. }) => Some(problem.code),
            Self::Peer(_) | Self::DatabaseDown(_) | Self::Query(_) | Self::Defect(_) => None,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::defect(error)
    }
}

/// The one place that turns constraint names into words for the user.
fn violated(info: &dyn DatabaseErrorInformation) -> Option<Problem> {
    let (code, detail) = match info.constraint_name()? {
        "datasets_name_key" => (Code::Conflict, "a dataset of this name exists; choose another name or delete it"),
        "models_pkey" => (Code::Conflict, "this revision of the model is being created by another request; try again"),
        "training_jobs_dataset_fkey" | "training_jobs_validation_dataset_fkey" => {
            (Code::Conflict, "the dataset was deleted in the meantime")
        }
        "training_jobs_model_fkey" => (Code::Conflict, "the model was deleted in the meantime"),
        "training_jobs_max_attempts_check" => (Code::Invalid, "max_attempts: must be at least 1"),
        "training_configs_name_key" => {
            (Code::Conflict, "a package of this name exists; choose another name or delete it")
        }
        "training_package_versions_immutable" => {
            (Code::Conflict, "a published version never changes; restore or fork it as a new draft")
        }
        "users_name_key" => (Code::Conflict, "a user of this name exists"),
        _ => return None,
    };
    Some(Problem::new(code, detail))
}

/// Postgres tells these apart by SQLSTATE, which diesel drops; the messages are its English ones.
fn is_transient(info: &dyn DatabaseErrorInformation) -> bool {
    const MESSAGES: [&str; 7] = [
        "canceling statement due to",
        "terminating connection due to",
        "the database system is",
        "remaining connection slots are reserved",
        "too many clients",
        "could not extend file",
        "No space left on device",
    ];
    MESSAGES.iter().any(|m| info.message().contains(m))
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        let problem = match &error {
            QueryError::DatabaseError(kind, info) => match kind {
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::SerializationFailure => return Self::DatabaseDown(error.into()),
                _ if is_transient(info.as_ref()) => return Self::DatabaseDown(error.into()),
                _ => violated(info.as_ref()),
            },
            QueryError::BrokenTransactionManager => return Self::DatabaseDown(error.into()),
            _ => None,
        };
        problem.map_or_else(|| Self::Query(error), Self::Refused)
    }
}

impl Error {
    /// What the client gets to see. The only match from error to status.
    pub(crate) fn public(&self) -> ApiError {
        let cause = || service::error::chain(self);
        match self {
            Self::Refused(problem) => problem.clone().into(),
            Self::Peer(ClientError::Problem { problem, .. }) if problem.status < 500 && problem.status != 401 => {
                problem.clone().into()
            }
            Self::Peer(error) if error.is_transient() => {
                ApiError::new(Code::Unavailable, format!("{error}; try again in a moment")).caused_by(cause())
            }
            Self::DatabaseDown(_) => {
                ApiError::new(Code::Unavailable, format!("{self}; try again in a moment")).caused_by(cause())
            }
            Self::Peer(_) | Self::Query(_) | Self::Defect(_) => ApiError::internal(cause()),
        }
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.public().status_code()
    }

    fn error_response(&self) -> HttpResponse {
        self.public().error_response()
    }
}
