//! Our recipe against torch, Transformers and PEFT: the same tiny Llama, rows and starting adapter must give
//! the same loss, learning rate and gradient norm in every step, and the same weights at the end. The
//! fixtures are made by `scripts/ref_lora.py` (versions there).

use crate::support::{Memory, compare};
use candle_core::{Device, Tensor, safetensors::load};
use dataset::{DatasetFormat, Encoder, LossOn, Rows};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};
use trainer::engine::{
    Control, Outcome, Setup,
    data::Batch,
    lora,
    model::{self, BuildOptions},
    step, train,
};
use wire::{
    config::{BaseDtype, Method, Optim, TrainingConfig},
    event::metric,
};

/// Losses, learning rates and gradient norms, absolute; gradient norms are about 3.
const STEP_TOLERANCE: f64 = 1e-4;
/// Weights after 20 steps. AdamW divides by the root of the second moment, so elements with tiny gradients
/// amplify differences in summation order; 5e-3 per step is the learning rate.
const WEIGHT_TOLERANCE: f32 = 1e-5;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_lora").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

pub fn setup(dir: &Path, method: Method, reference: &Value) -> Setup {
    let mut config = TrainingConfig { model: "ref".into(), dataset: "ref".into(), method, ..TrainingConfig::default() };
    config.training = serde_json::from_value(reference["settings"].clone()).unwrap();
    config.training.shuffle = false;
    config.training.val_set_size = 0.0;
    config.training.max_seq_length = 128;
    if let Some(settings) = reference.get("lora") {
        config.lora = serde_json::from_value(settings.clone()).unwrap();
    }
    Setup {
        config,
        model_dir: fixture("model"),
        model_name: "ref".into(),
        model_revision: "1".into(),
        format: DatasetFormat::ChatJsonl,
        train: fixture("train.jsonl"),
        validation: None,
        adapter: None,
        work_dir: dir.to_owned(),
        resume: None,
        threads: 2,
        place: trainer::engine::Place::Cpu,
    }
}

pub fn compare_steps(memory: &Memory, reference: &Value) {
    for (name, key) in
        [(metric::TRAIN_LOSS, "loss"), (metric::LEARNING_RATE, "learning_rate"), (metric::GRAD_NORM, "grad_norm")]
    {
        compare(name, &memory.metric(name), &reference["steps"], key, STEP_TOLERANCE);
    }
}

fn compare_tensors(ours: &HashMap<String, Tensor>, theirs: &HashMap<String, Tensor>) {
    let mut names: Vec<&String> = theirs.keys().collect();
    names.sort_unstable();
    let mut have: Vec<&String> = ours.keys().collect();
    have.sort_unstable();
    assert_eq!(have, names);
    let worst = names.iter().map(|n| max_difference(&ours[*n], &theirs[*n])).fold(0.0, f32::max);
    println!("{} tensors: largest difference {worst:.2e}", names.len());
    assert!(worst <= WEIGHT_TOLERANCE, "weights differ by {worst:.2e}");
}

pub fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn twenty_lora_steps_equal_those_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let reference = json("lora.json");
    let mut run = setup(dir.path(), Method::Sft, &reference);
    // A checkpoint of step 0, with the reference's initial adapter put in.
    let Outcome::Stopped { checkpoint: Some(start), step: 0, .. } =
        train(&run, &mut Memory::stopping(0, Control::Pause)).unwrap()
    else {
        panic!("expected a stop before the first step")
    };
    fs::copy(fixture("adapter-initial/adapter_model.safetensors"), start.join("adapter_model.safetensors")).unwrap();
    run.resume = Some(start);
    let mut memory = Memory::default();
    assert!(matches!(train(&run, &mut memory).unwrap(), Outcome::Finished { .. }));
    compare_steps(&memory, &reference);
    let ours = load(dir.path().join("artifacts/adapter_model.safetensors"), &Device::Cpu).unwrap();
    compare_tensors(&ours, &load(fixture("adapter-final/adapter_model.safetensors"), &Device::Cpu).unwrap());
}

#[test]
fn twenty_full_fine_tuning_steps_equal_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let reference = json("full.json");
    let run = setup(dir.path(), Method::Full, &reference);
    let mut memory = Memory::default();
    assert!(matches!(train(&run, &mut memory).unwrap(), Outcome::Finished { .. }));
    compare_steps(&memory, &reference);
}

/// The reference's moments are f32; ours in eight bits must lead the same way.
#[test]
fn moments_in_eight_bits_follow_the_losses_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let reference = json("full.json");
    let mut run = setup(dir.path(), Method::Full, &reference);
    run.config.training.optim = Optim::Adamw8bit;
    let mut memory = Memory::default();
    assert!(matches!(train(&run, &mut memory).unwrap(), Outcome::Finished { .. }));
    let losses = memory.metric(metric::TRAIN_LOSS);
    let theirs = reference["steps"].as_array().unwrap();
    let relative = |(a, b): (&(u64, f64), &Value)| (a.1 / b["loss"].as_f64().unwrap() - 1.0).abs();
    let worst = losses.iter().zip(theirs).map(relative).fold(0.0, f64::max);
    println!("eight-bit moments: loss {:.4}, largest relative difference {worst:.2e}", losses[19].1);
    assert!(worst < 0.002, "{worst:.2e}");
    let checkpoint = memory.checkpoints.last().unwrap().1.join("optimizer.safetensors");
    let full = 8 * model_elements();
    let size = fs::metadata(checkpoint).unwrap().len();
    println!("optimizer state: {size} bytes, in f32 {full}");
    assert!(size < full * 35 / 100, "{size} {full}");
}

fn model_elements() -> u64 {
    let weights = load(fixture("model/model.safetensors"), &Device::Cpu).unwrap();
    weights.values().map(|t| u64::try_from(t.elem_count()).unwrap()).sum()
}

#[test]
fn logits_of_base_and_adapter_equal_those_of_peft() {
    let reference = load(fixture("logits.safetensors"), &Device::Cpu).unwrap();
    let tokens: Vec<u32> = reference["input_ids"].to_dtype(candle_core::DType::U32).unwrap().to_vec1().unwrap();
    let batch = Batch::of(tokens).unwrap();
    let options = BuildOptions {
        train_weights: false,
        random: None,
        max_positions: 128,
        base_dtype: BaseDtype::Auto,
        place: trainer::engine::Place::Cpu,
        classes: None,
    };
    let mut model = model::load(&fixture("model"), options).unwrap();
    let base = max_difference(&step::logits(model.as_ref(), &batch).unwrap(), &reference["base"]);
    lora::load(model.as_mut(), &fixture("adapter-initial")).unwrap();
    let tuned = max_difference(&step::logits(model.as_ref(), &batch).unwrap(), &reference["adapter"]);
    println!("largest difference of logits: base {base:.2e}, with adapter {tuned:.2e}");
    assert!(base <= 1e-4 && tuned <= 1e-4, "{base:.2e} {tuned:.2e}");
    assert!(max_difference(&reference["base"], &reference["adapter"]) > 0.1, "the adapter does something");
}

#[test]
fn rows_are_tokenized_and_masked_as_transformers_does() {
    let encoder = Encoder::load(&fixture("model"), 128).unwrap();
    let rows = Rows::new(fs::File::open(fixture("train.jsonl")).unwrap(), DatasetFormat::ChatJsonl);
    let reference = json("rows.json");
    let mut count = 0;
    for (row, want) in rows.zip(reference.as_array().unwrap()) {
        let [sequence] = &encoder.encode_row(&row.unwrap(), LossOn::Assistant).unwrap()[..] else {
            panic!("one sequence per chat")
        };
        let labels: Vec<i64> = sequence
            .tokens
            .iter()
            .zip(&sequence.trained)
            .map(|(t, on)| if *on { i64::from(*t) } else { -100 })
            .collect();
        assert_eq!(serde_json::to_value(&sequence.tokens).unwrap(), want["input_ids"]);
        assert_eq!(serde_json::to_value(labels).unwrap(), want["labels"]);
        count += 1;
    }
    assert_eq!(count, 40);
}
