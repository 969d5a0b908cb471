//! Early stopping, the best checkpoint, and weights that are not finite.

use crate::support::{Memory, config, model_dir, setup};
use serde_json::json;
use std::{fs, path::Path};
use trainer::engine::{Control, Outcome, Setup, train};
use wire::{
    config::{LrScheduler, Method, Optim},
    event::{EventKind, Summary, metric},
    job::FailureCode,
};

/// Learns too fast, so that the validation loss falls and then rises again.
fn restless(dir: &Path, model: &Path) -> Setup {
    let mut config = config(Method::Sft);
    config.training.learning_rate = 0.15;
    config.training.lr_scheduler_type = LrScheduler::Constant;
    config.training.max_steps = 24;
    config.training.eval_steps = 2;
    config.training.save_steps = 5;
    config.training.save_total_limit = 1;
    config.training.load_best_model_at_end = true;
    setup(dir, model, config)
}

fn finish(setup: &Setup) -> (Summary, Memory) {
    let mut memory = Memory::default();
    match train(setup, &mut memory).unwrap() {
        Outcome::Finished { summary, .. } => (summary, memory),
        other => panic!("{other:?}"),
    }
}

fn adapter(setup: &Setup) -> Vec<u8> {
    fs::read(setup.work_dir.join("artifacts/adapter_model.safetensors")).unwrap()
}

/// Step and loss of the best evaluation after the first step.
fn best(memory: &Memory) -> (u64, f64) {
    let evals = memory.metric(metric::EVAL_LOSS);
    evals.into_iter().filter(|(s, _)| *s > 0).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}

#[test]
fn the_result_is_the_best_evaluation_also_after_a_resume_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let whole = restless(dir.path(), &model);
    let (summary, memory) = finish(&whole);
    let (step, loss) = best(&memory);
    assert!(step < 24, "the test needs a run that gets worse: {:?}", memory.metric(metric::EVAL_LOSS));
    assert_eq!(summary.eval_loss, Some(loss));
    let kept = |step: u64| whole.work_dir.join("checkpoints").join(format!("step-{step:06}"));
    assert!(kept(step).is_dir() && kept(24).is_dir(), "best and last are kept beyond save_total_limit 1");
    assert_eq!(fs::read_dir(whole.work_dir.join("checkpoints")).unwrap().count(), 2);
    assert_eq!(fs::read(kept(step).join("adapter_model.safetensors")).unwrap(), adapter(&whole));
    assert_eq!(fs::read(kept(24).join("best.safetensors")).unwrap(), adapter(&whole), "the last one carries it");

    let mut first = whole.clone();
    first.work_dir = dir.path().join("first");
    let Outcome::Stopped { checkpoint: Some(checkpoint), .. } =
        train(&first, &mut Memory::stopping(step + 3, Control::Pause)).unwrap()
    else {
        panic!("expected a stop")
    };
    // Only the newest checkpoint survives the move to another machine.
    let mut second = whole.clone();
    second.work_dir = dir.path().join("second");
    second.resume = Some(dir.path().join("moved"));
    fs::rename(checkpoint, dir.path().join("moved")).unwrap();
    fs::remove_dir_all(&first.work_dir).unwrap();
    let (resumed, _) = finish(&second);
    assert_eq!(resumed.eval_loss, Some(loss));
    assert!(adapter(&second) == adapter(&whole));
}

#[test]
fn training_stops_when_evaluations_do_not_get_better() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut setup = restless(dir.path(), &model);
    setup.config.training.early_stopping_patience = 2;
    let (summary, memory) = finish(&setup);
    let evals: Vec<f64> = memory.metric(metric::EVAL_LOSS).iter().skip(1).map(|(_, l)| *l).collect();
    let lowest_before_the_end = evals.iter().rev().skip(2).copied().fold(f64::INFINITY, f64::min);
    assert!(summary.steps < 24, "{evals:?}");
    assert!(evals.iter().rev().take(2).all(|l| *l >= lowest_before_the_end), "{evals:?}");
    assert_eq!(summary.eval_loss, Some(lowest_before_the_end));
    let told = |e: &EventKind| matches!(e, EventKind::Log { message, .. } if message.contains("2 evaluations without a better loss"));
    assert!(memory.events.iter().any(told));
    let again = Setup {
        work_dir: dir.path().join("again"),
        resume: Some(memory.checkpoints.last().unwrap().1.clone()),
        ..setup.clone()
    };
    let (resumed, _) = finish(&again);
    assert_eq!(resumed.steps, summary.steps, "a resumed run knows that it had stopped");
}

#[test]
fn watching_evaluations_needs_rows_to_evaluate() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut setup = restless(dir.path(), &model);
    setup.config.training.val_set_size = 0.0;
    let error = train(&setup, &mut Memory::default()).unwrap_err();
    assert_eq!(error.code, FailureCode::ConfigInvalid);
    assert!(error.message.contains("need held-out rows: set training.val_set_size"), "{error}");
}

#[test]
fn weights_that_are_not_finite_never_become_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut setup = restless(dir.path(), &model);
    setup.config.training.learning_rate = 1e39; // infinite in f32: the first update itself overflows
    setup.config.training.load_best_model_at_end = false;
    setup.config.training.eval_steps = 0;
    setup.config.training.save_steps = 1;
    let mut memory = Memory::default();
    let error = train(&setup, &mut memory).unwrap_err();
    assert_eq!(error.code, FailureCode::Diverged);
    assert!(error.message.contains("is not finite any more at step 1; there is no earlier checkpoint"), "{error}");
    assert!(memory.checkpoints.is_empty() && !setup.work_dir.join("checkpoints/step-000001").exists());
}

#[test]
fn moments_in_eight_bits_resume_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Full);
    config.training.optim = Optim::Adamw8bit;
    let whole = setup(dir.path(), &model, config);
    finish(&whole);
    let mut first = whole.clone();
    first.work_dir = dir.path().join("first");
    let mut memory = Memory::stopping(3, Control::Pause);
    train(&first, &mut memory).unwrap();
    let checkpoint = memory.checkpoints.last().unwrap().1.clone();
    let moments =
        candle_core::safetensors::load(checkpoint.join("optimizer.safetensors"), &candle_core::Device::Cpu).unwrap();
    assert_eq!(moments["model.embed_tokens.weight.exp_avg.codes"].dtype(), candle_core::DType::U8);
    let second = Setup { work_dir: dir.path().join("second"), resume: Some(checkpoint), ..whole.clone() };
    finish(&second);
    let bytes = |s: &Setup| fs::read(s.work_dir.join("artifacts/model.safetensors")).unwrap();
    assert!(bytes(&second) == bytes(&whole));
}
