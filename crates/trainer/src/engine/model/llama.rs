//! Llama 1 to 3.x and everything of its shape (SmolLM, TinyLlama, hone-tiny): <https://arxiv.org/abs/2302.13971>,
//! <https://arxiv.org/abs/2407.21783>. Weight names and semantics follow `transformers`' `LlamaForCausalLM`.

use super::{
    BuildOptions, CausalLm,
    config::{self, Common},
    layers::Biases,
    pre_norm::{self, Variant},
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
    #[serde(default)]
    mlp_bias: bool,
}

pub(super) fn build(value: &Value, dir: &Path, options: BuildOptions) -> Result<Box<dyn CausalLm>, TrainError> {
    let (common, config): (_, Config) = (Common::parse(value)?, config::parse(value)?);
    let biases = Biases { qkv: config.attention_bias, output: config.attention_bias, mlp: config.mlp_bias };
    let variant = Variant { attention: common.attention(None, |_| false)?, biases, head_norms: false };
    pre_norm::build(value, &common, variant, dir, options)
}
