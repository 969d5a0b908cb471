//! What a command fails with: a sentence, located errors, a hint, and the exit code.

use crate::postgres::PostgresError;
use service::{ClientError, EnvError};
use std::{error::Error, fmt, io, path::Path, process::ExitCode};
use wire::{Code, Problem, problem::FieldError};

pub type CliResult<T = ()> = Result<T, CliError>;

/// Exit codes, as `hone --help` documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Failed,
    NotFound,
    Invalid,
    Unreachable,
    /// Ended by Ctrl-C.
    Interrupted,
}

impl Exit {
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::NotFound => 3,
            Self::Invalid => 4,
            Self::Unreachable => 5,
            Self::Interrupted => 130,
        }
    }

    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        let all = [Self::Failed, Self::NotFound, Self::Invalid, Self::Unreachable, Self::Interrupted];
        all.into_iter().find(|e| i32::from(e.code()) == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[derive(Debug)]
pub struct CliError {
    pub exit: Exit,
    /// What happened and where, as one sentence without a final period. Empty: it was said already.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    pub errors: Vec<FieldError>,
    pub code: Option<Code>,
    pub trace_id: Option<String>,
}

impl CliError {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, errors: Vec::new(), code: None, trace_id: None }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Exit::Invalid, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn located(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    /// A file of the user's that cannot be used.
    pub fn file(action: &str, path: &Path, source: &io::Error) -> Self {
        let error = Self::new(Exit::Invalid, format!("cannot {action} {}: {}", path.display(), reason(source)));
        match source.kind() {
            io::ErrorKind::PermissionDenied => error.hint("check its owner and permissions"),
            _ => error,
        }
    }

    /// A file of ours that cannot be used.
    pub fn io(action: &str, path: &Path, source: &io::Error) -> Self {
        let error = Self::new(Exit::Failed, format!("cannot {action} {}: {}", path.display(), reason(source)));
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                error.hint(format!("free some space on the disk that holds {}", path.display()))
            }
            io::ErrorKind::PermissionDenied => error.hint("check its owner and permissions"),
            _ => error,
        }
    }

    /// For `--json`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "message": self.message, "hint": self.hint, "code": self.code, "errors": self.errors,
            "trace_id": self.trace_id, "exit_code": self.exit.code(),
        }})
    }
}

/// The operating system's words without the error number.
fn reason(source: &io::Error) -> String {
    let text = source.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        for e in &self.errors {
            let tail = e.suggestion.as_ref().map(|s| format!(" ({s})")).unwrap_or_default();
            write!(f, "\n  {}: {}{tail}", e.path, e.message)?;
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

impl Error for CliError {}

impl From<Problem> for CliError {
    fn from(problem: Problem) -> Self {
        let exit = match problem.code {
            Code::NotFound => Exit::NotFound,
            Code::Invalid
            | Code::Unsupported
            | Code::InsufficientMemory
            | Code::DatasetInvalid
            | Code::ModelCorrupt
            | Code::TooLarge
            | Code::ChecksumMismatch => Exit::Invalid,
            Code::Unavailable => Exit::Unreachable,
            Code::Unauthorized
            | Code::Forbidden
            | Code::InsufficientScope
            | Code::MethodNotAllowed
            | Code::Conflict
            | Code::PreconditionFailed
            | Code::PreconditionRequired
            | Code::TargetNotServed
            | Code::StaleAttempt
            | Code::Overloaded
            | Code::RateLimited
            | Code::Internal => Exit::Failed,
        };
        let hint = (problem.code == Code::Unauthorized)
            .then(|| "check HONE_API_KEY, or the api_key in connection.json of the data directory".to_owned());
        // A single located error is usually the detail itself; a list says more than its first entry.
        let told = |e: &FieldError| problem.detail.contains(&e.message);
        let errors = match problem.errors.as_slice() {
            [only] if told(only) => Vec::new(),
            all => all.to_vec(),
        };
        let message = if errors.len() > 1 { without_first(&problem.detail, &errors) } else { problem.detail };
        Self { exit, message, hint, errors, code: Some(problem.code), trace_id: problem.trace_id }
    }
}

/// `detail` up to where it starts to repeat the first of the listed errors.
fn without_first(detail: &str, errors: &[FieldError]) -> String {
    let cut = errors.first().and_then(|e| detail.find(&format!("{}: {}", e.path, e.message)));
    match cut.and_then(|at| detail.get(..at)).map(|d| d.trim_end_matches([' ', ':'])).filter(|d| !d.is_empty()) {
        Some(head) => format!("{head}: {} errors", errors.len()),
        None => detail.to_owned(),
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Problem { problem, .. } => problem.into(),
            ClientError::Transport { source, .. } => {
                let place = source.url().map(|u| u.origin().ascii_serialization()).unwrap_or_else(|| "Hone".into());
                let why = if source.is_timeout() {
                    "it did not answer in time".to_owned()
                } else if source.is_connect() {
                    "nothing accepts connections there".to_owned()
                } else {
                    root(&source)
                };
                Self::new(Exit::Unreachable, format!("cannot reach Hone at {place}: {why}"))
                    .hint("start it with `hone up`, or set HONE_URL (and HONE_API_KEY) to a Hone that runs elsewhere")
            }
            ClientError::BreakerOpen { .. } => Self::new(Exit::Unreachable, error.to_string()),
            ClientError::Status { .. } | ClientError::Decode { .. } => {
                let message = service::error::chain(&error);
                Self::failed(message).hint("is HONE_URL the address of a Hone backend of this version?")
            }
            ClientError::Build(_) | ClientError::Token(_) => Self::failed(service::error::chain(&error)),
        }
    }
}

fn root(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

impl From<PostgresError> for CliError {
    fn from(error: PostgresError) -> Self {
        let text = service::error::chain(&error);
        if text.contains("No space left on device") {
            return Self::failed(text).hint("the disk is full: free some space, then try again");
        }
        Self::failed(text)
    }
}

impl From<EnvError> for CliError {
    fn from(error: EnvError) -> Self {
        Self::invalid(service::error::chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_errors_replaces_the_repetition_of_its_first_entry() {
        let problem = wire::TrainingConfig::from_yaml("model: m\ndataset: d\ntrainin: {}\nlara: {}\n").unwrap_err();
        let error = CliError::from(problem);
        assert_eq!(error.exit, Exit::Invalid);
        assert_eq!(
            error.to_string(),
            "training configuration: 2 errors\n  lara: is not a configuration key (did you mean `lora`?)\n  trainin: is \
             not a configuration key (did you mean `training`?)"
        );
    }

    #[test]
    fn a_single_error_is_told_once() {
        let problem = wire::TrainingConfig::from_yaml("model: m\ndataset: d\nlora: {r: 0}\n").unwrap_err();
        let error = CliError::from(problem);
        assert_eq!(error.to_string(), "training configuration: lora.r: must be between 1 and 1024, not 0");
    }

    #[test]
    fn operating_system_errors_read_as_sentences() {
        let error = CliError::io("write", Path::new("/x"), &io::Error::from_raw_os_error(28));
        assert_eq!(
            error.to_string(),
            "cannot write /x: no space left on device\nhint: free some space on the disk that holds /x"
        );
    }
}
