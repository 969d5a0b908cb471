//! Qwen 2 and 2.5: Llama with biases on queries, keys and values (<https://arxiv.org/abs/2407.10671>,
//! <https://arxiv.org/abs/2412.15115>). Weight names and semantics follow `transformers`' `Qwen2ForCausalLM`.

use super::{
    AttentionOptions, BuildOptions, CausalLm,
    config::{self, Common},
    layers::Biases,
    pre_norm::{self, Variant},
};
use crate::engine::TrainError;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// The window of Qwen's `config.json`.
#[derive(Debug, Clone, Deserialize)]
struct Window {
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "window")]
    sliding_window: Option<usize>,
    /// The first block with a window.
    #[serde(default = "first")]
    max_window_layers: usize,
}

const fn window() -> Option<usize> {
    Some(4096)
}

const fn first() -> usize {
    28
}

pub(super) fn build(value: &Value, dir: &Path, options: BuildOptions) -> Result<Box<dyn CausalLm>, TrainError> {
    let common = Common::parse(value)?;
    let biases = Biases { qkv: true, ..Biases::default() };
    let variant = Variant { attention: attention(value, &common)?, biases, head_norms: false };
    pre_norm::build(value, &common, variant, dir, options)
}

/// Full attention, unless a window is switched on for the later blocks.
pub(super) fn attention(value: &Value, common: &Common) -> Result<Vec<AttentionOptions>, TrainError> {
    let config: Window = config::parse(value)?;
    let window = config.sliding_window.filter(|_| config.use_sliding_window);
    common.attention(window, |layer| layer >= config.max_window_layers)
}
