//! Gemma 3, its language model: <https://arxiv.org/abs/2503.19786>. Gemma 2 with normed queries and keys
//! instead of bounds, five blocks with a window to one without, and a rotary base of its own for the former.
//! Weight names and semantics follow `transformers`' `Gemma3ForCausalLM`.

use super::{
    AttentionOptions, BuildOptions, CausalLm, config,
    gemma2::{self, Gemma, cap},
    rope::Rotary,
};
use crate::engine::TrainError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

/// `config.json` beyond that of Gemma 2.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    /// One block in so many sees everything, where `layer_types` is absent.
    #[serde(default = "pattern")]
    sliding_window_pattern: usize,
    /// Rotary base of the blocks without a window.
    #[serde(default = "global_base")]
    rope_theta: f64,
    /// Rotary base of those with one.
    #[serde(default = "local_base")]
    rope_local_base_freq: f64,
    #[serde(default)]
    rope_scaling: Value,
    /// Newer files have the rotary settings here, by layer type.
    #[serde(default)]
    rope_parameters: Value,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
}

const fn pattern() -> usize {
    6
}

const fn global_base() -> f64 {
    1_000_000.0
}

const fn local_base() -> f64 {
    10_000.0
}

impl Config {
    /// Rotary settings of one layer type, in the form that every other architecture has for the whole model.
    fn rope(&self, layer_type: &str, theta: f64, scaling: &Value) -> Value {
        match self.rope_parameters.get(layer_type) {
            Some(Value::Object(parameters)) => {
                let mut parameters = parameters.clone();
                let theta = parameters.remove("rope_theta").filter(|t| !t.is_null()).unwrap_or(json!(theta));
                json!({"rope_theta": theta, "rope_parameters": parameters})
            }
            _ => json!({"rope_theta": theta, "rope_scaling": scaling}),
        }
    }
}

pub(super) fn build(value: &Value, dir: &Path, options: BuildOptions) -> Result<Box<dyn CausalLm>, TrainError> {
    let (common, shared) = gemma2::Config::parse(value)?;
    let config: Config = config::parse(value)?;
    if cap("attn_logit_softcapping", config.attn_logit_softcapping)?.is_some() {
        return Err(config::bad("attn_logit_softcapping: Gemma 3 does not bound its scores; remove it"));
    }
    let period = config.sliding_window_pattern.max(1);
    let sees_all = |layer: usize| layer.saturating_add(1).is_multiple_of(period);
    let attention = common.attention(shared.sliding_window, |layer| !sees_all(layer))?;
    let global = config.rope("full_attention", config.rope_theta, &config.rope_scaling);
    let local = config.rope("sliding_attention", config.rope_local_base_freq, &Value::Null);
    let global = Rotary::whole(&global, &common, options)?;
    let local = Rotary::whole(&local, &common, options)?;
    let mut model = Gemma::new(&common, &shared, attention)?;
    model.frame.soft_cap = cap("final_logit_softcapping", config.final_logit_softcapping)?;
    let rope = |o: AttentionOptions| if o.window.is_some() { local.clone() } else { global.clone() };
    model.build(dir, options, true, &rope)
}
