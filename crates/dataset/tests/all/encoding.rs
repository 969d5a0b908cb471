//! Token sequences: truncation, text, rows without a template, streams of tokens.

use crate::common::{base_model, encoder, tokenizer};
use dataset::{
    ChatRow, ChatTemplate, DatasetFormat, Encoder, LossOn, Message, Role, Row, StreamDecoder, Tokenizer, parse_row,
};
use proptest::prelude::*;
use std::sync::OnceLock;

fn chat(turns: &[(&str, &str)]) -> Row {
    let role = |name: &str| if name == "user" { Role::User } else { Role::Assistant };
    Row::Chat(ChatRow { messages: turns.iter().map(|(r, c)| Message::new(role(r), *c)).collect(), tools: None })
}

#[test]
fn a_message_of_weight_zero_carries_no_loss() {
    let mut row = chat(&[("user", "One?"), ("assistant", "First."), ("user", "Two?"), ("assistant", "Second.")]);
    let encoder = encoder("chatml", "<bos>", "<|im_end|>", 512);
    let all = encoder.encode_row(&row, LossOn::Assistant).unwrap().remove(0);
    let Row::Chat(inner) = &mut row else { unreachable!() };
    inner.messages[1].trained = false;
    let last = encoder.encode_row(&row, LossOn::Assistant).unwrap().remove(0);
    assert_eq!(all.tokens, last.tokens);
    let text = |s: &dataset::Sequence| {
        let ids: Vec<u32> = s.tokens.iter().zip(&s.trained).filter(|p| *p.1).map(|p| *p.0).collect();
        encoder.tokenizer().decode(&ids, false).unwrap()
    };
    assert_eq!(text(&all), "First.<|im_end|>Second.<|im_end|>");
    assert_eq!(text(&last), "Second.<|im_end|>");
}

#[test]
fn rows_that_are_too_long_are_cut_and_say_by_how_much() {
    let row = chat(&[("user", "Count."), ("assistant", "one two three four five six seven eight nine ten")]);
    let whole = encoder("chatml", "<bos>", "<|im_end|>", 512).encode_row(&row, LossOn::Assistant).unwrap().remove(0);
    let short = encoder("chatml", "<bos>", "<|im_end|>", 16).encode_row(&row, LossOn::Assistant).unwrap().remove(0);
    assert_eq!(whole.cut, 0);
    assert_eq!((short.tokens.len(), short.trained.len()), (16, 16));
    assert_eq!(short.cut, whole.tokens.len() - 16);
    assert_eq!(short.tokens, whole.tokens[..16]);
    assert_eq!(short.full_length(), whole.full_length());
}

#[test]
fn a_very_long_conversation_costs_no_more_than_what_is_kept_of_it() {
    let turns: Vec<(&str, &str)> = [("user", "Hi"), ("assistant", "Yes")].repeat(10_000);
    let started = std::time::Instant::now();
    let sequence =
        encoder("chatml", "<bos>", "<|im_end|>", 64).encode_row(&chat(&turns), LossOn::Assistant).unwrap().remove(0);
    // Rendering every prefix would take minutes.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    assert_eq!(sequence.tokens.len(), 64);
    assert!(sequence.trained_count() > 8 && sequence.cut > 100_000);
}

#[test]
fn a_template_without_an_end_of_turn_gets_the_end_of_text_token() {
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let template = ChatTemplate::new(source, &[]).unwrap();
    let encoder = Encoder::new(tokenizer(&[], "<|endoftext|>"), Some(template), 512);
    let sequence =
        encoder.encode_row(&chat(&[("user", "Hi"), ("assistant", "Yes")]), LossOn::Assistant).unwrap().remove(0);
    let trained: Vec<u32> = sequence.tokens.iter().zip(&sequence.trained).filter(|p| *p.1).map(|p| *p.0).collect();
    assert_eq!(encoder.tokenizer().decode(&trained, false).unwrap(), " Yes<|endoftext|>");
    assert_eq!(sequence.tokens.last(), encoder.tokenizer().eos_id().as_ref());
}

#[test]
fn instruction_rows_render_as_chats_or_plainly_without_a_template() {
    let row = parse_row(r#"{"instruction": "Add", "input": "1 1", "output": "2"}"#, DatasetFormat::InstructionJsonl, 1)
        .unwrap();
    let with = encoder("chatml", "<bos>", "<|im_end|>", 512);
    let same = chat(&[("user", "Add\n\n1 1"), ("assistant", "2")]);
    assert_eq!(with.encode_row(&row, LossOn::Assistant).unwrap(), with.encode_row(&same, LossOn::Assistant).unwrap());

    let without = Encoder::new(tokenizer(&[], "<|endoftext|>"), None, 512);
    let sequence = without.encode_row(&row, LossOn::Assistant).unwrap().remove(0);
    assert_eq!(without.tokenizer().decode(&sequence.tokens, false).unwrap(), "Add\n\n1 1\n2<|endoftext|>");
    assert_eq!(sequence.trained_count(), 2);
    let error = without.encode_row(&same, LossOn::Assistant).unwrap_err();
    assert!(error.to_string().starts_with("the model has no chat template"), "{error}");
}

#[test]
fn pretraining_puts_loss_on_everything_but_the_first_token() {
    let encoder = encoder("chatml", "<bos>", "<|im_end|>", 512);
    let sequence = encoder.encode_row(&chat(&[("user", "Hi"), ("assistant", "Yes")]), LossOn::All).unwrap().remove(0);
    assert_eq!(sequence.trained_count(), sequence.tokens.len() - 1);
    assert!(!sequence.trained[0]);
}

#[test]
fn control_tokens_and_their_ids_come_from_the_model_s_files() {
    let t = Tokenizer::load(&base_model()).unwrap();
    assert_eq!(
        (t.token_id("<|endoftext|>"), t.token_id("<|im_start|>"), t.token_id("<|im_end|>")),
        (Some(0), Some(1), Some(2))
    );
    assert_eq!((t.bos_id(), t.eos_id()), (Some(0), Some(0)));
    assert!(t.is_special(1) && !t.is_special(300));
    assert_eq!(t.encode("<|im_start|>user", false).unwrap()[0], 1);
}

#[test]
fn a_missing_or_broken_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json cannot be read"), "{error}");
    std::fs::write(dir.path().join("tokenizer.json"), "{\"model\": 1}").unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is not usable"), "{error}");
    std::fs::copy(base_model().join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), "{\"chat_template\": \"{% if %}\"}").unwrap();
    let error = Encoder::load(dir.path(), 64).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json is not usable: its chat template does not compile"), "{error}");
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    assert!(Encoder::load(dir.path(), 64).unwrap().template().is_some());
}

#[test]
fn templates_that_run_away_are_stopped() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(source, &[]).unwrap();
    let error = template.render(&ChatRow::default(), dataset::GenerationPrompt::Omit).unwrap_err();
    assert!(error.to_string().contains("fuel"), "{error}");
}

#[test]
fn the_clock_of_a_template_can_be_fixed() {
    let then = chrono::DateTime::parse_from_rfc3339("2024-07-26T12:00:00Z").unwrap().with_timezone(&chrono::Local);
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", &[]).unwrap().at(then);
    assert_eq!(template.render(&ChatRow::default(), dataset::GenerationPrompt::Omit).unwrap(), "26 Jul 2024");
    let template = ChatTemplate::new("{{ strftime_now('%Q') }}", &[]).unwrap();
    let error = template.render(&ChatRow::default(), dataset::GenerationPrompt::Omit).unwrap_err();
    assert_eq!(error.to_string(), "the chat template refuses the conversation: strftime_now: bad format `%Q`");
}

fn plain_tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| tokenizer(&[], "<|endoftext|>"))
}

proptest! {
    #[test]
    fn long_text_is_split_so_that_every_token_is_predicted_once(text in "[a-z é\n]{1,400}", max in 2_usize..40) {
        let encoder = Encoder::new(plain_tokenizer().clone(), None, max);
        let whole = {
            let mut tokens = encoder.tokenizer().encode(&text, false).unwrap();
            tokens.push(0);
            tokens
        };
        let sequences = encoder.encode_row(&Row::Text(text), LossOn::Assistant).unwrap();
        let mut joined = vec![whole[0]];
        for s in &sequences {
            prop_assert!(s.tokens.len() <= max && s.cut == 0);
            prop_assert_eq!(joined.last(), s.tokens.first());
            prop_assert_eq!(s.trained_count(), s.tokens.len() - 1);
            joined.extend(&s.tokens[1..]);
        }
        prop_assert_eq!(joined, whole);
    }

    #[test]
    fn streamed_text_is_the_decoded_text(text in "\\PC{0,60}") {
        let tokenizer = plain_tokenizer();
        let ids = tokenizer.encode(&text, false).unwrap();
        let mut stream = StreamDecoder::new();
        let mut out = String::new();
        for id in &ids {
            out.push_str(&stream.push(tokenizer, *id).unwrap());
        }
        out.push_str(&stream.finish(tokenizer).unwrap());
        prop_assert_eq!(out, text);
    }
}
