//! Rendering and loss masks against transformers (scripts/ref_chat_template.py made the fixture).

use crate::common::{base_model, template_source, tokenizer};
use dataset::{ChatTemplate, DatasetFormat, Encoder, GenerationPrompt, LossOn, Row, Sequence, Tokenizer, parse_row};
use serde_json::Value;

struct Case {
    template: String,
    title: String,
    special: Vec<(&'static str, String)>,
    row: Row,
    prompt: GenerationPrompt,
    expected: Value,
    line: String,
}

/// The fixture's cases that are valid training rows; conversations that end with the user are no rows.
fn cases() -> Vec<Case> {
    // One case per line; the line itself is parsed as a row, so the order of keys is kept.
    let lines = include_str!("../fixtures/chat_templates.json").lines().filter(|l| l.starts_with("{\"template\""));
    let cases = lines.map(|line| {
        let line = line.trim_end_matches(',');
        let case: Value = serde_json::from_str(line).unwrap();
        let special = [("bos_token", "bos_token"), ("eos_token", "eos_token")]
            .map(|(name, key)| (name, case["special"][key].as_str().unwrap().to_owned()));
        Case {
            template: case["template"].as_str().unwrap().to_owned(),
            title: case["title"].as_str().unwrap().to_owned(),
            special: special.to_vec(),
            row: parse_row(line, DatasetFormat::ChatJsonl, 1).unwrap(),
            prompt: match case["add_generation_prompt"].as_bool().unwrap() {
                true => GenerationPrompt::Add,
                false => GenerationPrompt::Omit,
            },
            line: line.to_owned(),
            expected: case,
        }
    });
    cases.collect()
}

fn compile(case: &Case) -> ChatTemplate {
    let special: Vec<(&'static str, &str)> = case.special.iter().map(|(n, t)| (*n, t.as_str())).collect();
    ChatTemplate::new(&template_source(&case.template), &special).unwrap()
}

#[test]
fn every_template_renders_as_in_transformers() {
    let (mut same, mut refused) = (0, 0);
    for case in cases() {
        let Row::Chat(chat) = &case.row else { unreachable!() };
        let context = format!("{} / {} / {:?}", case.template, case.title, case.prompt);
        match (compile(&case).render(chat, case.prompt), case.expected.get("text")) {
            (Ok(text), Some(expected)) => {
                assert_eq!(Value::String(text), *expected, "{context}");
                same += 1;
            }
            (Err(e), None) => {
                let message = case.expected["refused"].as_str().unwrap();
                assert_eq!(
                    e.to_string(),
                    format!("the chat template refuses the conversation: {message}"),
                    "{context}"
                );
                refused += 1;
            }
            (ours, theirs) => panic!("{context}: {ours:?} against {theirs:?}"),
        }
    }
    assert_eq!((same, refused), (90, 6));
}

/// Text of each run of trained tokens.
fn trained_texts(tokenizer: &Tokenizer, sequence: &Sequence) -> Vec<String> {
    let pairs: Vec<(u32, bool)> = sequence.tokens.iter().copied().zip(sequence.trained.iter().copied()).collect();
    pairs
        .chunk_by(|a, b| a.1 == b.1)
        .filter(|run| run[0].1)
        .map(|run| tokenizer.decode(&run.iter().map(|p| p.0).collect::<Vec<u32>>(), false).unwrap())
        .collect()
}

#[test]
fn loss_is_on_the_assistant_s_words_and_the_end_of_its_turn() {
    // What ends a turn, and special tokens the tokenizer has to know.
    let ends = [
        ("chatml", "<|im_end|>", "<|im_end|>"),
        ("chatml_generation", "<|im_end|>", "<|im_end|>"),
        ("llama3", "<|eot_id|>", "<|eot_id|>"),
        ("zephyr", "</s>", "</s>"),
        ("alternating", "</s>", "</s>"),
        ("renamed_roles", "<end_of_turn>", "<end_of_turn>"),
    ];
    let mut seen = 0;
    for case in cases() {
        let Some((_, end, eos)) = ends.iter().find(|e| e.0 == case.template) else { continue };
        let no_tools = case.title != "tools" && case.title != "reasoning";
        if case.prompt == GenerationPrompt::Add || case.expected.get("text").is_none() || !no_tools {
            continue;
        }
        let encoder =
            Encoder::new(tokenizer(&["<|eot_id|>", "</s>", "<end_of_turn>"], eos), Some(compile(&case)), 4096);
        let sequence = encoder.encode_row(&case.row, LossOn::Assistant).unwrap().remove(0);
        let Row::Chat(chat) = &case.row else { unreachable!() };
        let said = chat.messages.iter().filter(|m| m.role == dataset::Role::Assistant);
        // Llama 3 and the renaming template trim.
        let expected: Vec<String> = said
            .map(|m| match case.template.as_str() {
                "llama3" | "renamed_roles" => format!("{}{end}", m.content.trim()),
                _ => format!("{}{end}", m.content),
            })
            .collect();
        let context = format!("{} / {}", case.template, case.title);
        assert_eq!(trained_texts(encoder.tokenizer(), &sequence), expected, "{context}");
        seen += 1;
    }
    assert_eq!(seen, 22);
}

#[test]
fn the_mask_equals_transformers_where_the_template_marks_generation() {
    let mut seen = 0;
    for case in cases() {
        let (Some(tokens), Some(mask)) = (case.expected.get("tokens"), case.expected.get("mask")) else { continue };
        let expected: Vec<bool> = mask.as_array().unwrap().iter().map(|m| m == 1).collect();
        // Both ways of finding the assistant's tokens: from the template's marks, and from prefixes of the
        // same template without marks.
        for name in ["chatml_generation", "chatml"] {
            let template = ChatTemplate::new(&template_source(name), &[("eos_token", "<|im_end|>")]).unwrap();
            let encoder = Encoder::new(tokenizer(&[], "<|im_end|>"), Some(template), 4096);
            let encoded = encoder.encode_row(&case.row, LossOn::Assistant);
            if case.title == "tools" {
                let reason = "the chat template leaves out the tool calls of message 2: ";
                assert!(encoded.unwrap_err().to_string().starts_with(reason), "{name}");
                continue;
            }
            let sequence = encoded.unwrap().remove(0);
            assert_eq!(serde_json::json!(sequence.tokens), *tokens, "{name} / {}", case.title);
            assert_eq!(sequence.trained, expected, "{name} / {}", case.title);
        }
        seen += 1;
    }
    assert_eq!(seen, 6);
}

#[test]
fn a_template_that_drops_earlier_reasoning_still_shows_what_the_assistant_said() {
    let case = cases().into_iter().find(|c| c.template == "reasoning" && c.title == "reasoning").unwrap();
    let encoder = Encoder::new(tokenizer(&[], "<|im_end|>"), Some(compile(&case)), 4096);
    let error = encoder.encode_row(&case.row, LossOn::Assistant).unwrap_err();
    // The first answer's text, with its reasoning, stands nowhere in the rendering: that is said, not guessed.
    assert_eq!(error.to_string(), "the chat template does not show which text is the assistant's message 2");

    let plain = cases().into_iter().find(|c| c.template == "reasoning" && c.title == "system and two turns").unwrap();
    let sequence = encoder.encode_row(&plain.row, LossOn::Assistant).unwrap().remove(0);
    assert_eq!(
        trained_texts(encoder.tokenizer(), &sequence),
        ["Jane Austen.<|im_end|>", "<think>\n\n</think>\n\nIn 1815.<|im_end|>"]
    );
}

#[test]
fn tool_calls_are_trained_and_tool_answers_are_not() {
    let case = cases().into_iter().find(|c| c.template == "tools" && c.title == "tools").unwrap();
    let encoder = Encoder::new(tokenizer(&[], "<|im_end|>"), Some(compile(&case)), 4096);
    let sequence = encoder.encode_row(&case.row, LossOn::Assistant).unwrap().remove(0);
    let texts = trained_texts(encoder.tokenizer(), &sequence);
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains(
        r#"{"name": "get_weather", "arguments": {"place": "부산", "days": 2, "zone": null, "exact": true}}"#
    ));
    assert_eq!(texts[1], "Yes, it is.<|im_end|>");
}

#[test]
fn arguments_written_as_a_json_string_render_as_the_object() {
    let case = cases()
        .into_iter()
        .find(|c| c.template == "tools" && c.title == "tools" && c.prompt == GenerationPrompt::Omit)
        .unwrap();
    let object = r#"{"place": "부산", "days": 2, "zone": null, "exact": true}"#;
    let line = case.line.replacen(object, &Value::String(object.into()).to_string(), 1);
    assert_ne!(line, case.line);
    let Row::Chat(chat) = parse_row(&line, DatasetFormat::ChatJsonl, 1).unwrap() else { unreachable!() };
    assert_eq!(Value::String(compile(&case).render(&chat, case.prompt).unwrap()), case.expected["text"]);
}

#[test]
fn the_base_model_s_template_is_the_tested_one() {
    let tokenizer = Tokenizer::load(&base_model()).unwrap();
    let template = ChatTemplate::load(&base_model(), &tokenizer).unwrap().unwrap();
    for case in cases().iter().filter(|c| c.template == "chatml") {
        let Row::Chat(chat) = &case.row else { unreachable!() };
        assert_eq!(Value::String(template.render(chat, case.prompt).unwrap()), case.expected["text"]);
    }
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!(tokenizer.stop_ids().iter().copied().collect::<Vec<_>>(), [0, 2]);
}
