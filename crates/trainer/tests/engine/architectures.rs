//! Every architecture against Transformers and PEFT: logits, gradients, twenty LoRA steps, generation, merging.
//! The fixtures are made by `scripts/ref_architectures.py` (versions there); windows, bounds and rotary settings in
//! them are so small that a row of 28 tokens feels each of them.

use crate::{ref_lora::max_difference, support::flat};
use candle_core::{DType, Device, Tensor, safetensors::load};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};
use trainer::engine::{
    data::{Batch, Corpus},
    files::{Tensors, write_tensors},
    generate::Session,
    lora,
    merge::{MergedDtype, merge},
    model::{self, BuildOptions, CausalLm},
    optim::{AdamW, AdamWConfig},
    params::Gradients,
    step::{self, StepOptions},
};
use wire::config::LoraConfig;

const MODELS: [&str; 10] =
    ["llama2", "llama3", "llama-biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3-longrope"];
const VOCAB: usize = 96;
const PEFT: &str = "base_model.model.";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_architectures").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    load(fixture(name).join("tensors.safetensors"), &Device::Cpu).unwrap()
}

fn build(dir: &Path, train_weights: bool) -> Box<dyn CausalLm> {
    model::load(dir, BuildOptions { train_weights, random: None, max_positions: 64 }).unwrap()
}

/// The model with PEFT's adapter on it.
fn adapted(name: &str) -> Box<dyn CausalLm> {
    let mut model = build(&fixture(name), false);
    lora::load(model.as_mut(), &fixture(name).join("adapter")).unwrap();
    model
}

fn corpus() -> Corpus {
    let mut corpus = Corpus::default();
    for row in json("rows.json").as_array().unwrap() {
        let tokens: Vec<u32> = serde_json::from_value(row["input_ids"].clone()).unwrap();
        let labels: Vec<i64> = serde_json::from_value(row["labels"].clone()).unwrap();
        let trained = labels.iter().map(|l| *l >= 0).collect();
        corpus.push(&dataset::Sequence { tokens, trained, cut: 0 }, VOCAB).unwrap();
    }
    corpus
}

/// The row whose logits the fixtures hold.
fn row(tensors: &HashMap<String, Tensor>) -> Batch {
    Batch::of(tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec1().unwrap()).unwrap()
}

fn gradients(model: &dyn CausalLm, batch: &Batch) -> (f64, Gradients) {
    let mut grads = Gradients::default();
    let options = StepOptions { denominator: batch.target_count() as f64, dropout: None, recompute: false };
    let loss = step::forward_backward(model, batch, options, &mut grads).unwrap();
    assert_eq!(grads.missing(model.params()), Vec::<&str>::new());
    assert_eq!(grads.iter().count(), model.params().len());
    (loss, grads)
}

#[test]
fn logits_of_base_and_adapter_equal_those_of_peft() {
    for name in MODELS {
        let want = tensors(name);
        let batch = row(&want);
        let base = step::logits(build(&fixture(name), false).as_ref(), &batch).unwrap();
        let tuned = step::logits(adapted(name).as_ref(), &batch).unwrap();
        let (base, tuned) = (max_difference(&base, &want["base"]), max_difference(&tuned, &want["adapter"]));
        println!("{name}: logits differ by {base:.2e}, with adapter {tuned:.2e}");
        assert!(base <= 1e-4 && tuned <= 1e-4, "{name}: {base:.2e} {tuned:.2e}");
        assert!(max_difference(&want["base"], &want["adapter"]) > 1.0, "the adapter does something");
    }
}

#[test]
fn every_lora_gradient_points_where_that_of_peft_does() {
    let batch = corpus().batch(&[0, 1]).unwrap();
    for name in MODELS {
        let model = adapted(name);
        let (_, grads) = gradients(model.as_ref(), &batch);
        let want = tensors(name);
        let (mut cosine, mut count) = (1.0_f64, 0);
        for (tensor, want) in want.iter().filter_map(|(n, t)| Some((n.strip_prefix("grad.")?.strip_prefix(PEFT)?, t))) {
            let (a, b) = (flat(grads.get(tensor).unwrap()), flat(want));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let (long, short) = (dot(&a, &a).sqrt(), dot(&b, &b).sqrt());
            cosine = cosine.min(dot(&a, &b) / (long * short));
            assert!((long / short - 1.0).abs() < 1e-4, "{name}: {tensor} has norm {long}, not {short}");
            count += 1;
        }
        println!("{name}: {count} gradients, smallest cosine {cosine:.9}");
        assert_eq!(count, model.params().len());
        assert!(cosine > 0.9999, "{name}: {cosine}");
    }
}

/// Also leaves every trained adapter with its logits in the target folder, for `scripts/ref_peft_load.py`.
#[test]
fn twenty_lora_steps_equal_those_of_peft() {
    let corpus = corpus();
    for name in MODELS {
        let (run, want) = (json(&format!("{name}/run.json")), tensors(name));
        let setting = |key: &str| run["settings"][key].as_f64().unwrap();
        let model = adapted(name);
        let mut optimizer = AdamW::new(AdamWConfig {
            optim: wire::config::Optim::default(),
            beta1: setting("adam_beta1"),
            beta2: setting("adam_beta2"),
            epsilon: setting("adam_epsilon"),
            weight_decay: setting("weight_decay"),
        });
        let mut worst = 0.0_f64;
        for (at, loss) in run["losses"].as_array().unwrap().iter().enumerate() {
            let first = 2 * at % corpus.len();
            let (ours, grads) = gradients(model.as_ref(), &corpus.batch(&[first, first + 1]).unwrap());
            optimizer.step(model.params(), &grads, 1.0, setting("learning_rate")).unwrap();
            worst = worst.max((ours - loss.as_f64().unwrap()).abs());
        }
        let ours: Tensors = model.params().iter().map(|(n, v)| (format!("{PEFT}{n}"), v.as_tensor().clone())).collect();
        let finals: Vec<(&str, &Tensor)> =
            want.iter().filter_map(|(n, t)| Some((n.strip_prefix("final.")?, t))).collect();
        assert_eq!(ours.len(), finals.len());
        let last = finals.iter().map(|(n, t)| max_difference(&ours[*n], t)).fold(0.0, f32::max);
        println!("{name}: losses differ by {worst:.2e}, the final adapter by {last:.2e}");
        assert!(worst <= 1e-4, "{name}: {worst:.2e}");
        assert!(last <= 1e-3, "{name}: {last:.2e}"); // a fifth of one step's learning rate

        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("architectures").join(name);
        fs::create_dir_all(&out).unwrap();
        let logits = step::logits(model.as_ref(), &row(&want)).unwrap();
        let logits =
            Tensors::from([("logits".to_owned(), logits), ("input_ids".to_owned(), want["input_ids"].clone())]);
        write_tensors(&out.join("logits.safetensors"), logits).unwrap();
        write_tensors(&out.join("adapter_model.safetensors"), ours).unwrap();
        fs::copy(fixture(name).join("adapter/adapter_config.json"), out.join("adapter_config.json")).unwrap();
    }
}

#[test]
fn adapters_sit_where_peft_puts_them() {
    for name in MODELS {
        let mut model = build(&fixture(name), false);
        lora::attach(model.as_mut(), &LoraConfig { r: 4, ..LoraConfig::default() }, 1).unwrap();
        let mut paths: Vec<&str> = model.linears().iter().map(|l| l.path()).collect();
        paths.sort_unstable();
        let theirs = json(&format!("{name}/adapter/adapter_config.json"));
        assert_eq!(serde_json::to_value(paths).unwrap(), theirs["target_modules"], "{name}");
        let file = load(fixture(name).join("adapter/adapter_model.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(file.len(), model.params().len(), "{name}");
        for (tensor, var) in model.params().iter() {
            assert_eq!(file[&format!("{PEFT}{tensor}")].dims(), var.dims(), "{name}: {tensor}");
        }
    }
}

#[test]
fn training_all_weights_gives_each_the_gradient_of_transformers() {
    let batch = corpus().batch(&[0, 1]).unwrap();
    for name in MODELS {
        let model = build(&fixture(name), true);
        let (_, grads) = gradients(model.as_ref(), &batch);
        let want = json(&format!("{name}/run.json"));
        let want = want["full_gradient_norms"].as_object().unwrap();
        assert_eq!(grads.iter().count(), want.len(), "{name}");
        let mut worst = 0.0_f64;
        for (tensor, grad) in grads.iter() {
            let norm = flat(grad).iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let want = want[tensor].as_f64().unwrap();
            // A key bias moves all scores of a query alike: its gradient is rounding.
            let off = if tensor.ends_with("k_proj.bias") { (norm - want).abs() } else { (norm / want - 1.0).abs() };
            assert!(off < 1e-4, "{name}: {tensor} has gradient norm {norm}, not {want}");
            worst = worst.max(off);
        }
        println!("{name}: {} weights, gradient norms differ by {worst:.2e} of them", want.len());
    }
}

#[test]
fn logits_through_the_cache_equal_those_without_it() {
    for name in MODELS {
        // LongRoPE turns by other angles once a sequence is longer than the original context, and what the cache
        // holds was turned before: there the two differ, in Transformers too.
        let length = if name == "phi3-longrope" { 16 } else { 28 };
        let model = adapted(name);
        let tokens = row(&tensors(name)).tokens[..length].to_vec();
        let whole = step::logits(model.as_ref(), &Batch::of(tokens.clone()).unwrap()).unwrap();
        for prompt in [3, 11] {
            let mut session = Session::new(model.as_ref(), true, length);
            let mut got = session.feed(&tokens[..prompt]).unwrap();
            for (at, token) in tokens.iter().enumerate().skip(prompt) {
                let want = flat(&whole.get(at - 1).unwrap());
                let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 5e-5, "{name}: position {at} after a prompt of {prompt} differs by {off:.2e}");
                got = session.feed(&[*token]).unwrap();
            }
        }
    }
}

#[test]
fn a_merged_model_equals_the_adapter() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("merged");
        merge(&fixture(name), &fixture(name).join("adapter"), &out, MergedDtype::F32).unwrap();
        let want = tensors(name);
        let off = max_difference(&step::logits(build(&out, false).as_ref(), &row(&want)).unwrap(), &want["adapter"]);
        println!("{name}: merged model differs from PEFT's adapter by {off:.2e}");
        assert!(off <= 1e-4, "{name}: {off:.2e}");
    }
}

/// Norms start by multiplying with 1, whatever they add to their weight, and biases with 0.
#[test]
fn random_weights_start_as_those_of_transformers() {
    for (name, norm) in [("qwen2", 1.0), ("gemma3", 0.0), ("llama-biased", 1.0)] {
        let options = BuildOptions { train_weights: true, random: Some(1), max_positions: 64 };
        let model = model::load(&fixture(name), options).unwrap();
        for (tensor, var) in model.params().iter().filter(|(_, var)| var.rank() == 1) {
            let want = if tensor.ends_with("bias") { 0.0 } else { norm };
            assert!(flat(var).iter().all(|x| *x == want), "{name}: {tensor}");
        }
        let (loss, _) = gradients(model.as_ref(), &corpus().batch(&[0, 1]).unwrap());
        assert!((loss - (VOCAB as f64).ln()).abs() < 1.5, "{name}: {loss}");
    }
}
