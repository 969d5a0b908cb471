//! What attempts left on this machine: processes whose job is over, logs to keep, old records.

use super::Reconciler;
use crate::{
    error::Result,
    jobs::{
        decide::{Action, Observed, Runtime, decide},
        launcher::Leftover,
        rows::Situation,
        state::has_runtime,
    },
};
use wire::{JobState, layout};

impl Reconciler {
    /// Best effort: what fails is tried again by the next sweep.
    pub(super) async fn sweep(&self) {
        for leftover in self.launcher.leftovers().await {
            if !leftover.alive && !leftover.log_due && !leftover.held {
                continue;
            }
            if let Err(error) = self.clean(&leftover).await {
                let job = leftover.handle.job;
                tracing::debug!(job.id = %job, error = %service::error::chain(&error), "cannot clean up after an attempt yet");
            }
        }
        self.launcher.tidy().await;
    }

    async fn clean(&self, leftover: &Leftover) -> Result<()> {
        let handle = &leftover.handle;
        let job = handle.job;
        let at = self.state.db.system(async move |conn| Situation::load(conn, job).await).await?;
        let Some(at) = at else {
            // The job's row is gone: nobody wants the process or its log.
            self.launcher.stop(handle, self.policy.kill_grace).await;
            self.launcher.log_kept(handle).await;
            self.launcher.release(handle).await;
            return Ok(());
        };
        if leftover.alive {
            if at.snapshot.attempt != handle.attempt {
                tracing::warn!(job.id = %job, "stopping a trainer of attempt {}, which is over", handle.attempt);
                self.launcher.stop(handle, self.policy.kill_grace).await;
            } else if at.snapshot.state.is_terminal() {
                self.end_lingering(leftover, &at).await;
            }
            return Ok(());
        }
        if leftover.log_due {
            self.keep_log(leftover, &at).await?;
        }
        let settled = at.snapshot.attempt != handle.attempt || !has_runtime(at.snapshot.state);
        if leftover.held && settled {
            self.launcher.release(handle).await;
        }
        Ok(())
    }

    async fn end_lingering(&self, leftover: &Leftover, at: &Situation) {
        let seen = Observed {
            runtime: Runtime::Alive,
            events_collected: false,
            verification: None,
            capacity: false,
            sweeper_armed: false,
            jitter: 0.0,
        };
        for action in decide(&at.snapshot, &seen, at.now, &self.policy) {
            if let Action::Stop { grace } = action {
                self.launcher.stop(&leftover.handle, grace).await;
            }
        }
    }

    /// Puts the log where the API finds it. A trainer uploads its own while it works; what the supervisor
    /// caught also has the last words of one that crashed.
    async fn keep_log(&self, leftover: &Leftover, at: &Situation) -> Result<()> {
        let handle = &leftover.handle;
        let prefix = layout::attempt_prefix(at.job.user(), handle.job, handle.attempt);
        let key = format!("{prefix}{}{}", layout::LOGS, layout::TRAINER_LOG);
        let ended_well = at.snapshot.state == JobState::Succeeded && at.snapshot.attempt == handle.attempt;
        let there = ended_well && !self.state.gateway.list(&key, None, 1).await?.objects.is_empty();
        if let Some(log) = self.launcher.log(handle).await.filter(|_| !there) {
            self.state.gateway.put_bytes(&key, log.into()).await?;
        }
        self.launcher.log_kept(handle).await;
        Ok(())
    }
}
