//! Preference pairs, in TRL's and OpenAI's shapes.

use super::{Node, Parsed, parse_message, parse_tools, quoted, row_object};
use crate::row::{ChatRow, Message, PreferenceRow, Role};
use std::collections::BTreeMap;
use wire::problem::near;

/// Keys that make a row look like a preference pair.
pub(crate) const PREFERENCE_KEYS: &[&str] = &["chosen", "rejected", "preferred_output", "non_preferred_output"];

/// Where a shape has its parts.
struct Shape<'a> {
    prompt: Option<Node<'a>>,
    tools: Option<Node<'a>>,
    chosen: (&'static str, Node<'a>),
    rejected: (&'static str, Node<'a>),
}

pub(super) fn parse_preference(text: &str) -> Parsed<PreferenceRow> {
    let (row, map) = row_object(text)?;
    let shape = shape(row, &map)?;
    let ((chosen_key, chosen), (rejected_key, rejected)) = (shape.chosen, shape.rejected);
    let parsed = match shape.prompt {
        Some(prompt) if prompt.raw.starts_with('"') => {
            let text = |key: &str, node: Node<'_>| -> Parsed<String> {
                let value = node.string(&format!("`{key}` of a text row"))?;
                if value.trim().is_empty() { node.error(format!("empty `{key}`")) } else { Ok(value) }
            };
            PreferenceRow::Text {
                prompt: text("prompt", prompt)?,
                chosen: text(chosen_key, chosen)?,
                rejected: text(rejected_key, rejected)?,
            }
        }
        None if chosen.raw.starts_with('"') => {
            return row.error("the row has no `prompt`: write what both answers reply to into it");
        }
        prompt => {
            let messages = prompt.map(|p| turns("prompt", p)).transpose()?;
            let (mut good, mut bad) = (turns(chosen_key, chosen)?, turns(rejected_key, rejected)?);
            let messages = match messages {
                Some(messages) => messages,
                // TRL's implicit prompt: what both conversations begin with.
                None => {
                    let same = good.iter().zip(&bad).take_while(|(a, b)| a == b).count();
                    bad.drain(..same);
                    good.drain(..same).collect()
                }
            };
            for (key, node, side) in [(chosen_key, chosen, &good), (rejected_key, rejected, &bad)] {
                match side.last() {
                    None => return node.error("chosen and rejected are the same, so there is nothing to learn"),
                    Some(m) if m.role != Role::Assistant => {
                        let role = m.role.template_name();
                        return node
                            .error(format!("the last message of `{key}` must be from the assistant, not from {role}"));
                    }
                    Some(_) => {}
                }
            }
            match messages.last() {
                None => return row.error("nothing is asked: the prompt has no messages"),
                Some(last) if last.role == Role::Assistant => {
                    return prompt.unwrap_or(row).error("the prompt must not end with a message from the assistant");
                }
                Some(_) => {}
            }
            let tools = parse_tools(shape.tools)?;
            PreferenceRow::Chat { prompt: ChatRow { messages, tools }, chosen: good, rejected: bad }
        }
    };
    let same = match &parsed {
        PreferenceRow::Text { chosen, rejected, .. } => chosen == rejected,
        PreferenceRow::Chat { chosen, rejected, .. } => chosen == rejected,
    };
    if same { rejected.error("chosen and rejected are the same, so there is nothing to learn") } else { Ok(parsed) }
}

fn shape<'a>(row: Node<'a>, map: &BTreeMap<String, Node<'a>>) -> Parsed<Shape<'a>> {
    let openai = map.contains_key("preferred_output") || map.contains_key("non_preferred_output");
    let (good, bad) = if openai { ("preferred_output", "non_preferred_output") } else { ("chosen", "rejected") };
    let required = |key: &'static str| -> Parsed<(&'static str, Node<'a>)> {
        match map.get(key) {
            Some(node) => Ok((key, *node)),
            None => {
                let keys = || map.keys().map(String::as_str);
                let hint = match near(key, keys()).first() {
                    Some(n) => format!("; did you mean `{n}` to be `{key}`?"),
                    None => format!("; it has {}", quoted(keys())),
                };
                row.error(format!("the row has no `{key}`{hint}"))
            }
        }
    };
    let (chosen, rejected) = (required(good)?, required(bad)?);
    if !openai {
        let present = |key: &str| map.get(key).filter(|n| !n.is_null()).copied();
        return Ok(Shape { prompt: present("prompt"), tools: present("tools"), chosen, rejected });
    }
    let (_, input) = required("input")?;
    if !input.raw.starts_with('{') {
        return input.error(format!("`input` must be an object with `messages`, not {}", input.kind()));
    }
    let inner = input.object()?;
    match inner.get("messages") {
        Some(messages) => {
            let tools = inner.get("tools").filter(|n| !n.is_null()).copied();
            Ok(Shape { prompt: Some(*messages), tools, chosen, rejected })
        }
        None => input.error("`input` has no `messages`"),
    }
}

/// A list of messages; one message may stand alone.
fn turns(key: &str, node: Node<'_>) -> Parsed<Vec<Message>> {
    let single = node.raw.starts_with('{');
    let list = if single { vec![node] } else { node.list(&format!("`{key}`"))? };
    let number = |index: usize| format!("message {} of `{key}`", index.saturating_add(1));
    list.into_iter().enumerate().map(|(index, node)| parse_message(node, &number(index))).collect()
}
