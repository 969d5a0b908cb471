//! The training configuration users write (YAML or JSON), with the field's usual names.
//!
//! [`TrainingConfig::from_value`] is the only way in: it reports every unknown key (with a
//! suggestion), every wrong type and every value out of range at once, each with its path.

mod classification;
mod dpo;
mod lora;

pub use classification::{ClassificationConfig, Tuning};
pub use dpo::{DpoConfig, DpoLoss};
pub use lora::{ALL_LINEAR, LoraConfig, TargetModules};

use crate::{
    problem::{Code, FieldError, Problem, near},
    strict,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is trained, and on which loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Supervised fine-tuning of a LoRA adapter; loss on assistant tokens only.
    #[default]
    Sft,
    /// Supervised fine-tuning of all weights.
    Full,
    /// Causal language modelling on every token, all weights.
    Pretrain,
    /// Direct preference optimisation of a LoRA adapter on pairs of answers.
    Dpo,
    /// Sequence classification with an encoder: its classifier, and a LoRA adapter or all weights.
    Classification,
}

/// Where the weights start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The base model's weights.
    #[default]
    Pretrained,
    /// Random weights in the base model's shape (training from scratch; `method: pretrain` or `full`).
    Random,
}

/// Learning-rate schedule after warm-up (names of `transformers.SchedulerType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    #[default]
    Cosine,
    Linear,
    /// Constant from the first step on, without warm-up.
    Constant,
    /// Warm-up, then constant.
    ConstantWithWarmup,
}

/// How frozen base weights are kept in memory. Computing is in f32 whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// As they are stored, which costs no precision.
    #[default]
    Auto,
    F32,
    /// Rounded to bfloat16 when stored otherwise.
    Bf16,
    /// Rounded to half precision when stored otherwise.
    F16,
}

/// The optimizer (names of `transformers.TrainingArguments.optim`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Optim {
    /// AdamW with moments in f32.
    #[default]
    #[serde(rename = "adamw_torch")]
    AdamwTorch,
    /// AdamW with moments in eight bits, in blocks of 256 (arXiv 2110.02861): a quarter of their memory.
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit")]
    Adamw8bit,
}

/// Loop hyperparameters (names of `transformers.TrainingArguments`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct TrainingParams {
    pub num_train_epochs: f64,
    /// Stop after this many optimizer steps; `-1` means `num_train_epochs` decides.
    pub max_steps: i64,
    pub per_device_train_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub max_seq_length: usize,
    pub learning_rate: f64,
    pub lr_scheduler_type: LrScheduler,
    pub warmup_ratio: f64,
    pub optim: Optim,
    /// Memory format of frozen base weights; 16 bits take half the memory of f32.
    pub base_dtype: BaseDtype,
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    /// Clip the global gradient norm to this; `0` turns clipping off.
    pub max_grad_norm: f64,
    pub seed: u64,
    pub shuffle: bool,
    /// Fill sequences with several rows (attention stays within a row).
    pub packing: bool,
    /// Put rows of about the same length into a step.
    pub group_by_length: bool,
    /// Evaluate every this many steps and at the start and end; `0` only at the start and end.
    pub eval_steps: u64,
    /// Checkpoint every this many steps; `0` only at the end.
    pub save_steps: u64,
    /// Keep at most this many checkpoints of one attempt.
    pub save_total_limit: usize,
    /// Make the result from the checkpoint with the lowest validation loss instead of the last one.
    pub load_best_model_at_end: bool,
    /// Stop after this many evaluations in a row without a better validation loss; `0` never stops early.
    pub early_stopping_patience: u64,
    /// By how much a validation loss must be lower to count as better for `early_stopping_patience`.
    pub early_stopping_threshold: f64,
    /// Share of rows held out for evaluation when the dataset has no validation split.
    pub val_set_size: f64,
    /// Recompute each block in the backward pass instead of keeping its activations.
    pub gradient_checkpointing: bool,
}

impl Default for TrainingParams {
    fn default() -> Self {
        Self {
            num_train_epochs: 1.0,
            max_steps: -1,
            per_device_train_batch_size: 4,
            gradient_accumulation_steps: 1,
            max_seq_length: 512,
            learning_rate: 2e-4,
            lr_scheduler_type: LrScheduler::default(),
            warmup_ratio: 0.03,
            optim: Optim::default(),
            base_dtype: BaseDtype::default(),
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            seed: 42,
            shuffle: true,
            packing: false,
            group_by_length: false,
            eval_steps: 50,
            save_steps: 50,
            save_total_limit: 2,
            load_best_model_at_end: false,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
            val_set_size: 0.05,
            gradient_checkpointing: false,
        }
    }
}

/// Takes whether a value is fine, its path, and what to say when it is not.
type Require<'a> = dyn FnMut(bool, &str, String) + 'a;

/// A whole training configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct TrainingConfig {
    /// Name shown in lists; made from model and dataset when absent.
    pub name: Option<String>,
    /// Registry name of the base model, optionally `name@revision`.
    pub model: String,
    /// Name or id of the dataset.
    pub dataset: String,
    /// Name or id of a dataset of the same format whose rows are held out for evaluation, instead of the validation
    /// file of `dataset`.
    pub validation_dataset: Option<String>,
    pub method: Method,
    pub init: Init,
    pub lora: LoraConfig,
    pub dpo: DpoConfig,
    pub classification: ClassificationConfig,
    pub training: TrainingParams,
}

impl TrainingConfig {
    /// Reads YAML text. Errors are [`Code::Invalid`] problems.
    pub fn from_yaml(text: &str) -> Result<Self, Problem> {
        let value: Value = serde_yaml_ng::from_str(text)
            .map_err(|e| Problem::new(Code::Invalid, format!("the configuration is not valid YAML: {e}")))?;
        Self::from_value(&value)
    }

    /// Reads a JSON value, reporting every error in it at once.
    pub fn from_value(value: &Value) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let known = serde_json::to_value(Self::default()).unwrap_or_default();
        check_keys(value, &known, "", &mut errors);
        let parsed = if errors.is_empty() {
            match strict::from_value::<Self>(value.clone()) {
                Ok(config) => {
                    config.check_ranges(&mut errors);
                    Some(config)
                }
                Err(e) => {
                    errors.push(e);
                    None
                }
            }
        } else {
            None
        };
        match parsed {
            Some(config) if errors.is_empty() => Ok(config),
            _ => {
                let first = errors.first().map(|e| match &e.suggestion {
                    Some(s) => format!("{}: {} ({s})", e.path, e.message),
                    None => format!("{}: {}", e.path, e.message),
                });
                let more = errors.len().saturating_sub(1);
                let tail = if more > 0 { format!(" (and {more} more)") } else { String::new() };
                let detail = format!("training configuration: {}{tail}", first.unwrap_or_default());
                Err(Problem::new(Code::Invalid, detail).with_errors(errors))
            }
        }
    }

    /// Whether an adapter is trained rather than the weights.
    #[must_use]
    pub fn trains_adapter(&self) -> bool {
        match self.method {
            Method::Sft | Method::Dpo => true,
            Method::Full | Method::Pretrain => false,
            Method::Classification => self.classification.tuning == Tuning::Lora,
        }
    }

    /// `name@revision` split into its parts.
    #[must_use]
    pub fn model_ref(&self) -> (&str, Option<&str>) {
        match self.model.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (&self.model, None),
        }
    }

    fn check_ranges(&self, errors: &mut Vec<FieldError>) {
        let mut require = |ok: bool, path: &str, message: String| {
            if !ok {
                errors.push(FieldError::new(path, message));
            }
        };
        require(!self.model.is_empty(), "model", "is required: the name of a base model".into());
        require(!self.dataset.is_empty(), "dataset", "is required: the name of a dataset".into());
        self.lora.check(&mut require);
        self.dpo.check(&mut require);
        let t = &self.training;
        require(
            t.num_train_epochs > 0.0 && t.num_train_epochs <= 10_000.0,
            "training.num_train_epochs",
            format!("must be above 0 and at most 10000, not {}", t.num_train_epochs),
        );
        require(
            t.max_steps == -1 || t.max_steps > 0,
            "training.max_steps",
            format!("must be positive, or -1 for no limit, not {}", t.max_steps),
        );
        require(
            (1..=4096).contains(&t.per_device_train_batch_size),
            "training.per_device_train_batch_size",
            format!("must be between 1 and 4096, not {}", t.per_device_train_batch_size),
        );
        require(
            (1..=65_536).contains(&t.gradient_accumulation_steps),
            "training.gradient_accumulation_steps",
            format!("must be between 1 and 65536, not {}", t.gradient_accumulation_steps),
        );
        require(
            (8..=1_048_576).contains(&t.max_seq_length),
            "training.max_seq_length",
            format!("must be between 8 and 1048576, not {}", t.max_seq_length),
        );
        require(
            t.learning_rate > 0.0 && t.learning_rate.is_finite(),
            "training.learning_rate",
            format!("must be a positive number, not {}", t.learning_rate),
        );
        require(
            (0.0..1.0).contains(&t.warmup_ratio),
            "training.warmup_ratio",
            format!("must be at least 0 and below 1, not {}", t.warmup_ratio),
        );
        require(
            (0.0..=1.0).contains(&t.weight_decay),
            "training.weight_decay",
            format!("must be between 0 and 1, not {}", t.weight_decay),
        );
        require(
            (0.0..1.0).contains(&t.adam_beta1),
            "training.adam_beta1",
            format!("must be at least 0 and below 1, not {}", t.adam_beta1),
        );
        require(
            (0.0..1.0).contains(&t.adam_beta2),
            "training.adam_beta2",
            format!("must be at least 0 and below 1, not {}", t.adam_beta2),
        );
        require(
            t.adam_epsilon > 0.0 && t.adam_epsilon < 1.0,
            "training.adam_epsilon",
            format!("must be above 0 and below 1, not {}", t.adam_epsilon),
        );
        require(
            t.max_grad_norm >= 0.0 && t.max_grad_norm.is_finite(),
            "training.max_grad_norm",
            format!("must be 0 (off) or positive, not {}", t.max_grad_norm),
        );
        require(
            (0.0..1.0).contains(&t.val_set_size),
            "training.val_set_size",
            format!("must be at least 0 and below 1, not {}", t.val_set_size),
        );
        require(
            t.early_stopping_threshold >= 0.0 && t.early_stopping_threshold.is_finite(),
            "training.early_stopping_threshold",
            format!("must be at least 0, not {}", t.early_stopping_threshold),
        );
        let watched = t.early_stopping_patience > 0 || t.load_best_model_at_end;
        require(
            t.eval_steps > 0 || !watched,
            "training.eval_steps",
            "must not be 0 with early_stopping_patience or load_best_model_at_end, which need evaluations".into(),
        );
        require(t.save_total_limit >= 1, "training.save_total_limit", "must be at least 1".into());
        require(
            self.method == Method::Dpo || self.dpo == DpoConfig::default(),
            "dpo",
            "needs `method: dpo`; other methods have no use for it".into(),
        );
        require(
            self.method == Method::Classification || self.classification == ClassificationConfig::default(),
            "classification",
            "needs `method: classification`; other methods have no use for it".into(),
        );
        require(
            !(t.packing && matches!(self.method, Method::Dpo | Method::Classification)),
            "training.packing",
            "goes with `sft`, `full` and `pretrain` only: pairs and classified texts are rows of their own".into(),
        );
        require(
            !(t.packing && t.group_by_length),
            "training.group_by_length",
            "does not go with `training.packing`, which makes all sequences about as long".into(),
        );
        require(
            self.lora.init_from.is_none() || self.method == Method::Sft,
            "lora.init_from",
            "needs `method: sft`; other methods train no adapter, or need the base model as it is for a reference (`dpo`: merge the adapter first)".into(),
        );
        require(
            self.init == Init::Pretrained || matches!(self.method, Method::Full | Method::Pretrain),
            "init",
            "`random` needs `method: full` or `method: pretrain`: an adapter on random weights is useless".into(),
        );
    }
}

/// Keys of `value` that `known` lacks, and sections that are no mappings.
fn check_keys(value: &Value, known: &Value, path: &str, errors: &mut Vec<FieldError>) {
    // An empty mapping among the defaults is one whose keys are the user's.
    let Value::Object(known) = known else { return };
    if known.is_empty() && !path.is_empty() {
        return;
    }
    let Value::Object(map) = value else {
        let at = if path.is_empty() { "(document)" } else { path };
        errors.push(FieldError::new(at, "must be a mapping of keys to values"));
        return;
    };
    for (key, inner) in map {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            Some(known) => check_keys(inner, known, &full, errors),
            None => {
                let names = known.keys().map(String::as_str);
                let hint = near(key, names).first().map(|n| {
                    let n = if path.is_empty() { (*n).to_owned() } else { format!("{path}.{n}") };
                    format!("did you mean `{n}`?")
                });
                errors.push(FieldError::new(full, "is not a configuration key").suggest(hint));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(yaml: &str) -> Vec<String> {
        TrainingConfig::from_yaml(yaml)
            .err()
            .map(|p| {
                p.errors
                    .iter()
                    .map(|e| {
                        format!("{}: {} {}", e.path, e.message, e.suggestion.clone().unwrap_or_default())
                            .trim_end()
                            .to_owned()
                    })
                    .collect()
            })
            .unwrap_or_default()
    }

    #[test]
    fn reads_the_documented_example() {
        let c = TrainingConfig::from_yaml(
            "model: hone-tiny\ndataset: demo\nmethod: sft\nlora: {r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}\ntraining: {learning_rate: 2.0e-4, lr_scheduler_type: cosine, max_steps: -1}\n",
        );
        let c = c.map_err(|p| p.detail);
        assert_eq!(c.as_ref().map(|c| c.lora.r), Ok(8));
        assert_eq!(c.as_ref().map(|c| c.lora.target_modules.matches("k_proj")), Ok(false));
        assert_eq!(c.map(|c| c.training.max_seq_length), Ok(512));
    }

    #[test]
    fn names_every_unknown_key_with_a_suggestion() {
        assert_eq!(
            errors("model: a\ndataset: b\ntraning: {}\ntraining: {learning_rat: 1}\n"),
            [
                "training.learning_rat: is not a configuration key did you mean `training.learning_rate`?",
                "traning: is not a configuration key did you mean `training`?"
            ]
        );
    }

    #[test]
    fn refuses_what_does_not_go_together() {
        let of = |rest: &str| errors(&format!("model: a\ndataset: b\n{rest}\n"));
        assert!(of("method: dpo\ndpo: {beta: 0.3, loss_type: ipo}").is_empty());
        assert!(of("method: dpo\ndpo: {loss_type: robust, label_smoothing: 0.1}").is_empty());
        assert_eq!(of("dpo: {beta: 0.3}"), ["dpo: needs `method: dpo`; other methods have no use for it"]);
        assert_eq!(
            of("method: dpo\ndpo: {beta: 0, label_smoothing: 0.1}"),
            [
                "dpo.beta: must be a positive number, not 0",
                "dpo.label_smoothing: needs `dpo.loss_type: robust`; the other losses do not know it"
            ]
        );
        assert_eq!(
            of("method: dpo\ninit: random\ntraining: {packing: true}"),
            [
                "training.packing: goes with `sft`, `full` and `pretrain` only: pairs and classified texts are rows of their own",
                "init: `random` needs `method: full` or `method: pretrain`: an adapter on random weights is useless"
            ]
        );
        assert_eq!(
            of("training: {packing: true, group_by_length: true}"),
            ["training.group_by_length: does not go with `training.packing`, which makes all sequences about as long"]
        );
        assert_eq!(of("method: dpo\nlora: {init_from: c}").len(), 1);
        assert!(of("method: classification\nclassification: {tuning: full}").is_empty());
        assert_eq!(
            of("classification: {tuning: full}"),
            ["classification: needs `method: classification`; other methods have no use for it"]
        );
        assert_eq!(of("method: classification\ninit: random\ntraining: {packing: true}").len(), 2);
        assert_eq!(
            of("method: dpo\ndpo: {losstype: ipo}"),
            ["dpo.losstype: is not a configuration key did you mean `dpo.loss_type`?"]
        );
    }

    #[test]
    fn names_every_value_out_of_range() {
        assert_eq!(
            errors("model: a\ndataset: b\nlora: {r: 0, rank_pattern: {q_proj: 9999}}\ntraining: {warmup_ratio: 2}\n"),
            [
                "lora.r: must be between 1 and 1024, not 0",
                "lora.rank_pattern.q_proj: must be between 1 and 1024, not 9999",
                "training.warmup_ratio: must be at least 0 and below 1, not 2"
            ]
        );
    }

    #[test]
    fn names_the_path_of_a_wrong_type() {
        let e = errors("model: a\ndataset: b\ntraining: {max_steps: many}\n");
        assert_eq!(e, ["training.max_steps: invalid type: string \"many\", expected i64"]);
    }
}
