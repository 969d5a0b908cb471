//! Rows to token sequences, with the tokens that carry loss marked.

use crate::{
    row::{ChatRow, Message, Role, Row},
    template::{ChatTemplate, GenerationPrompt, Rendered, TemplateError},
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
    /// each goes on with the last token of the one before, so every token but the first is predicted once.
    pub fn encode_row(&self, row: &Row, loss: LossOn) -> Result<Vec<Sequence>, EncodeError> {
        let sequence = match row {
            Row::Chat(chat) => self.encode_chat(chat, loss)?,
            Row::Instruction(row) => match self.template {
                Some(_) => self.encode_chat(&row.to_chat(), loss)?,
                None => self.encode_plain(&[&row.prompt(), "\n"], &row.output, loss)?,
            },
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

    fn encode_chat(&self, chat: &ChatRow, loss: LossOn) -> Result<Sequence, EncodeError> {
        let template = self.template.as_ref().ok_or(EncodeError::NoTemplate)?;
        let rendered = template.render_messages(&chat.messages, chat.tools.as_ref(), GenerationPrompt::Omit)?;
        let spans = assistant_spans(template, chat, &rendered)?;
        let (mut tokens, offsets) =
            self.tokenizer.encode_with_offsets(&rendered.text).map_err(EncodeError::Tokenizer)?;
        let mut spans_left = spans.iter().peekable();
        let mut trained: Vec<bool> = offsets
            .iter()
            .map(|(start, end)| {
                while spans_left.next_if(|s| s.range.end <= *start).is_some() {}
                // A token that reaches from the header into the text counts as text, as in transformers.
                spans_left.peek().is_some_and(|s| s.trained && s.range.start < *end)
            })
            .collect();
        // A template without an end-of-turn token would teach the model never to stop.
        let ends_open = tokens.last().is_some_and(|t| !self.tokenizer.is_special(*t));
        let last_span = spans.last().filter(|s| rendered.text.get(s.range.end..).is_some_and(|t| t.trim().is_empty()));
        if let (true, Some(span), Some(eos)) = (ends_open, last_span, self.tokenizer.eos_id())
            && !self.ends_with_special(&tokens, &trained)
        {
            tokens.push(eos);
            trained.push(span.trained);
        }
        if loss == LossOn::All {
            trained.fill(true);
        }
        Ok(self.sequence(tokens, trained))
    }

    /// Whether the last trained token is a control token, so the turn has an end.
    fn ends_with_special(&self, tokens: &[u32], trained: &[bool]) -> bool {
        let last = tokens.iter().zip(trained).rev().find(|(_, t)| **t);
        last.is_some_and(|(token, _)| self.tokenizer.is_special(*token))
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

/// Where an assistant message stands in the rendered text.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    range: Range<usize>,
    trained: bool,
}

/// Finds what the assistant wrote, in order and without overlap.
///
/// Where the template marks it with `{% generation %}`, that is it. Otherwise a message's text begins where
/// the rendering of everything before it, with the generation prompt, stops agreeing with the whole text, and
/// ends where the rendering up to and including it does. Templates that render a message differently once
/// others follow (dropping its reasoning, say) are met by looking for the message's text itself.
fn assistant_spans(template: &ChatTemplate, chat: &ChatRow, rendered: &Rendered) -> Result<Vec<Span>, EncodeError> {
    let assistant: Vec<(usize, &Message)> =
        chat.messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant).collect();
    let full = rendered.text.as_str();
    if template.marks_generation() && !rendered.generated.is_empty() {
        if rendered.generated.len() != assistant.len() {
            return Err(EncodeError::Unlocated(rendered.generated.len().min(assistant.len()).saturating_add(1)));
        }
        let spans = rendered.generated.iter().zip(&assistant);
        return Ok(spans.map(|(range, (_, m))| Span { range: range.clone(), trained: m.trained }).collect());
    }
    let mut spans = Vec::with_capacity(assistant.len());
    let mut cursor = 0;
    for (index, message) in assistant {
        let unlocated = || EncodeError::Unlocated(index.saturating_add(1));
        let render = |count: usize, prompt: GenerationPrompt| {
            let messages = chat.messages.get(..count).unwrap_or_default();
            template.render_messages(messages, chat.tools.as_ref(), prompt).map(|r| r.text)
        };
        let content = message.content.trim();
        let prompt = render(index, GenerationPrompt::Add).ok();
        let start = match prompt.as_deref().map(|p| common_prefix(p, full)).filter(|start| *start >= cursor) {
            Some(start) if find_from(full, start, content).is_some() => start,
            // The template refuses a conversation that stops here, or writes it differently: look for the
            // text itself, behind the texts of the messages before it.
            _ => {
                let before = chat.messages.get(..index).unwrap_or_default();
                let behind = before.iter().fold(0, |at, m| {
                    let text = m.content.trim();
                    find_from(full, at, text).map_or(at, |found| found.saturating_add(text.len()))
                });
                find_from(full, behind.max(cursor), content).ok_or_else(unlocated)?
            }
        };
        let whole = if index.saturating_add(1) == chat.messages.len() {
            Some(full.to_owned())
        } else {
            render(index.saturating_add(1), GenerationPrompt::Omit).ok()
        };
        let end = match whole.as_deref() {
            Some(whole) if full.starts_with(whole) && whole.len() >= start => whole.len(),
            whole => {
                let after = find_from(full, start, content).ok_or_else(unlocated)?.saturating_add(content.len());
                // The end of the turn as it is written when this message is the last one.
                let tail =
                    whole.and_then(|w| w.rfind(content).and_then(|at| w.get(at.saturating_add(content.len())..)));
                let same = tail.zip(full.get(after..)).map_or(0, |(tail, rest)| common_prefix(tail, rest));
                after.saturating_add(same)
            }
        };
        // The line break after an end-of-turn token is the template's, not the assistant's.
        let trimmed = full.get(start..end).ok_or_else(unlocated)?.trim_end().len();
        spans.push(Span { range: start..start.saturating_add(trimmed), trained: message.trained });
        cursor = end;
    }
    Ok(spans)
}

/// Length in bytes of what both texts begin with, at a character boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

fn find_from(text: &str, start: usize, content: &str) -> Option<usize> {
    text.get(start..)?.find(content).map(|at| at.saturating_add(start))
}
