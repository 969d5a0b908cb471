//! Training through the portable forms of the kernels, which GPUs run: the same losses as on the CPU's own.

use crate::support::{VOCAB, flat, model_dir};
use candle_core::{Device, Tensor, Var};
use dataset::Sequence;
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};
use trainer::engine::{
    Place,
    data::{Batch, Corpus},
    dpo,
    dropout::Dropout,
    lora,
    model::{self, BuildOptions, CausalLm},
    optim::{self, AdamW, AdamWConfig},
    params::Gradients,
    rng::Key,
    step::{self, StepOptions},
};
use wire::config::{BaseDtype, DpoConfig, LoraConfig, Optim};

const STEPS: u64 = 20;

/// Rows of random tokens; two of three tokens carry loss.
fn batches(vocab: usize) -> Vec<Batch> {
    let mut corpus = Corpus::default();
    for (i, n) in (0..).zip([12, 30, 7, 25, 40, 9]) {
        let key = Key::new(9, "rows").at(i);
        let tokens: Vec<u32> = (0..n).map(|j| u32::try_from(key.bits(j) % vocab as u64).unwrap()).collect();
        let trained = (0..n).map(|j| j % 3 != 0).collect();
        corpus.push(&Sequence { tokens, trained, cut: 0 }, vocab).unwrap();
    }
    [[0, 1], [2, 3], [4, 5]].map(|rows| corpus.batch(&rows).unwrap()).into()
}

/// How a case trains.
#[derive(Clone, Copy, Default)]
struct Case {
    full: bool,
    dropout: bool,
    recompute: bool,
    dora: bool,
    preferences: bool,
}

fn load(dir: &Path, case: Case) -> Box<dyn CausalLm> {
    let options = BuildOptions {
        train_weights: case.full,
        random: Some(5),
        max_positions: 64,
        base_dtype: BaseDtype::Auto,
        place: Place::Cpu,
        classes: None,
    };
    let mut model = model::load(dir, options).unwrap();
    if !case.full {
        let config = LoraConfig { r: 4, use_dora: case.dora, ..LoraConfig::default() };
        lora::attach(model.as_mut(), &config, 3).unwrap();
    }
    model
}

/// The losses of all steps, then that of an evaluation.
fn losses(dir: &Path, case: Case, batches: &[Batch]) -> Vec<f64> {
    let model = load(dir, case);
    let config = AdamWConfig { optim: Optim::AdamwTorch, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    let mut optimizer = AdamW::new(config);
    let mut losses = Vec::new();
    for (index, batch) in (0..STEPS).zip(batches.iter().cycle()) {
        let key = Key::new(1, "dropout").at(index);
        let dropout = case.dropout.then_some(Dropout { probability: 0.1, key });
        let denominator = if case.preferences { 1.0 } else { batch.target_count() as f64 };
        let options = StepOptions { denominator, dropout, recompute: case.recompute };
        let mut grads = Gradients::default();
        losses.push(if case.preferences {
            let (config, mut forward) = (DpoConfig::default(), Duration::ZERO);
            dpo::forward_backward(model.as_ref(), batch, options, &config, &mut grads, &mut forward).unwrap().loss
        } else {
            step::forward_backward(model.as_ref(), batch, options, &mut grads).unwrap()
        });
        assert_eq!(grads.missing(model.params()), Vec::<&str>::new());
        let norm = optim::global_norm(&grads).unwrap();
        optimizer.step(model.params(), &grads, optim::clip_factor(norm, 1.0), 3e-3).unwrap();
    }
    losses.push(step::total_loss(model.as_ref(), &batches[0]).unwrap() / batches[0].target_count() as f64);
    losses
}

fn check(name: &str, dir: &Path, case: Case, batches: &[Batch]) {
    let ours = losses(dir, case, batches);
    let portable = kernels::with_portable(|| losses(dir, case, batches));
    let worst = ours.iter().zip(&portable).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("{name}: losses from {:.4} to {:.4}, largest difference {worst:.2e}", ours[0], ours[STEPS as usize - 1]);
    assert!(ours[0] > ours[STEPS as usize - 1], "{name} learned nothing: {ours:?}");
    assert!(worst > 0.0 && worst < 1e-5, "{name}: {worst:.2e}");
}

#[test]
fn a_tiny_llama_learns_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = model_dir(dir.path(), json!({}));
    let batches = batches(VOCAB);
    check("LoRA", &path, Case::default(), &batches);
    check("recomputed", &path, Case { recompute: true, ..Case::default() }, &batches);
    check("with dropout", &path, Case { dropout: true, ..Case::default() }, &batches);
    check("DoRA", &path, Case { dora: true, ..Case::default() }, &batches);
    check("DPO", &path, Case { preferences: true, ..Case::default() }, &batches);
    check("all weights", &path, Case { full: true, ..Case::default() }, &batches);
}

/// Windows, bounds, biases, norms of heads, partial rotation, long contexts.
#[test]
fn every_decoder_learns_the_same() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_architectures");
    let mut seen = 0;
    for entry in fs::read_dir(&fixtures).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read(path.join("config.json")) else { continue };
        let config: Value = serde_json::from_slice(&text).unwrap();
        let batches = batches(usize::try_from(config["vocab_size"].as_u64().unwrap()).unwrap());
        check(&path.file_name().unwrap().to_string_lossy(), &path, Case::default(), &batches);
        seen += 1;
    }
    assert!(seen >= 7, "{seen} architectures");
}

/// The update on tensors is the one on slices.
#[test]
fn the_optimizer_on_a_device_is_that_of_the_cpu() {
    let draw = |name: &str| -> Vec<f32> { (0..1000).map(|i| Key::new(2, name).normal(i) as f32).collect() };
    let var = || Var::from_vec(draw("p"), (20, 50), &Device::Cpu).unwrap();
    let (ours, theirs) = (var(), var());
    let zeros = || Tensor::zeros((20, 50), candle_core::DType::F32, &Device::Cpu).unwrap();
    let (m, v) = (zeros(), zeros());
    let config = AdamWConfig { optim: Optim::AdamwTorch, beta1: 0.9, beta2: 0.98, epsilon: 1e-6, weight_decay: 0.1 };
    let mut optimizer = AdamW::new(config);
    let mut params = trainer::engine::params::Params::default();
    params.insert("p", ours.clone());
    for step in 1..=5_i32 {
        let gradient = Tensor::from_vec(draw(&format!("g{step}")), (20, 50), &Device::Cpu).unwrap();
        let mut store = (ours.as_tensor() * &gradient).unwrap().sum_all().unwrap().backward().unwrap();
        let mut grads = Gradients::default();
        grads.collect(&params, &mut store).unwrap();
        optimizer.step(&params, &grads, 0.5, 1e-2).unwrap();
        let rule = kernels::AdamWRule {
            clip: 0.5,
            shrink: 1.0 - 1e-2 * 0.1,
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-6,
            step_size: (1e-2 / (1.0 - 0.9_f64.powi(step))) as f32,
            root2: (1.0 - 0.98_f64.powi(step)).sqrt() as f32,
        };
        kernels::adamw(&theirs, &gradient, &m, &v, rule).unwrap();
    }
    let worst = flat(&ours).iter().zip(flat(&theirs)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-6, "{worst:.2e}");
    assert_ne!(flat(&ours), draw("p"));
}
