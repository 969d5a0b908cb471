//! What cannot be trained is refused when the job is created, and what it would need can be asked before.

use crate::{
    app::{TestApp, chat_rows, form, send},
    models::tiny,
};
use backend::{db::Conn, schema::models};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000002";

fn body(changes: Value) -> Value {
    let mut config = json!({"model": "tiny", "dataset": "words", "training": {"max_steps": 3}});
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({"config": config})
}

/// With the models `tiny` and `encoder`, the dataset `words`, and trainers of `memory` bytes.
async fn app(memory: &str) -> (TestApp, TestApp) {
    let first = TestApp::new().await;
    let app = first.sibling(&[("TRAINER_MEMORY_BYTES", memory)]).await;
    app.import_model("tiny", &tiny()).await;
    let mut encoder = tiny();
    encoder[0].1 =
        br#"{"architectures": ["BertForMaskedLM"], "vocab_size": 2, "max_position_embeddings": 64}"#.to_vec();
    app.import_model("encoder", &encoder).await;
    app.upload("words", chat_rows(5)).await.expect(201);
    (app, first)
}

#[tokio::test]
async fn base_models_that_a_method_cannot_train_are_refused() {
    let (app, _first) = app("1000000").await;
    let create = async |changes: Value| app.post("/training/jobs", &body(changes)).await.problem();
    assert_snapshot!(create(json!({"model": "encoder"})).await, @r"
    422 UNSUPPORTED: training configuration: method: this method trains models that predict tokens, and `BertForMaskedLM` is an encoder; use `classification`, or a base model of Gemma2ForCausalLM, Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
    - method: this method trains models that predict tokens, and `BertForMaskedLM` is an encoder (use `classification`, or a base model of Gemma2ForCausalLM, Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
    ");
    let labelled =
        (0..5).map(|i| format!("{}\n", json!({"text": format!("t {i}"), "label": i % 2}))).collect::<String>();
    app.upload_form(form("labels", labelled)).await.expect(201);
    assert_snapshot!(create(json!({"method": "classification", "dataset": "labels"})).await, @r"
    422 UNSUPPORTED: training configuration: method: `classification` needs an encoder, and `LlamaForCausalLM` predicts tokens; use another method, or a base model of BertForMaskedLM, BertForSequenceClassification, DistilBertForMaskedLM, DistilBertForSequenceClassification, RobertaForMaskedLM, RobertaForSequenceClassification, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification
    - method: `classification` needs an encoder, and `LlamaForCausalLM` predicts tokens (use another method, or a base model of BertForMaskedLM, BertForSequenceClassification, DistilBertForMaskedLM, DistilBertForSequenceClassification, RobertaForMaskedLM, RobertaForSequenceClassification, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification)
    ");
    let mut odd = tiny();
    odd[0].1 = br#"{"architectures": ["GPT2LMHeadModel"], "vocab_size": 2, "max_position_embeddings": 64}"#.to_vec();
    app.import_model("odd", &odd).await;
    assert_snapshot!(create(json!({"model": "odd"})).await, @r"
    422 UNSUPPORTED: training configuration: model: the architecture `GPT2LMHeadModel` is not supported; use one of Gemma2ForCausalLM, Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, BertForMaskedLM, BertForSequenceClassification, DistilBertForMaskedLM, DistilBertForSequenceClassification, RobertaForMaskedLM, RobertaForSequenceClassification, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification
    - model: the architecture `GPT2LMHeadModel` is not supported (use one of Gemma2ForCausalLM, Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, BertForMaskedLM, BertForSequenceClassification, DistilBertForMaskedLM, DistilBertForSequenceClassification, RobertaForMaskedLM, RobertaForSequenceClassification, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification)
    ");
    let estimate = app.post("/training/estimate", &body(json!({"model": "odd"}))).await;
    assert_eq!(estimate.problem(), create(json!({"model": "odd"})).await, "an estimate refuses the same");
    assert_eq!(app.get("/training/jobs").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn a_run_that_cannot_fit_is_refused_with_the_numbers() {
    // Two weights of four bytes; with gradients and moments they are 32 bytes.
    let (app, first) = app("16").await;
    assert_snapshot!(app.post("/training/jobs", &body(json!({"method": "full"}))).await.problem(), @r"
    422 INSUFFICIENT_MEMORY: training needs at least 32 bytes of memory (weights 8 bytes, gradients and moments 24 bytes, activations of 72 tokens 0 bytes) and a trainer here has 16 bytes; change training.optim (`adamw_8bit` halves gradients and moments), method (an adapter (`sft`) trains a small part of the weights), training.gradient_checkpointing (`true` keeps little of each block), training.max_seq_length (shorter rows need less at once), training.per_device_train_batch_size (fewer rows at once; gradient_accumulation_steps makes up for them), or choose a smaller model
    - training.optim: the run needs 32 bytes of 16 bytes (`adamw_8bit` halves gradients and moments)
    - method: the run needs 32 bytes of 16 bytes (an adapter (`sft`) trains a small part of the weights)
    - training.gradient_checkpointing: the run needs 32 bytes of 16 bytes (`true` keeps little of each block)
    - training.max_seq_length: the run needs 32 bytes of 16 bytes (shorter rows need less at once)
    - training.per_device_train_batch_size: the run needs 32 bytes of 16 bytes (fewer rows at once; gradient_accumulation_steps makes up for them)
    ");
    assert_eq!(app.get("/training/jobs").await.expect(200)["items"], json!([]));
    app.post("/training/jobs", &body(json!({}))).await.expect(201);
    // The same on a machine with more memory.
    first.post("/training/jobs", &body(json!({"method": "full"}))).await.expect(201);

    let told = app.post("/training/estimate", &body(json!({"method": "full"}))).await.expect(200);
    assert_eq!(
        told,
        json!({"fits": false, "basis": "shapes", "peak_memory_bytes": 32, "memory_limit_bytes": 16,
            "trainable_parameters": 2, "total_parameters": 2, "total_steps": null, "total_tokens": null,
            "train_seconds": null, "total_seconds": null, "cost": null, "currency": "USD",
            "note": "not rehearsed: it cannot fit into memory"})
    );
}

#[tokio::test]
async fn without_a_trainer_only_the_memory_is_told() {
    let (app, _first) = app("1000000").await;
    let told = app.post("/training/estimate", &body(json!({}))).await.expect(200);
    assert_eq!((&told["fits"], &told["basis"]), (&json!(true), &json!("shapes")));
    let note = told["note"].as_str().unwrap();
    assert!(note.starts_with("not rehearsed: the trainer ended with exit status: 1"), "{note}");
    assert_eq!(app.get("/training/jobs").await.expect(200)["items"], json!([]), "an estimate creates nothing");
}

#[tokio::test]
async fn a_model_without_shapes_is_left_to_the_trainer() {
    let (app, _first) = app("16").await;
    let forget = async |conn: &mut Conn| {
        let info = diesel::dsl::sql::<diesel::sql_types::Nullable<diesel::sql_types::Jsonb>>("info - 'shape'");
        diesel::update(models::table).set(models::info.eq(info)).execute(conn).await?;
        Ok(())
    };
    app.db.system(forget).await.unwrap();
    app.post("/training/jobs", &body(json!({"method": "full"}))).await.expect(201);
    assert!(app.log().contains("the memory of a new job is not checked"), "{}", app.log());
}

#[tokio::test]
async fn an_adapter_of_a_foreign_or_unfinished_job_is_refused() {
    let (app, _first) = app("1000000").await;
    let job = app.post("/training/jobs", &body(json!({}))).await.expect(201)["id"].as_str().unwrap().to_owned();
    let next = body(json!({"lora": {"init_from": job}}));
    let reply = app.post("/training/jobs", &next).await.problem().replace(&job, "JOB");
    assert!(reply.starts_with("409 CONFLICT: training configuration: lora.init_from: the job JOB is "), "{reply}");
    assert!(reply.contains("; continue from one that has succeeded\n- lora.init_from: the job JOB is "), "{reply}");
    app.add_user("other", OTHER_KEY).await;
    let as_other = |path: &str| app.anonymous(Method::POST, path).bearer_auth(OTHER_KEY);
    send(as_other("/datasets/upload").multipart(form("words", chat_rows(5)))).await.expect(201);
    let reply = send(as_other("/training/jobs").json(&next)).await.problem().replace(&job, "JOB");
    assert_snapshot!(reply, @"404 NOT_FOUND: no job JOB; `GET /training/jobs` lists yours");
}
