//! Preference pairs and labelled texts: what is read, what is refused, and what the model sees.

use crate::common::{encoder, tokenizer};
use dataset::{
    DatasetFormat, Encoder, Label, LossOn, PreferenceRow, Role, Row, Rows, Sequence, TokenCounter, detect, parse_row,
    preview, validate,
};
use serde_json::json;

fn pair(value: &serde_json::Value) -> PreferenceRow {
    let text = value.to_string();
    assert_eq!(detect(text.as_bytes()), DatasetFormat::PreferenceJsonl);
    let Row::Preference(row) = parse_row(&text, DatasetFormat::PreferenceJsonl, 1).unwrap() else { unreachable!() };
    row
}

/// `column reason` of the only error.
fn error(text: &str, format: DatasetFormat) -> String {
    let report = validate(text.as_bytes(), Some(format), None).unwrap();
    assert_eq!(report.error_count, 1, "{:?}", report.errors);
    let e = &report.errors[0];
    format!("{} {}", e.column.unwrap(), e.reason)
}

#[test]
fn trl_s_and_openai_s_shapes_of_a_pair_mean_the_same() {
    let asked = json!([{"role": "user", "content": "Say yes."}]);
    let said = |text: &str| json!([{"role": "assistant", "content": text}]);
    let explicit = pair(&json!({"prompt": asked, "chosen": said("Yes."), "rejected": said("No.")}));
    let whole = |text: &str| json!([asked[0], said(text)[0]]);
    let implicit = pair(&json!({"chosen": whole("Yes."), "rejected": whole("No.")}));
    let openai = pair(&json!({
        "input": {"messages": asked, "tools": null, "parallel_tool_calls": true},
        "preferred_output": said("Yes."), "non_preferred_output": said("No."),
    }));
    assert_eq!(explicit, implicit);
    assert_eq!(explicit, openai);
    let PreferenceRow::Chat { prompt, chosen, rejected } = &explicit else { panic!("{explicit:?}") };
    assert_eq!((prompt.messages[0].role, chosen[0].content.as_str(), rejected.len()), (Role::User, "Yes.", 1));

    let text = pair(&json!({"prompt": "Say yes.", "chosen": "Yes.", "rejected": "No."}));
    let encoder = encoder("chatml", "<|endoftext|>", "<|im_end|>", 64);
    assert_eq!(encoder.encode_pair(&text).unwrap(), encoder.encode_pair(&explicit).unwrap());
}

#[test]
fn a_broken_pair_is_located() {
    let of = |text: &str| error(text, DatasetFormat::PreferenceJsonl);
    assert_eq!(of(r#"{"prompt": "a", "chosen": "b"}"#), "1 the row has no `rejected`; it has `chosen`, `prompt`");
    assert_eq!(
        of(r#"{"prompt": "a", "chosen": "b", "rejectd": "c"}"#),
        "1 the row has no `rejected`; did you mean `rejectd` to be `rejected`?"
    );
    assert_eq!(
        of(r#"{"chosen": "b", "rejected": "c"}"#),
        "1 the row has no `prompt`: write what both answers reply to into it"
    );
    assert_eq!(of(r#"{"prompt": "a", "chosen": " ", "rejected": "c"}"#), "27 empty `chosen`");
    assert_eq!(
        of(r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#),
        "44 chosen and rejected are the same, so there is nothing to learn"
    );
    assert_eq!(
        of(r#"{"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "b"}"#),
        "27 `chosen` of a text row must be a string, not a list"
    );
    assert_eq!(
        of(
            r#"{"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistent", "content": "b"}], "rejected": []}"#
        ),
        "68 unknown role `assistent` in message 1 of `chosen`; did you mean `assistant`?"
    );
    assert_eq!(
        of(r#"{"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "a"}]}"#),
        "12 chosen and rejected are the same, so there is nothing to learn"
    );
    assert_eq!(
        of(
            r#"{"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "user", "content": "b"}], "rejected": []}"#
        ),
        "58 the last message of `chosen` must be from the assistant, not from user"
    );
    assert_eq!(
        of(r#"{"input": {"message": []}, "preferred_output": [], "non_preferred_output": []}"#),
        "11 `input` has no `messages`"
    );
    let twice = r#"{"input": {"messages": [{"role": "assistant", "content": "a"}]}, "preferred_output": [{"role": "assistant", "content": "b"}], "non_preferred_output": [{"role": "assistant", "content": "c"}]}"#;
    assert_eq!(of(twice), "24 the prompt must not end with a message from the assistant");
}

fn trained_text(encoder: &Encoder, sequence: &Sequence) -> String {
    let pairs = sequence.tokens.iter().zip(&sequence.trained);
    let ids: Vec<u32> = pairs.filter(|(_, trained)| **trained).map(|(id, _)| *id).collect();
    encoder.tokenizer().decode(&ids, false).unwrap()
}

#[test]
fn the_answers_carry_loss_behind_the_same_prompt() {
    let row = pair(&json!({
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "chosen": [{"role": "assistant", "content": "long answer"}], "rejected": [{"role": "assistant", "content": "short"}],
    }));
    let of = |template: &str, bos, eos| {
        let encoder = encoder(template, bos, eos, 4096);
        let [chosen, rejected] = encoder.encode_pair(&row).unwrap();
        let prompt = |s: &Sequence| s.tokens[..s.trained.iter().position(|t| *t).unwrap()].to_vec();
        assert_eq!(prompt(&chosen), prompt(&rejected), "{template}");
        let rows = encoder.encode_row(&Row::Preference(row.clone()), LossOn::Assistant).unwrap();
        assert_eq!(rows, [chosen.clone(), rejected.clone()]);
        (trained_text(&encoder, &chosen), trained_text(&encoder, &rejected))
    };
    let chatml = of("chatml", "<|endoftext|>", "<|im_end|>");
    assert_eq!(chatml, ("long answer<|im_end|>\n".into(), "short<|im_end|>\n".into()));
    let llama = of("real/llama3_1", "<|begin_of_text|>", "<|eot_id|>");
    assert_eq!(llama, ("long answer<|eot_id|>".into(), "short<|eot_id|>".into()));
    // Mistral's template writes the system message into the last turn while that is the user's.
    let mistral = of("real/mistral_v3", "<s>", "</s>");
    assert_eq!(mistral, (" long answer</s>".into(), " short</s>".into()));
}

#[test]
fn a_text_pair_without_a_template_ends_with_the_end_of_text() {
    let encoder = Encoder::new(tokenizer(&[], "<|im_end|>"), None, 4096);
    let row = pair(&json!({"prompt": "Say yes. ", "chosen": "Yes.", "rejected": "No."}));
    let [chosen, rejected] = encoder.encode_pair(&row).unwrap();
    assert_eq!(trained_text(&encoder, &chosen), "Yes.<|im_end|>");
    assert_eq!(trained_text(&encoder, &rejected), "No.<|im_end|>");
}

#[test]
fn labelled_texts_have_names_or_numbers() {
    let text = "{\"text\": \"good\", \"label\": 1}\n{\"text\": \"bad\", \"label\": \"negative\", \"id\": 7}\n";
    assert_eq!(detect(text.as_bytes()), DatasetFormat::LabelledJsonl);
    let rows: Vec<Row> = Rows::new(text.as_bytes(), DatasetFormat::LabelledJsonl).map(Result::unwrap).collect();
    let labels = rows.iter().map(|row| match row {
        Row::Labelled(row) => row.label.clone(),
        other => panic!("{other:?}"),
    });
    assert_eq!(labels.collect::<Vec<_>>(), [Label::Class(1), Label::Name("negative".into())]);
    let shown = preview(text.as_bytes(), None, 0..1).unwrap();
    assert_eq!(shown.rows, [json!({"text": "good", "label": 1})]);
    let of = |text: &str| error(text, DatasetFormat::LabelledJsonl);
    assert_eq!(of(r#"{"text": "a"}"#), "1 the row has no `label`; it has `text`");
    assert_eq!(of(r#"{"text": "a", "labels": 1}"#), "1 the row has no `label`; did you mean `labels` to be `label`?");
    assert_eq!(of(r#"{"text": "", "label": 1}"#), "10 empty `text`");
    for bad in ["-1", "1.5", "null", "[1]", "10000"] {
        let row = format!(r#"{{"text": "a", "label": {bad}}}"#);
        assert_eq!(of(&row), format!("24 `label` must be the name of a class or its number, 0 to 9999, not {bad}"));
    }
}

#[test]
fn tokens_of_pairs_and_labelled_texts_are_counted() {
    let encoder = encoder("chatml", "<|endoftext|>", "<|im_end|>", 4096);
    let counter = TokenCounter { name: "tiny@1", encoder: &encoder };
    let row = json!({"prompt": "Say yes.", "chosen": "Yes.", "rejected": "No."});
    let [chosen, rejected] = encoder.encode_pair(&pair(&row)).unwrap();
    let report = validate(row.to_string().as_bytes(), None, Some(counter)).unwrap();
    let tokens = report.tokens.unwrap();
    assert_eq!(tokens.total as usize, chosen.tokens.len() + rejected.tokens.len());
    assert_eq!(tokens.trained as usize, chosen.trained_count() + rejected.trained_count());
    let report = validate(r#"{"text": "good", "label": 1}"#.as_bytes(), None, Some(counter)).unwrap();
    assert!(report.is_valid());
    assert_eq!(report.tokens.unwrap().trained, 0);
}
