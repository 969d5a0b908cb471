//! Where in a rendered conversation the assistant speaks.

use crate::{
    encode::EncodeError,
    row::{ChatRow, Message, Role},
    template::{ChatTemplate, GenerationPrompt, Rendered},
};
use std::ops::Range;

/// Where an assistant message stands in the rendered text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub range: Range<usize>,
    pub trained: bool,
}

/// Finds what the assistant wrote, in order and without overlap.
///
/// Where the template marks it with `{% generation %}`, that is it. Otherwise a message's text begins where
/// the rendering of everything before it, with the generation prompt, stops agreeing with the whole text, and
/// ends where the rendering up to and including it does. Templates that render a message differently once
/// others follow (dropping its reasoning, say) are met by looking for the message's text itself.
///
/// Messages that begin at `limit` (in bytes of the text) or later may be left out.
pub(crate) fn assistant_spans(
    template: &ChatTemplate,
    chat: &ChatRow,
    rendered: &Rendered,
    limit: usize,
) -> Result<Vec<Span>, EncodeError> {
    let assistant: Vec<(usize, &Message)> =
        chat.messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant).collect();
    let full = rendered.text.as_str();
    if template.marks_generation() && !rendered.generated.is_empty() {
        if rendered.generated.len() != assistant.len() {
            let first = assistant.get(rendered.generated.len()).or(assistant.last());
            return Err(EncodeError::Unlocated(first.map_or(0, |(index, _)| index.saturating_add(1))));
        }
        let spans = rendered.generated.iter().zip(&assistant);
        return Ok(spans.map(|(range, (_, m))| Span { range: range.clone(), trained: m.trained }).collect());
    }
    let mut spans = Vec::with_capacity(assistant.len());
    let mut cursor = 0;
    for (index, message) in assistant {
        if cursor >= limit {
            break;
        }
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
