//! RoBERTa (<https://arxiv.org/abs/1907.11692>) and XLM-RoBERTa (<https://arxiv.org/abs/1911.02116>). Weight names and
//! semantics follow `transformers`' `RobertaForSequenceClassification`: BERT's blocks, positions that begin behind the
//! padding token's number, and a head of two layers in the pooler's place.

use super::{
    BuildOptions, CausalLm,
    bert::{self, Config},
    config,
    encoder::{self, Dense, Layout},
};
use crate::engine::TrainError;
use std::path::Path;

const LAYOUT: Layout = Layout {
    embeddings: "roberta.embeddings",
    blocks: "roberta.encoder.layer",
    dense: Dense::Head("classifier.dense"),
    classifier: "classifier.out_proj",
    ..bert::LAYOUT
};

/// `pad_token_id` where `config.json` leaves it out.
const DEFAULT_PADDING: usize = 1;

pub(super) fn build(
    value: &serde_json::Value,
    dir: &Path,
    options: BuildOptions,
) -> Result<Box<dyn CausalLm>, TrainError> {
    let config: Config = config::parse(value)?;
    let first = config.pad_token_id.unwrap_or(DEFAULT_PADDING).saturating_add(1);
    encoder::build(&config.sizes(first)?, &LAYOUT, dir, options)
}
