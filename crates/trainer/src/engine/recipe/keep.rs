//! What a run keeps: checkpoints while it goes on, artifacts when it is done, and the reason when it gives up.

use super::{Run, phase};
use crate::cache::{disk_full, free_bytes};
use crate::engine::{
    Outcome, TrainError, artifacts,
    checkpoint::{self, Kind},
    memory, optim,
};
use std::path::{Path, PathBuf};
use wire::{
    event::{EventKind, Level, Phase, Summary},
    job::FailureCode,
};

/// Steps averaged into a run's final training loss.
const RECENT: usize = 10;

impl Run<'_> {
    /// Makes sure there is a checkpoint of the current step.
    pub(super) fn save(&mut self) -> Result<PathBuf, TrainError> {
        let step = self.state.step;
        if let Some((saved, dir)) = &self.saved
            && *saved == step
        {
            return Ok(dir.clone());
        }
        let params = self.model.params();
        for (name, var) in params.iter() {
            if !optim::sum_of_squares(var)?.is_finite() {
                return Err(self.gave_up(&format!("`{name}` is not finite any more"), step));
            }
        }
        phase(self.observer, Phase::Checkpointing, format!("writing the checkpoint of step {step}"));
        let root = self.setup.work_dir.join("checkpoints");
        let t = &self.setup.config.training;
        let best_step = self.state.best.at.map(|(step, _)| step).filter(|_| t.load_best_model_at_end);
        let earlier = self.best.as_deref().filter(|_| best_step != Some(step));
        let dir = checkpoint::save(&root, &self.kind, params, &self.optimizer, &self.state, earlier)
            .map_err(|e| self.no_room(e, &root))?;
        self.observer.checkpoint(step, &dir);
        if t.load_best_model_at_end {
            self.best = checkpoint::best_file(&dir, &self.kind, &self.state);
        }
        checkpoint::prune(&root, t.save_total_limit, best_step)?;
        self.saved = Some((step, dir.clone()));
        Ok(dir)
    }

    /// With `load_best_model_at_end`, goes back to the best evaluation. Returns the loss of what is trained now.
    fn choose_best(&mut self) -> Result<Option<f64>, TrainError> {
        let last = self.state.last_eval.map(|(_, loss)| loss);
        let (Some((step, loss)), Some(file)) = (self.state.best.at, &self.best) else { return Ok(last) };
        if step < self.state.step {
            checkpoint::load_weights(file, &self.kind, self.model.params())?;
            let message = format!("the result is that of step {step}, with the lowest validation loss ({loss:.4})");
            self.observer.event(EventKind::Log { level: Level::Info, message });
        }
        Ok(Some(loss))
    }

    pub(super) fn finish(mut self) -> Result<Outcome, TrainError> {
        let eval_loss = self.choose_best()?;
        let summary = Summary {
            steps: self.state.step,
            tokens: self.state.tokens_seen,
            train_seconds: self.state.train_seconds,
            train_loss: self.state.recent_loss(RECENT),
            initial_eval_loss: self.state.initial_eval_loss,
            eval_loss,
            peak_memory_bytes: memory::resident().map(|(_, peak)| peak),
        };
        let target = self.setup.work_dir.join("artifacts");
        let card = artifacts::Card { summary: &summary, classes: self.classes.as_ref() };
        match &self.kind {
            Kind::Adapter { config } => {
                artifacts::write_adapter(&target, self.setup, config, self.model.params(), &card)?
            }
            Kind::Weights => artifacts::write_model(&target, self.setup, self.model.params(), &card)?,
        }
        Ok(Outcome::Finished { summary, artifacts: target })
    }

    pub(super) fn diverged(&self, step: u64, loss: f64, norm: f64) -> TrainError {
        let what = if loss.is_finite() {
            format!("the gradient norm became {norm}")
        } else {
            format!("the loss became {loss}")
        };
        self.gave_up(&what, step)
    }

    fn kept(&self) -> String {
        match &self.saved {
            Some((step, _)) => format!("the checkpoint of step {step} is kept"),
            None => "there is no earlier checkpoint".into(),
        }
    }

    /// A checkpoint that found no room says how much it needs; other errors stay as they are.
    fn no_room(&self, error: TrainError, root: &Path) -> TrainError {
        if error.code != FailureCode::DiskFull {
            return error;
        }
        // What is trained and two moments of it, four bytes each.
        let values = self.model.params().iter().map(|(_, var)| u64::try_from(var.elem_count()).unwrap_or(u64::MAX));
        let need = values.fold(0, |sum: u64, n| sum.saturating_add(n.saturating_mul(12)));
        let what = format!("the checkpoint of step {} ({})", self.state.step, self.kept());
        disk_full(&what, root, need, free_bytes(root).unwrap_or(0)).caused_by(error)
    }

    fn gave_up(&self, what: &str, step: u64) -> TrainError {
        let kept = self.kept();
        let t = &self.setup.config.training;
        TrainError::new(
            FailureCode::Diverged,
            format!(
                "{what} at step {step}; {kept}. Lower learning_rate (now {}) or lengthen the warm-up",
                t.learning_rate
            ),
        )
    }
}
