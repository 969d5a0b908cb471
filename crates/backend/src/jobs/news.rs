//! Which changes of a job its owner is told about.

use super::transition::MovedRow;
use crate::{
    db::Conn,
    error::Result,
    notifications::{Kind, News, Severity},
};
use serde_json::json;
use wire::{
    JobId, JobState, UserId,
    cost::{Pause, PauseReason},
    job::Failure,
};

/// Tells the owner how a job ended, or that its budget stopped it; once for each attempt.
pub(super) async fn tell(
    conn: &mut Conn,
    job: &MovedRow,
    to: JobState,
    failure: Option<&Failure>,
    pause: Option<&Pause>,
) -> Result<()> {
    let name = &job.name;
    let (kind, severity, title, body) = match (to, pause) {
        (JobState::Succeeded, _) => {
            (Kind::JobSucceeded, Severity::Info, format!("`{name}` has finished"), String::new())
        }
        (JobState::Failed, _) => {
            let why = failure.map(|f| f.message.clone()).unwrap_or_default();
            (Kind::JobFailed, Severity::Error, format!("`{name}` has failed"), why)
        }
        (JobState::Cancelled, _) => {
            (Kind::JobCancelled, Severity::Info, format!("`{name}` was cancelled"), String::new())
        }
        (JobState::Paused, Some(pause)) if pause.reason == PauseReason::Budget => {
            let title = format!("`{name}` is paused at its budget limit");
            (Kind::JobPaused, Severity::Warning, title, pause.message.clone())
        }
        _ => return Ok(()),
    };
    let id = JobId(job.id);
    let news = News {
        user: UserId(job.user_id),
        kind,
        severity,
        title,
        body,
        data: json!({"job_id": id, "name": name, "state": to, "attempt": job.attempt, "version_id": job.version_id,
            "step": job.progress.get("step"), "failure": failure, "pause": pause}),
        job: Some(id),
        key: format!("job:{id}:{to}:{}", job.attempt),
    };
    news.raise(conn).await?;
    Ok(())
}

/// Tells the owner, once for each attempt, that reports could not be understood.
pub(super) async fn tell_of_dead_letter(
    conn: &mut Conn,
    (user, job, attempt): (UserId, JobId, i32),
    reason: &str,
) -> Result<()> {
    let news = News {
        user,
        kind: Kind::DeadLetter,
        severity: Severity::Warning,
        title: "a report of a trainer could not be applied".into(),
        body: format!("It is kept as a dead letter, and the job goes on: {reason}"),
        data: json!({"job_id": job, "attempt": attempt, "reason": reason}),
        job: Some(job),
        key: format!("job:{job}:dead_letter:{attempt}"),
    };
    news.raise(conn).await?;
    Ok(())
}
