//! A tiny Llama with a byte-level tokenizer, a small dataset, and an observer that remembers.

use candle_core::Tensor;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use trainer::engine::{
    Control, Observer, Setup,
    files::{Tensors, write_tensors},
    model::{self, BuildOptions},
};
use wire::{
    config::{BaseDtype, Method, TrainingConfig},
    dataset::DatasetFormat,
    event::EventKind,
};

pub const VOCAB: usize = 259;

/// Config of the tiny model; `extra` overrides keys.
pub fn config_json(extra: serde_json::Value) -> serde_json::Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "initializer_range": 0.2, "torch_dtype": "float32", "eos_token_id": 258,
    });
    for (key, value) in extra.as_object().cloned().unwrap_or_default() {
        config[key] = value;
    }
    config
}

/// All elements, in order.
pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A model directory with random weights.
pub fn model_dir(dir: &Path, extra: serde_json::Value) -> PathBuf {
    let dir = dir.join("model");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.json"), config_json(extra).to_string()).unwrap();
    write_tokenizer(&dir);
    let built = model::load(
        &dir,
        BuildOptions {
            train_weights: true,
            random: Some(5),
            max_positions: 8,
            base_dtype: BaseDtype::Auto,
            place: trainer::engine::Place::Cpu,
            classes: None,
        },
    )
    .unwrap();
    let tensors: Tensors = built.params().iter().map(|(n, v)| (n.to_owned(), v.as_tensor().clone())).collect();
    write_tensors(&dir.join("model.safetensors"), tensors).unwrap();
    dir
}

/// One token per byte, plus `<|begin|>`, `<|turn|>` and `<|end|>` (end of text).
fn write_tokenizer(dir: &Path) {
    let printable = |b: u32| (0x21..=0x7e).contains(&b) || (0xa1..=0xac).contains(&b) || (0xae..=0xff).contains(&b);
    let mut next = 256;
    let vocab: BTreeMap<String, u32> = (0..256_u32)
        .map(|b| {
            let code = if printable(b) {
                b
            } else {
                next += 1;
                next - 1
            };
            (char::from_u32(code).unwrap().to_string(), b)
        })
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<|begin|>"), special(257, "<|turn|>"), special(258, "<|end|>")],
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|turn|>assistant\n{% endif %}";
    let config = json!({"eos_token": "<|end|>", "bos_token": "<|begin|>", "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"});
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// `rows` chat rows with answers that follow from the questions.
pub fn chat_file(dir: &Path, rows: usize) -> PathBuf {
    let path = dir.join("train.jsonl");
    let words = ["red", "green", "blue", "white", "black"];
    let lines: Vec<String> = (0..rows)
        .map(|i| {
            let word = words[i % words.len()];
            let question = format!("say {word}{}", "!".repeat(i % 7));
            json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": format!("{word} {word}")}]}).to_string()
        })
        .collect();
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

/// LoRA over everything, 6 steps of 4 rows.
pub fn config(method: Method) -> TrainingConfig {
    let mut config =
        TrainingConfig { model: "tiny".into(), dataset: "colours".into(), method, ..TrainingConfig::default() };
    config.lora.r = 4;
    config.lora.lora_alpha = 8.0;
    config.training.max_steps = 6;
    config.training.learning_rate = 1e-2;
    config.training.warmup_ratio = 0.1;
    config.training.max_seq_length = 64;
    config.training.eval_steps = 3;
    config.training.save_steps = 2;
    config.training.val_set_size = 0.2;
    config
}

pub fn setup(dir: &Path, model_dir: &Path, config: TrainingConfig) -> Setup {
    Setup {
        config,
        model_dir: model_dir.to_owned(),
        model_name: "tiny".into(),
        model_revision: "0123456789abcdef".into(),
        format: DatasetFormat::ChatJsonl,
        train: chat_file(dir, 20),
        validation: None,
        adapter: None,
        work_dir: dir.join("work"),
        resume: None,
        threads: 2,
        place: trainer::engine::Place::Cpu,
    }
}

/// Remembers what it heard and answers [`Control`] from a script: once step `n` is done, and never before
/// the plan is known.
#[derive(Debug, Default)]
pub struct Memory {
    pub events: Vec<EventKind>,
    pub checkpoints: Vec<(u64, PathBuf)>,
    pub stop_after: Option<(u64, Control)>,
    /// Steps done; `None` before the plan.
    step: Option<u64>,
}

impl Memory {
    pub fn stopping(step: u64, control: Control) -> Self {
        Self { stop_after: Some((step, control)), ..Self::default() }
    }

    /// `(step, value)` of every report of one metric.
    pub fn metric(&self, name: &str) -> Vec<(u64, f64)> {
        let value = |e: &EventKind| match e {
            EventKind::Metrics { step, values, .. } => values.get(name).map(|v| (*step, *v)),
            _ => None,
        };
        self.events.iter().filter_map(value).collect()
    }
}

impl Observer for Memory {
    fn event(&mut self, kind: EventKind) {
        match &kind {
            EventKind::Plan { .. } => self.step = Some(0),
            EventKind::Metrics { step, .. } => self.step = Some(*step),
            _ => {}
        }
        self.events.push(kind);
    }

    fn checkpoint(&mut self, step: u64, dir: &Path) {
        assert!(dir.join("state.json").exists(), "a reported checkpoint is complete");
        self.checkpoints.push((step, dir.to_owned()));
    }

    fn control(&self) -> Control {
        match self.stop_after {
            Some((step, control)) if self.step.is_some_and(|done| done >= step) => control,
            _ => Control::Continue,
        }
    }
}

/// Asserts that a metric's values of all steps are those of a reference run, `steps[i][key]`, within `tolerance`.
pub fn compare(name: &str, ours: &[(u64, f64)], steps: &serde_json::Value, key: &str, tolerance: f64) {
    let theirs = steps.as_array().unwrap();
    assert_eq!(ours.len(), theirs.len());
    let worst = ours.iter().zip(theirs).map(|((_, a), b)| (a - b[key].as_f64().unwrap()).abs()).fold(0.0, f64::max);
    println!("{name}: largest difference over {} steps {worst:.2e}", ours.len());
    assert!(worst <= tolerance, "{name} differs by {worst:.2e}");
}
