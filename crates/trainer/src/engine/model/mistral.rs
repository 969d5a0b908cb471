//! Mistral 7B and its kin: Llama with a sliding window in every block (<https://arxiv.org/abs/2310.06825>).
//! Weight names and semantics follow `transformers`' `MistralForCausalLM`.

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
    /// `null` in later versions, which have no window.
    #[serde(default = "window")]
    sliding_window: Option<usize>,
}

const fn window() -> Option<usize> {
    Some(4096)
}

pub(super) fn build(value: &Value, dir: &Path, options: BuildOptions) -> Result<Box<dyn CausalLm>, TrainError> {
    let (common, config): (_, Config) = (Common::parse(value)?, config::parse(value)?);
    if common.layer_types.is_some() {
        return Err(config::bad("layer_types: Mistral's blocks all attend alike; remove it"));
    }
    let attention = common.attention(config.sliding_window, |_| true)?;
    let variant = Variant { attention, biases: Biases::default(), head_norms: false };
    pre_norm::build(value, &common, variant, dir, options)
}
