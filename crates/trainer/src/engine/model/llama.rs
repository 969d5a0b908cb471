//! Llama 1 to 3.x and everything of its shape (SmolLM, TinyLlama, hone-tiny): <https://arxiv.org/abs/2302.13971>,
//! <https://arxiv.org/abs/2407.21783>. Weight names and semantics follow `transformers`' `LlamaForCausalLM`.

use super::{Attend, BuildOptions, CausalLm, Dims, Heads, Linear, Lora, Pass, Source, Weight, config};
use crate::engine::{TrainError, params::Params};
use candle_core::{Device, Result, Tensor};
use kernels::RopeTable;
use serde::Deserialize;
use std::path::Path;

/// `config.json`, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_act")]
    hidden_act: String,
    #[serde(default = "default_std")]
    initializer_range: f64,
}

const fn default_eps() -> f64 {
    1e-6
}

const fn default_std() -> f64 {
    0.02
}

fn default_act() -> String {
    "silu".into()
}

impl Config {
    fn parse(value: &serde_json::Value) -> std::result::Result<Self, TrainError> {
        let c: Self =
            Self::deserialize(value).map_err(|e| TrainError::model(format!("`config.json`: {e}")).caused_by(e))?;
        let bad = |what: String| Err(TrainError::model(format!("`config.json`: {what}")));
        if c.hidden_act != "silu" {
            return bad(format!("hidden_act `{}` is not supported; supported: silu", c.hidden_act));
        }
        if c.attention_bias || c.mlp_bias {
            return bad("biases in attention or MLP are not supported".into());
        }
        let h = c.heads();
        let positive =
            [c.hidden_size, c.intermediate_size, c.num_hidden_layers, h.heads, h.kv_heads, h.head_dim, c.vocab_size];
        if positive.contains(&0) || !h.head_dim.is_multiple_of(2) || !h.heads.is_multiple_of(h.kv_heads.max(1)) {
            return bad(format!(
                "sizes do not fit together: {} heads, {} key/value heads, head size {}",
                h.heads, h.kv_heads, h.head_dim
            ));
        }
        Ok(c)
    }

    fn heads(&self) -> Heads {
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(heads).unwrap_or(0));
        Heads { heads, kv_heads: self.num_key_value_heads.unwrap_or(heads), head_dim }
    }

    /// `(path, (out, in))` of the seven projections of a block, in module order.
    fn projections(&self) -> [(&'static str, (usize, usize)); 7] {
        let h = self.heads();
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (h.heads.saturating_mul(h.head_dim), h.kv_heads.saturating_mul(h.head_dim));
        [
            ("self_attn.q_proj", (q, c)),
            ("self_attn.k_proj", (kv, c)),
            ("self_attn.v_proj", (kv, c)),
            ("self_attn.o_proj", (c, q)),
            ("mlp.gate_proj", (f, c)),
            ("mlp.up_proj", (f, c)),
            ("mlp.down_proj", (c, f)),
        ]
    }

    /// Name and shape of every stored tensor.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (c, v) = (self.hidden_size, self.vocab_size);
        let mut all = vec![(EMBED.into(), vec![v, c]), (NORM.into(), vec![c])];
        if !self.tie_word_embeddings {
            all.push((HEAD.into(), vec![v, c]));
        }
        for layer in 0..self.num_hidden_layers {
            let block = format!("model.layers.{layer}");
            all.push((format!("{block}.input_layernorm.weight"), vec![c]));
            all.push((format!("{block}.post_attention_layernorm.weight"), vec![c]));
            all.extend(self.projections().map(|(p, (o, i))| (format!("{block}.{p}.weight"), vec![o, i])));
        }
        all
    }
}

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

#[derive(Debug)]
struct Norm {
    weight: Weight,
    eps: f64,
}

impl Norm {
    fn load(
        source: &Source,
        name: &str,
        c: &Config,
        params: Option<&mut Params>,
    ) -> std::result::Result<Self, TrainError> {
        Ok(Self { weight: Weight::load(source, name, &[c.hidden_size], params)?, eps: c.rms_norm_eps })
    }

    /// `(N, C)` → `(N, C)`
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let w = self.weight.tensor(pass.grad);
        if self.weight.wants_gradient(pass.grad) {
            kernels::rms_norm_trainable(x, &w, self.eps)
        } else {
            kernels::rms_norm(x, &w, self.eps)
        }
    }
}

#[derive(Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: Heads,
}

impl Attention {
    /// `(N, C)` → `(N, C)`
    fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        rope: &RopeTable,
        pass: &Pass,
        attention: &mut dyn Attend,
    ) -> Result<Tensor> {
        let d = self.heads.head_dim;
        let q = kernels::rope(&self.q.forward(x, pass)?, rope, &pass.positions, d)?; // (N, H·D)
        let k = kernels::rope(&self.k.forward(x, pass)?, rope, &pass.positions, d)?; // (N, KV·D)
        let v = self.v.forward(x, pass)?; // (N, KV·D)
        self.o.forward(&attention.attend(layer, &q, &k, &v, self.heads)?, pass)
    }
}

#[derive(Debug)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    /// `(N, C)` → `(N, F)` → `(N, C)`
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let hidden = kernels::swiglu(&self.gate.forward(x, pass)?, &self.up.forward(x, pass)?)?;
        self.down.forward(&hidden, pass)
    }
}

#[derive(Debug)]
struct Block {
    norm1: Norm,
    attention: Attention,
    norm2: Norm,
    mlp: Mlp,
}

impl Block {
    fn load(
        source: &Source,
        c: &Config,
        layer: usize,
        mut params: Option<&mut Params>,
    ) -> std::result::Result<Self, TrainError> {
        let path = format!("model.layers.{layer}");
        let norm1 = Norm::load(source, &format!("{path}.input_layernorm.weight"), c, params.as_deref_mut())?;
        let norm2 = Norm::load(source, &format!("{path}.post_attention_layernorm.weight"), c, params.as_deref_mut())?;
        let mut linear = |(p, shape): (&str, (usize, usize))| {
            Linear::load(source, &format!("{path}.{p}"), shape, params.as_deref_mut())
        };
        let [q, k, v, o, gate, up, down] = c.projections();
        let attention = Attention { q: linear(q)?, k: linear(k)?, v: linear(v)?, o: linear(o)?, heads: c.heads() };
        let mlp = Mlp { gate: linear(gate)?, up: linear(up)?, down: linear(down)? };
        Ok(Self { norm1, attention, norm2, mlp })
    }

    /// `(N, C)` → `(N, C)`
    fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        rope: &RopeTable,
        pass: &Pass,
        attention: &mut dyn Attend,
    ) -> Result<Tensor> {
        let x = kernels::add(x, &self.attention.forward(layer, &self.norm1.forward(x, pass)?, rope, pass, attention)?)?;
        kernels::add(&x, &self.mlp.forward(&self.norm2.forward(&x, pass)?, pass)?)
    }

    fn linears(&self) -> [&Linear; 7] {
        let (a, m) = (&self.attention, &self.mlp);
        [&a.q, &a.k, &a.v, &a.o, &m.gate, &m.up, &m.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        [&mut a.q, &mut a.k, &mut a.v, &mut a.o, &mut m.gate, &mut m.up, &mut m.down]
    }
}

#[derive(Debug)]
struct Llama {
    dims: Dims,
    embed: Weight,
    blocks: Vec<Block>,
    norm: Norm,
    /// `None` when tied to the embedding.
    head: Option<Weight>,
    rope: RopeTable,
    params: Params,
    weights: u64,
}

pub(super) fn build(
    value: &serde_json::Value,
    dir: &Path,
    options: BuildOptions,
) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    let c = Config::parse(value)?;
    let (theta, scaling) = config::rope(value)?;
    let source = super::source(dir, options, c.initializer_range)?;
    let expected = c.tensors();
    if let Source::Files(files) = &source {
        // Old checkpoints carry rotary buffers, and tied ones sometimes a copy of the embedding.
        files.check(&expected, |n| n.ends_with("rotary_emb.inv_freq") || (n == HEAD && c.tie_word_embeddings))?;
    }
    let mut params = Params::default();
    let mut trained = options.train_weights.then_some(&mut params);
    let (v, h) = (c.vocab_size, c.hidden_size);
    let embed = Weight::load(&source, EMBED, &[v, h], trained.as_deref_mut())?;
    let blocks: std::result::Result<Vec<Block>, TrainError> =
        (0..c.num_hidden_layers).map(|layer| Block::load(&source, &c, layer, trained.as_deref_mut())).collect();
    let norm = Norm::load(&source, NORM, &c, trained.as_deref_mut())?;
    let head = if c.tie_word_embeddings { None } else { Some(Weight::load(&source, HEAD, &[v, h], trained)?) };
    let frequencies = config::inverse_frequencies(c.heads().head_dim, theta, scaling);
    let weights = expected.iter().map(|(_, s)| u64::try_from(s.iter().product::<usize>()).unwrap_or(u64::MAX)).sum();
    let dims =
        Dims { layers: c.num_hidden_layers, hidden: h, vocab: v, heads: c.heads(), context: c.max_position_embeddings };
    let rope = RopeTable::from_inverse_frequencies(
        &frequencies,
        options.max_positions.clamp(1, c.max_position_embeddings.max(1)),
    )?;
    Ok(Box::new(Llama { dims, embed, blocks: blocks?, norm, head, rope, params, weights }))
}

impl Llama {
    fn head(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embed)
    }
}

impl CausalLm for Llama {
    fn dims(&self) -> Dims {
        self.dims
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn trains_embedding(&self) -> bool {
        self.embed.is_trained()
    }

    fn linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(Block::linears).collect()
    }

    fn attach(&mut self, path: &str, lora: Lora) {
        let Some(linear) = self.blocks.iter_mut().flat_map(Block::linears_mut).find(|l| l.path() == path) else {
            return;
        };
        lora.register(path, &mut self.params);
        linear.attach(lora);
    }

    fn embed(&self, tokens: &[u32], pass: &Pass) -> Result<Tensor> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        self.embed.tensor(pass.grad).index_select(&ids, 0) // (V, C) -> (N, C)
    }

    fn block(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor> {
        let Some(block) = self.blocks.get(layer) else { candle_core::bail!("there is no block {layer}") };
        block.forward(layer, x, &self.rope, pass, attention)
    }

    fn loss(&self, x: &Tensor, targets: &[u32], denominator: f64, pass: &Pass) -> Result<Tensor> {
        let x = self.norm.forward(x, pass)?;
        let head = self.head();
        let w = head.tensor(pass.grad);
        if head.wants_gradient(pass.grad) {
            kernels::linear_cross_entropy_trainable(&x, &w, targets, denominator, None)
        } else {
            kernels::linear_cross_entropy(&x, &w, targets, denominator, None)
        }
    }

    fn token_losses(&self, x: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let pass = Pass::inference(kernels::Segments::from_lengths(&[x.dim(0)?])?);
        kernels::token_losses(&self.norm.forward(x, &pass)?, &self.head().tensor(false), targets, None)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let pass = Pass::inference(kernels::Segments::from_lengths(&[x.dim(0)?])?);
        kernels::linear(&self.norm.forward(x, &pass)?, &self.head().tensor(false))
    }

    fn weights(&self) -> u64 {
        self.weights
    }
}
