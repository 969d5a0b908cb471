//! Phi-3 and Phi-4-mini: <https://arxiv.org/abs/2404.14219>. Llama with one projection for queries, keys and
//! values and one for gate and up, heads that may turn in part, and LongRoPE. Weight names and semantics follow
//! `transformers`' `Phi3ForCausalLM`; adapters sit on the fused projections.

use super::{
    Attend, AttentionOptions, BuildOptions, CausalLm, Linear, Loader, Pass,
    config::{self, Common},
    decoder::{self, Block, Frame},
    layers::{Norm, NormOptions, Sizes},
    rope::Rotary,
};
use crate::engine::TrainError;
use candle_core::{Result, Tensor};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// `config.json` beyond [`Common`].
#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    sliding_window: Option<usize>,
}

pub(super) fn build(
    value: &Value,
    dir: &Path,
    options: BuildOptions,
) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    let (common, config): (_, Config) = (Common::parse(value)?, config::parse(value)?);
    common.activation()?;
    let sizes = Sizes::of(&common);
    let rotated = rotated(value, sizes.heads.head_dim)?;
    let rope = Rotary::load(value, sizes.heads.head_dim, rotated, common.positions(options))?;
    let mut frame = Frame::plain(&common, common.attention(config.sliding_window, |_| true)?);
    frame.norm.eps = common.rms_norm_eps.unwrap_or(1e-5);
    let norm = frame.norm;
    decoder::build(frame, dir, options, &|loader, path, options| {
        Ok(Box::new(Fused::load(loader, path, sizes, norm, rope.clone(), options)?))
    })
}

/// Channels of each head that turn.
fn rotated(value: &Value, head_dim: usize) -> std::result::Result<usize, TrainError> {
    let nested = value.get("rope_parameters").and_then(|p| p.get("partial_rotary_factor"));
    let factor = nested.or_else(|| value.get("partial_rotary_factor")).and_then(Value::as_f64).unwrap_or(1.0);
    #[expect(clippy::as_conversions, reason = "a head size is small; the product is rounded down")]
    let rotated = (head_dim as f64 * factor) as usize;
    if rotated == 0 || rotated > head_dim || !rotated.is_multiple_of(2) {
        return Err(config::bad(format!(
            "partial_rotary_factor {factor} turns {rotated} of {head_dim} channels; expected an even number of them"
        )));
    }
    Ok(rotated)
}

#[derive(Debug)]
struct Fused {
    norm1: Norm,
    /// Queries, keys and values, in this order.
    qkv: Linear,
    o: Linear,
    norm2: Norm,
    /// Gate and up, in this order.
    gate_up: Linear,
    down: Linear,
    sizes: Sizes,
    rope: Rotary,
    options: AttentionOptions,
}

impl Fused {
    fn load(
        loader: &mut Loader,
        path: &str,
        sizes: Sizes,
        norm: NormOptions,
        rope: Rotary,
        options: AttentionOptions,
    ) -> std::result::Result<Self, TrainError> {
        let (c, f, (q, kv)) = (sizes.hidden, sizes.intermediate, sizes.widths());
        let qkv = kv.saturating_mul(2).saturating_add(q);
        Ok(Self {
            norm1: Norm::load(loader, &format!("{path}.input_layernorm"), c, norm)?,
            o: loader.linear(&format!("{path}.self_attn.o_proj"), (c, q))?,
            qkv: loader.linear(&format!("{path}.self_attn.qkv_proj"), (qkv, c))?,
            norm2: Norm::load(loader, &format!("{path}.post_attention_layernorm"), c, norm)?,
            gate_up: loader.linear(&format!("{path}.mlp.gate_up_proj"), (f.saturating_mul(2), c))?,
            down: loader.linear(&format!("{path}.mlp.down_proj"), (c, f))?,
            sizes,
            rope,
            options,
        })
    }

    /// `(N, C)` → `(N, C)`
    fn attend(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor> {
        let (q, kv) = self.sizes.widths();
        let qkv = self.qkv.forward(x, pass)?; // (N, H·D + 2·KV·D)
        let part = |from: usize, width: usize| qkv.narrow(1, from, width);
        let (query, key, value) = (part(0, q)?, part(q, kv)?, part(q.saturating_add(kv), kv)?);
        let query = self.rope.forward(&query, &pass.positions)?; // (N, H·D)
        let key = self.rope.forward(&key, &pass.positions)?; // (N, KV·D)
        self.o.forward(&attention.attend(layer, &query, &key, &value, &self.options)?, pass)
    }

    /// `(N, C)` → `(N, 2·F)` → `(N, C)`
    fn mlp(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (both, f) = (self.gate_up.forward(x, pass)?, self.sizes.intermediate);
        self.down.forward(&kernels::swiglu(&both.narrow(1, 0, f)?, &both.narrow(1, f, f)?)?, pass)
    }
}

impl Block for Fused {
    fn forward(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor> {
        let x = kernels::add(x, &self.attend(layer, &self.norm1.forward(x, pass)?, pass, attention)?)?;
        kernels::add(&x, &self.mlp(&self.norm2.forward(&x, pass)?, pass)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        vec![&self.o, &self.qkv, &self.gate_up, &self.down]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        vec![&mut self.o, &mut self.qkv, &mut self.gate_up, &mut self.down]
    }
}
