//! Where in a rendered conversation the assistant speaks.

use crate::{
    encode::EncodeError,
    parse::with_key,
    row::{ChatRow, Message, Role},
    template::{ChatTemplate, GenerationPrompt, Rendered},
};
use minijinja::Value;
use std::ops::Range;

/// Put around a text to see where a template writes it. Noncharacters: never in real text.
const BEGIN: char = '\u{FDD2}';
const END: char = '\u{FDD3}';

/// Characters a template may write between the generation prompt and an assistant's text, with room.
const LEAD: usize = 256;

/// Where an assistant message stands in the rendered text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub range: Range<usize>,
    pub trained: bool,
}

/// Finds what the assistant wrote, in order and without overlap.
///
/// Where the template marks it with `{% generation %}`, that is it. Otherwise it is what the rendering of the
/// conversation up to and including the message has behind the rendering of what goes before it with the
/// generation prompt, and that text is then found in the whole rendering. Templates that write earlier turns
/// differently once others follow (moving the system message, dropping reasoning) are met by marking the
/// message's own text and looking where the marks come out.
///
/// `controls` are the control tokens of the text, in order: a message never ends within one. Messages that begin
/// at `limit` (in bytes of the text) or later may be left out.
pub(crate) fn assistant_spans(
    template: &ChatTemplate,
    chat: &ChatRow,
    rendered: &Rendered,
    controls: &[Range<usize>],
    limit: usize,
) -> Result<Vec<Span>, EncodeError> {
    let assistant: Vec<(usize, &Message)> =
        chat.messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant).collect();
    let full = rendered.text.as_str();
    let mut spans = Vec::with_capacity(assistant.len());
    if template.marks_generation() && !rendered.generated.is_empty() {
        if rendered.generated.len() != assistant.len() {
            let first = assistant.get(rendered.generated.len()).or(assistant.last());
            return Err(EncodeError::Unlocated(first.map_or(0, |(index, _)| index.saturating_add(1))));
        }
        for (range, (index, message)) in rendered.generated.iter().zip(assistant) {
            check_calls(index, message, full.get(range.clone()).unwrap_or_default())?;
            spans.push(Span { range: range.clone(), trained: message.trained });
        }
        return Ok(spans);
    }
    let conversation = Conversation { template, chat, full };
    let mut cursor = 0;
    for (index, message) in assistant {
        if cursor >= limit {
            break;
        }
        let number = index.saturating_add(1);
        let unlocated = || match &message.tool_calls {
            Some(_) => EncodeError::DroppedCalls(number),
            None => EncodeError::Unlocated(number),
        };
        let found = conversation.locate(index, message, cursor).ok_or_else(unlocated)?;
        // Where the end was found by comparison, the next turn's first token may begin like this one's last.
        let within = controls.iter().find(|c| c.start < found.end && found.end < c.end);
        let range = found.start..within.map_or(found.end, |c| c.start.max(found.start));
        // The line break after an end-of-turn token is the template's, not the assistant's.
        let text = full.get(range.clone()).ok_or_else(unlocated)?.trim_end();
        check_calls(index, message, text)?;
        spans.push(Span { range: range.start..range.start.saturating_add(text.len()), trained: message.trained });
        cursor = range.end;
    }
    Ok(spans)
}

/// Refuses a trained message whose tool calls the template does not write: the model would learn to say nothing.
fn check_calls(index: usize, message: &Message, text: &str) -> Result<(), EncodeError> {
    let calls = message.tool_calls.iter().filter_map(|calls| calls.try_iter().ok()).flatten();
    let mut names = calls.filter_map(|c| c.get_attr("function").ok()?.get_attr("name").ok());
    let dropped = names.any(|name| name.as_str().is_some_and(|name| !text.contains(name)));
    if message.trained && dropped { Err(EncodeError::DroppedCalls(index.saturating_add(1))) } else { Ok(()) }
}

/// One conversation and its whole rendering.
struct Conversation<'a> {
    template: &'a ChatTemplate,
    chat: &'a ChatRow,
    full: &'a str,
}

impl Conversation<'_> {
    fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> Option<String> {
        self.template.render_messages(messages, self.chat.tools.as_ref(), prompt).ok().map(|r| r.text)
    }

    /// The bytes of [`Self::full`] that message `index` wrote, from `cursor` on.
    fn locate(&self, index: usize, message: &Message, cursor: usize) -> Option<Range<usize>> {
        let count = index.saturating_add(1);
        let until = self.chat.messages.get(..count)?;
        let before = self.chat.messages.get(..index)?;
        let prompt = self.render(before, GenerationPrompt::Add);
        let last = count == self.chat.messages.len();
        let whole = if last { Some(self.full.to_owned()) } else { self.render(until, GenerationPrompt::Omit) };
        if let (Some(prompt), Some(whole)) = (&prompt, &whole)
            && let Some(said) = whole.strip_prefix(prompt.as_str())
            && let Some(rest) = self.full.strip_prefix(prompt.as_str())
            && prompt.len() >= cursor
        {
            // What ends the conversation differs from what goes on with the next turn: compare as far as
            // the message itself reaches.
            let same = common_prefix(said, rest);
            let own = message.content.trim();
            let empty = own.is_empty() && message.tool_calls.is_some();
            let reaches = !empty && rest.get(..same).is_some_and(|s| s.contains(own));
            if reaches || same == said.len() {
                return Some(prompt.len()..prompt.len().saturating_add(same));
            }
        }
        let of_full = self.marked(&self.chat.messages, index, self.full)?;
        let of_whole = whole.as_deref().and_then(|w| self.marked(until, index, w).map(|range| (w, range)));
        // The text between the generation prompt and the marked text belongs to the message too, where the
        // whole rendering has it.
        let lead = of_whole.as_ref().and_then(|(whole, range)| {
            let lead = behind_prompt(prompt.as_deref()?, whole.get(..range.start)?)?;
            self.full.get(..of_full.start)?.ends_with(lead).then_some(lead.len())
        });
        let start = of_full.start.saturating_sub(lead.unwrap_or_default());
        let tail = of_whole.and_then(|(whole, range)| whole.get(range.end..).map(str::to_owned));
        let after = self.full.get(of_full.end..)?;
        let same = tail.map_or(0, |tail| common_prefix(&tail, after));
        (start >= cursor).then(|| start..of_full.end.saturating_add(same))
    }

    /// Where `text`, the rendering of `messages`, has the content of message `index`, or the name of its
    /// first tool call; `None` where it has neither.
    fn marked(&self, messages: &[Message], index: usize, text: &str) -> Option<Range<usize>> {
        let candidates: [fn(&Message) -> Option<Message>; 2] = [mark_content, mark_call];
        candidates.into_iter().find_map(|mark| {
            let mut messages = messages.to_vec();
            let slot = messages.get_mut(index)?;
            *slot = mark(slot)?;
            let marked = self.render(&messages, GenerationPrompt::Omit)?;
            let (before, rest) = marked.split_once(BEGIN)?;
            let (inside, after) = rest.split_once(END)?;
            let range = before.len()..before.len().saturating_add(inside.len());
            // A template that looks into the text may write something else around the marks.
            (format!("{before}{inside}{after}") == text).then_some(range)
        })
    }
}

/// `text` between marks, without the white space around it; `None` for white space.
fn mark(text: &str) -> Option<String> {
    let inner = text.trim();
    let (before, after) = text.split_once(inner).filter(|_| !inner.is_empty())?;
    Some(format!("{before}{BEGIN}{inner}{END}{after}"))
}

fn mark_content(message: &Message) -> Option<Message> {
    Some(Message { content: mark(&message.content)?, ..message.clone() })
}

fn mark_call(message: &Message) -> Option<Message> {
    let mut calls: Vec<Value> = message.tool_calls.as_ref()?.try_iter().ok()?.collect();
    let first = calls.first_mut()?;
    let name = mark(first.get_attr("function").ok()?.get_attr("name").ok()?.as_str()?)?;
    *first = with_key(first, "function", |f| with_key(f, "name", |_| Value::from(name.as_str())));
    Some(Message { tool_calls: Some(Value::from(calls)), ..message.clone() })
}

/// The end of `written` that stands behind what `prompt` ends with: a template may write the turns before this
/// one differently in both.
fn behind_prompt<'t>(prompt: &str, written: &'t str) -> Option<&'t str> {
    let same_end = |text: &str| text.bytes().rev().zip(prompt.bytes().rev()).take_while(|(a, b)| a == b).count();
    let ends = written.char_indices().map(|(at, c)| at.saturating_add(c.len_utf8()));
    let near = ends.rev().take(LEAD).filter_map(|at| written.get(..at).map(|text| (same_end(text), at)));
    let (same, at) = near.max()?;
    if same == 0 { None } else { written.get(at..) }
}

/// Length in bytes of what both texts begin with, at a character boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}
