//! Gemma 2: <https://arxiv.org/abs/2408.00118>. Norms on both sides of attention and MLP that multiply by
//! `1 + w`, scaled embeddings, bounded scores and logits, windows in every second block. Weight names and
//! semantics follow `transformers`' `Gemma2ForCausalLM`.

use super::{
    Attend, AttentionOptions, BuildOptions, CausalLm, Linear, Loader, Pass,
    config::{self, Common},
    decoder::{self, Block, Frame},
    layers::{Activation, Attention, Biases, Mlp, Norm, NormOptions, Sizes},
    rope::Rotary,
};
use crate::engine::TrainError;
use candle_core::{Result, Tensor};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// `config.json` beyond [`Common`], for Gemma 2 and 3. What is absent has the default of Gemma 2.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    hidden_activation: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    /// Scores are divided by its root.
    #[serde(default = "query_scalar")]
    query_pre_attn_scalar: f64,
    #[serde(default = "window")]
    pub(super) sliding_window: Option<usize>,
    #[serde(default)]
    use_bidirectional_attention: Option<bool>,
}

const fn query_scalar() -> f64 {
    256.0
}

const fn window() -> Option<usize> {
    Some(4096)
}

/// The bounds of Gemma 2; Gemma 3 has none unless its file says so.
#[derive(Debug, Clone, Deserialize)]
struct Caps {
    #[serde(default = "logit_cap")]
    final_logit_softcapping: Option<f64>,
    #[serde(default = "score_cap")]
    attn_logit_softcapping: Option<f64>,
}

const fn logit_cap() -> Option<f64> {
    Some(30.0)
}

const fn score_cap() -> Option<f64> {
    Some(50.0)
}

/// A bound as the kernels take it.
pub(super) fn cap(key: &str, value: Option<f64>) -> std::result::Result<Option<f32>, TrainError> {
    match value {
        Some(cap) if !(cap.is_finite() && cap > 0.0) => Err(config::bad(format!("{key} must be a positive number"))),
        #[expect(clippy::as_conversions, reason = "applied in f32")]
        cap => Ok(cap.map(|cap| cap as f32)),
    }
}

pub(super) fn build(
    value: &Value,
    dir: &Path,
    options: BuildOptions,
) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    let (common, config) = Config::parse(value)?;
    let caps: Caps = config::parse(value)?;
    let score_cap = cap("attn_logit_softcapping", caps.attn_logit_softcapping)?;
    let attention = common.attention(config.sliding_window, |layer| layer % 2 == 0)?;
    let attention = attention.into_iter().map(|o| AttentionOptions { soft_cap: score_cap, ..o }).collect();
    let rope = Rotary::whole(value, &common, options)?;
    let mut model = Gemma::new(&common, &config, attention)?;
    model.frame.soft_cap = cap("final_logit_softcapping", caps.final_logit_softcapping)?;
    model.build(dir, options, false, &|_| rope.clone())
}

impl Config {
    pub(super) fn parse(value: &Value) -> std::result::Result<(Common, Self), TrainError> {
        let (common, config): (_, Self) = (Common::with_head_dim(value, Some(256))?, config::parse(value)?);
        if config.use_bidirectional_attention == Some(true) {
            return Err(config::bad("use_bidirectional_attention: only causal models can be trained"));
        }
        if !(config.query_pre_attn_scalar.is_finite() && config.query_pre_attn_scalar > 0.0) {
            return Err(config::bad("query_pre_attn_scalar must be a positive number"));
        }
        Ok((common, config))
    }
}

/// What Gemma 2 and 3 share.
pub(super) struct Gemma {
    pub(super) frame: Frame,
    sizes: Sizes,
    biases: Biases,
    activation: Activation,
}

impl Gemma {
    /// Settings for blocks that attend as `attention` says, but for the scale.
    pub(super) fn new(
        common: &Common,
        config: &Config,
        attention: Vec<AttentionOptions>,
    ) -> std::result::Result<Self, TrainError> {
        let activation = match config.hidden_activation.as_deref() {
            None | Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            Some(other) => {
                return Err(config::bad(format!(
                    "hidden_activation `{other}` is not supported; supported: gelu_pytorch_tanh"
                )));
            }
        };
        #[expect(clippy::as_conversions, reason = "scores are f32")]
        let scale = Some((1.0 / config.query_pre_attn_scalar.sqrt()) as f32);
        let attention = attention.into_iter().map(|o| AttentionOptions { scale, ..o }).collect();
        let mut frame = Frame::plain(common, attention);
        frame.norm.offset = 1.0;
        frame.tied = common.tie_word_embeddings.unwrap_or(true);
        #[expect(clippy::as_conversions, reason = "a width")]
        let width = common.hidden_size as f64;
        frame.embed_scale = Some(width.sqrt());
        let biases = Biases { qkv: config.attention_bias, output: config.attention_bias, mlp: false };
        Ok(Self { frame, sizes: Sizes::of(common), biases, activation })
    }

    /// Loads the model; `rope` picks a block's rotary embedding, `head_norms` norms its queries and keys.
    ///
    /// # Errors
    /// `ModelCorrupt` for unusable weights.
    pub(super) fn build(
        self,
        dir: &Path,
        options: BuildOptions,
        head_norms: bool,
        rope: &dyn Fn(AttentionOptions) -> Rotary,
    ) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
        let Self { frame, sizes, biases, activation } = self;
        let norm = frame.norm;
        decoder::build(frame, dir, options, &|loader, path, options| {
            let below = format!("{path}.self_attn");
            let mut attention = Attention::load(loader, &below, sizes, biases, rope(options), options)?;
            if head_norms {
                attention = attention.with_norms(loader, &below, norm)?;
            }
            let mlp = Mlp::load(loader, &format!("{path}.mlp"), sizes, biases, activation)?;
            Ok(Box::new(Sandwich::load(loader, path, sizes.hidden, norm, attention, mlp)?))
        })
    }
}

/// `x += norm(attention(norm(x)))`, `x += norm(mlp(norm(x)))`.
#[derive(Debug)]
struct Sandwich {
    before_attention: Norm,
    attention: Attention,
    after_attention: Norm,
    before_mlp: Norm,
    mlp: Mlp,
    after_mlp: Norm,
}

impl Sandwich {
    fn load(
        loader: &mut Loader,
        path: &str,
        hidden: usize,
        options: NormOptions,
        attention: Attention,
        mlp: Mlp,
    ) -> std::result::Result<Self, TrainError> {
        let mut norm = |name: &str| Norm::load(loader, &format!("{path}.{name}"), hidden, options);
        Ok(Self {
            before_attention: norm("input_layernorm")?,
            attention,
            after_attention: norm("post_attention_layernorm")?,
            before_mlp: norm("pre_feedforward_layernorm")?,
            mlp,
            after_mlp: norm("post_feedforward_layernorm")?,
        })
    }
}

impl Block for Sandwich {
    fn forward(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor> {
        let y = self.attention.forward(layer, &self.before_attention.forward(x, pass)?, pass, attention)?;
        let x = kernels::add(x, &self.after_attention.forward(&y, pass)?)?;
        let y = self.mlp.forward(&self.before_mlp.forward(&x, pass)?, pass)?;
        kernels::add(&x, &self.after_mlp.forward(&y, pass)?)
    }

    fn linears(&self) -> Vec<&Linear> {
        self.attention.linears().into_iter().chain(self.mlp.linears()).collect()
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.attention.linears_mut().into_iter().chain(self.mlp.linears_mut()).collect()
    }
}
