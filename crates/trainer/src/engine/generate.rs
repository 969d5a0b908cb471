//! Text generation with a base model and, optionally, its adapter.

use super::{
    Place, TrainError, lora,
    model::{self, Attend, AttentionOptions, BuildOptions, CausalLm, Dims, Heads, Pass},
    rng::Key,
};
use candle_core::{DType, Tensor};
use dataset::{ChatRow, EncodeError, Encoder, Role, StreamDecoder};
use kernels::Segments;
use std::path::Path;
use wire::config::BaseDtype;

/// Longest context held, whatever the model says: the cache is allocated to it lazily, the tables are not.
const MAX_CONTEXT: usize = 16_384;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

/// What the model continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Rendered through the model's chat template, with the assistant's turn opened.
    Messages(Vec<Message>),
    /// Continued as it is.
    Prompt(String),
}

/// One generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub input: Input,
    /// Most new tokens.
    pub max_tokens: usize,
    /// `0` takes the likeliest token each time.
    pub temperature: f64,
    /// Samples from the smallest set of tokens whose probability reaches this; `1` keeps all.
    pub top_p: f64,
    pub seed: u64,
    /// `false` answers as the base model, without the adapter.
    pub use_adapter: bool,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// The generated text, without the prompt and without special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub text: String,
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub finish_reason: FinishReason,
}

/// A loaded model. One generation at a time.
#[derive(Debug)]
pub struct Generator {
    model: Box<dyn CausalLm>,
    encoder: Encoder,
    context: usize,
    has_adapter: bool,
}

impl Generator {
    /// Loads the model in `model_dir` (HF layout) and the PEFT adapter in `adapter` to `place`.
    ///
    /// # Errors
    /// `ModelCorrupt`: unusable model or adapter files. `StartFailed`: a device that cannot be had.
    pub fn load(model_dir: &Path, adapter: Option<&Path>, place: Place) -> Result<Self, TrainError> {
        let options = BuildOptions {
            train_weights: false,
            random: None,
            max_positions: MAX_CONTEXT,
            base_dtype: BaseDtype::Auto,
            place,
            classes: None,
        };
        let mut model = model::load(model_dir, options)?;
        if let Some(dir) = adapter {
            lora::load(model.as_mut(), dir)?;
        }
        let context = model.dims().context.min(MAX_CONTEXT);
        let encoder = Encoder::load(model_dir, context).map_err(|e| TrainError::model(e.to_string()).caused_by(e))?;
        Ok(Self { model, encoder, context, has_adapter: adapter.is_some() })
    }

    /// Whether an adapter is loaded.
    #[must_use]
    pub const fn has_adapter(&self) -> bool {
        self.has_adapter
    }

    /// Generates, calling `on_token` with each new piece of text.
    ///
    /// # Errors
    /// `ConfigInvalid`: an empty prompt, one that fills the context, or a chat template that is missing or
    /// refuses these messages.
    pub fn generate(&mut self, request: &Request, on_token: &mut dyn FnMut(&str)) -> Result<Response, TrainError> {
        let prompt = self.encode(&request.input)?;
        if prompt.is_empty() {
            return Err(TrainError::config("the prompt is empty; give at least one character"));
        }
        if prompt.len() >= self.context {
            return Err(TrainError::config(format!(
                "the prompt has {} tokens, the model's context {}; shorten it",
                prompt.len(),
                self.context
            )));
        }
        let limit = request.max_tokens.min(self.context.saturating_sub(prompt.len()));
        let mut session = Session::new(self.model.as_ref(), request.use_adapter, prompt.len().saturating_add(limit));
        let mut sampler =
            Sampler { key: Key::new(request.seed, "sample"), temperature: request.temperature, top_p: request.top_p };
        let tokenizer = self.encoder.tokenizer();
        let mut decoder = StreamDecoder::new();
        let (mut text, mut made) = (String::new(), 0_usize);
        let mut finish_reason = FinishReason::Length;
        let failed = |e: String| TrainError::internal(format!("the tokenizer failed: {e}"));
        let mut emit = |piece: String, text: &mut String| {
            if !piece.is_empty() {
                on_token(&piece);
                text.push_str(&piece);
            }
        };
        let mut logits = if limit > 0 { session.feed(&prompt)? } else { Vec::new() };
        while made < limit {
            let token = sampler.pick(&logits, made);
            made = made.saturating_add(1);
            if tokenizer.stop_ids().contains(&token) {
                finish_reason = FinishReason::Stop;
                break;
            }
            emit(decoder.push(tokenizer, token).map_err(failed)?, &mut text);
            if made < limit {
                logits = session.feed(&[token])?;
            }
        }
        emit(decoder.finish(tokenizer).map_err(failed)?, &mut text);
        Ok(Response { text, prompt_tokens: prompt.len(), completion_tokens: made, finish_reason })
    }

    fn encode(&self, input: &Input) -> Result<Vec<u32>, TrainError> {
        let refused = |e: EncodeError| TrainError::config(e.to_string()).caused_by(e);
        match input {
            Input::Messages(messages) => {
                let messages: Result<Vec<dataset::Message>, TrainError> = messages.iter().map(to_row).collect();
                self.encoder.encode_prompt(&ChatRow { messages: messages?, tools: None }).map_err(refused)
            }
            Input::Prompt(text) => {
                let tokenizer = self.encoder.tokenizer();
                let mut tokens = tokenizer.encode(text, true).map_err(|e| refused(EncodeError::Tokenizer(e)))?;
                // Some tokenizers end every text; a prompt goes on.
                tokens.pop_if(|t| Some(*t) == tokenizer.eos_id());
                Ok(tokens)
            }
        }
    }
}

fn to_row(message: &Message) -> Result<dataset::Message, TrainError> {
    let role = match message.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => return Err(TrainError::config(format!("`{other}` is not a role; use system, user or assistant"))),
    };
    Ok(dataset::Message::new(role, message.content.clone()))
}

/// One sequence going through a model token by token, keys and values kept.
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a dyn CausalLm,
    adapter: bool,
    cache: Cache,
}

impl<'a> Session<'a> {
    /// A session for at most `capacity` tokens.
    #[must_use]
    pub fn new(model: &'a dyn CausalLm, adapter: bool, capacity: usize) -> Self {
        let Dims { layers, .. } = model.dims();
        Self { model, adapter, cache: Cache { layers: vec![None; layers], length: 0, capacity } }
    }

    /// Feeds tokens (a prompt first, then one at a time) and returns the logits `(V)` for the next one.
    ///
    /// # Errors
    /// More than one token after the first call, or more than the capacity.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        let n = tokens.len();
        let end = self.cache.length.saturating_add(n);
        if n == 0 || (self.cache.length > 0 && n > 1) || end > self.cache.capacity {
            return Err(TrainError::internal(format!("{n} tokens cannot be fed after {}", self.cache.length)));
        }
        let mut pass = Pass::inference(Segments::from_lengths(&[n])?);
        pass.adapter = self.adapter;
        let first = u32::try_from(self.cache.length).unwrap_or(u32::MAX);
        pass.positions = (first..).take(n).collect();
        let mut x = self.model.embed(tokens, &pass)?;
        for layer in 0..self.model.dims().layers {
            x = self.model.block(layer, &x, &pass, &mut self.cache)?;
        }
        self.cache.length = end;
        let last = x.narrow(0, n.saturating_sub(1), 1)?;
        Ok(self.model.logits(&last)?.flatten_all()?.to_vec1()?) // (1, V) -> (V)
    }
}

/// Keys and values of every block, `(capacity, KV·D)` each, filled up to `length`.
#[derive(Debug)]
struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    length: usize,
    capacity: usize,
}

impl Attend for Cache {
    fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: &AttentionOptions,
    ) -> candle_core::Result<Tensor> {
        let Heads { heads, kv_heads, head_dim } = options.heads;
        let (n, width) = k.dims2()?;
        let Some(slot) = self.layers.get_mut(layer) else { candle_core::bail!("there is no block {layer}") };
        let empty = || Tensor::zeros((self.capacity, width), k.dtype(), k.device());
        let (keys, values) = match slot {
            Some(kept) => kept,
            None => slot.insert((empty()?, empty()?)),
        };
        keys.slice_set(&k.contiguous()?, 0, self.length)?;
        values.slice_set(&v.contiguous()?, 0, self.length)?;
        if self.length == 0 {
            let segments = Segments::from_lengths(&[n])?;
            return kernels::attention(q, k, v, &options.shape(segments));
        }
        // One query against the keys it sees: (KV, H/KV, D) x (KV, D, T) -> (KV, H/KV, T).
        let end = self.length.saturating_add(n);
        let t = options.window.map_or(end, |window| end.min(window));
        let view = |x: &Tensor| {
            x.narrow(0, end.saturating_sub(t), t)?.reshape((t, kv_heads, head_dim))?.transpose(0, 1)?.contiguous()
        }; // (KV, T, D)
        let q = q.reshape((kv_heads, heads.checked_div(kv_heads).unwrap_or(1), head_dim))?;
        #[expect(clippy::as_conversions, reason = "a head size is small")]
        let scale = options.scale.map_or_else(|| 1.0 / (head_dim as f64).sqrt(), f64::from);
        let scores = (q.matmul(&view(keys)?.transpose(1, 2)?)?.to_dtype(DType::F32)? * scale)?;
        let scores = match options.soft_cap.map(f64::from) {
            Some(cap) => ((scores / cap)?.tanh()? * cap)?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax(&scores, candle_core::D::Minus1)?.to_dtype(v.dtype())?;
        weights.matmul(&view(values)?)?.reshape((1, heads.saturating_mul(head_dim))) // (KV, H/KV, D) -> (1, H·D)
    }
}

/// Picks tokens from logits, reproducibly.
#[derive(Debug, Clone, Copy)]
struct Sampler {
    key: Key,
    temperature: f64,
    top_p: f64,
}

impl Sampler {
    /// The token for position `index` of the answer.
    fn pick(&mut self, logits: &[f32], index: usize) -> u32 {
        let mut ranked: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|l| f64::from(*l))).collect();
        let by_logit = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let Some(best) = ranked.iter().copied().min_by(by_logit) else { return 0 };
        if self.temperature <= 0.0 {
            return best.0;
        }
        ranked.sort_unstable_by(by_logit);
        for (_, weight) in &mut ranked {
            *weight = ((*weight - best.1) / self.temperature).exp();
        }
        let total: f64 = ranked.iter().map(|(_, w)| w).sum();
        let mut kept = 0.0;
        let mut nucleus = Vec::new();
        for (token, weight) in ranked {
            nucleus.push((token, weight));
            kept += weight;
            if kept >= self.top_p * total {
                break;
            }
        }
        let mut target = self.key.unit(u64::try_from(index).unwrap_or(0)) * kept;
        for (token, weight) in &nucleus {
            target -= weight;
            if target < 0.0 {
                return *token;
            }
        }
        nucleus.last().map_or(best.0, |(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_p: f64) -> Sampler {
        Sampler { key: Key::new(1, "sample"), temperature, top_p }
    }

    #[test]
    fn zero_temperature_takes_the_likeliest_token_and_the_first_of_equals() {
        assert_eq!(sampler(0.0, 1.0).pick(&[1.0, 3.0, 2.0], 0), 1);
        assert_eq!(sampler(0.0, 1.0).pick(&[3.0, 3.0], 0), 0);
    }

    #[test]
    fn sampling_follows_the_distribution_and_top_p_cuts_its_tail() {
        let logits = [0.7_f32.ln(), 0.2_f32.ln(), 0.1_f32.ln()];
        let share = |top_p: f64, token: u32| {
            let picks = (0..5000).filter(|i| sampler(1.0, top_p).pick(&logits, *i) == token).count();
            f64::from(u32::try_from(picks).unwrap()) / 5000.0
        };
        assert!((share(1.0, 0) - 0.7).abs() < 0.03);
        assert!((share(1.0, 2) - 0.1).abs() < 0.03);
        assert!(share(0.85, 2) == 0.0 && (share(0.85, 1) - 2.0 / 9.0).abs() < 0.03);
        assert_eq!(sampler(1.0, 0.0).pick(&logits, 3), 0);
    }
}
