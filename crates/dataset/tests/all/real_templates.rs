//! The templates of published models (tests/templates/real) against transformers: texts to the byte, tokens
//! and loss masks to the token. scripts/ref_real_templates.py made the fixture.

use crate::common::{template_source, tokenizer};
use chrono::Local;
use dataset::{ChatTemplate, DatasetFormat, EncodeError, Encoder, GenerationPrompt, LossOn, Row, parse_row};
use serde_json::Value;
use std::collections::BTreeMap;

/// Stands for today in the fixture: Llama 3.2's template asks for the date.
const DATE: &str = "26 Jul 2024";
const ASKS_DATE: &str = r#"strftime_now("%d %b %Y")"#;

struct Case {
    name: String,
    context: String,
    row: Row,
    prompt: GenerationPrompt,
    expected: Value,
}

fn cases() -> Vec<Case> {
    // One case per line; the line itself is parsed as a row, so the order of keys is kept.
    let lines = include_str!("../fixtures/real_templates.json").lines().filter(|l| l.starts_with("{\"template\""));
    let cases = lines.map(|line| {
        let line = line.trim_end_matches(',');
        let expected: Value = serde_json::from_str(line).unwrap();
        let prompt = match expected["add_generation_prompt"].as_bool().unwrap() {
            true => GenerationPrompt::Add,
            false => GenerationPrompt::Omit,
        };
        let name = expected["template"].as_str().unwrap().to_owned();
        let context = format!("{name} / {} / {prompt:?}", expected["title"].as_str().unwrap());
        Case { name, context, row: parse_row(line, DatasetFormat::ChatJsonl, 1).unwrap(), prompt, expected }
    });
    cases.collect()
}

impl Case {
    fn template(&self, source: &str) -> ChatTemplate {
        let special = |name: &str| self.expected["special"][name].as_str().unwrap();
        ChatTemplate::new(source, &[("bos_token", special("bos_token")), ("eos_token", special("eos_token"))]).unwrap()
    }

    fn source(&self) -> String {
        template_source(&format!("real/{}", self.name))
    }

    /// hone-tiny's tokenizer with the model's control tokens, numbered as in the script, and a template that
    /// always has the fixture's date.
    fn encoder(&self, max_length: usize) -> Encoder {
        let special = &self.expected["special"];
        let more = special["more"].as_array().unwrap().iter().map(|t| t.as_str().unwrap());
        let all = [special["bos_token"].as_str().unwrap(), special["eos_token"].as_str().unwrap()].into_iter();
        let known = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
        let added: Vec<&str> = all.chain(more).filter(|t| !known.contains(t)).collect();
        let eos = special["eos_token"].as_str().unwrap();
        let source = self.source().replace(ASKS_DATE, &format!("\"{DATE}\""));
        Encoder::new(tokenizer(&added, eos), Some(self.template(&source)), max_length)
    }
}

#[test]
fn every_conversation_renders_to_the_same_bytes() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let all = cases();
    for case in &all {
        let Row::Chat(chat) = &case.row else { unreachable!() };
        let before = Local::now();
        let rendered = case.template(&case.source()).render(chat, case.prompt);
        match (rendered, case.expected.get("text").and_then(Value::as_str)) {
            (Ok(text), Some(expected)) => {
                // Llama 3.2 writes today's date; midnight may have passed meanwhile.
                let mut on_days = [before, Local::now()].into_iter().map(|day| match case.name.as_str() {
                    "llama3_2" => expected.replace(DATE, &day.format("%d %b %Y").to_string()),
                    _ => expected.to_owned(),
                });
                assert!(on_days.any(|e| e == text), "{}:\n{text}\nexpected:\n{expected}", case.context);
                *seen.entry(&case.name).or_default() += 1;
            }
            (Err(e), None) => {
                let message = case.expected["refused"].as_str().unwrap();
                assert_eq!(e.to_string(), format!("the chat template refuses the conversation: {message}"));
            }
            (ours, theirs) => panic!("{}: {ours:?} against {theirs:?}", case.context),
        }
    }
    let expected = [
        ("chatml", 18),
        ("gemma", 8),
        ("gemma3", 12),
        ("llama3", 18),
        ("llama3_1", 16),
        ("llama3_2", 16),
        ("mistral_nemo", 18),
        ("mistral_v1", 12),
        ("mistral_v3", 18),
        ("phi3", 18),
        ("phi3_5", 18),
        ("qwen2_5", 18),
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn every_mask_equals_that_of_transformers() {
    let (mut masks, mut dropped) = (0, 0);
    for case in cases() {
        if case.expected.get("dropped").is_some() {
            let error = case.encoder(4096).encode_row(&case.row, LossOn::Assistant).unwrap_err();
            assert!(matches!(error, EncodeError::DroppedCalls(_)), "{}: {error}", case.context);
            dropped += 1;
            continue;
        }
        let Some(runs) = case.expected.get("mask_runs") else { continue };
        let encoder = case.encoder(4096);
        let sequence =
            encoder.encode_row(&case.row, LossOn::Assistant).unwrap_or_else(|e| panic!("{}: {e}", case.context));
        let sequence = &sequence[0];
        let reference = case.expected["tokens"].as_array().unwrap();
        // We end a sequence with an end-of-text token where the template writes none.
        let (tokens, trained) = sequence.tokens.split_at(reference.len().min(sequence.tokens.len()));
        assert_eq!(serde_json::json!(tokens), case.expected["tokens"], "{}", case.context);
        assert!(trained.len() <= 1, "{}", case.context);
        let lengths = runs.as_array().unwrap().iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap());
        let mask: Vec<bool> = lengths.enumerate().flat_map(|(i, n)| std::iter::repeat_n(i % 2 == 1, n)).collect();
        if sequence.trained[..reference.len()] != mask {
            let text = |of: &[bool]| {
                let ids: Vec<u32> = tokens.iter().zip(of).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
                encoder.tokenizer().decode(&ids, false).unwrap()
            };
            panic!("{}: ours {:?}, theirs {:?}", case.context, text(&sequence.trained), text(&mask));
        }
        masks += 1;
    }
    assert_eq!((masks, dropped), (83, 12));
}
