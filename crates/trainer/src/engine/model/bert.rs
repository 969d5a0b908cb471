//! BERT: <https://arxiv.org/abs/1810.04805>. Weight names and semantics follow `transformers`'
//! `BertForSequenceClassification`.

use super::{
    BuildOptions, CausalLm, config,
    encoder::{self, Dense, Layout, Sizes},
};
use crate::engine::TrainError;
use serde::Deserialize;
use std::path::Path;

/// `config.json`, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_std")]
    initializer_range: f64,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    /// Of RoBERTa: its positions begin behind this token's number.
    pub pad_token_id: Option<usize>,
}

const fn default_eps() -> f64 {
    1e-12
}

pub(super) const fn default_std() -> f64 {
    0.02
}

impl Config {
    /// # Errors
    /// `ModelCorrupt` for a setting that is not supported.
    pub fn sizes(&self, first_position: usize) -> Result<Sizes, TrainError> {
        encoder::check_activation("hidden_act", self.hidden_act.as_deref())?;
        let kind = self.position_embedding_type.as_deref().unwrap_or("absolute");
        if kind != "absolute" {
            return Err(config::bad(format!("position_embedding_type `{kind}` is not supported; supported: absolute")));
        }
        if self.type_vocab_size == 0 {
            return Err(config::bad("type_vocab_size is 0; it must be 1 or more"));
        }
        let sizes = Sizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            vocab: self.vocab_size,
            positions: self.max_position_embeddings,
            first_position,
            types: self.type_vocab_size,
            eps: self.layer_norm_eps,
            std: self.initializer_range,
        };
        sizes.checked()
    }
}

pub(super) const LAYOUT: Layout = Layout {
    embeddings: "bert.embeddings",
    blocks: "bert.encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attended: "attention.output.dense",
    attended_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
    dense: Dense::Pooler("bert.pooler.dense"),
    relu: false,
    classifier: "classifier",
};

pub(super) fn build(
    value: &serde_json::Value,
    dir: &Path,
    options: BuildOptions,
) -> Result<Box<dyn CausalLm>, TrainError> {
    let config: Config = config::parse(value)?;
    encoder::build(&config.sizes(0)?, &LAYOUT, dir, options)
}
