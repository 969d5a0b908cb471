//! Model architectures: one file each, looked up by the first entry of `architectures` in `config.json`.
//!
//! An architecture's file reads its `config.json`, refuses settings it does not know, and makes the blocks out of
//! `layers`; `decoder` holds what surrounds them. Llama's kin share the blocks of `pre_norm`, Gemma 3 those of
//! `gemma2`, and `encoder` is the frame of BERT and its kin. A new one is a file, an entry in [`REGISTRY`], and a fixture
//! of `scripts/ref_architectures.py` or `scripts/ref_encoders.py`.
//!
//! Activations are token-major, `(N, C)` over all sequences of a batch laid end to end; [`Pass::segments`]
//! says where they begin. Blocks are separate calls, so that a training step can run the backward pass
//! block by block (see `step`).

mod bert;
mod config;
mod decoder;
mod distilbert;
mod encoder;
mod gemma2;
mod gemma3;
mod layers;
mod linear;
mod llama;
mod mistral;
mod phi3;
mod pre_norm;
mod qwen2;
mod qwen3;
mod roberta;
mod rope;
mod source;

pub use encoder::{is_class_bias, is_masked_lm_head};
pub use linear::{Linear, Lora};
pub use source::{Loader, Source, Weight};

use super::{Place, TrainError, dropout::Dropout, params::Params};
use candle_core::{Result, Tensor};
use kernels::{AttentionShape, Segments};
use std::{fmt::Debug, path::Path};
use wire::{
    config::BaseDtype,
    support::{self, Family},
};

/// What differs from one forward pass to another.
#[derive(Debug, Clone)]
pub struct Pass {
    pub segments: Segments,
    /// Position of each token in its sequence, `(N)`.
    pub positions: Vec<u32>,
    /// Whether a backward pass follows. Without it nothing is kept.
    pub grad: bool,
    /// Whether adapters take part.
    pub adapter: bool,
    /// On the input of every adapter.
    pub dropout: Option<Dropout>,
}

impl Pass {
    /// A pass without gradients and dropout.
    #[must_use]
    pub fn inference(segments: Segments) -> Self {
        let positions = segments.positions();
        Self { segments, positions, grad: false, adapter: true, dropout: None }
    }
}

/// Attention heads of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// How a block attends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionOptions {
    pub heads: Heads,
    /// A token sees so many, itself the last; all before it when `None`.
    pub window: Option<usize>,
    /// Bound of the scores.
    pub soft_cap: Option<f32>,
    /// Factor of the scores; `1/√D` when `None`.
    pub scale: Option<f32>,
}

impl AttentionOptions {
    /// The kernel's description of attention within `segments`.
    #[must_use]
    pub fn shape(&self, segments: Segments) -> AttentionShape {
        let Self { heads: Heads { heads, kv_heads, head_dim }, window, soft_cap, scale } = *self;
        AttentionShape { window, soft_cap, scale, ..AttentionShape::causal(heads, kv_heads, head_dim, segments) }
    }
}

/// Attention over rotated queries and keys: plain, or through a cache.
pub trait Attend {
    /// `q (N, H·D)`, `k` and `v (N, KV·D)` of block `layer` → `(N, H·D)`.
    ///
    /// # Errors
    /// Tensor errors only.
    fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: &AttentionOptions,
    ) -> Result<Tensor>;
}

/// Causal attention within each sequence of a batch.
#[derive(Debug)]
pub struct Causal<'a>(pub &'a Segments);

impl Attend for Causal<'_> {
    fn attend(
        &mut self,
        _layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: &AttentionOptions,
    ) -> Result<Tensor> {
        kernels::attention(q, k, v, &options.shape(self.0.clone()))
    }
}

/// Sizes the training loop and the generator need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    pub layers: usize,
    pub hidden: usize,
    pub vocab: usize,
    pub heads: Heads,
    /// Longest sequence the weights were made for.
    pub context: usize,
}

/// A model with a head that predicts a target at some positions: a decoder the next token, an encoder the class of
/// a sequence at its first token.
pub trait CausalLm: Debug + Send + Sync {
    fn dims(&self) -> Dims;

    /// Where its weights are.
    fn place(&self) -> Place;

    /// Every trainable tensor, adapters included.
    fn params(&self) -> &Params;

    /// Whether a gradient must reach the embedding.
    fn trains_embedding(&self) -> bool;

    /// The linear projections an adapter can be put on, in module order.
    fn linears(&self) -> Vec<&Linear>;

    /// Puts `lora` on the projection named `path`; its tensors join [`CausalLm::params`].
    fn attach(&mut self, path: &str, lora: Lora);

    /// Tokens `(N)` → activations `(N, C)`.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    fn embed(&self, tokens: &[u32], pass: &Pass) -> Result<Tensor>;

    /// `(N, C)` → `(N, C)` through block `layer`.
    ///
    /// # Errors
    /// Tensor errors only.
    fn block(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor>;

    /// Final norm, head and loss: `(N, C)` → sum of the targets' losses over `denominator`, a scalar.
    ///
    /// # Errors
    /// Tensor errors only.
    fn loss(&self, x: &Tensor, targets: &[u32], denominator: f64, pass: &Pass) -> Result<Tensor>;

    /// Loss of each target without a gradient; 0 where the target is ignored.
    ///
    /// # Errors
    /// Tensor errors only.
    fn token_losses(&self, x: &Tensor, targets: &[u32]) -> Result<Vec<f32>>;

    /// Final norm, head and log-probability of each target, `(N)`; 0 where the target is ignored. Unlike
    /// [`CausalLm::loss`] it trains no head.
    ///
    /// # Errors
    /// Tensor errors only.
    fn log_probs(&self, x: &Tensor, targets: &[u32], pass: &Pass) -> Result<Tensor>;

    /// `(N, C)` → `(N, V)`, without a gradient.
    ///
    /// # Errors
    /// Tensor errors only.
    fn logits(&self, x: &Tensor) -> Result<Tensor>;

    /// Total number of weights, adapters not counted.
    fn weights(&self) -> u64;
}

/// How to build a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BuildOptions {
    /// Whether the base weights are trained (else only adapters are).
    pub train_weights: bool,
    /// Random weights from this seed instead of the stored ones.
    pub random: Option<u64>,
    /// Rows of the position tables: the longest sequence that will be seen.
    pub max_positions: usize,
    /// How frozen matrices are kept. Vectors (norms, biases) and what is trained are f32.
    pub base_dtype: BaseDtype,
    pub place: Place,
    /// Classes to tell apart, for an encoder.
    pub classes: Option<usize>,
}

type Builder = fn(&serde_json::Value, &Path, BuildOptions) -> std::result::Result<Box<dyn CausalLm>, TrainError>;

/// Architectures by the name `config.json` has for them; the same as in [`support::ARCHITECTURES`].
const REGISTRY: &[(&str, Builder)] = &[
    ("BertForMaskedLM", bert::build),
    ("BertForSequenceClassification", bert::build),
    ("DistilBertForMaskedLM", distilbert::build),
    ("DistilBertForSequenceClassification", distilbert::build),
    ("Gemma2ForCausalLM", gemma2::build),
    ("Gemma3ForCausalLM", gemma3::build),
    ("LlamaForCausalLM", llama::build),
    ("MistralForCausalLM", mistral::build),
    ("Phi3ForCausalLM", phi3::build),
    ("Qwen2ForCausalLM", qwen2::build),
    ("Qwen3ForCausalLM", qwen3::build),
    ("RobertaForMaskedLM", roberta::build),
    ("RobertaForSequenceClassification", roberta::build),
    ("XLMRobertaForMaskedLM", roberta::build),
    ("XLMRobertaForSequenceClassification", roberta::build),
];

/// Names of the architectures that can be trained.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

/// Loads the model in `dir` (HF layout).
///
/// # Errors
/// `ModelCorrupt` for an unknown architecture, an unsupported setting or unusable weights.
pub fn load(dir: &Path, options: BuildOptions) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    let value = config::read(dir)?;
    let name = value.pointer("/architectures/0").and_then(serde_json::Value::as_str).unwrap_or_default();
    let Some((_, build)) = REGISTRY.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = architectures().collect();
        let what = if name.is_empty() {
            "`config.json` names no architecture".into()
        } else {
            format!("the architecture `{name}` is not supported")
        };
        return Err(TrainError::model(format!("{what}; supported: {}", known.join(", "))));
    };
    if options.classes.is_some() && support::family(name) != Some(Family::Encoder) {
        return Err(TrainError::config(format!("method: `classification` needs an encoder, not `{name}`")));
    }
    build(&value, dir, options)
}
