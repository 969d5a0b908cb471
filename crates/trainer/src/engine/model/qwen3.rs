//! Qwen 3: queries and keys are normed head by head (<https://arxiv.org/abs/2505.09388>). Weight names and
//! semantics follow `transformers`' `Qwen3ForCausalLM`.

use super::{
    BuildOptions, CausalLm,
    config::{self, Common},
    layers::Biases,
    pre_norm::{self, Variant},
    qwen2,
};
use crate::engine::TrainError;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// `config.json` beyond [`Common`].
#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    attention_bias: bool,
}

pub(super) fn build(value: &Value, dir: &Path, options: BuildOptions) -> Result<Box<dyn CausalLm>, TrainError> {
    let (common, config): (_, Config) = (Common::with_head_dim(value, Some(128))?, config::parse(value)?);
    let biases = Biases { qkv: config.attention_bias, output: config.attention_bias, mlp: false };
    let variant = Variant { attention: qwen2::attention(value, &common)?, biases, head_norms: true };
    pre_norm::build(value, &common, variant, dir, options)
}
