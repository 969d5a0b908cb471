//! What validation says about good and bad files.

use crate::common::base_model;
use dataset::{
    DatasetFormat, Encoder, LocatedError, ReadError, Row, Rows, TokenCounter, ValidationReport, preview, validate,
};
use serde_json::json;
use std::io::{self, Read};

const GOOD: &str = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#;

fn check(input: impl AsRef<[u8]>) -> ValidationReport {
    validate(input.as_ref(), None, None).unwrap()
}

/// `line:column reason` of every error kept.
fn errors(input: impl AsRef<[u8]>) -> Vec<String> {
    let show = |e: LocatedError| match e.column {
        Some(column) => format!("{}:{column} {}", e.line, e.reason),
        None => format!("{} {}", e.line, e.reason),
    };
    check(input).errors.into_iter().map(show).collect()
}

/// The only error of a chat file that consists of this row.
fn chat_error(row: &str) -> String {
    let all = errors(row);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

#[test]
fn good_files_of_every_format_are_counted() {
    let chat = check(format!("\u{feff}{GOOD}\r\n{GOOD}\r\n\r\n\r\n"));
    assert!(chat.is_valid());
    assert_eq!((chat.format, chat.rows, chat.duplicates), (DatasetFormat::ChatJsonl, 2, 1));
    assert_eq!(chat.bytes, 3 + 2 * (GOOD.len() as u64 + 2) + 4);

    let instruction = check(
        "{\"instruction\": \"Add\", \"input\": \"1 1\", \"output\": \"2\"}\n{\"instruction\": \"Say\", \"output\": \"x\"}",
    );
    assert_eq!((instruction.format, instruction.rows), (DatasetFormat::InstructionJsonl, 2));
    let prompt = check(r#"{"prompt": "Add", "completion": "2"}"#);
    assert_eq!((prompt.format, prompt.rows), (DatasetFormat::InstructionJsonl, 1));

    let text = check("\n\nOne\ndocument.\n \t\nAnother.\n\n\nOne\ndocument.");
    assert_eq!((text.format, text.rows, text.duplicates), (DatasetFormat::Text, 3, 1));
    assert!(text.is_valid());
}

#[test]
fn openai_s_optional_parts_are_accepted() {
    let row = json!({"messages": [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}], "name": "ann"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}], "weight": 0},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        {"role": "assistant", "content": "Done", "weight": 1},
    ], "tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": false});
    let rows: Vec<Row> = Rows::new(row.to_string().as_bytes(), DatasetFormat::ChatJsonl).map(Result::unwrap).collect();
    let [Row::Chat(chat)] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(chat.messages[1].content, "Hi you");
    let trained: Vec<bool> = chat.messages.iter().map(|m| m.trained).collect();
    assert_eq!(trained, [true, true, false, true, true]);
    assert!(chat.tools.is_some());
}

#[test]
fn broken_json_is_located() {
    let file = format!("{GOOD}\n{{\"messages\": [}}\n{GOOD}\n{{\"messages\":\n");
    assert_eq!(
        errors(file),
        [
            "2:15 broken JSON: expected value",
            "4:12 broken JSON: EOF while parsing a value; each row must be complete on one line",
        ]
    );
    assert_eq!(errors(format!("{GOOD}\nhello\n")), ["2:1 broken JSON: expected value"]);
    assert_eq!(errors(format!("{GOOD}\n42\n")), ["2:1 a row must be a JSON object, not a number"]);
    let lone = r#"{"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]}"#;
    assert_eq!(chat_error(lone), "1:50 broken JSON: unexpected end of hex escape");
}

#[test]
fn a_json_array_is_explained() {
    let all = errors(format!("[{GOOD},\n{GOOD}]"));
    assert_eq!(
        all[0],
        "1:1 a row must be a JSON object; this looks like a JSON array: write each element on a line of its own, without brackets and commas around them"
    );
    assert_eq!(all[1], format!("2:{} broken JSON: trailing characters", GOOD.len() + 1));
}

#[test]
fn wrong_roles_are_named_with_the_near_one() {
    let with = |role: &str| {
        format!(r#"{{"messages": [{{"role": "{role}", "content": "Hi"}}, {{"role": "assistant", "content": "x"}}]}}"#)
    };
    assert_eq!(chat_error(&with("asistant")), "1:24 unknown role `asistant` in message 1; did you mean `assistant`?");
    assert_eq!(chat_error(&with("human")), "1:24 unknown role `human` in message 1; did you mean `user`?");
    assert_eq!(chat_error(&with("User")), "1:24 unknown role `User` in message 1; did you mean `user`?");
    assert_eq!(
        chat_error(&with("zzz")),
        "1:24 unknown role `zzz` in message 1; known roles: system, developer, user, assistant, tool"
    );
}

#[test]
fn empty_rows_and_contents_are_errors() {
    assert_eq!(
        errors(format!("{GOOD}\n\n \n{GOOD}\n\n")),
        ["2 empty row: remove the blank line", "3 empty row: remove the blank line"]
    );
    assert_eq!(errors(format!("{GOOD}\n{{}}\n")), ["2:1 empty row: the object has no keys"]);
    assert_eq!(chat_error(r#"{"messages": []}"#), "1:14 empty row: `messages` has no messages");
    assert_eq!(
        chat_error(r#"{"messages": [{"role": "user", "content": " \n"}, {"role": "assistant", "content": "x"}]}"#),
        "1:43 empty content in message 1 (user)"
    );
    assert_eq!(
        chat_error(r#"{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "x"}]}"#),
        "1:43 `content` of message 1 is null; only an assistant message with `tool_calls` may have none"
    );
    assert_eq!(errors(r#"{"prompt": "", "completion": "x"}"#), ["1:12 empty `prompt`"]);
}

#[test]
fn conversations_without_something_to_learn_are_errors() {
    assert_eq!(
        chat_error(r#"{"messages": [{"role": "user", "content": "Hi"}]}"#),
        "1:14 no message from the assistant, so there is nothing to learn"
    );
    assert_eq!(
        chat_error(r#"{"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]}"#),
        "1:55 the last message must be from the assistant, not from user"
    );
    assert_eq!(
        chat_error(
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x", "weight": 0}]}"#
        ),
        "1:14 every assistant message has `weight` 0, so there is nothing to learn"
    );
}

#[test]
fn wrong_weights_are_located() {
    let with = |weight: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "x", "weight": {weight}}}]}}"#
        )
    };
    assert_eq!(chat_error(&with("0.5")), "1:98 `weight` of message 2 must be 0 or 1, not 0.5");
    assert_eq!(chat_error(&with("\"1\"")), "1:98 `weight` of message 2 must be 0 or 1, not \"1\"");
    assert!(check(with("1")).is_valid());
    assert_eq!(
        chat_error(
            r#"{"messages": [{"role": "user", "content": "Hi", "weight": 1}, {"role": "assistant", "content": "x"}]}"#
        ),
        "1:59 message 1 has a `weight`, which only assistant messages may have"
    );
}

#[test]
fn missing_keys_come_with_a_suggestion() {
    assert_eq!(
        chat_error(r#"{"mesages": [{"role": "user", "content": "Hi"}]}"#),
        "1:1 the row has no `messages`; did you mean `mesages` to be `messages`?"
    );
    assert!(chat_error(r#"{"conversations": [{"from": "human", "value": "Hi"}]}"#).contains("ShareGPT"));
    assert_eq!(
        chat_error(r#"{"messages": [{"from": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]}"#),
        "1:15 message 1 has no `role`; rename `from` to `role`"
    );
    assert_eq!(
        chat_error(r#"{"messages": [{"role": "user", "contents": "Hi"}, {"role": "assistant", "content": "x"}]}"#),
        "1:15 message 1 has no `content`; did you mean `contents` to be `content`?"
    );
    assert_eq!(
        errors(r#"{"instruction": "a", "response": "b"}"#),
        ["1:1 the row has no `output`; did you mean `response` to be `output`?"]
    );
    assert_eq!(
        errors(format!("{GOOD}\n{{\"prompt\": \"a\", \"completion\": \"b\"}}\n")),
        ["2:1 the row has no `messages`; it looks like an instruction row: keep the two formats in separate files"]
    );
    assert_eq!(
        errors(format!("{{\"prompt\": \"a\", \"completion\": \"b\"}}\n{GOOD}\n")),
        ["2:1 the row has no `instruction`; it looks like a chat row: keep the two formats in separate files"]
    );
}

#[test]
fn wrong_types_say_what_was_found() {
    assert_eq!(chat_error(r#"{"messages": "Hi"}"#), "1:14 `messages` must be a list, not a string");
    assert_eq!(
        chat_error(r#"{"messages": ["Hi"]}"#),
        "1:15 message 1 must be an object with `role` and `content`, not a string"
    );
    assert_eq!(
        chat_error(r#"{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "x"}]}"#),
        "1:43 `content` of message 1 must be a string or a list of text parts, not a number"
    );
    assert_eq!(
        chat_error(
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "x"}]}"#
        ),
        "1:44 only text parts can be trained on, message 1 has a part of type `image_url`"
    );
    assert_eq!(errors(r#"{"prompt": [], "completion": "x"}"#), ["1:12 `prompt` must be a string, not a list"]);
}

#[test]
fn bad_bytes_are_located() {
    let mut file = format!("{GOOD}\n{GOOD}\n").into_bytes();
    file[GOOD.len() + 10] = 0xff;
    assert_eq!(errors(&file), ["2:10 bad UTF-8: byte 0xff is not part of a character; save the file as UTF-8"]);
    file[GOOD.len() + 10] = 0;
    assert_eq!(errors(&file), ["2:10 NUL byte: the file is not plain text (or is UTF-16); save it as UTF-8"]);
    assert_eq!(
        errors(b"fine\n\ncaf\xe9 text"),
        ["3:4 bad UTF-8: byte 0xe9 is not part of a character; save the file as UTF-8"]
    );
}

#[test]
fn empty_files_are_errors() {
    assert_eq!(errors(""), ["1 the file is empty"]);
    assert_eq!(errors("\n \n\r\n"), ["1 the file has no rows, only blank lines"]);
    assert_eq!(errors("\u{feff}"), ["1 the file has no rows, only blank lines"]);
    assert!(!check("").is_valid());
}

#[test]
fn twenty_errors_are_kept_and_all_are_counted() {
    let report = check(format!("{}{GOOD}\n", "{\"messages\": 1}\n".repeat(57)));
    assert_eq!((report.error_count, report.errors.len(), report.rows), (57, 20, 1));
    assert_eq!(report.errors[19].line, 20);
    assert!(!report.is_valid());
}

/// Bytes made on the fly, so that the test itself stays small.
struct Endless {
    head: &'static [u8],
    left: u64,
    tail: &'static [u8],
}

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            return self.head.read(out);
        }
        if self.left > 0 {
            let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
            out[..n].fill(b'a');
            self.left -= n as u64;
            return Ok(n);
        }
        self.tail.read(out)
    }
}

#[test]
fn a_hundred_megabyte_line_is_refused_in_little_memory_and_the_rest_is_read() {
    let tail = br#""}]}
{"prompt": "a", "completion": "b"}"#;
    let reader = Endless { head: br#"{"prompt": ""#, left: 100 << 20, tail };
    let before = peak_memory();
    let report = validate(reader, None, None).unwrap();
    let grown = peak_memory() - before;
    assert_eq!(report.errors[0].reason, "line too long: 104857617 bytes, at most 4194304 are allowed");
    assert_eq!((report.error_count, report.rows, report.format), (1, 1, DatasetFormat::InstructionJsonl));
    assert!(grown < 32 << 10, "memory grew by {grown} KiB");
}

/// Largest resident size of this process so far, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_failing_reader_is_an_error_and_ends_the_rows() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("connection reset"))
        }
    }
    let start = format!("{GOOD}\n");
    assert_eq!(validate(start.as_bytes().chain(Broken), None, None).unwrap_err().to_string(), "connection reset");
    let mut rows = Rows::new(start.as_bytes().chain(Broken), DatasetFormat::ChatJsonl);
    assert!(matches!(rows.next(), Some(Ok(Row::Chat(_)))));
    assert!(matches!(rows.next(), Some(Err(ReadError::Io(_)))));
    assert!(rows.next().is_none());
}

#[test]
fn previews_show_the_first_good_rows_as_they_are() {
    let file = format!("{{\"broken\n{GOOD}\n{GOOD}\n{GOOD}\n");
    let shown = preview(file.as_bytes(), Some(DatasetFormat::ChatJsonl), 0..2).unwrap();
    let row: serde_json::Value = serde_json::from_str(GOOD).unwrap();
    assert_eq!(shown.rows, [row.clone(), row]);
    let second = preview(file.as_bytes(), Some(DatasetFormat::ChatJsonl), 1..2).unwrap();
    assert_eq!(second.rows, shown.rows[1..]);
    let text = preview("One\ntwo.\n\nThree.".as_bytes(), None, 0..100).unwrap();
    assert_eq!(text.rows, [json!("One\ntwo."), json!("Three.")]);
}

#[test]
fn token_statistics_describe_the_rendered_rows() {
    let encoder = Encoder::load(&base_model(), 512).unwrap();
    let counter = TokenCounter { name: "hone-tiny@0", encoder: &encoder };
    let row = |answer: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "{answer}"}}]}}"#
        )
    };
    let file = format!("{}\n{}\n", row("the"), row("the the the"));
    let stats = validate(file.as_bytes(), None, Some(counter)).unwrap().tokens.unwrap();
    // `the`, two times ` the`, and the end of both turns.
    assert_eq!(stats.trained, 1 + 3 + 2);
    assert_eq!(stats.max, stats.min + 2);
    assert_eq!(stats.total, stats.min + stats.max);
    assert_eq!((stats.p95, stats.tokenizer.as_str()), (stats.max, "hone-tiny@0"));
    assert!((stats.mean - (stats.min + 1) as f64).abs() < 1e-12);
}
