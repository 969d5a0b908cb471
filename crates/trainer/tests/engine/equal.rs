//! Ways of cutting the same rows into batches that must not change the result.

use crate::support::{Memory, config, model_dir, setup};
use serde_json::json;
use std::{fs, path::Path};
use trainer::engine::{Outcome, train};
use wire::{
    config::{Method, TrainingConfig},
    event::metric,
};

/// Every step sees all 16 training rows of [`setup`].
fn whole_batches() -> TrainingConfig {
    let mut config = config(Method::Sft);
    config.training.per_device_train_batch_size = 16;
    config.training.max_steps = 5;
    config
}

/// Losses per step, then the evaluation losses; and the adapter's bytes.
fn run(dir: &Path, model: &Path, config: TrainingConfig) -> (Vec<f64>, Vec<u8>) {
    let work = tempfile::tempdir_in(dir).unwrap();
    let mut setup = setup(dir, model, config);
    setup.work_dir = work.path().to_owned();
    let mut memory = Memory::default();
    assert!(matches!(train(&setup, &mut memory).unwrap(), Outcome::Finished { .. }));
    let values = [metric::TRAIN_LOSS, metric::EVAL_LOSS].map(|name| memory.metric(name)).concat();
    let bytes = fs::read(work.path().join("artifacts/adapter_model.safetensors")).unwrap();
    (values.into_iter().map(|(_, v)| v).collect(), bytes)
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn packing_changes_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let (plain, _) = run(dir.path(), &model, whole_batches());
    let mut packed = whole_batches();
    packed.training.packing = true;
    packed.training.max_seq_length = 128;
    let (packed, _) = run(dir.path(), &model, packed);
    let worst = worst(&plain, &packed);
    println!("packed against unpacked, {} losses: largest difference {worst:.2e}", plain.len());
    assert!(worst <= 1e-5, "{worst:.2e}");
}

#[test]
fn accumulating_uneven_batches_equals_the_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let (whole, _) = run(dir.path(), &model, whole_batches());
    let mut parts = whole_batches();
    parts.training.per_device_train_batch_size = 3; // 3 + 3 + 3 + 3 + 3 + 1 rows of unequal lengths
    parts.training.gradient_accumulation_steps = 6;
    let (parts, _) = run(dir.path(), &model, parts);
    let worst = worst(&whole, &parts);
    println!("six uneven batches against one, {} losses: largest difference {worst:.2e}", whole.len());
    assert!(worst <= 1e-6, "{worst:.2e}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.lora.lora_dropout = 0.1;
    let (first, second) = (run(dir.path(), &model, config.clone()), run(dir.path(), &model, config.clone()));
    assert!(first == second);
    config.training.seed = 43;
    assert!(run(dir.path(), &model, config).1 != first.1);
}
