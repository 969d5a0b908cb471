//! DistilBERT: <https://arxiv.org/abs/1910.01108>. Weight names and semantics follow `transformers`'
//! `DistilBertForSequenceClassification`: BERT without token types, and with a head of two layers in the pooler's
//! place.

use super::{
    BuildOptions, CausalLm, config,
    encoder::{self, Dense, Layout, Sizes},
};
use crate::engine::TrainError;
use serde::Deserialize;
use std::path::Path;

/// `config.json`, as far as it matters here. Sinusoidal positions are a stored table like learned ones.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "super::bert::default_std")]
    initializer_range: f64,
    activation: Option<String>,
}

/// Not in `config.json`.
const EPS: f64 = 1e-12;

const LAYOUT: Layout = Layout {
    embeddings: "distilbert.embeddings",
    blocks: "distilbert.transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attended: "attention.out_lin",
    attended_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    output_norm: "output_layer_norm",
    dense: Dense::Head("pre_classifier"),
    relu: true,
    classifier: "classifier",
};

pub(super) fn build(
    value: &serde_json::Value,
    dir: &Path,
    options: BuildOptions,
) -> Result<Box<dyn CausalLm>, TrainError> {
    let c: Config = config::parse(value)?;
    encoder::check_activation("activation", c.activation.as_deref())?;
    let sizes = Sizes {
        hidden: c.dim,
        intermediate: c.hidden_dim,
        layers: c.n_layers,
        heads: c.n_heads,
        vocab: c.vocab_size,
        positions: c.max_position_embeddings,
        first_position: 0,
        types: 0,
        eps: EPS,
        std: c.initializer_range,
    };
    encoder::build(&sizes.checked()?, &LAYOUT, dir, options)
}
