//! How much memory a training needs at least, from the shapes of its base model: known before anything is staged.
//!
//! Only what cannot be avoided is counted: weights as they are kept, gradients and moments, and what the backward
//! pass of the tokens in memory at once needs. A rehearsal (`hone-trainer estimate`) tells more; this tells at once.

use crate::{
    config::{BaseDtype, Method, Optim, TrainingConfig},
    problem::{Code, FieldError, Problem},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Tokens that the trainer runs at once where sequences can be separated.
pub const PART_TOKENS: u64 = 1024;
/// Bytes of a row for one of its tokens; more than most tokenizers need, because this is about the least there is.
const BYTES_PER_TOKEN: u64 = 6;

/// Linear projections of one shape and name, on which adapters can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Projections {
    /// Last segment of their paths: `q_proj`.
    pub name: String,
    pub outputs: u64,
    pub inputs: u64,
    pub count: u64,
}

/// Sizes of a model that decide how much memory its training needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelShape {
    pub hidden: u64,
    pub layers: u64,
    pub parameters: u64,
    /// Those of [`Self::parameters`] that are stored in more than 16 bits.
    pub wide_parameters: u64,
    pub projections: Vec<Projections>,
}

/// A tensor of a weights file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorShape<'a> {
    pub name: &'a str,
    pub shape: &'a [u64],
    /// Bits of an element.
    pub bits: u32,
}

impl ModelShape {
    /// The sizes of a model with these tensors, named as Transformers does.
    #[must_use]
    pub fn of<'a>(tensors: impl IntoIterator<Item = TensorShape<'a>>) -> Self {
        let (mut all, mut layers) = (Self::default(), BTreeSet::new());
        let mut projections: BTreeMap<(String, u64, u64), u64> = BTreeMap::new();
        for TensorShape { name, shape, bits } in tensors {
            let elements = shape.iter().copied().fold(1, u64::saturating_mul);
            all.parameters = all.parameters.saturating_add(elements);
            if bits > 16 {
                all.wide_parameters = all.wide_parameters.saturating_add(elements);
            }
            let ([outputs, inputs], Some(path)) = (shape, name.strip_suffix(".weight")) else { continue };
            let last = path.rsplit('.').next().unwrap_or(path);
            let layer = path.split('.').find_map(|segment| segment.parse::<u64>().ok());
            layers.extend(layer);
            if matches!(last, "embed_tokens" | "word_embeddings") {
                all.hidden = *inputs;
            } else if layer.is_some() || path.ends_with("pooler.dense") {
                let count = projections.entry((last.to_owned(), *outputs, *inputs)).or_default();
                *count = count.saturating_add(1);
            }
        }
        all.layers = u64::try_from(layers.len()).unwrap_or(u64::MAX);
        let projection = |((name, outputs, inputs), count)| Projections { name, outputs, inputs, count };
        all.projections = projections.into_iter().map(projection).collect();
        all
    }

    /// Elements that a run of `config` trains. Ranks that differ by `lora.rank_pattern` are not looked at.
    #[must_use]
    pub fn trainable(&self, config: &TrainingConfig) -> u64 {
        if !config.trains_adapter() {
            return self.parameters;
        }
        let rank = u64::try_from(config.lora.r).unwrap_or(u64::MAX);
        let adapted = self.projections.iter().filter(|p| config.lora.target_modules.matches(&p.name));
        let sizes = adapted.map(|p| p.outputs.saturating_add(p.inputs).saturating_mul(p.count));
        sizes.fold(0, u64::saturating_add).saturating_mul(rank)
    }

    /// Values that a token keeps for the backward pass: what projections put out, and inputs of blocks. With
    /// recomputation only the latter, and one block's share of the former.
    fn kept_per_token(&self, recompute: bool) -> u64 {
        let outputs = self.projections.iter().map(|p| p.outputs.saturating_mul(p.count)).fold(0, u64::saturating_add);
        let outputs = if recompute { outputs / self.layers.max(1) } else { outputs };
        self.layers.saturating_mul(self.hidden).saturating_add(outputs)
    }
}

/// The rows a run learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    pub bytes: u64,
    pub count: u64,
    /// Longest sequence the base model was made for.
    pub context: u64,
}

impl Rows {
    /// Tokens that are in memory at once, at least.
    fn tokens_at_once(self, config: &TrainingConfig) -> u64 {
        let t = &config.training;
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let (limit, batch) = (wide(t.max_seq_length).min(self.context), wide(t.per_device_train_batch_size));
        let mean = self.bytes / self.count.max(1) / BYTES_PER_TOKEN;
        match config.method {
            // Both answers, each with the prompt, and all pairs of a batch at once.
            Method::Dpo => batch.min(self.count).saturating_mul(mean.clamp(1, limit.saturating_mul(2))),
            _ if t.packing => limit.min(PART_TOKENS).max(mean.min(limit)),
            _ => {
                let row = mean.clamp(1, limit.max(1));
                row.max(batch.min(self.count).saturating_mul(row).min(PART_TOKENS))
            }
        }
    }
}

/// Bytes that the parts of a run need at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    pub weights: u64,
    pub gradients_and_moments: u64,
    pub activations: u64,
    /// Tokens in memory at once.
    pub tokens: u64,
}

impl Need {
    /// What training a model of this shape on `rows` needs.
    #[must_use]
    pub fn of(shape: &ModelShape, config: &TrainingConfig, rows: Rows) -> Self {
        let t = &config.training;
        let wide = match (config.trains_adapter(), t.base_dtype) {
            (false, _) | (true, BaseDtype::F32) => shape.parameters,
            (true, BaseDtype::Auto) => shape.wide_parameters,
            (true, BaseDtype::Bf16 | BaseDtype::F16) => 0,
        };
        let trained = shape.trainable(config);
        // A gradient of four bytes, and two moments of four or one.
        let per_element = match t.optim {
            Optim::AdamwTorch => 12,
            Optim::Adamw8bit => 6,
        };
        let tokens = rows.tokens_at_once(config);
        let kept = shape.kept_per_token(t.gradient_checkpointing);
        Self {
            weights: shape.parameters.saturating_add(wide).saturating_mul(2),
            gradients_and_moments: trained.saturating_mul(per_element),
            activations: tokens.saturating_mul(kept).saturating_mul(4),
            tokens,
        }
    }

    #[must_use]
    pub const fn total(&self) -> u64 {
        self.weights.saturating_add(self.gradients_and_moments).saturating_add(self.activations)
    }

    /// Refuses a run that needs more than `limit` bytes, with the numbers and what would make it smaller.
    ///
    /// # Errors
    /// [`Code::InsufficientMemory`].
    pub fn check(&self, config: &TrainingConfig, limit: u64) -> Result<(), Problem> {
        if self.total() <= limit {
            return Ok(());
        }
        let remedies = self.remedies(config);
        let named: Vec<String> = remedies.iter().map(|(path, how)| format!("{path} ({how})")).collect();
        let detail = format!(
            "training needs at least {} of memory (weights {}, gradients and moments {}, activations of {} tokens {}) and a trainer here has {}; \
             change {}, or choose a smaller model",
            human(self.total()),
            human(self.weights),
            human(self.gradients_and_moments),
            self.tokens,
            human(self.activations),
            human(limit),
            named.join(", ")
        );
        let needed = format!("the run needs {} of {}", human(self.total()), human(limit));
        let error = |(path, how): (&str, &str)| FieldError::new(path, needed.clone()).suggest(Some(how));
        let errors = remedies.into_iter().map(error).collect();
        Err(Problem::new(Code::InsufficientMemory, detail).with_errors(errors))
    }

    /// Settings that are not yet as small as they can be, the most useful first.
    fn remedies(&self, config: &TrainingConfig) -> Vec<(&'static str, &'static str)> {
        let t = &config.training;
        let mut all = Vec::new();
        if !config.trains_adapter() {
            if t.optim != Optim::Adamw8bit {
                all.push(("training.optim", "`adamw_8bit` halves gradients and moments"));
            }
            all.push(("method", "an adapter (`sft`) trains a small part of the weights"));
        } else if matches!(t.base_dtype, BaseDtype::Auto | BaseDtype::F32) {
            all.push(("training.base_dtype", "`bf16` keeps frozen weights in two bytes each"));
        }
        if !t.gradient_checkpointing {
            all.push(("training.gradient_checkpointing", "`true` keeps little of each block"));
        }
        all.push(("training.max_seq_length", "shorter rows need less at once"));
        all.push((
            "training.per_device_train_batch_size",
            "fewer rows at once; gradient_accumulation_steps makes up for them",
        ));
        all
    }
}

/// `1.5 GB`
fn human(bytes: u64) -> String {
    let tenths = bytes.saturating_add(50_000_000) / 100_000_000;
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..100_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{}.{} GB", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3 8B, in 16 bits.
    fn llama() -> ModelShape {
        let block = [
            ("self_attn.q_proj", [4096, 4096]),
            ("self_attn.k_proj", [1024, 4096]),
            ("self_attn.v_proj", [1024, 4096]),
            ("self_attn.o_proj", [4096, 4096]),
            ("mlp.gate_proj", [14336, 4096]),
            ("mlp.up_proj", [14336, 4096]),
            ("mlp.down_proj", [4096, 14336]),
        ];
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![128_256, 4096]),
            ("lm_head.weight".to_owned(), vec![128_256, 4096]),
            ("model.norm.weight".to_owned(), vec![4096]),
        ];
        for layer in 0..32 {
            let path = |name: &str| format!("model.layers.{layer}.{name}.weight");
            tensors.extend(block.iter().map(|(name, shape)| (path(name), shape.to_vec())));
            tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|name| (path(name), vec![4096])));
        }
        ModelShape::of(tensors.iter().map(|(name, shape)| TensorShape { name, shape, bits: 16 }))
    }

    const ROWS: Rows = Rows { bytes: 60_000_000, count: 1000, context: 8192 };

    #[test]
    fn sizes_are_read_off_the_tensors() {
        let shape = llama();
        assert_eq!((shape.hidden, shape.layers, shape.parameters), (4096, 32, 8_030_261_248));
        assert_eq!(shape.wide_parameters, 0);
        // PEFT counts as many for r = 16 on all projections.
        assert_eq!(shape.trainable(&TrainingConfig::default()), 41_943_040);
    }

    #[test]
    fn an_adapter_needs_little_beside_the_weights_and_all_weights_sixteen_bytes_each() {
        let mut config = TrainingConfig::default();
        let need = Need::of(&llama(), &config, ROWS);
        assert_eq!((need.weights, need.tokens), (16_060_522_496, 1024));
        assert!(need.total() < 24_000_000_000, "{need:?}");
        config.training.max_seq_length = 100_000;
        assert_eq!(Need::of(&llama(), &config, ROWS).tokens, 8192, "no longer than the model's context");
        config.training.max_seq_length = 512;
        config.method = Method::Full;
        let need = Need::of(&llama(), &config, ROWS);
        assert_eq!(need.weights + need.gradients_and_moments, 8_030_261_248 * 16);
    }

    #[test]
    fn pairs_are_in_memory_all_at_once_and_other_rows_in_parts() {
        let mut config = TrainingConfig::default();
        config.training.per_device_train_batch_size = 64;
        let rows = Rows { bytes: 1_200_000, count: 1000, context: 8192 };
        assert_eq!(rows.tokens_at_once(&config), 1024);
        config.method = Method::Dpo;
        assert_eq!(rows.tokens_at_once(&config), 64 * 200);
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_numbers_and_what_helps() {
        let mut config = TrainingConfig { method: Method::Full, ..TrainingConfig::default() };
        let need = Need::of(&llama(), &config, ROWS);
        need.check(&config, 200_000_000_000).unwrap();
        let problem = need.check(&config, 64_000_000_000).unwrap_err();
        assert_eq!((problem.code, problem.status), (Code::InsufficientMemory, 422));
        assert!(
            problem.detail.starts_with("training needs at least 134.7 GB of memory (weights 32.1 GB"),
            "{problem:?}"
        );
        assert!(
            problem.detail.contains("a trainer here has 64.0 GB; change training.optim (`adamw_8bit`"),
            "{problem:?}"
        );
        assert_eq!(problem.errors.len(), 5);
        config.training.optim = Optim::Adamw8bit;
        config.training.gradient_checkpointing = true;
        let paths: Vec<String> = need.check(&config, 1).unwrap_err().errors.into_iter().map(|e| e.path).collect();
        assert_eq!(paths, ["method", "training.max_seq_length", "training.per_device_train_batch_size"]);
    }
}
