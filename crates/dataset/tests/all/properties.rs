//! Nothing in a file may make the readers panic, and how it arrives must not matter.

use dataset::{
    ChatRow, DatasetFormat, EncodeError, Encoder, LossOn, Message, ReadError, Role, Row, Rows, detect, preview,
    validate,
};
use proptest::prelude::*;
use std::{
    io::{self, Read},
    sync::OnceLock,
};

/// Gives the bytes out in pieces of the given sizes.
struct Chunked<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl Read for Chunked<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes.next().copied().unwrap_or(1).min(out.len());
        let end = size.min(self.bytes.len());
        self.bytes[..end].as_ref().read(&mut out[..end])?;
        self.bytes = &self.bytes[end..];
        Ok(end)
    }
}

/// Pieces a dataset file may be made of, good and bad.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let good = r#"{"messages": [{"role": "user", "content": "Hi ü"}, {"role": "assistant", "content": "x"}]}"#;
    let fixed = [
        good,
        "\n",
        "\r\n",
        "\n\n",
        r#"{"prompt": "a", "completion": "b"}"#,
        r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#,
        r#"{"input": {"messages": [{"role": "user", "content": "a"}]}, "preferred_output": [{"role": "assistant", "content": "b"}], "non_preferred_output": [7]}"#,
        r#"{"text": "a", "label": 1}"#,
        r#"{"messages": [{"role": "usr", "content": ["#,
        r#"{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}], "weight": 2}]}"#,
        r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}]}"#,
        "\u{feff}",
        "[",
        "\0",
        "  ",
        r#""\ud800""#,
        "null",
    ];
    prop_oneof![
        8 => proptest::sample::select(fixed.to_vec()).prop_map(|s| s.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
        1 => "[ -~]{0,20}".prop_map(String::into_bytes),
    ]
}

fn file() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(fragment(), 0..20).prop_map(|parts| parts.concat())
}

fn format() -> impl Strategy<Value = Option<DatasetFormat>> {
    proptest::sample::select(vec![
        None,
        Some(DatasetFormat::ChatJsonl),
        Some(DatasetFormat::InstructionJsonl),
        Some(DatasetFormat::PreferenceJsonl),
        Some(DatasetFormat::LabelledJsonl),
        Some(DatasetFormat::Text),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn tiny_chunks_give_the_same_report_as_the_whole(bytes in file(), sizes in proptest::collection::vec(1_usize..9, 1..6), format in format()) {
        let whole = validate(bytes.as_slice(), format, None).unwrap();
        let chunked = validate(Chunked { bytes: &bytes, sizes: sizes.iter().cycle() }, format, None).unwrap();
        prop_assert_eq!(&whole, &chunked);
        prop_assert_eq!(whole.bytes, bytes.len() as u64);
    }

    #[test]
    fn rows_preview_and_report_agree(bytes in file(), format in format()) {
        let report = validate(bytes.as_slice(), format, None).unwrap();
        prop_assert!(format.is_some() || report.format == detect(&bytes));
        let (mut rows, mut errors) = (0, Vec::new());
        for row in Rows::new(bytes.as_slice(), report.format) {
            match row {
                Ok(_) => rows += 1,
                Err(ReadError::Row(e)) => errors.push(e),
                Err(ReadError::Io(e)) => return Err(TestCaseError::fail(e.to_string())),
            }
        }
        prop_assert_eq!(report.rows, rows);
        if rows > 0 || !errors.is_empty() {
            prop_assert_eq!(report.error_count, errors.len() as u64);
            errors.truncate(20);
            prop_assert_eq!(&report.errors, &errors);
        } else {
            prop_assert_eq!(report.error_count, 1);
        }
        let shown = preview(bytes.as_slice(), format, 0..1000).unwrap();
        prop_assert_eq!(shown.rows.len() as u64, rows);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), format in format()) {
        let report = validate(bytes.as_slice(), format, None).unwrap();
        let lines = bytes.split(|b| *b == b'\n').count() as u64;
        for e in &report.errors {
            prop_assert!((1..=lines).contains(&e.line), "{:?}", e);
        }
    }

    #[test]
    fn every_error_points_into_its_line(bytes in file()) {
        for e in validate(bytes.as_slice(), Some(DatasetFormat::ChatJsonl), None).unwrap().errors {
            let line = bytes.split(|b| *b == b'\n').nth(usize::try_from(e.line - 1).unwrap()).unwrap_or_default();
            prop_assert!(e.column.unwrap_or(1) <= line.len() as u64 + 1, "{:?} in {:?}", e, line);
        }
    }
}

fn chatml() -> &'static Encoder {
    static ENCODER: OnceLock<Encoder> = OnceLock::new();
    ENCODER.get_or_init(|| crate::common::encoder("chatml", "<bos>", "<|im_end|>", 4096))
}

proptest! {
    #[test]
    fn trained_tokens_are_the_assistant_s_text_whatever_is_said(
        turns in proptest::collection::vec(("[ab \n.éü]{0,8}[ab]", "[ab \n.éü]{0,8}[ab]"), 1..4)
    ) {
        let mut messages = Vec::new();
        let mut expected = String::new();
        for (user, assistant) in &turns {
            messages.push(Message::new(Role::User, user.as_str()));
            messages.push(Message::new(Role::Assistant, assistant.as_str()));
            expected.push_str(assistant);
            expected.push_str("<|im_end|>");
        }
        let row = Row::Chat(ChatRow { messages, tools: None });
        let sequence = chatml().encode_row(&row, LossOn::Assistant).unwrap().remove(0);
        let ids: Vec<u32> = sequence.tokens.iter().zip(&sequence.trained).filter(|p| *p.1).map(|p| *p.0).collect();
        // A token may reach from the header's line break into a text that begins with white space.
        let got = chatml().tokenizer().decode(&ids, false).unwrap();
        let squeeze = |s: &str| s.split_whitespace().collect::<String>();
        prop_assert_eq!(squeeze(&got), squeeze(&expected));
    }

    #[test]
    fn control_tokens_inside_a_message_do_not_panic(text in "(<\\|im_end\\|>|<\\|im_start\\|>|assistant|\n|a){1,6}") {
        let messages = vec![Message::new(Role::User, text.as_str()), Message::new(Role::Assistant, text.as_str())];
        let row = Row::Chat(ChatRow { messages, tools: None });
        match chatml().encode_row(&row, LossOn::Assistant) {
            Ok(sequences) => prop_assert_eq!(sequences.len(), 1),
            Err(e) => prop_assert!(matches!(e, EncodeError::Unlocated(_)), "{}", e),
        }
    }
}
