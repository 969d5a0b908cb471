//! Runs `hone-trainer estimate` as a child of this process.

use super::RehearsalError;
use std::{io, process::Stdio, time::Duration};
use tokio::process::Command;
use wire::estimate::Estimate;

/// Longest rehearsal: staging a model that is not cached takes most of it.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The estimate that `command` prints. A child that takes too long is killed.
pub async fn run(mut command: Command) -> Result<Estimate, RehearsalError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |e: io::Error| RehearsalError::Unavailable(format!("the trainer cannot be started: {e}"));
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => {
            let message = format!("the rehearsal was not over after {} s", PATIENCE.as_secs());
            return Err(RehearsalError::Unavailable(message));
        }
    };
    // A run that does not fit is an error of the program, and its estimate is printed all the same.
    if let Ok(estimate) = serde_json::from_slice(&output.stdout) {
        return Ok(estimate);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    match said.lines().rev().find_map(|line| line.strip_prefix("hone-trainer: ")) {
        Some(reason) => Err(RehearsalError::Refused(reason.to_owned())),
        None => Err(RehearsalError::Unavailable(format!("the trainer ended with {}", output.status))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(script: &str) -> Result<Estimate, RehearsalError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command).await
    }

    #[tokio::test]
    async fn what_a_trainer_says_and_what_it_does_not() {
        let estimate = r#"{"total_steps":1,"total_tokens":2,"largest_batch_tokens":2,"trainable_parameters":3,"total_parameters":4,
            "peak_memory_bytes":5,"available_memory_bytes":4,"train_seconds":1.0,"total_seconds":2.0,"rehearsal_seconds":3.0}"#;
        let told =
            of(&format!("echo '{estimate}'; echo 'hone-trainer: the run needs more' >&2; exit 64")).await.unwrap();
        assert_eq!((told.total_steps, told.fits()), (1, false));
        let refused = of("echo warning >&2; echo 'hone-trainer: no such projection' >&2; exit 64").await.unwrap_err();
        assert!(matches!(&refused, RehearsalError::Refused(why) if why == "no such projection"), "{refused:?}");
        assert!(matches!(of("exit 1").await.unwrap_err(), RehearsalError::Unavailable(_)));
        let missing = run(Command::new("/nonexistent/trainer")).await.unwrap_err();
        assert!(matches!(missing, RehearsalError::Unavailable(_)), "{missing:?}");
    }
}
