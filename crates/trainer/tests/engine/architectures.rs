//! Every architecture against Transformers and PEFT: logits, gradients, twenty LoRA steps, generation, merging.
//! The fixtures are made by `scripts/ref_architectures.py` (versions there); windows, bounds and rotary settings in
//! them are so small that a row of 28 tokens feels each of them.

use crate::{
    ref_lora::max_difference,
    support::{Memory, config, flat, model_dir, setup},
};
use candle_core::{DType, Device, Tensor, safetensors::load};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};
use trainer::engine::{
    Outcome,
    data::{Batch, Corpus},
    files::{Tensors, write_tensors},
    generate::{Generator, Input, Request, Session},
    lora,
    merge::{MergedDtype, merge},
    model::{self, BuildOptions, CausalLm},
    optim::{AdamW, AdamWConfig},
    params::Gradients,
    step::{self, StepOptions},
    train,
};
use wire::config::{BaseDtype, LoraConfig, Method};

const MODELS: [&str; 11] = [
    "llama2",
    "llama3",
    "llama-biased",
    "mistral",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-longrope",
];
const VOCAB: usize = 96;
const PEFT: &str = "base_model.model.";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_architectures").join(path)
}

fn read(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    load(fixture(name).join("tensors.safetensors"), &Device::Cpu).unwrap()
}

fn build(dir: &Path, train_weights: bool) -> Box<dyn CausalLm> {
    model::load(
        dir,
        BuildOptions {
            train_weights,
            random: None,
            max_positions: 64,
            base_dtype: BaseDtype::Auto,
            place: trainer::engine::Place::Cpu,
            classes: None,
        },
    )
    .unwrap()
}

/// The model with PEFT's adapter on it.
fn adapted(name: &str) -> Box<dyn CausalLm> {
    let mut model = build(&fixture(name), false);
    lora::load(model.as_mut(), &fixture(name).join("adapter")).unwrap();
    model
}

fn corpus() -> Corpus {
    let mut corpus = Corpus::default();
    for row in read("rows.json").as_array().unwrap() {
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
        let mut again = Gradients::default();
        let options = StepOptions { denominator: batch.target_count() as f64, dropout: None, recompute: true };
        step::forward_backward(model.as_ref(), &batch, options, &mut again).unwrap();
        assert!(grads.iter().all(|(n, g)| flat(g) == flat(again.get(n).unwrap())), "{name}: recomputed blocks");
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
        let (run, want) = (read(&format!("{name}/run.json")), tensors(name));
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
        let theirs = read(&format!("{name}/adapter/adapter_config.json"));
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
        let want = read(&format!("{name}/run.json"));
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

/// Files of the Hub are older than those that Transformers writes today.
#[test]
fn older_spellings_of_a_configuration_give_the_same_model() {
    let with = |key: &str, value: Value| (key.to_owned(), value);
    let cases = [
        (
            "gemma3",
            vec!["layer_types", "rope_parameters", "attn_logit_softcapping", "final_logit_softcapping"],
            vec![
                with("sliding_window_pattern", json!(2)),
                with("rope_theta", json!(10000.0)),
                with("rope_local_base_freq", json!(100.0)),
                with("rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
            ],
        ),
        (
            "gemma2",
            vec!["layer_types", "rope_parameters", "tie_word_embeddings"],
            vec![with("rope_theta", json!(10000.0))],
        ),
        ("qwen3", vec!["layer_types", "rope_parameters"], vec![with("rope_theta", json!(10000))]),
        (
            "phi3-longrope",
            vec!["rope_parameters"],
            vec![
                with("rope_theta", json!(10000.0)),
                with("partial_rotary_factor", json!(0.75)),
                with("original_max_position_embeddings", json!(16)),
                with(
                    "rope_scaling",
                    json!({"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0]}),
                ),
            ],
        ),
    ];
    for (name, absent, other) in cases {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(fixture(name)).unwrap().map(Result::unwrap).filter(|f| f.path().is_file()) {
            fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        let mut config = read(&format!("{name}/config.json"));
        for key in absent {
            config.as_object_mut().unwrap().remove(key).unwrap();
        }
        config.as_object_mut().unwrap().extend(other);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let batch = row(&tensors(name));
        let logits = |dir: &Path| flat(&step::logits(build(dir, false).as_ref(), &batch).unwrap());
        assert_eq!(logits(dir.path()), logits(&fixture(name)), "{name}");
    }
}

#[test]
fn whole_runs_of_every_architecture_learn_and_leave_what_can_be_loaded() {
    // Encoders have runs of their own, in ref_encoders.
    for architecture in model::architectures().filter(|name| name.ends_with("ForCausalLM")) {
        for method in [Method::Sft, Method::Full] {
            let dir = tempfile::tempdir().unwrap();
            let extra = json!({"architectures": [architecture], "head_dim": 8, "query_pre_attn_scalar": 8,
                "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1});
            let base = model_dir(dir.path(), extra);
            let mut config = config(method);
            config.training.max_steps = 12;
            config.training.gradient_checkpointing = true;
            let setup = setup(dir.path(), &base, config);
            let Outcome::Finished { summary, artifacts } = train(&setup, &mut Memory::default()).unwrap() else {
                panic!("{architecture}: expected an end")
            };
            let (before, after) = (summary.initial_eval_loss.unwrap(), summary.eval_loss.unwrap());
            println!("{architecture} {method:?}: {before:.3} -> {after:.3}");
            assert!(after < 0.95 * before, "{architecture} {method:?}: {before} -> {after}");
            let mut generator = match method {
                Method::Sft => Generator::load(&base, Some(&artifacts), trainer::engine::Place::Cpu).unwrap(),
                _ => Generator::load(&artifacts, None, trainer::engine::Place::Cpu).unwrap(),
            };
            let input = Input::Prompt("green, said she and went on".into());
            let request = Request { input, max_tokens: 20, temperature: 0.0, top_p: 1.0, seed: 1, use_adapter: true };
            assert!(generator.generate(&request, &mut |_| ()).unwrap().completion_tokens > 0);
        }
    }
}

/// Norms start by multiplying with 1, whatever they add to their weight, and biases with 0.
#[test]
fn random_weights_start_as_those_of_transformers() {
    for (name, norm) in [("qwen2", 1.0), ("gemma3", 0.0), ("llama-biased", 1.0)] {
        let options = BuildOptions {
            train_weights: true,
            random: Some(1),
            max_positions: 64,
            base_dtype: BaseDtype::Auto,
            place: trainer::engine::Place::Cpu,
            classes: None,
        };
        let model = model::load(&fixture(name), options).unwrap();
        for (tensor, var) in model.params().iter().filter(|(_, var)| var.rank() == 1) {
            let want = if tensor.ends_with("bias") { 0.0 } else { norm };
            assert!(flat(var).iter().all(|x| *x == want), "{name}: {tensor}");
        }
        let (loss, _) = gradients(model.as_ref(), &corpus().batch(&[0, 1]).unwrap());
        assert!((loss - (VOCAB as f64).ln()).abs() < 1.5, "{name}: {loss}");
    }
}
