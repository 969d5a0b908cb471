//! Text generation with a base model and, optionally, its adapter.

use super::TrainError;
use std::path::Path;

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
pub struct Generator {}

impl Generator {
    /// Loads the model in `model_dir` (HF layout) and the PEFT adapter in `adapter`.
    ///
    /// # Errors
    /// Unusable model or adapter files.
    pub fn load(_model_dir: &Path, _adapter: Option<&Path>) -> Result<Self, TrainError> {
        Err(TrainError::config("generation is not wired up yet"))
    }

    /// Generates, calling `on_token` with each new piece of text.
    ///
    /// # Errors
    /// A prompt that does not fit the context, or a chat template that fails on these messages.
    pub fn generate(&mut self, _request: &Request, _on_token: &mut dyn FnMut(&str)) -> Result<Response, TrainError> {
        Err(TrainError::config("generation is not wired up yet"))
    }
}
