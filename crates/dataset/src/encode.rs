//! Rows to token sequences, with the tokens that carry loss marked.

use crate::{
    row::{ChatRow, LabelledRow, Message, PreferenceRow, Role, Row},
    spans::assistant_spans,
    template::{ChatTemplate, GenerationPrompt, TemplateError},
    tokenizer::{LoadError, Tokenizer},
};
use std::{ops::Range, path::Path};

/// Which tokens carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossOn {
    /// What the assistant says, with the end of its turn (chat and instruction rows); everything for text.
    Assistant,
    /// Every token: continued pretraining.
    All,
}

/// One training sequence. `trained[i]` says whether predicting `tokens[i]` from the tokens before it carries
/// loss; the first token never does. Both have the same length, at most the encoder's maximum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    pub tokens: Vec<u32>,
    pub trained: Vec<bool>,
    /// Tokens cut off the end because the row was too long.
    pub cut: usize,
}

impl Sequence {
    /// Tokens that carry loss.
    #[must_use]
    pub fn trained_count(&self) -> usize {
        self.trained.iter().filter(|t| **t).count()
    }

    /// Tokens before cutting.
    #[must_use]
    pub fn full_length(&self) -> usize {
        self.tokens.len().saturating_add(self.cut)
    }
}

/// Why a row cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error(
        "the model has no chat template, so chat rows cannot be rendered: use a model with one, or an instruction or text dataset"
    )]
    NoTemplate,
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("the chat template does not show which text is the assistant's message {0}")]
    Unlocated(usize),
    #[error(
        "the chat template leaves out the tool calls of message {0}: use a model whose template knows tools, or write the calls into the content"
    )]
    DroppedCalls(usize),
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

/// Turns rows into sequences for one model. `Send + Sync`.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    max_length: usize,
}

impl Encoder {
    /// Loads tokenizer and chat template of a model directory. `max_length` in tokens, at least 2.
    pub fn load(model_dir: &Path, max_length: usize) -> Result<Self, LoadError> {
        let tokenizer = Tokenizer::load(model_dir)?;
        let template = ChatTemplate::load(model_dir, &tokenizer)?;
        Ok(Self::new(tokenizer, template, max_length))
    }

    #[must_use]
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>, max_length: usize) -> Self {
        Self { tokenizer, template, max_length: max_length.max(2) }
    }

    #[must_use]
    pub const fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    #[must_use]
    pub const fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Chat and instruction rows give one sequence, cut at the maximum length. Text gives as many as it needs;
    /// each goes on with the last token of the one before, so every token but the first is predicted once. A
    /// preference pair gives two, see [`Self::encode_pair`]; a labelled text one that carries no loss.
    pub fn encode_row(&self, row: &Row, loss: LossOn) -> Result<Vec<Sequence>, EncodeError> {
        let sequence = match row {
            Row::Chat(chat) => self.encode_chat(chat, loss)?,
            Row::Instruction(row) => match self.template {
                Some(_) => self.encode_chat(&row.to_chat(), loss)?,
                None => self.encode_plain(&[&row.prompt(), "\n"], &row.output, loss)?,
            },
            Row::Preference(row) => return Ok(self.encode_pair(row)?.into()),
            Row::Labelled(row) => self.encode_labelled(row)?,
            Row::Text(text) => return self.encode_text(text),
        };
        Ok(vec![sequence])
    }

    /// Tokens that a generation for this conversation starts from.
    pub fn encode_prompt(&self, chat: &ChatRow) -> Result<Vec<u32>, EncodeError> {
        let template = self.template.as_ref().ok_or(EncodeError::NoTemplate)?;
        let text = template.render(chat, GenerationPrompt::Add)?;
        self.tokenizer.encode(&text, false).map_err(EncodeError::Tokenizer)
    }

    /// The preferred answer and the other one, each behind the prompt. Trained is everything from where the
    /// answer begins (TRL's completion mask).
    pub fn encode_pair(&self, row: &PreferenceRow) -> Result<[Sequence; 2], EncodeError> {
        let chat;
        let (prompt, chosen, rejected) = match row {
            PreferenceRow::Chat { prompt, chosen, rejected } => (prompt, chosen.clone(), rejected.clone()),
            PreferenceRow::Text { prompt, chosen, rejected } if self.template.is_none() => {
                let side = |answer: &str| self.encode_plain(&[prompt], answer, LossOn::Assistant);
                return Ok([side(chosen)?, side(rejected)?]);
            }
            PreferenceRow::Text { prompt, chosen, rejected } => {
                chat = ChatRow { messages: vec![Message::new(Role::User, prompt.as_str())], tools: None };
                let answer = |text: &str| vec![Message::new(Role::Assistant, text)];
                (&chat, answer(chosen), answer(rejected))
            }
        };
        Ok([self.encode_completion(prompt, chosen)?, self.encode_completion(prompt, rejected)?])
    }

    fn encode_completion(&self, prompt: &ChatRow, completion: Vec<Message>) -> Result<Sequence, EncodeError> {
        let template = self.template.as_ref().ok_or(EncodeError::NoTemplate)?;
        let mut chat = prompt.clone();
        chat.messages.extend(completion);
        let asked = template.render(prompt, GenerationPrompt::Add)?;
        let rendered = template.render_messages(&chat.messages, chat.tools.as_ref(), GenerationPrompt::Omit)?;
        if !rendered.text.starts_with(&asked) {
            // The template writes the prompt differently once it is answered: the last answer is what counts.
            let (last, earlier) = chat.messages.split_last_mut().ok_or(EncodeError::Unlocated(0))?;
            earlier.iter_mut().for_each(|m| m.trained = false);
            last.trained = true;
            return self.encode_chat(&chat, LossOn::Assistant);
        }
        let (tokens, offsets) = self.tokenizer.encode_with_offsets(&rendered.text).map_err(EncodeError::Tokenizer)?;
        let trained = offsets.iter().map(|(_, end)| *end > asked.len()).collect();
        Ok(self.sequence(tokens, trained))
    }

    /// The text with the tokens the tokenizer puts around one (`[CLS]`, `[SEP]`), which stay when it is cut.
    pub fn encode_labelled(&self, row: &LabelledRow) -> Result<Sequence, EncodeError> {
        let (tokens, cut) = self.tokenizer.encode_within(&row.text, self.max_length).map_err(EncodeError::Tokenizer)?;
        Ok(Sequence { trained: vec![false; tokens.len()], tokens, cut })
    }

    fn encode_chat(&self, chat: &ChatRow, loss: LossOn) -> Result<Sequence, EncodeError> {
        let template = self.template.as_ref().ok_or(EncodeError::NoTemplate)?;
        let rendered = template.render_messages(&chat.messages, chat.tools.as_ref(), GenerationPrompt::Omit)?;
        let (mut tokens, offsets) =
            self.tokenizer.encode_with_offsets(&rendered.text).map_err(EncodeError::Tokenizer)?;
        let mut trained = match loss {
            LossOn::All => vec![true; tokens.len()],
            LossOn::Assistant => {
                // What is cut off anyway need not be searched.
                let kept = offsets.get(self.max_length).map_or(rendered.text.len(), |(start, _)| *start);
                let controls = tokens.iter().zip(&offsets).filter(|(token, _)| self.tokenizer.is_special(**token));
                let controls: Vec<Range<usize>> = controls.map(|(_, (start, end))| *start..*end).collect();
                let spans = assistant_spans(template, chat, &rendered, &controls, kept)?;
                let mut left = spans.iter().peekable();
                let is_trained = |(start, end): &(usize, usize)| {
                    while left.next_if(|s| s.range.end <= *start).is_some() {}
                    // A token that reaches from the header into the text counts as text, as in transformers.
                    left.peek().is_some_and(|s| s.trained && s.range.start < *end)
                };
                offsets.iter().map(is_trained).collect()
            }
        };
        // A template without an end-of-turn token would teach the model never to stop.
        let blank =
            |(start, end): &(usize, usize)| rendered.text.get(*start..*end).is_some_and(|t| t.trim().is_empty());
        let last = tokens.iter().zip(&offsets).rev().find(|(_, range)| !blank(range));
        if last.is_some_and(|(token, _)| !self.tokenizer.is_special(*token))
            && let Some(eos) = self.tokenizer.eos_id()
        {
            tokens.push(eos);
            let said = chat.messages.last().is_some_and(|m| m.role == Role::Assistant && m.trained);
            trained.push(loss == LossOn::All || said);
        }
        Ok(self.sequence(tokens, trained))
    }

    /// Prompt and answer without a template: `prompt` untrained, `answer` and the end-of-text token trained.
    fn encode_plain(&self, prompt: &[&str], answer: &str, loss: LossOn) -> Result<Sequence, EncodeError> {
        let mut tokens = self.tokenizer.encode(&prompt.concat(), true).map_err(EncodeError::Tokenizer)?;
        if let Some(eos) = self.tokenizer.eos_id() {
            tokens.pop_if(|t| *t == eos);
        }
        let mut trained = vec![loss == LossOn::All; tokens.len()];
        tokens.extend(self.tokenizer.encode(answer, false).map_err(EncodeError::Tokenizer)?);
        tokens.extend(self.tokenizer.eos_id());
        trained.resize(tokens.len(), true);
        Ok(self.sequence(tokens, trained))
    }

    fn encode_text(&self, text: &str) -> Result<Vec<Sequence>, EncodeError> {
        let mut tokens = self.tokenizer.encode(text, true).map_err(EncodeError::Tokenizer)?;
        if let Some(eos) = self.tokenizer.eos_id().filter(|eos| tokens.last() != Some(eos)) {
            tokens.push(eos);
        }
        let mut sequences = Vec::new();
        let mut start = 0;
        while let Some(rest) = tokens.get(start..).filter(|r| r.len() > 1) {
            let piece: Vec<u32> = rest.iter().copied().take(self.max_length).collect();
            start = start.saturating_add(piece.len().saturating_sub(1));
            let trained = vec![true; piece.len()];
            sequences.push(self.sequence(piece, trained));
        }
        Ok(sequences)
    }

    fn sequence(&self, mut tokens: Vec<u32>, mut trained: Vec<bool>) -> Sequence {
        let cut = tokens.len().saturating_sub(self.max_length);
        tokens.truncate(self.max_length);
        trained.truncate(self.max_length);
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Sequence { tokens, trained, cut }
    }
}
