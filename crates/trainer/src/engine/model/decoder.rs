//! The frame that all decoders share: embedding, blocks, final norm, head. An architecture gives the
//! settings of the frame and makes the blocks.

use super::{
    Attend, AttentionOptions, BuildOptions, CausalLm, Dims, Linear, Loader, Lora, Pass, Source, Weight,
    config::Common,
    layers::{Norm, NormOptions},
};
use crate::engine::{Place, TrainError, params::Params, weights::WeightFiles};
use candle_core::{DType, Result, Tensor};
use std::{fmt::Debug, path::Path};

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm";
const HEAD: &str = "lm_head.weight";

/// One block of a decoder.
pub(super) trait Block: Debug + Send + Sync {
    /// `(N, C)` → `(N, C)`
    fn forward(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor>;

    /// The projections an adapter can be put on, in module order.
    fn linears(&self) -> Vec<&Linear>;

    fn linears_mut(&mut self) -> Vec<&mut Linear>;
}

/// Everything around the blocks.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub dims: Dims,
    /// How each block attends.
    pub attention: Vec<AttentionOptions>,
    pub norm: NormOptions,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Factor of the embeddings.
    pub embed_scale: Option<f64>,
    /// Bound of the logits.
    pub soft_cap: Option<f32>,
    /// Deviation of random weights.
    pub std: f64,
}

impl Frame {
    /// The frame of a model that neither scales embeddings nor bounds logits.
    pub(super) fn plain(common: &Common, attention: Vec<AttentionOptions>) -> Self {
        Self {
            dims: common.dims(),
            attention,
            norm: NormOptions { eps: common.rms_norm_eps.unwrap_or(1e-6), offset: 0.0 },
            tied: common.tie_word_embeddings.unwrap_or(false),
            embed_scale: None,
            soft_cap: None,
            std: common.initializer_range.unwrap_or(0.02),
        }
    }
}

/// Loads the block below a path, `model.layers.{layer}`.
pub(super) type MakeBlock<'a> =
    &'a dyn Fn(&mut Loader, &str, AttentionOptions) -> std::result::Result<Box<dyn Block>, TrainError>;

/// Loads a model from `dir`. The weights are checked against what the architecture wants before the first is
/// read.
///
/// # Errors
/// `ModelCorrupt` for weights that are missing, unexpected, of the wrong shape or unreadable.
pub(super) fn build(
    frame: Frame,
    dir: &Path,
    options: BuildOptions,
    make: MakeBlock<'_>,
) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    // A model of empty tensors says what there must be.
    let mut shapes = Loader::shapes();
    Decoder::load(&frame, options, &mut shapes, make)?;
    let source = match options.random {
        Some(seed) => Source::Random { seed, std: frame.std, norm: 1.0 - frame.norm.offset },
        None => {
            let files = WeightFiles::open_dir(dir)?;
            // Old checkpoints carry rotary buffers, and tied ones sometimes a copy of the embedding.
            files.check(shapes.asked(), |n| n.ends_with("rotary_emb.inv_freq") || (n == HEAD && frame.tied))?;
            Source::Files(files.keeping(options.place.kept(options.base_dtype)))
        }
    };
    let mut loader = Loader::new(source, options)?;
    let mut decoder = Decoder::load(&frame, options, &mut loader, make)?;
    let elements = |shape: &[usize]| u64::try_from(shape.iter().product::<usize>()).unwrap_or(u64::MAX);
    decoder.weights = shapes.asked().iter().map(|(_, shape)| elements(shape)).sum();
    decoder.params = loader.into_params();
    Ok(Box::new(decoder))
}

#[derive(Debug)]
struct Decoder {
    frame: Frame,
    place: Place,
    /// Element type of activations.
    dtype: DType,
    embed: Weight,
    blocks: Vec<Box<dyn Block>>,
    norm: Norm,
    /// `None` when tied to the embedding.
    head: Option<Weight>,
    params: Params,
    weights: u64,
}

impl Decoder {
    fn load(
        frame: &Frame,
        options: BuildOptions,
        loader: &mut Loader,
        make: MakeBlock<'_>,
    ) -> std::result::Result<Self, TrainError> {
        let (place, dtype) = (options.place, options.place.activations(options.base_dtype));
        let Dims { hidden, vocab, .. } = frame.dims;
        let embed = loader.weight(EMBED, &[vocab, hidden])?;
        let mut blocks = Vec::new();
        for (layer, attention) in frame.attention.iter().enumerate() {
            blocks.push(make(loader, &format!("model.layers.{layer}"), *attention)?);
        }
        let norm = Norm::load(loader, NORM, hidden, frame.norm)?;
        let head = if frame.tied { None } else { Some(loader.weight(HEAD, &[vocab, hidden])?) };
        let params = Params::default();
        Ok(Self { frame: frame.clone(), place, dtype, embed, blocks, norm, head, params, weights: 0 })
    }

    fn head(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embed)
    }
}

impl CausalLm for Decoder {
    fn dims(&self) -> Dims {
        self.frame.dims
    }

    fn place(&self) -> Place {
        self.place
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn trains_embedding(&self) -> bool {
        self.embed.is_trained()
    }

    fn linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(|b| b.linears()).collect()
    }

    fn attach(&mut self, path: &str, lora: Lora) {
        let Some(linear) = self.blocks.iter_mut().flat_map(|b| b.linears_mut()).find(|l| l.path() == path) else {
            return;
        };
        lora.register(path, &mut self.params);
        linear.attach(lora);
    }

    fn embed(&self, tokens: &[u32], pass: &Pass) -> Result<Tensor> {
        let x = self.embed.rows(tokens, pass.grad, self.dtype)?;
        match self.frame.embed_scale {
            Some(scale) => x * scale,
            None => Ok(x),
        }
    }

    fn block(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor> {
        let Some(block) = self.blocks.get(layer) else { candle_core::bail!("there is no block {layer}") };
        block.forward(layer, x, pass, attention)
    }

    fn loss(&self, x: &Tensor, targets: &[u32], denominator: f64, pass: &Pass) -> Result<Tensor> {
        let x = self.norm.forward(x, pass)?;
        let head = self.head();
        let (w, cap) = (head.tensor(pass.grad), self.frame.soft_cap);
        if head.wants_gradient(pass.grad) {
            kernels::linear_cross_entropy_trainable(&x, &w, targets, denominator, cap)
        } else {
            kernels::linear_cross_entropy(&x, &w, targets, denominator, cap)
        }
    }

    fn token_losses(&self, x: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let pass = Pass::inference(kernels::Segments::from_lengths(&[x.dim(0)?])?);
        let x = self.norm.forward(x, &pass)?;
        kernels::token_losses(&x, &self.head().tensor(false), targets, self.frame.soft_cap)
    }

    fn log_probs(&self, x: &Tensor, targets: &[u32], pass: &Pass) -> Result<Tensor> {
        let x = self.norm.forward(x, pass)?;
        kernels::linear_log_probs(&x, &self.head().tensor(pass.grad), targets, self.frame.soft_cap)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let pass = Pass::inference(kernels::Segments::from_lengths(&[x.dim(0)?])?);
        let logits =
            kernels::linear(&self.norm.forward(x, &pass)?, &self.head().tensor(false))?.to_dtype(DType::F32)?;
        match self.frame.soft_cap.map(f64::from) {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    fn weights(&self) -> u64 {
        self.weights
    }
}
