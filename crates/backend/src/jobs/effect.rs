//! What an event means for its attempt, beyond progress. Pure, so that the model test uses the same rules.

use super::verdict::Outcome;
use wire::{EventKind, job::Failure, storage::FileRef};

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    None,
    /// A checkpoint that another attempt can continue from.
    Checkpoint {
        step: u64,
        prefix: String,
    },
    /// Training is done and everything uploaded: the job is finalizing.
    Finish {
        manifest: Vec<FileRef>,
    },
    /// The attempt's last word; the job moves on once the process is gone.
    End {
        outcome: Outcome,
        failure: Option<Failure>,
    },
}

#[must_use]
pub fn effect(kind: &EventKind) -> Effect {
    match kind {
        EventKind::Checkpoint { step, prefix, .. } => Effect::Checkpoint { step: *step, prefix: prefix.clone() },
        EventKind::Finished { manifest, .. } => Effect::Finish { manifest: manifest.clone() },
        EventKind::Failed { failure } => Effect::End { outcome: Outcome::Failed, failure: Some(failure.clone()) },
        EventKind::Stopped { reason, .. } => Effect::End { outcome: (*reason).into(), failure: None },
        EventKind::Started { .. }
        | EventKind::Plan { .. }
        | EventKind::Phase { .. }
        | EventKind::Metrics { .. }
        | EventKind::Progress { .. }
        | EventKind::Log { .. } => Effect::None,
    }
}
