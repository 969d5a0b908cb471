//! A job's progress as a fold over its events in seq order, so that it does not depend on how they arrived.

use wire::{
    EventKind,
    event::metric::{EVAL_LOSS, STEP_SECONDS, TOKENS_PER_SECOND, TRAIN_LOSS},
    job::Progress,
};

/// Weight of the newest step in the mean step time that the estimate of the remaining time rests on.
const NEWEST: f64 = 0.1;

pub fn fold(progress: &mut Progress, kind: &EventKind) {
    match kind {
        EventKind::Started { resumed_from_step, .. } => {
            progress.step = resumed_from_step.unwrap_or(0);
            progress.phase = None;
            progress.tokens_per_second = None;
            progress.eta_seconds = None;
            if resumed_from_step.is_none() {
                *progress = Progress { total_steps: progress.total_steps, ..Progress::default() };
            }
        }
        EventKind::Plan { total_steps, .. } => progress.total_steps = Some(*total_steps),
        EventKind::Phase { phase, .. } => progress.phase = Some(*phase),
        EventKind::Metrics { step, epoch, values } => {
            if let Some(loss) = values.get(EVAL_LOSS) {
                progress.eval_loss = Some(*loss);
                if *step == 0 {
                    progress.initial_eval_loss = Some(*loss);
                }
            }
            if *step < progress.step {
                return;
            }
            estimate(progress, *step, values.get(STEP_SECONDS).copied());
            progress.step = *step;
            progress.epoch = *epoch;
            progress.loss = values.get(TRAIN_LOSS).copied().or(progress.loss);
            progress.tokens_per_second = values.get(TOKENS_PER_SECOND).copied().or(progress.tokens_per_second);
        }
        EventKind::Progress { step, total_steps, eta_seconds } => {
            progress.step = progress.step.max(*step);
            progress.total_steps = total_steps.or(progress.total_steps);
            progress.eta_seconds = *eta_seconds;
        }
        EventKind::Finished { summary, .. } => {
            progress.step = summary.steps;
            progress.phase = None;
            progress.eta_seconds = Some(0.0);
            progress.loss = summary.train_loss.or(progress.loss);
            progress.eval_loss = summary.eval_loss.or(progress.eval_loss);
            progress.initial_eval_loss = summary.initial_eval_loss.or(progress.initial_eval_loss);
        }
        EventKind::Failed { .. } | EventKind::Stopped { .. } => {
            progress.phase = None;
            progress.eta_seconds = None;
        }
        EventKind::Checkpoint { .. } | EventKind::Log { .. } => {}
    }
}

/// The mean step time is what the last estimate says per remaining step; no column of its own is needed.
fn estimate(progress: &mut Progress, step: u64, seconds: Option<f64>) {
    let (Some(total), Some(seconds)) = (progress.total_steps, seconds) else { return };
    let before = steps(total.saturating_sub(progress.step));
    let mean = match progress.eta_seconds {
        Some(eta) if before > 0.0 => (1.0 - NEWEST) * (eta / before) + NEWEST * seconds,
        _ => seconds,
    };
    progress.eta_seconds = Some(mean * steps(total.saturating_sub(step)));
}

fn steps(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64, values: &[(&str, f64)]) -> EventKind {
        let values = values.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        EventKind::Metrics { step, epoch: 0.5, values }
    }

    fn plan(total_steps: u64) -> EventKind {
        EventKind::Plan {
            total_steps,
            epochs: 1.0,
            train_rows: 1,
            eval_rows: 0,
            train_tokens: 1,
            truncated_rows: 0,
            trainable_parameters: 1,
            total_parameters: 1,
        }
    }

    #[test]
    fn the_remaining_time_follows_the_mean_step_time() {
        let mut progress = Progress::default();
        fold(&mut progress, &plan(11));
        fold(&mut progress, &metrics(1, &[(TRAIN_LOSS, 2.0), (STEP_SECONDS, 1.0)]));
        assert_eq!(progress.eta_seconds, Some(10.0));
        fold(&mut progress, &metrics(2, &[(TRAIN_LOSS, 1.5), (STEP_SECONDS, 2.0)]));
        let eta = progress.eta_seconds.unwrap();
        assert!((eta - 9.0 * 1.1).abs() < 1e-9, "{eta}");
        assert_eq!((progress.step, progress.loss), (2, Some(1.5)));
    }

    #[test]
    fn a_resumed_attempt_keeps_what_came_before_its_checkpoint() {
        let mut progress = Progress::default();
        fold(&mut progress, &metrics(0, &[(EVAL_LOSS, 3.0)]));
        fold(&mut progress, &metrics(7, &[(TRAIN_LOSS, 2.0), (EVAL_LOSS, 2.5)]));
        let resumed = |from| EventKind::Started {
            trainer_version: "1".into(),
            device: "cpu".into(),
            threads: 1,
            resumed_from_step: from,
        };
        fold(&mut progress, &resumed(Some(5)));
        assert_eq!((progress.step, progress.initial_eval_loss, progress.eval_loss), (5, Some(3.0), Some(2.5)));
        fold(&mut progress, &resumed(None));
        assert_eq!((progress.step, progress.initial_eval_loss), (0, None));
    }
}
