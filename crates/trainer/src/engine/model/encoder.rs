//! Encoders that classify sequences: the frame that BERT and its kin share. A target stands at the first token of a
//! sequence, whose activation the head reads. Their dropout is not applied.

use super::{Attend, BuildOptions, CausalLm, Dims, Heads, Linear, Loader, Lora, Pass, Source, Weight, config};
use crate::engine::{Place, TrainError, params::Params, weights::WeightFiles};
use candle_core::{DType, Result, Tensor, bail};
use kernels::{AttentionShape, IGNORE};
use std::path::Path;

/// What `config.json` tells of an encoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub vocab: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Position of a sequence's first token.
    pub first_position: usize,
    /// Rows of the token type table; 0: there is none.
    pub types: usize,
    pub eps: f64,
    /// Deviation of the weights of a fresh head.
    pub std: f64,
}

impl Sizes {
    /// # Errors
    /// `ModelCorrupt` for sizes that no model can have.
    pub fn checked(self) -> std::result::Result<Self, TrainError> {
        let sizes = [self.hidden, self.intermediate, self.layers, self.heads, self.vocab];
        let fit = self.positions > self.first_position && self.hidden.is_multiple_of(self.heads.max(1));
        if sizes.contains(&0) || !fit {
            return Err(config::bad(format!(
                "sizes do not fit together: {} channels, {} heads, {} positions of which the first used is {}",
                self.hidden, self.heads, self.positions, self.first_position
            )));
        }
        Ok(self)
    }

    const fn heads(&self) -> Heads {
        let head_dim = match self.hidden.checked_div(self.heads) {
            Some(n) => n,
            None => 0,
        };
        Heads { heads: self.heads, kv_heads: self.heads, head_dim }
    }
}

/// # Errors
/// `ModelCorrupt` for an activation that is not the exact GELU.
pub(super) fn check_activation(key: &str, value: Option<&str>) -> std::result::Result<(), TrainError> {
    match value.unwrap_or("gelu") {
        "gelu" => Ok(()),
        other => Err(config::bad(format!("{key} `{other}` is not supported; supported: gelu"))),
    }
}

/// Whether `name` is the classifier's bias, which has a value for each class.
#[must_use]
pub fn is_class_bias(name: &str) -> bool {
    matches!(name, "classifier.bias" | "classifier.out_proj.bias")
}

/// Where an architecture keeps what. Names of projections and norms are relative to their block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub embeddings: &'static str,
    pub blocks: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub attended: &'static str,
    pub attended_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub output_norm: &'static str,
    /// The layer before the classifier.
    pub dense: Dense,
    pub relu: bool,
    pub classifier: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Dense {
    /// Part of the base model: frozen, with an adapter, or trained with the rest.
    Pooler(&'static str),
    /// Part of the head: trained and saved whole.
    Head(&'static str),
}

/// Whether `name` belongs to the head of a masked language model, which a classifier does without.
#[must_use]
pub fn is_masked_lm_head(name: &str) -> bool {
    ["cls.", "lm_head.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector."]
        .iter()
        .any(|p| name.starts_with(p))
}

/// LayerNorm (arXiv 1607.06450).
#[derive(Debug)]
struct Norm {
    weight: Weight,
    bias: Weight,
    eps: f64,
}

impl Norm {
    fn load(loader: &mut Loader, path: &str, c: &Sizes) -> std::result::Result<Self, TrainError> {
        let mut weight = |part: &str| loader.weight(&format!("{path}.{part}"), &[c.hidden]);
        Ok(Self { weight: weight("weight")?, bias: weight("bias")?, eps: c.eps })
    }

    /// `(N, C)` → `(N, C)`
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        kernels::layer_norm(x, &self.weight.tensor(pass.grad), &self.bias.tensor(pass.grad), self.eps)
    }
}

#[derive(Debug)]
struct Embeddings {
    /// Element type of activations.
    dtype: DType,
    words: Weight,
    positions: Weight,
    first_position: u32,
    types: Option<Weight>,
    norm: Norm,
}

impl Embeddings {
    fn load(loader: &mut Loader, c: &Sizes, path: &str, dtype: DType) -> std::result::Result<Self, TrainError> {
        let mut table =
            |name: &str, rows: usize| loader.weight(&format!("{path}.{name}_embeddings.weight"), &[rows, c.hidden]);
        let words = table("word", c.vocab)?;
        let positions = table("position", c.positions)?;
        let types = if c.types > 0 { Some(table("token_type", c.types)?) } else { None };
        let first_position = u32::try_from(c.first_position).unwrap_or(u32::MAX);
        Ok(Self {
            dtype,
            words,
            positions,
            first_position,
            types,
            norm: Norm::load(loader, &format!("{path}.LayerNorm"), c)?,
        })
    }

    /// Tokens `(N)` → `(N, C)`; all tokens are of the first type.
    fn forward(&self, tokens: &[u32], pass: &Pass) -> Result<Tensor> {
        let rows = |of: &Weight, chosen: &[u32]| of.rows(chosen, pass.grad, self.dtype);
        let at: Vec<u32> = pass.positions.iter().map(|p| p.saturating_add(self.first_position)).collect();
        let mut x = (rows(&self.words, tokens)? + rows(&self.positions, &at)?)?;
        if let Some(types) = &self.types {
            x = x.broadcast_add(&rows(types, &[0])?)?; // (types, C) -> (1, C)
        }
        self.norm.forward(&x, pass)
    }
}

#[derive(Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    norm1: Norm,
    up: Linear,
    down: Linear,
    norm2: Norm,
    heads: Heads,
}

impl Block {
    fn load(loader: &mut Loader, c: &Sizes, names: &Layout, layer: usize) -> std::result::Result<Self, TrainError> {
        let path = format!("{}.{layer}", names.blocks);
        let (h, f) = (c.hidden, c.intermediate);
        let mut linear = |name: &str, shape| loader.biased(&format!("{path}.{name}"), shape);
        let (query, key) = (linear(names.query, (h, h))?, linear(names.key, (h, h))?);
        let (value, attended) = (linear(names.value, (h, h))?, linear(names.attended, (h, h))?);
        let (up, down) = (linear(names.up, (f, h))?, linear(names.down, (h, f))?);
        let norm1 = Norm::load(loader, &format!("{path}.{}", names.attended_norm), c)?;
        let norm2 = Norm::load(loader, &format!("{path}.{}", names.output_norm), c)?;
        Ok(Self { query, key, value, attended, norm1, up, down, norm2, heads: c.heads() })
    }

    /// `(N, C)` → `(N, C)`
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let (q, k) = (self.query.forward(x, pass)?, self.key.forward(x, pass)?);
        let causal = AttentionShape::causal(heads, kv_heads, head_dim, pass.segments.clone());
        let shape = AttentionShape { causal: false, ..causal };
        let attended = kernels::attention(&q, &k, &self.value.forward(x, pass)?, &shape)?;
        let x = self.norm1.forward(&kernels::add(x, &self.attended.forward(&attended, pass)?)?, pass)?;
        let hidden = kernels::gelu(&self.up.forward(&x, pass)?)?; // (N, C) -> (N, F)
        self.norm2.forward(&kernels::add(&x, &self.down.forward(&hidden, pass)?)?, pass)
    }

    fn linears(&self) -> [&Linear; 6] {
        [&self.query, &self.key, &self.value, &self.attended, &self.up, &self.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 6] {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.attended, &mut self.up, &mut self.down]
    }
}

/// A weight and its bias, trained also where only an adapter is, as PEFT does with heads.
#[derive(Debug)]
struct Whole(Weight, Weight);

impl Whole {
    fn load(
        loader: &mut Loader,
        path: &str,
        (out, inner): (usize, usize),
        std: f64,
    ) -> std::result::Result<Self, TrainError> {
        let weight = loader.head(&format!("{path}.weight"), &[out, inner], std)?;
        Ok(Self(weight, loader.head(&format!("{path}.bias"), &[out], std)?))
    }

    /// `(B, in)` → `(B, out)`
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (weight, bias) = (self.0.tensor(pass.grad), self.1.tensor(pass.grad));
        kernels::add_bias(&kernels::linear_trainable(x, &weight)?, &bias)
    }
}

#[derive(Debug)]
struct Encoder {
    dims: Dims,
    place: Place,
    embeddings: Embeddings,
    blocks: Vec<Block>,
    pooler: Option<Linear>,
    /// Where there is no pooler.
    dense: Option<Whole>,
    relu: bool,
    classifier: Whole,
    params: Params,
    weights: u64,
}

pub(super) fn build(
    c: &Sizes,
    names: &Layout,
    dir: &Path,
    options: BuildOptions,
) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    let Some(classes) = options.classes else {
        return Err(TrainError::model("the model is an encoder, which classifies texts: use `method: classification`"));
    };
    let mut shapes = Loader::shapes();
    load(&mut shapes, c, names, classes, options)?;
    let files = WeightFiles::open_dir(dir)?;
    // A model that was trained for something else has another head, and gets a fresh one.
    let fresh = !files.contains(&format!("{}.weight", names.classifier));
    let of_head = |name: &str| {
        let paths = [Some(names.classifier), if let Dense::Head(path) = names.dense { Some(path) } else { None }];
        paths.into_iter().flatten().any(|path| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    };
    let expected: Vec<(String, Vec<usize>)> =
        shapes.asked().iter().filter(|(name, _)| !(fresh && of_head(name))).cloned().collect();
    let needless = |name: &str| is_masked_lm_head(name) || name.ends_with("position_ids");
    let unused_pooler = |name: &str| matches!(names.dense, Dense::Head(_)) && name.contains(".pooler.");
    files.check(&expected, |name| needless(name) || unused_pooler(name))?;
    let source = Source::Files(files.keeping(options.place.kept(options.base_dtype)));
    let mut loader = Loader::new(source, options)?;
    let mut encoder = load(&mut loader, c, names, classes, options)?;
    let elements = |shape: &[usize]| u64::try_from(shape.iter().product::<usize>()).unwrap_or(u64::MAX);
    encoder.weights = shapes.asked().iter().map(|(_, shape)| elements(shape)).sum();
    encoder.params = loader.into_params();
    Ok(Box::new(encoder))
}

fn load(
    loader: &mut Loader,
    c: &Sizes,
    names: &Layout,
    classes: usize,
    options: BuildOptions,
) -> std::result::Result<Encoder, TrainError> {
    let (h, place) = (c.hidden, options.place);
    let embeddings = Embeddings::load(loader, c, names.embeddings, place.activations(options.base_dtype))?;
    let blocks: std::result::Result<Vec<Block>, TrainError> =
        (0..c.layers).map(|layer| Block::load(loader, c, names, layer)).collect();
    let blocks = blocks?;
    let (pooler, dense) = match names.dense {
        Dense::Pooler(path) => (Some(loader.biased(path, (h, h))?), None),
        Dense::Head(path) => (None, Some(Whole::load(loader, path, (h, h), c.std)?)),
    };
    let classifier = Whole::load(loader, names.classifier, (classes, h), c.std)?;
    let dims = Dims {
        layers: c.layers,
        hidden: h,
        vocab: c.vocab,
        heads: c.heads(),
        context: c.positions.saturating_sub(c.first_position),
    };
    let (relu, params) = (names.relu, Params::default());
    Ok(Encoder { dims, place, embeddings, blocks, pooler, dense, relu, classifier, params, weights: 0 })
}

impl Encoder {
    /// Activations of first tokens `(B, C)` → `(B, classes)`.
    fn head(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let mut x = x.clone();
        if let Some(pooler) = &self.pooler {
            x = pooler.forward(&x, pass)?;
        }
        if let Some(dense) = &self.dense {
            x = dense.forward(&x, pass)?;
        }
        let x = if self.relu { x.relu()? } else { x.tanh()? };
        self.classifier.forward(&x, pass)?.to_dtype(DType::F32)
    }

    /// Negative log-likelihood of each target there is, `(B)`, and their rows in `x`.
    fn losses(&self, x: &Tensor, targets: &[u32], pass: &Pass) -> Result<(Tensor, Vec<usize>)> {
        let rows: Vec<usize> = (0..targets.len()).filter(|row| targets.get(*row) != Some(&IGNORE)).collect();
        let ids: Vec<u32> = rows.iter().map(|row| u32::try_from(*row).unwrap_or(IGNORE)).collect();
        let classes: Vec<u32> = targets.iter().copied().filter(|t| *t != IGNORE).collect();
        let first = x.index_select(&Tensor::from_vec(ids, rows.len(), x.device())?, 0)?; // (N, C) -> (B, C)
        let logits = self.head(&first, pass)?;
        let max = logits.max_keepdim(1)?.detach(); // (B, 1)
        let sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()?; // (B, 1)
        let chosen = logits.gather(&Tensor::from_vec(classes, (rows.len(), 1), x.device())?, 1)?; // (B, 1)
        Ok((((sum + max)? - chosen)?.squeeze(1)?, rows))
    }
}

impl CausalLm for Encoder {
    fn dims(&self) -> Dims {
        self.dims
    }

    fn place(&self) -> Place {
        self.place
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn trains_embedding(&self) -> bool {
        self.embeddings.words.is_trained()
    }

    fn linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(Block::linears).chain(&self.pooler).collect()
    }

    fn attach(&mut self, path: &str, lora: Lora) {
        let mut linears = self.blocks.iter_mut().flat_map(Block::linears_mut).chain(&mut self.pooler);
        let Some(linear) = linears.find(|l| l.path() == path) else { return };
        lora.register(path, &mut self.params);
        linear.attach(lora);
    }

    fn embed(&self, tokens: &[u32], pass: &Pass) -> Result<Tensor> {
        self.embeddings.forward(tokens, pass)
    }

    fn block(&self, layer: usize, x: &Tensor, pass: &Pass, _attention: &mut dyn Attend) -> Result<Tensor> {
        let Some(block) = self.blocks.get(layer) else { bail!("there is no block {layer}") };
        block.forward(x, pass)
    }

    fn loss(&self, x: &Tensor, targets: &[u32], denominator: f64, pass: &Pass) -> Result<Tensor> {
        self.losses(x, targets, pass)?.0.sum_all()? / denominator
    }

    fn token_losses(&self, x: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let pass = Pass::inference(kernels::Segments::from_lengths(&[x.dim(0)?])?);
        let (losses, rows) = self.losses(x, targets, &pass)?;
        let mut all = vec![0.0; targets.len()];
        for (row, loss) in rows.into_iter().zip(losses.to_vec1()?) {
            if let Some(slot) = all.get_mut(row) {
                *slot = loss;
            }
        }
        Ok(all)
    }

    fn log_probs(&self, _x: &Tensor, _targets: &[u32], _pass: &Pass) -> Result<Tensor> {
        bail!("an encoder predicts no tokens")
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.head(x, &Pass::inference(kernels::Segments::from_lengths(&[x.dim(0)?])?))
    }

    fn weights(&self) -> u64 {
        self.weights
    }
}
