//! Chat templates with the semantics of `transformers.PreTrainedTokenizer.apply_chat_template`.
//!
//! Templates come with models from outside, so rendering is bounded: no loader, a fuel limit, no I/O.

use crate::{
    row::{ChatRow, Message},
    tokenizer::{LoadError, Tokenizer, read_json},
};
use chrono::{DateTime, Local};
use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;
use std::{fmt::Write as _, fs, io, ops::Range, path::Path};

/// Instructions a template may execute per conversation.
const FUEL: u64 = 20_000_000;

/// Stand around what `{% generation %}` encloses while rendering. Noncharacters: never in real text.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// The chat template refused the conversation; the text is the template's own message where it has one.
#[derive(Debug, thiserror::Error)]
#[error("the chat template refuses the conversation: {0}")]
pub struct TemplateError(String);

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens the template may name.
    special: Vec<(&'static str, String)>,
    /// The template marks what the assistant writes with `{% generation %}`.
    marks_generation: bool,
    has_tool_template: bool,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub text: String,
    /// Byte ranges enclosed by `{% generation %}`.
    pub generated: Vec<Range<usize>>,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// The template of a model directory: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json`; `None` when the model has none.
    pub fn load(model_dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>, LoadError> {
        let config_path = model_dir.join("tokenizer_config.json");
        let file_path = model_dir.join("chat_template.jinja");
        let config = read_json(&config_path)?;
        let mut sources: Vec<(&'static str, String)> = Vec::new();
        match config.get("chat_template") {
            Some(serde_json::Value::String(source)) => sources.push((DEFAULT, source.clone())),
            Some(serde_json::Value::Array(named)) => {
                for (key, item) in [DEFAULT, TOOL_USE].iter().flat_map(|k| named.iter().map(move |i| (*k, i))) {
                    let field = |f: &str| item.get(f).and_then(serde_json::Value::as_str);
                    if field("name") == Some(key) {
                        sources.extend(field("template").map(|t| (key, t.to_owned())));
                    }
                }
            }
            _ => {}
        }
        let mut path = config_path;
        match fs::read_to_string(&file_path) {
            Ok(source) => {
                sources.retain(|(name, _)| *name != DEFAULT);
                sources.push((DEFAULT, source));
                path = file_path;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(LoadError::Read { path: file_path, source }),
        }
        if !sources.iter().any(|(name, _)| *name == DEFAULT) {
            return Ok(None);
        }
        Self::compile(sources, tokenizer.special.clone()).map(Some).map_err(|reason| LoadError::Malformed {
            path,
            reason: format!("its chat template does not compile: {reason}"),
        })
    }

    /// Compiles one template; `special` are the texts of special tokens by name (`bos_token`, …).
    pub fn new(source: &str, special: &[(&'static str, &str)]) -> Result<Self, String> {
        let special = special.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        Self::compile(vec![(DEFAULT, source.to_owned())], special)
    }

    fn compile(sources: Vec<(&'static str, String)>, special: Vec<(&'static str, String)>) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            ValueKind::None => Ok(out.write_str("None")?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let now = Local::now();
        environment.add_function("strftime_now", move |format: String| format_time(now, &format));
        let mut marks_generation = false;
        let mut has_tool_template = false;
        for (name, source) in sources {
            let (source, marked) = replace_generation_tags(&source);
            marks_generation |= marked;
            has_tool_template |= name == TOOL_USE;
            environment.add_template_owned(name, source).map_err(|e| describe(&e))?;
        }
        Ok(Self { environment, special, marks_generation, has_tool_template })
    }

    /// Fixes what `strftime_now` tells templates that print today's date.
    #[must_use]
    pub fn at(mut self, now: DateTime<Local>) -> Self {
        self.environment.add_function("strftime_now", move |format: String| format_time(now, &format));
        self
    }

    /// Whether the template tells by itself which text the assistant writes.
    pub(crate) const fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// The conversation as text. `generation_prompt` ends it where the assistant's next message begins.
    pub fn render(&self, chat: &ChatRow, generation_prompt: GenerationPrompt) -> Result<String, TemplateError> {
        self.render_messages(&chat.messages, chat.tools.as_ref(), generation_prompt).map(|r| r.text)
    }

    pub(crate) fn render_messages(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        generation_prompt: GenerationPrompt,
    ) -> Result<Rendered, TemplateError> {
        let name = if tools.is_some() && self.has_tool_template { TOOL_USE } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(|e| TemplateError(describe(&e)))?;
        let messages: Vec<Value> = messages.iter().map(message_value).collect();
        let special: Value = self.special.iter().map(|(name, text)| (*name, Value::from(text.as_str()))).collect();
        let text = template
            .render(context! {
                messages,
                tools => tools.cloned().unwrap_or(Value::from(())),
                documents => Value::from(()),
                add_generation_prompt => matches!(generation_prompt, GenerationPrompt::Add),
                ..special
            })
            .map_err(|e| TemplateError(describe(&e)))?;
        if !self.marks_generation {
            return Ok(Rendered { text, generated: Vec::new() });
        }
        unmark(&text).ok_or_else(|| TemplateError("its text contains the noncharacters U+FDD0 or U+FDD1".into()))
    }
}

/// Whether a rendered conversation ends with the header of an assistant message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    Add,
    Omit,
}

fn message_value(message: &Message) -> Value {
    let mut fields =
        vec![("role", Value::from(message.role.template_name())), ("content", Value::from(message.content.as_str()))];
    fields.extend(message.name.as_deref().map(|n| ("name", Value::from(n))));
    fields.extend(message.tool_calls.clone().map(|c| ("tool_calls", c)));
    fields.extend(message.tool_call_id.as_deref().map(|id| ("tool_call_id", Value::from(id))));
    fields.into_iter().collect()
}

/// Python's `json.dumps(value, ensure_ascii=False, …)`, which transformers puts in place of Jinja's filter.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let failed =
        |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, "cannot serialize to JSON").with_source(e);
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
        None => {
            let (item, key) = match separators.as_deref() {
                Some([item, key]) => (item.as_str(), key.as_str()),
                _ => (", ", ": "),
            };
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonJson { item, key }))
                .map_err(failed)?;
        }
    }
    let text = String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// Compact JSON with Python's separators.
struct PythonJson<'a> {
    item: &'a str,
    key: &'a str,
}

impl PythonJson<'_> {
    fn separate<W: ?Sized + io::Write>(&self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.item.as_bytes()) }
    }
}

impl serde_json::ser::Formatter for PythonJson<'_> {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }
}

fn format_time(now: DateTime<Local>, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    // An unknown specifier makes chrono's Display fail.
    write!(text, "{}", now.format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format `{format}`")))?;
    Ok(text)
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, which minijinja does not know, with markers that
/// keep each tag's whitespace control.
fn replace_generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(length) = tag.find("%}").map(|end| end.saturating_add(2)) else {
            out.push_str(tag);
            return (out, found);
        };
        let (tag, after) = tag.split_at(length);
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        let marker = match inner.trim_matches(['-', '+']).trim() {
            "generation" => Some(OPEN),
            "endgeneration" => Some(CLOSE),
            _ => None,
        };
        match marker {
            Some(marker) => {
                found = true;
                let sign = |c: Option<char>| c.filter(|c| matches!(c, '-' | '+')).map(String::from).unwrap_or_default();
                let (left, right) = (sign(inner.chars().next()), sign(inner.chars().next_back()));
                out.push_str(&format!("{{%{left} if true %}}{{{{ '{marker}' }}}}{{% endif {right}%}}"));
            }
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    (out, found)
}

/// Takes the markers out of `text`; `None` if they are not properly paired.
fn unmark(text: &str) -> Option<Rendered> {
    let mut rendered = Rendered { text: String::with_capacity(text.len()), generated: Vec::new() };
    let mut open = None;
    for c in text.chars() {
        match (c, open) {
            (OPEN, None) => open = Some(rendered.text.len()),
            (CLOSE, Some(start)) => {
                rendered.generated.push(start..rendered.text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => return None,
            (c, _) => rendered.text.push(c),
        }
    }
    open.is_none().then_some(rendered)
}

/// minijinja's message without the template's internal name.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) if !matches!(error.kind(), ErrorKind::InvalidOperation) => format!("{what} (template line {line})"),
        _ => what,
    }
}
