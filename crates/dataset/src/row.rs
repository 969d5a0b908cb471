//! Rows as they come out of a dataset file.

use serde::Serialize;

/// Who speaks in a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    /// OpenAI's newer name for `system`; templates see `system`.
    Developer,
    User,
    Assistant,
    Tool,
}

impl Role {
    pub(crate) const NAMES: [&'static str; 5] = ["system", "developer", "user", "assistant", "tool"];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "system" => Self::System,
            "developer" => Self::Developer,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" => Self::Tool,
            _ => return None,
        })
    }

    /// The name chat templates know.
    #[must_use]
    pub const fn template_name(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    pub role: Role,
    /// Text parts are joined; absent content (with tool calls) is empty.
    pub content: String,
    /// `weight` of an assistant message: whether its tokens carry loss. True for other roles and when absent.
    #[serde(skip)]
    pub trained: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// OpenAI's list; arguments are objects, as templates expect, also where the file had a JSON string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<minijinja::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A plain turn that carries loss if it is the assistant's.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), trained: true, name: None, tool_calls: None, tool_call_id: None }
    }
}

/// One `{"messages": […]}` row.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ChatRow {
    pub messages: Vec<Message>,
    /// Tool schemas offered to the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<minijinja::Value>,
}

/// One `{"instruction", "input"?, "output"}` or `{"prompt", "completion"}` row.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct InstructionRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    pub instruction: String,
    /// Empty when the row has none.
    pub input: String,
    pub output: String,
}

impl InstructionRow {
    /// What the user says: the instruction, then the input after a blank line.
    #[must_use]
    pub fn prompt(&self) -> String {
        if self.input.is_empty() { self.instruction.clone() } else { format!("{}\n\n{}", self.instruction, self.input) }
    }

    /// The same as a chat.
    #[must_use]
    pub fn to_chat(&self) -> ChatRow {
        let system = self.system.iter().map(|s| Message::new(Role::System, s.as_str()));
        let turns = [Message::new(Role::User, self.prompt()), Message::new(Role::Assistant, self.output.as_str())];
        ChatRow { messages: system.chain(turns).collect(), tools: None }
    }
}

/// Two answers to one prompt, the first preferred.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PreferenceRow {
    Text {
        prompt: String,
        chosen: String,
        rejected: String,
    },
    /// `chosen` and `rejected` go on from the prompt and end with the assistant.
    Chat {
        #[serde(flatten)]
        prompt: ChatRow,
        chosen: Vec<Message>,
        rejected: Vec<Message>,
    },
}

/// The class of a text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(untagged)]
pub enum Label {
    /// Its number, from 0.
    Class(u32),
    Name(String),
}

/// One `{"text", "label"}` row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelledRow {
    pub text: String,
    pub label: Label,
}

/// One row of any format.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    Chat(ChatRow),
    Instruction(InstructionRow),
    Preference(PreferenceRow),
    Labelled(LabelledRow),
    Text(String),
}
