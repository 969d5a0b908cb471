//! `config.json` as Transformers writes it: the settings that its decoders share.

use super::{AttentionOptions, BuildOptions, Dims, Heads, layers::Activation};
use crate::engine::TrainError;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Reads `config.json` in a model directory.
pub(super) fn read(dir: &Path) -> Result<Value, TrainError> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path)
        .map_err(|e| TrainError::model(format!("the model has no readable `config.json`: {e}")).caused_by(e))?;
    serde_json::from_str(&text)
        .map_err(|e| TrainError::model(format!("`config.json` is not valid JSON: {e}")).caused_by(e))
}

/// An error about `config.json`.
pub(super) fn bad(what: impl std::fmt::Display) -> TrainError {
    TrainError::model(format!("`config.json`: {what}"))
}

/// Reads the settings that `T` names; others are left alone.
pub(super) fn parse<T: for<'a> Deserialize<'a>>(config: &Value) -> Result<T, TrainError> {
    T::deserialize(config).map_err(|e| bad(&e).caused_by(e))
}

/// Settings of every decoder here. What a file leaves out has the default of Transformers' class, which may
/// differ from one architecture to another: those are options.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Common {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: Option<f64>,
    pub tie_word_embeddings: Option<bool>,
    pub hidden_act: Option<String>,
    pub initializer_range: Option<f64>,
    pub layer_types: Option<Vec<String>>,
}

impl Common {
    pub(super) fn parse(config: &Value) -> Result<Self, TrainError> {
        Self::with_head_dim(config, None)
    }

    /// Where `head_dim` is absent it has a default, or else follows from the width.
    pub(super) fn with_head_dim(config: &Value, default: Option<usize>) -> Result<Self, TrainError> {
        let mut c: Self = parse(config)?;
        c.head_dim = c.head_dim.or(default);
        let h = c.heads();
        let positive =
            [c.hidden_size, c.intermediate_size, c.num_hidden_layers, h.heads, h.kv_heads, h.head_dim, c.vocab_size];
        if positive.contains(&0) || !h.head_dim.is_multiple_of(2) || !h.heads.is_multiple_of(h.kv_heads.max(1)) {
            return Err(bad(format!(
                "sizes do not fit together: {} heads, {} key/value heads, head size {}",
                h.heads, h.kv_heads, h.head_dim
            )));
        }
        Ok(c)
    }

    pub(super) fn heads(&self) -> Heads {
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(heads).unwrap_or(0));
        Heads { heads, kv_heads: self.num_key_value_heads.unwrap_or(heads), head_dim }
    }

    pub(super) fn dims(&self) -> Dims {
        Dims {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            vocab: self.vocab_size,
            heads: self.heads(),
            context: self.max_position_embeddings,
        }
    }

    /// Rows of the position tables.
    pub(super) fn positions(&self, options: BuildOptions) -> usize {
        options.max_positions.clamp(1, self.max_position_embeddings.max(1))
    }

    /// The activation of `hidden_act`, SiLU where it is absent.
    pub(super) fn activation(&self) -> Result<Activation, TrainError> {
        match self.hidden_act.as_deref().unwrap_or("silu") {
            "silu" | "swish" => Ok(Activation::Silu),
            other => Err(bad(format!("hidden_act `{other}` is not supported; supported: silu"))),
        }
    }

    /// Plain causal attention, with a window in those layers that slide: where `layer_types` says so, else
    /// where `slides(layer)` does.
    pub(super) fn attention(
        &self,
        window: Option<usize>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<AttentionOptions>, TrainError> {
        let plain = AttentionOptions { heads: self.heads(), window: None, soft_cap: None, scale: None };
        if window == Some(0) {
            return Err(bad("sliding_window must be at least 1"));
        }
        let with_window = |slides: bool| AttentionOptions { window: window.filter(|_| slides), ..plain };
        let Some(types) = &self.layer_types else {
            return Ok((0..self.num_hidden_layers).map(|layer| with_window(slides(layer))).collect());
        };
        if types.len() != self.num_hidden_layers {
            return Err(bad(format!("layer_types has {} entries for {} layers", types.len(), self.num_hidden_layers)));
        }
        let option = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(plain),
            "sliding_attention" => Ok(with_window(true)),
            other => {
                Err(bad(format!("layer type `{other}` is not supported; supported: full_attention, sliding_attention")))
            }
        };
        types.iter().map(option).collect()
    }
}
