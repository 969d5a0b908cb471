//! BERT encoders that classify sequences: <https://arxiv.org/abs/1810.04805>. Weight names and semantics follow
//! `transformers`' `BertForSequenceClassification`, without its dropout. A target stands at the first token of a
//! sequence, whose activation the head reads.

use super::{Attend, BuildOptions, CausalLm, Dims, Heads, Linear, Loader, Lora, Pass, Source, Weight, config};
use crate::engine::{Place, TrainError, params::Params, weights::WeightFiles};
use candle_core::{DType, Result, Tensor, bail};
use kernels::{AttentionShape, IGNORE};
use serde::Deserialize;
use std::path::Path;

/// `config.json`, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_std")]
    initializer_range: f64,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
}

const fn default_eps() -> f64 {
    1e-12
}

const fn default_std() -> f64 {
    0.02
}

impl Config {
    fn parse(value: &serde_json::Value) -> std::result::Result<Self, TrainError> {
        let c: Self = config::parse(value)?;
        let act = c.hidden_act.as_deref().unwrap_or("gelu");
        if act != "gelu" {
            return Err(config::bad(format!("hidden_act `{act}` is not supported; supported: gelu")));
        }
        let kind = c.position_embedding_type.as_deref().unwrap_or("absolute");
        if kind != "absolute" {
            return Err(config::bad(format!("position_embedding_type `{kind}` is not supported; supported: absolute")));
        }
        let sizes = [c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.vocab_size];
        if sizes.contains(&0) || c.type_vocab_size == 0 || !c.hidden_size.is_multiple_of(c.num_attention_heads) {
            return Err(config::bad(format!(
                "sizes do not fit together: {} channels, {} heads",
                c.hidden_size, c.num_attention_heads
            )));
        }
        Ok(c)
    }

    fn heads(&self) -> Heads {
        let heads = self.num_attention_heads;
        Heads { heads, kv_heads: heads, head_dim: self.hidden_size.checked_div(heads).unwrap_or(0) }
    }
}

/// LayerNorm (arXiv 1607.06450).
#[derive(Debug)]
struct Norm {
    weight: Weight,
    bias: Weight,
    eps: f64,
}

impl Norm {
    fn load(loader: &mut Loader, path: &str, c: &Config) -> std::result::Result<Self, TrainError> {
        let mut weight = |part: &str| loader.weight(&format!("{path}.LayerNorm.{part}"), &[c.hidden_size]);
        Ok(Self { weight: weight("weight")?, bias: weight("bias")?, eps: c.layer_norm_eps })
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
    types: Weight,
    norm: Norm,
}

impl Embeddings {
    fn load(loader: &mut Loader, c: &Config, dtype: DType) -> std::result::Result<Self, TrainError> {
        let mut table = |name: &str, rows: usize| {
            loader.weight(&format!("bert.embeddings.{name}_embeddings.weight"), &[rows, c.hidden_size])
        };
        let words = table("word", c.vocab_size)?;
        let positions = table("position", c.max_position_embeddings)?;
        let types = table("token_type", c.type_vocab_size)?;
        Ok(Self { dtype, words, positions, types, norm: Norm::load(loader, "bert.embeddings", c)? })
    }

    /// Tokens `(N)` → `(N, C)`; all tokens are of the first type.
    fn forward(&self, tokens: &[u32], pass: &Pass) -> Result<Tensor> {
        let rows = |of: &Weight, chosen: &[u32]| of.rows(chosen, pass.grad, self.dtype);
        let (words, positions) = (rows(&self.words, tokens)?, rows(&self.positions, &pass.positions)?);
        let kind = rows(&self.types, &[0])?; // (types, C) -> (1, C)
        self.norm.forward(&(words + positions)?.broadcast_add(&kind)?, pass)
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
    fn load(loader: &mut Loader, c: &Config, layer: usize) -> std::result::Result<Self, TrainError> {
        let path = format!("bert.encoder.layer.{layer}");
        let (h, f) = (c.hidden_size, c.intermediate_size);
        let mut linear = |name: &str, shape| loader.biased(&format!("{path}.{name}"), shape);
        let (query, key) = (linear("attention.self.query", (h, h))?, linear("attention.self.key", (h, h))?);
        let (value, attended) = (linear("attention.self.value", (h, h))?, linear("attention.output.dense", (h, h))?);
        let (up, down) = (linear("intermediate.dense", (f, h))?, linear("output.dense", (h, f))?);
        let norm1 = Norm::load(loader, &format!("{path}.attention.output"), c)?;
        let norm2 = Norm::load(loader, &format!("{path}.output"), c)?;
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

#[derive(Debug)]
struct Bert {
    dims: Dims,
    place: Place,
    embeddings: Embeddings,
    blocks: Vec<Block>,
    pooler: Linear,
    /// `(classes, C)` and `(classes)`: trained also where only an adapter is, as PEFT does.
    classifier: (Weight, Weight),
    params: Params,
    weights: u64,
}

pub(super) fn build(
    value: &serde_json::Value,
    dir: &Path,
    options: BuildOptions,
) -> std::result::Result<Box<dyn CausalLm>, TrainError> {
    let c = Config::parse(value)?;
    let Some(classes) = options.classes else {
        return Err(TrainError::model("the model is an encoder, which classifies texts: use `method: classification`"));
    };
    let mut shapes = Loader::shapes();
    load(&mut shapes, &c, classes, options)?;
    let files = WeightFiles::open_dir(dir)?;
    // A model that was trained for something else has another head, and gets a fresh classifier.
    let fresh = !files.contains(CLASSIFIER);
    let expected: Vec<(String, Vec<usize>)> =
        shapes.asked().iter().filter(|(name, _)| !(fresh && name.starts_with("classifier."))).cloned().collect();
    files.check(&expected, |n| n.starts_with("cls.") || n.ends_with("position_ids"))?;
    let source = Source::Files(files.keeping(options.place.kept(options.base_dtype)));
    let mut loader = Loader::new(source, options)?;
    let mut bert = load(&mut loader, &c, classes, options)?;
    let elements = |shape: &[usize]| u64::try_from(shape.iter().product::<usize>()).unwrap_or(u64::MAX);
    bert.weights = shapes.asked().iter().map(|(_, shape)| elements(shape)).sum();
    bert.params = loader.into_params();
    Ok(Box::new(bert))
}

const CLASSIFIER: &str = "classifier.weight";

fn load(
    loader: &mut Loader,
    c: &Config,
    classes: usize,
    options: BuildOptions,
) -> std::result::Result<Bert, TrainError> {
    let (h, place) = (c.hidden_size, options.place);
    let embeddings = Embeddings::load(loader, c, place.activations(options.base_dtype))?;
    let blocks: std::result::Result<Vec<Block>, TrainError> =
        (0..c.num_hidden_layers).map(|layer| Block::load(loader, c, layer)).collect();
    let blocks = blocks?;
    let pooler = loader.biased("bert.pooler.dense", (h, h))?;
    let weight = loader.head(CLASSIFIER, &[classes, h], c.initializer_range)?;
    let bias = loader.head("classifier.bias", &[classes], c.initializer_range)?;
    let dims = Dims {
        layers: c.num_hidden_layers,
        hidden: h,
        vocab: c.vocab_size,
        heads: c.heads(),
        context: c.max_position_embeddings,
    };
    Ok(Bert {
        dims,
        place,
        embeddings,
        blocks,
        pooler,
        classifier: (weight, bias),
        params: Params::default(),
        weights: 0,
    })
}

impl Bert {
    /// Activations of first tokens `(B, C)` → `(B, classes)`.
    fn head(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let pooled = self.pooler.forward(x, pass)?.tanh()?;
        let (weight, bias) = (self.classifier.0.tensor(pass.grad), self.classifier.1.tensor(pass.grad));
        kernels::add_bias(&kernels::linear_trainable(&pooled, &weight)?, &bias)?.to_dtype(DType::F32)
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

impl CausalLm for Bert {
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
        self.blocks.iter().flat_map(Block::linears).chain([&self.pooler]).collect()
    }

    fn attach(&mut self, path: &str, lora: Lora) {
        let mut linears = self.blocks.iter_mut().flat_map(Block::linears_mut).chain([&mut self.pooler]);
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
