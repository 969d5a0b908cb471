//! The files a finished run leaves: an adapter in PEFT layout, or a model in HF layout.

use super::{
    Setup, TrainError,
    classify::{CLASSES_FILE, Classes},
    files::{self, Tensors},
    lora::{ADAPTER_CONFIG, ADAPTER_FILE, PEFT_PREFIX},
    params::Params,
    weights::WeightFiles,
};
use candle_core::DType;
use safetensors::Dtype;
use serde_json::json;
use std::{fmt::Write, path::Path};
use wire::{
    config::{LoraConfig, Method, TrainingConfig},
    event::Summary,
};

/// Files of a model directory that belong to its tokenizer.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// `adapter_config.json` as PEFT writes it, for an adapter made as `lora` says on the modules `targets`, with the
/// tensors `heads` beside it.
///
/// # Errors
/// Internal only.
pub fn adapter_config(
    setup: &Setup,
    lora: &LoraConfig,
    targets: &[String],
    heads: &[&str],
) -> Result<Vec<u8>, TrainError> {
    let LoraConfig { r, lora_alpha, lora_dropout, use_rslora, use_dora, rank_pattern, .. } = lora;
    let alphas: serde_json::Map<_, _> = lora.alpha_pattern.iter().map(|(k, a)| (k.clone(), number(*a))).collect();
    let (task, heads) = match setup.config.method {
        Method::Classification => ("SEQ_CLS", Some(modules_to_save(heads))),
        _ => ("CAUSAL_LM", None),
    };
    let config = json!({
        "alpha_pattern": alphas,
        "auto_mapping": null,
        "base_model_name_or_path": setup.model_name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": number(*lora_alpha),
        "lora_dropout": lora_dropout,
        "modules_to_save": heads,
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": rank_pattern,
        "revision": setup.model_revision,
        "target_modules": targets,
        "task_type": task,
        "use_dora": use_dora,
        "use_rslora": use_rslora,
    });
    serde_json::to_vec_pretty(&config)
        .map_err(|e| TrainError::internal("cannot write the adapter's configuration").caused_by(e))
}

/// What PEFT trains and saves whole to classify sequences, behind what else of the head is.
fn modules_to_save<'a>(heads: &[&'a str]) -> Vec<&'a str> {
    const ALWAYS: [&str; 2] = ["classifier", "score"];
    let mut modules: Vec<&str> = heads.iter().filter_map(|name| name.split('.').next()).collect();
    modules.dedup();
    modules.retain(|module| !ALWAYS.contains(module));
    modules.extend(ALWAYS);
    modules
}

/// Whole numbers without a fraction, as Python has them.
fn number(x: f64) -> serde_json::Value {
    #[expect(clippy::as_conversions, reason = "checked to be whole and small")]
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// What a model card tells beside the setup.
#[derive(Debug, Clone, Copy)]
pub struct Card<'a> {
    pub summary: &'a Summary,
    /// Of a classifier.
    pub classes: Option<&'a Classes>,
}

/// Writes the adapter directory `target`.
///
/// # Errors
/// `DiskFull`, or another failed write; then `target` does not appear.
pub fn write_adapter(
    target: &Path,
    setup: &Setup,
    config: &[u8],
    params: &Params,
    card: &Card<'_>,
) -> Result<(), TrainError> {
    let tensors: Tensors = params.iter().map(|(n, v)| (format!("{PEFT_PREFIX}{n}"), v.as_tensor().clone())).collect();
    files::publish_dir(target, |dir| {
        files::write_tensors(&dir.join(ADAPTER_FILE), tensors)?;
        files::write(&dir.join(ADAPTER_CONFIG), config)?;
        if let Some(classes) = card.classes {
            files::write_json(&dir.join(CLASSES_FILE), &classes.labels().into())?;
        }
        files::write(&dir.join("README.md"), model_card(setup, card).as_bytes())?;
        copy_present(&setup.model_dir, dir, TOKENIZER_FILES)
    })
}

/// Writes the model directory `target`, each weight in the element type the base model had.
///
/// # Errors
/// `DiskFull`, or another failed write; then `target` does not appear.
pub fn write_model(target: &Path, setup: &Setup, params: &Params, card: &Card<'_>) -> Result<(), TrainError> {
    let base = WeightFiles::open_dir(&setup.model_dir).ok();
    let fallback = configured_dtype(&setup.model_dir);
    let mut tensors = Tensors::new();
    for (name, var) in params.iter() {
        let dtype = base.as_ref().and_then(|b| b.dtype(name)).map_or(fallback, |d| match d {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            _ => DType::F32,
        });
        tensors.insert(name.to_owned(), var.as_detached_tensor().to_dtype(dtype)?);
    }
    files::publish_dir(target, |dir| {
        files::write_tensors(&dir.join("model.safetensors"), tensors)?;
        files::write(&dir.join("README.md"), model_card(setup, card).as_bytes())?;
        copy_model_files(&setup.model_dir, dir)?;
        match card.classes {
            Some(classes) => write_config(classes, dir),
            None => Ok(()),
        }
    })
}

/// Puts the classes into the `config.json` in `dir`.
///
/// # Errors
/// A failed read or write, or a file that is no JSON.
pub fn write_config(classes: &Classes, dir: &Path) -> Result<(), TrainError> {
    let path = dir.join("config.json");
    let base = files::read_json(&path)?;
    files::write_json(&path, &classes.describe(&base))
}

/// `torch_dtype` (newer: `dtype`) of `config.json`; f32 without one.
fn configured_dtype(model_dir: &Path) -> DType {
    let text = std::fs::read_to_string(model_dir.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match ["torch_dtype", "dtype"].iter().find_map(|k| config.get(k)).and_then(serde_json::Value::as_str) {
        Some("bfloat16") => DType::BF16,
        Some("float16") => DType::F16,
        _ => DType::F32,
    }
}

/// Copies a model's configuration and tokenizer, everything but its weights.
///
/// # Errors
/// A failed read or write.
pub fn copy_model_files(from: &Path, to: &Path) -> Result<(), TrainError> {
    copy_present(from, to, &["config.json", "generation_config.json"])?;
    copy_present(from, to, TOKENIZER_FILES)
}

fn copy_present(from: &Path, to: &Path, names: &[&str]) -> Result<(), TrainError> {
    names.iter().filter(|n| from.join(n).is_file()).try_for_each(|n| files::copy(&from.join(n), &to.join(n)))
}

/// A unit variant's name in the configuration.
fn plain(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn model_card(setup: &Setup, Card { summary, classes }: &Card<'_>) -> String {
    let pipeline = if classes.is_some() { "text-classification" } else { "text-generation" };
    let TrainingConfig { method, lora, training: t, dataset, name, .. } = &setup.config;
    let adapter = setup.config.trains_adapter();
    let base = format!("{}@{}", setup.model_name, setup.model_revision);
    let title = name.clone().unwrap_or_else(|| format!("{} on {dataset}", setup.model_name));
    let library = if adapter { "peft" } else { "transformers" };
    let tag = if adapter { "lora" } else { "full" };
    let what = match method {
        Method::Sft => "A LoRA adapter, trained by supervised fine-tuning",
        Method::Classification if adapter => "A classifier with a LoRA adapter, trained on labelled texts",
        Method::Classification => "A classifier, all weights trained on labelled texts",
        Method::Dpo => "A LoRA adapter, trained by direct preference optimisation",
        Method::Full => "All weights, trained by supervised fine-tuning",
        Method::Pretrain => "All weights, trained by causal language modelling",
    };
    let loss = |l: Option<f64>| l.map_or_else(|| "–".to_owned(), |l| format!("{l:.4}"));
    let mut card = format!(
        "---\nbase_model: {base_name}\nlibrary_name: {library}\npipeline_tag: {pipeline}\ntags:\n- {tag}\n- hone\n---\n\n# {title}\n\n\
         {what} with [Hone](https://github.com/hone-ml/hone) {version}.\n\n- Base model: `{base}`\n- Dataset: `{dataset}`\n\n## Results\n\n\
         | | |\n|---|---|\n| validation loss before | {before} |\n| validation loss after | {after} |\n| training loss (last steps) | {train} |\n\
         | steps | {steps} |\n| tokens | {tokens} |\n| seconds | {seconds:.0} |\n\n## Hyperparameters\n\n| | |\n|---|---|\n",
        base_name = setup.model_name,
        version = env!("CARGO_PKG_VERSION"),
        before = loss(summary.initial_eval_loss),
        after = loss(summary.eval_loss),
        train = loss(summary.train_loss),
        steps = summary.steps,
        tokens = summary.tokens,
        seconds = summary.train_seconds,
    );
    let mut row = |key: &str, value: &dyn std::fmt::Display| {
        // Writing to a string cannot fail.
        let _ = writeln!(card, "| {key} | {value} |");
    };
    if adapter {
        row("r", &lora.r);
        row("lora_alpha", &lora.lora_alpha);
        row("lora_dropout", &lora.lora_dropout);
        row("use_rslora", &lora.use_rslora);
        row("use_dora", &lora.use_dora);
        for (name, patterns) in
            [("rank_pattern", json!(lora.rank_pattern)), ("alpha_pattern", json!(lora.alpha_pattern))]
        {
            if patterns.as_object().is_some_and(|p| !p.is_empty()) {
                row(name, &patterns);
            }
        }
        if let Some(from) = &lora.init_from {
            row("init_from", from);
        }
    }
    if let Some(classes) = classes {
        row("classes", &classes.names().join(", "));
    }
    if *method == Method::Dpo {
        row("beta", &setup.config.dpo.beta);
        row("loss_type", &json!(setup.config.dpo.loss_type).as_str().unwrap_or_default());
        row("label_smoothing", &setup.config.dpo.label_smoothing);
    }
    row("learning_rate", &t.learning_rate);
    row("lr_scheduler_type", &plain(&t.lr_scheduler_type));
    row("warmup_ratio", &t.warmup_ratio);
    row("optim", &plain(&t.optim));
    row("load_best_model_at_end", &t.load_best_model_at_end);
    row("early_stopping_patience", &t.early_stopping_patience);
    row("per_device_train_batch_size", &t.per_device_train_batch_size);
    row("gradient_accumulation_steps", &t.gradient_accumulation_steps);
    row("max_seq_length", &t.max_seq_length);
    row("packing", &t.packing);
    row("weight_decay", &t.weight_decay);
    row("adam_beta1", &t.adam_beta1);
    row("adam_beta2", &t.adam_beta2);
    row("adam_epsilon", &json!(t.adam_epsilon));
    row("max_grad_norm", &t.max_grad_norm);
    row("seed", &t.seed);
    card
}
