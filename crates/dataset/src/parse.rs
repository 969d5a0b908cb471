//! One record to one [`Row`], or a located sentence about what is wrong with it.

mod labelled;
mod preference;

pub(crate) use labelled::LABELLED_KEYS;
pub(crate) use preference::PREFERENCE_KEYS;

use crate::row::{ChatRow, InstructionRow, Message, Role, Row};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use wire::{
    dataset::{DatasetFormat, LocatedError},
    problem::near,
};

/// Keys that make a row look like a chat, also in other tools' spellings.
pub(crate) const CHAT_KEYS: &[&str] = &["messages", "conversations", "conversation"];
/// Keys that make a row look like an instruction.
pub(crate) const INSTRUCTION_KEYS: &[&str] =
    &["instruction", "prompt", "output", "completion", "response", "question", "answer"];

/// Parses the text of one record that stands on `line` (from 1).
pub fn parse_row(text: &str, format: DatasetFormat, line: u64) -> Result<Row, LocatedError> {
    let parsed = match format {
        DatasetFormat::ChatJsonl => parse_chat(text).map(Row::Chat),
        DatasetFormat::InstructionJsonl => parse_instruction(text).map(Row::Instruction),
        DatasetFormat::PreferenceJsonl => preference::parse_preference(text).map(Row::Preference),
        DatasetFormat::LabelledJsonl => labelled::parse_labelled(text).map(Row::Labelled),
        DatasetFormat::Text => return Ok(Row::Text(text.to_owned())),
    };
    parsed.map_err(|e| LocatedError {
        line,
        column: u64::try_from(e.at).ok().map(|at| at.saturating_add(1)),
        reason: e.reason,
    })
}

struct RowError {
    /// Byte offset in the line.
    at: usize,
    reason: String,
}

type Parsed<T> = Result<T, RowError>;

/// A JSON value that has not been looked into, and where it stands.
#[derive(Clone, Copy)]
struct Node<'a> {
    raw: &'a str,
    at: usize,
}

impl<'a> Node<'a> {
    fn error<T>(self, reason: impl Into<String>) -> Parsed<T> {
        Err(RowError { at: self.at, reason: reason.into() })
    }

    fn read<T: Deserialize<'a>>(self) -> Parsed<T> {
        serde_json::from_str(self.raw).map_err(|e| {
            let text = e.to_string();
            let text = text.rfind(" at line ").and_then(|end| text.get(..end)).unwrap_or(&text);
            let hint = if e.is_eof() { "; each row must be complete on one line" } else { "" };
            RowError {
                at: self.at.saturating_add(e.column().saturating_sub(1)),
                reason: format!("broken JSON: {text}{hint}"),
            }
        })
    }

    /// The value inside this one. `raw` borrows from `self.raw`, so the distance of the two is its place.
    fn child(self, raw: &'a RawValue) -> Self {
        let inside = raw.get().as_ptr().addr().saturating_sub(self.raw.as_ptr().addr());
        Self { raw: raw.get(), at: self.at.saturating_add(inside) }
    }

    fn object(self) -> Parsed<BTreeMap<String, Self>> {
        let map: BTreeMap<String, &'a RawValue> = self.read()?;
        Ok(map.into_iter().map(|(k, v)| (k, self.child(v))).collect())
    }

    fn array(self) -> Parsed<Vec<Self>> {
        let items: Vec<&'a RawValue> = self.read()?;
        Ok(items.into_iter().map(|v| self.child(v)).collect())
    }

    fn kind(self) -> &'static str {
        match self.raw.as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "a list",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    fn is_null(self) -> bool {
        self.raw == "null"
    }

    fn string(self, what: &str) -> Parsed<String> {
        if self.raw.starts_with('"') {
            self.read()
        } else {
            self.error(format!("{what} must be a string, not {}", self.kind()))
        }
    }

    fn list(self, what: &str) -> Parsed<Vec<Self>> {
        if self.raw.starts_with('[') {
            self.array()
        } else {
            self.error(format!("{what} must be a list, not {}", self.kind()))
        }
    }
}

/// The row's keys; broken JSON and anything but an object end here.
fn row_object(text: &str) -> Parsed<(Node<'_>, BTreeMap<String, Node<'_>>)> {
    let trimmed = text.trim_start();
    let node = Node { raw: trimmed, at: text.len().saturating_sub(trimmed.len()) };
    match trimmed.as_bytes().first() {
        Some(b'{') => {
            let map = node.object()?;
            if map.is_empty() { node.error("empty row: the object has no keys") } else { Ok((node, map)) }
        }
        Some(b'[') => node.error("a row must be a JSON object; this looks like a JSON array: write each element on a line of its own, without brackets and commas around them"),
        _ => {
            // Syntax first: an unquoted word is broken JSON rather than a wrong type.
            let raw: &RawValue = node.read()?;
            let kind = node.child(raw).kind();
            node.error(format!("a row must be a JSON object, not {kind}"))
        }
    }
}

fn parse_chat(text: &str) -> Parsed<ChatRow> {
    let (row, map) = row_object(text)?;
    let Some(messages) = map.get("messages") else {
        let keys = || map.keys().map(String::as_str);
        let hint = if map.contains_key("conversations") || map.contains_key("conversation") {
            "; it has ShareGPT's `conversations`: rename it to `messages`, `from` to `role` and `value` to `content`, and the roles to user and assistant".to_owned()
        } else if let Some(n) = near("messages", keys()).first() {
            format!("; did you mean `{n}` to be `messages`?")
        } else if keys().any(|k| INSTRUCTION_KEYS.contains(&k)) {
            "; it looks like an instruction row: keep the two formats in separate files".to_owned()
        } else {
            format!("; it has {}", quoted(keys()))
        };
        return row.error(format!("the row has no `messages`{hint}"));
    };
    let list = messages.list("`messages`")?;
    if list.is_empty() {
        return messages.error("empty row: `messages` has no messages");
    }
    let tools = parse_tools(map.get("tools").copied())?;
    let mut parsed: Vec<Message> = Vec::with_capacity(list.len());
    for (index, node) in list.iter().enumerate() {
        parsed.push(parse_message(*node, &format!("message {}", index.saturating_add(1)))?);
    }
    let assistant = || parsed.iter().filter(|m| m.role == Role::Assistant);
    if assistant().next().is_none() {
        return messages.error("no message from the assistant, so there is nothing to learn");
    }
    if assistant().all(|m| !m.trained) {
        return messages.error("every assistant message has `weight` 0, so there is nothing to learn");
    }
    match (parsed.last(), list.last()) {
        (Some(last), Some(node)) if last.role != Role::Assistant => {
            node.error(format!("the last message must be from the assistant, not from {}", last.role.template_name()))
        }
        _ => Ok(ChatRow { messages: parsed, tools }),
    }
}

fn parse_tools(node: Option<Node<'_>>) -> Parsed<Option<minijinja::Value>> {
    match node {
        Some(tools) if !tools.is_null() => {
            tools.list("`tools`")?;
            tools.read().map(Some)
        }
        _ => Ok(None),
    }
}

/// `what` names the message in errors: `message 2`.
fn parse_message(node: Node<'_>, what: &str) -> Parsed<Message> {
    if !node.raw.starts_with('{') {
        return node.error(format!("{what} must be an object with `role` and `content`, not {}", node.kind()));
    }
    let map = node.object()?;
    let missing = |key: &str, synonym: &str| {
        let hint = if map.contains_key(synonym) {
            format!("; rename `{synonym}` to `{key}`")
        } else {
            near(key, map.keys().map(String::as_str))
                .first()
                .map_or_else(String::new, |n| format!("; did you mean `{n}` to be `{key}`?"))
        };
        node.error(format!("{what} has no `{key}`{hint}"))
    };
    let Some(role_node) = map.get("role") else {
        return missing("role", "from");
    };
    let name = role_node.string(&format!("`role` of {what}"))?;
    let Some(role) = Role::parse(&name) else {
        let near_name = match name.to_lowercase().as_str() {
            "human" | "customer" => Some("user"),
            "gpt" | "bot" | "model" | "ai" | "chatbot" => Some("assistant"),
            "function" => Some("tool"),
            _ => near(&name, Role::NAMES).first().copied(),
        };
        let hint = near_name
            .map_or_else(|| format!("; known roles: {}", Role::NAMES.join(", ")), |n| format!("; did you mean `{n}`?"));
        return role_node.error(format!("unknown role `{}` in {what}{hint}", shorten(&name)));
    };
    let mut message = Message::new(role, "");
    if let Some(calls) = map.get("tool_calls").filter(|c| !c.is_null()) {
        if role != Role::Assistant {
            return calls.error(format!("{what} has `tool_calls`, which only assistant messages may have"));
        }
        message.tool_calls = Some(parse_tool_calls(*calls, what)?);
    }
    match map.get("content") {
        Some(content) if !content.is_null() => {
            message.content = parse_content(*content, what)?;
            let may_be_empty = !matches!(role, Role::User | Role::Assistant) || message.tool_calls.is_some();
            if !may_be_empty && message.content.trim().is_empty() {
                return content.error(format!("empty content in {what} ({})", role.template_name()));
            }
        }
        _ if message.tool_calls.is_some() => {}
        Some(content) => {
            return content.error(format!(
                "`content` of {what} is null; only an assistant message with `tool_calls` may have none"
            ));
        }
        None => return missing("content", "value"),
    }
    if let Some(weight) = map.get("weight").filter(|w| !w.is_null()) {
        if role != Role::Assistant {
            return weight.error(format!("{what} has a `weight`, which only assistant messages may have"));
        }
        message.trained = match weight.raw {
            "0" | "0.0" => false,
            "1" | "1.0" => true,
            other => {
                return weight.error(format!("`weight` of {what} must be 0 or 1, not {}", shorten(other)));
            }
        };
    }
    for (key, slot) in [("name", &mut message.name), ("tool_call_id", &mut message.tool_call_id)] {
        if let Some(value) = map.get(key).filter(|v| !v.is_null()) {
            *slot = Some(value.string(&format!("`{key}` of {what}"))?);
        }
    }
    Ok(message)
}

/// A string, or OpenAI's list of `{"type": "text", "text"}` parts, joined.
fn parse_content(node: Node<'_>, what: &str) -> Parsed<String> {
    if node.raw.starts_with('"') {
        return node.read();
    }
    if !node.raw.starts_with('[') {
        return node
            .error(format!("`content` of {what} must be a string or a list of text parts, not {}", node.kind()));
    }
    let mut text = String::new();
    for part in node.array()? {
        if part.raw.starts_with('"') {
            text.push_str(&part.read::<String>()?);
            continue;
        }
        if !part.raw.starts_with('{') {
            return part.error(format!("a content part of {what} must be an object, not {}", part.kind()));
        }
        let map = part.object()?;
        let kind = match map.get("type") {
            Some(kind) => kind.string("`type` of a content part")?,
            None => "text".to_owned(),
        };
        match map.get("text") {
            Some(value) if kind == "text" => text.push_str(&value.string("`text` of a content part")?),
            None if kind == "text" => return part.error(format!("a text part of {what} has no `text`")),
            _ => {
                return part.error(format!(
                    "only text parts can be trained on, {what} has a part of type `{}`",
                    shorten(&kind)
                ));
            }
        }
    }
    Ok(text)
}

fn parse_tool_calls(node: Node<'_>, what: &str) -> Parsed<minijinja::Value> {
    let mut calls: Vec<minijinja::Value> = Vec::new();
    for call in node.list(&format!("`tool_calls` of {what}"))? {
        if !call.raw.starts_with('{') {
            return call.error(format!("a tool call of {what} must be an object, not {}", call.kind()));
        }
        let map = call.object()?;
        let Some(function) = map.get("function") else {
            return call.error(format!("a tool call of {what} has no `function`"));
        };
        if !function.raw.starts_with('{') || !function.object()?.contains_key("name") {
            return function
                .error(format!("`function` of a tool call in {what} must be an object with `name` and `arguments`"));
        }
        let value: minijinja::Value = call.read()?;
        calls.push(with_key(&value, "function", |f| with_key(f, "arguments", arguments_object)));
    }
    Ok(calls.into())
}

/// OpenAI writes a call's arguments as JSON in a string, templates expect the object.
fn arguments_object(arguments: &minijinja::Value) -> minijinja::Value {
    let parsed = arguments.as_str().and_then(|s| serde_json::from_str::<minijinja::Value>(s).ok());
    parsed.filter(|v| v.kind() == minijinja::value::ValueKind::Map).unwrap_or_else(|| arguments.clone())
}

/// The map with one value replaced, in the same order.
pub(crate) fn with_key(
    map: &minijinja::Value,
    key: &str,
    change: impl Fn(&minijinja::Value) -> minijinja::Value,
) -> minijinja::Value {
    let Ok(keys) = map.try_iter() else { return map.clone() };
    let entry = |k: minijinja::Value| {
        let value = map.get_item(&k).unwrap_or_default();
        let value = if k.as_str() == Some(key) { change(&value) } else { value };
        (k, value)
    };
    keys.map(entry).collect()
}

fn parse_instruction(text: &str) -> Parsed<InstructionRow> {
    let (row, map) = row_object(text)?;
    let prompt_shape =
        !map.contains_key("instruction") && (map.contains_key("prompt") || map.contains_key("completion"));
    let (ask, answer) = if prompt_shape { ("prompt", "completion") } else { ("instruction", "output") };
    let required = |key: &str, synonyms: &[&str]| -> Parsed<String> {
        let Some(node) = map.get(key) else {
            let keys = || map.keys().map(String::as_str);
            let other = near(key, keys()).first().copied().or_else(|| keys().find(|k| synonyms.contains(k)));
            let hint = match other {
                Some(n) => format!("; did you mean `{n}` to be `{key}`?"),
                None if map.contains_key("messages") => {
                    "; it looks like a chat row: keep the two formats in separate files".to_owned()
                }
                None => format!("; it has {}", quoted(keys())),
            };
            return row.error(format!("the row has no `{key}`{hint}"));
        };
        let value = node.string(&format!("`{key}`"))?;
        if value.trim().is_empty() { node.error(format!("empty `{key}`")) } else { Ok(value) }
    };
    let optional = |key: &str| -> Parsed<Option<String>> {
        map.get(key).filter(|n| !n.is_null()).map(|n| n.string(&format!("`{key}`"))).transpose()
    };
    Ok(InstructionRow {
        instruction: required(ask, &["question", "query", "text"])?,
        output: required(answer, &["response", "answer", "completion", "target"])?,
        input: if prompt_shape { None } else { optional("input")? }.unwrap_or_default(),
        system: optional("system")?.filter(|s| !s.is_empty()),
    })
}

/// Keys for a message, a few of them.
fn quoted<'k>(keys: impl Iterator<Item = &'k str>) -> String {
    let keys: Vec<String> = keys.take(6).map(|k| format!("`{}`", shorten(k))).collect();
    keys.join(", ")
}

/// At most 40 characters of something a user wrote.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
