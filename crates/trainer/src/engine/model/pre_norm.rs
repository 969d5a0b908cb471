//! The blocks of Llama and those that follow it: `x += attention(norm(x))`, `x += mlp(norm(x))`.

use super::{
    Attend, AttentionOptions, BuildOptions, CausalLm, Linear, Loader, Pass,
    config::Common,
    decoder::{self, Block, Frame},
    layers::{Activation, Attention, Biases, Mlp, Norm, NormOptions, Sizes},
    rope::Rotary,
};
use crate::engine::TrainError;
use candle_core::{Result, Tensor};
use serde_json::Value;
use std::path::Path;

/// In what the architectures with these blocks differ.
#[derive(Debug, Clone)]
pub(super) struct Variant {
    /// How each block attends.
    pub attention: Vec<AttentionOptions>,
    pub biases: Biases,
    /// Whether queries and keys are normed head by head.
    pub head_norms: bool,
}

/// Loads a model from `dir`, whose `config.json` is `value`.
///
/// # Errors
/// `ModelCorrupt` for an unsupported setting or unusable weights.
pub(super) fn build(
    value: &Value,
    common: &Common,
    variant: Variant,
    dir: &Path,
    options: BuildOptions,
) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    let Variant { attention, biases, head_norms } = variant;
    let frame = Frame::plain(common, attention);
    let layers = Layers {
        sizes: Sizes::of(common),
        biases,
        norm: frame.norm,
        head_norms,
        activation: common.activation()?,
        rope: Rotary::whole(value, common, options)?,
    };
    decoder::build(frame, dir, options, &|loader, path, attention| layers.load(loader, path, attention))
}

/// Settings of every block.
struct Layers {
    sizes: Sizes,
    biases: Biases,
    norm: NormOptions,
    head_norms: bool,
    activation: Activation,
    rope: Rotary,
}

impl Layers {
    fn load(
        &self,
        loader: &mut Loader,
        path: &str,
        options: AttentionOptions,
    ) -> std::result::Result<Box<dyn Block>, TrainError> {
        let Self { sizes, biases, norm, .. } = *self;
        let below = format!("{path}.self_attn");
        let mut attention = Attention::load(loader, &below, sizes, biases, self.rope.clone(), options)?;
        if self.head_norms {
            attention = attention.with_norms(loader, &below, norm)?;
        }
        let mlp = Mlp::load(loader, &format!("{path}.mlp"), sizes, biases, self.activation)?;
        let mut norm = |name: &str| Norm::load(loader, &format!("{path}.{name}"), sizes.hidden, norm);
        let (norm1, norm2) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
        Ok(Box::new(PreNorm { norm1, attention, norm2, mlp }))
    }
}

#[derive(Debug)]
struct PreNorm {
    norm1: Norm,
    attention: Attention,
    norm2: Norm,
    mlp: Mlp,
}

impl Block for PreNorm {
    fn forward(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor> {
        let x = kernels::add(x, &self.attention.forward(layer, &self.norm1.forward(x, pass)?, pass, attention)?)?;
        kernels::add(&x, &self.mlp.forward(&self.norm2.forward(&x, pass)?, pass)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        self.attention.linears().into_iter().chain(self.mlp.linears()).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.attention.linears_mut().into_iter().chain(self.mlp.linears_mut()).collect()
    }
}
