//! Whole runs of the engine on a tiny model.

use crate::support::{Memory, config, model_dir, setup};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{fs, path::Path};
use trainer::engine::{
    Control, Outcome, Setup, TrainError,
    generate::{FinishReason, Generator, Input, Message, Request},
    train,
};
use wire::{
    config::{Init, Method, TargetModules},
    event::{EventKind, Level, StopReason, Summary, metric},
    job::FailureCode,
};

fn finish(setup: &Setup) -> (Summary, Memory) {
    let mut memory = Memory::default();
    match train(setup, &mut memory).unwrap() {
        Outcome::Finished { summary, artifacts } => {
            assert_eq!(artifacts, setup.work_dir.join("artifacts"));
            (summary, memory)
        }
        other => panic!("{other:?}"),
    }
}

fn failure(setup: &Setup) -> TrainError {
    train(setup, &mut Memory::default()).unwrap_err()
}

fn sha256(path: &Path) -> String {
    hex::encode(Sha256::digest(fs::read(path).unwrap()))
}

#[test]
fn a_lora_run_lowers_both_losses_and_reports_every_step_once() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.training.max_steps = 40;
    let (summary, memory) = finish(&setup(dir.path(), &model, config));
    let losses = memory.metric(metric::TRAIN_LOSS);
    assert_eq!(losses.iter().map(|(s, _)| *s).collect::<Vec<_>>(), (1..=40).collect::<Vec<u64>>());
    assert!(losses[39].1 < 0.5 * losses[0].1, "{losses:?}");
    let evals = memory.metric(metric::EVAL_LOSS);
    assert_eq!(evals.iter().map(|(s, _)| *s).collect::<Vec<_>>(), (0..40).step_by(3).chain([40]).collect::<Vec<u64>>());
    assert!(summary.eval_loss.unwrap() < 0.6 * summary.initial_eval_loss.unwrap(), "{summary:?}");
    let parts = [metric::DATA_SECONDS, metric::FORWARD_SECONDS, metric::BACKWARD_SECONDS, metric::OPTIMIZER_SECONDS]
        .map(|name| memory.metric(name));
    for (i, (step, seconds)) in memory.metric(metric::STEP_SECONDS).into_iter().enumerate() {
        let sum: f64 = parts.iter().map(|p| p[i].1).sum();
        assert!(parts.iter().all(|p| p[i].1 >= 0.0) && (sum - seconds).abs() < 1e-6, "step {step}: {sum} {seconds}");
    }
    assert!(memory.metric(metric::STALL_SECONDS)[3].1 > 0.0, "an evaluation and a checkpoint lie before step 4");
    assert_eq!(memory.metric(metric::LEARNING_RATE)[0].1, 0.0, "warm-up starts at zero, as in transformers");
    let plan = memory.events.iter().find_map(|e| match e {
        EventKind::Plan { total_steps, train_rows, eval_rows, trainable_parameters, .. } => {
            Some((*total_steps, *train_rows, *eval_rows, *trainable_parameters))
        }
        _ => None,
    });
    // Per block: r · (in + out) over q, k, v, o, gate, up, down.
    let lora = 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 48) + (48 + 32));
    assert_eq!(plan, Some((40, 16, 4, lora)));
    assert_eq!(
        memory.checkpoints.iter().map(|(s, _)| *s).collect::<Vec<_>>(),
        (2..=40).step_by(2).collect::<Vec<u64>>()
    );
    let kept: Vec<String> = fs::read_dir(dir.path().join("work/checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(kept.len(), 2, "save_total_limit: {kept:?}");
}

#[test]
fn the_adapter_directory_has_the_layout_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.lora.target_modules = TargetModules::Names(vec!["v_proj".into(), "q_proj".into()]);
    let setup = setup(dir.path(), &model, config);
    finish(&setup);
    let artifacts = setup.work_dir.join("artifacts");
    let bytes = fs::read(artifacts.join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = tensors.iter().map(|(n, t)| format!("{n} {:?}", t.shape())).collect();
    names.sort_unstable();
    assert_eq!(
        names[..4],
        [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight [4, 32]",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight [32, 4]",
            "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight [4, 32]",
            "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight [16, 4]",
        ]
    );
    assert_eq!(names.len(), 8);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(artifacts.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["target_modules"], json!(["q_proj", "v_proj"]));
    assert_eq!(
        (&config["r"], &config["lora_alpha"], &config["base_model_name_or_path"]),
        (&json!(4), &json!(8), &json!("tiny"))
    );
    let card = fs::read_to_string(artifacts.join("README.md")).unwrap();
    assert!(
        card.contains("validation loss after") && card.contains("`colours`") && card.contains("| seed | 42 |"),
        "{card}"
    );
    assert!(artifacts.join("tokenizer.json").exists() && artifacts.join("tokenizer_config.json").exists());
}

/// Runs to the end in one go, and again with a stop after step 3; returns both results' digests.
fn interrupted_and_not(method: Method, control: Control, reason: StopReason) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let file = if method == Method::Sft { "adapter_model.safetensors" } else { "model.safetensors" };
    let mut config = config(method);
    config.lora.lora_dropout = 0.3;
    config.training.gradient_accumulation_steps = 2;
    config.training.per_device_train_batch_size = 3;
    let whole = setup(dir.path(), &model, config);
    finish(&whole);

    let mut first = whole.clone();
    first.work_dir = dir.path().join("first");
    let mut memory = Memory::stopping(3, control);
    let Outcome::Stopped { reason: got, step: 3, checkpoint: Some(checkpoint) } = train(&first, &mut memory).unwrap()
    else {
        panic!("expected a stop at step 3")
    };
    assert_eq!(got, reason);
    let mut second = whole.clone();
    second.work_dir = dir.path().join("second");
    second.resume = Some(checkpoint);
    let (_, memory) = finish(&second);
    assert_eq!(memory.metric(metric::TRAIN_LOSS).iter().map(|(s, _)| *s).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(
        memory.metric(metric::EVAL_LOSS).iter().map(|(s, _)| *s).collect::<Vec<_>>(),
        [3, 6],
        "the evaluation due at the stop is made up"
    );
    (sha256(&whole.work_dir.join("artifacts").join(file)), sha256(&second.work_dir.join("artifacts").join(file)))
}

#[test]
fn a_paused_and_resumed_run_ends_with_the_same_bytes() {
    let (whole, resumed) = interrupted_and_not(Method::Sft, Control::Pause, StopReason::Paused);
    assert_eq!(whole, resumed);
}

#[test]
fn a_preempted_full_fine_tuning_resumes_to_the_same_bytes() {
    let (whole, resumed) = interrupted_and_not(Method::Full, Control::Preempt, StopReason::Preempted);
    assert_eq!(whole, resumed);
}

#[test]
fn recomputing_blocks_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.lora.lora_dropout = 0.2;
    let plain = setup(dir.path(), &model, config.clone());
    finish(&plain);
    config.training.gradient_checkpointing = true;
    let mut recomputed = setup(dir.path(), &model, config);
    recomputed.work_dir = dir.path().join("recomputed");
    finish(&recomputed);
    let file = "artifacts/adapter_model.safetensors";
    assert_eq!(sha256(&plain.work_dir.join(file)), sha256(&recomputed.work_dir.join(file)));
}

#[test]
fn cancel_stops_without_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut memory = Memory::stopping(1, Control::Cancel);
    let outcome = train(&setup(dir.path(), &model, config(Method::Sft)), &mut memory).unwrap();
    assert_eq!(outcome, Outcome::Stopped { reason: StopReason::Cancelled, step: 1, checkpoint: None });
    assert!(memory.checkpoints.is_empty());
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut first = setup(dir.path(), &model, config(Method::Sft));
    let mut memory = Memory::stopping(2, Control::Pause);
    train(&first, &mut memory).unwrap();
    first.resume = Some(memory.checkpoints[0].1.clone());
    first.config.training.learning_rate = 1e-3;
    let error = failure(&first);
    assert_eq!(error.code, FailureCode::ConfigInvalid);
    assert!(error.message.contains("another model, dataset or configuration"), "{error}");
}

#[test]
fn a_truncated_checkpoint_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut setup = setup(dir.path(), &model, config(Method::Sft));
    let mut memory = Memory::stopping(2, Control::Pause);
    train(&setup, &mut memory).unwrap();
    let checkpoint = memory.checkpoints[0].1.clone();
    let file = checkpoint.join("optimizer.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    setup.resume = Some(checkpoint);
    let error = failure(&setup);
    assert_eq!(error.code, FailureCode::ModelCorrupt);
    assert!(
        error.message.contains("`optimizer.safetensors` is no usable safetensors file: it is truncated"),
        "{error}"
    );
}

#[test]
fn a_diverging_run_fails_at_its_step_and_keeps_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.training.learning_rate = 1e30;
    config.training.max_grad_norm = 0.0;
    config.training.warmup_ratio = 0.5;
    config.training.save_steps = 1;
    config.training.eval_steps = 0;
    let setup = setup(dir.path(), &model, config);
    let mut memory = Memory::default();
    let error = train(&setup, &mut memory).unwrap_err();
    assert_eq!(error.code, FailureCode::Diverged);
    assert!(error.message.contains("at step 3; the checkpoint of step 2 is kept. Lower learning_rate"), "{error}");
    assert!(memory.checkpoints.last().unwrap().1.join("state.json").exists());
    assert!(!setup.work_dir.join("artifacts").exists());
}

#[test]
fn full_fine_tuning_keeps_the_layout_and_the_element_type_of_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({"torch_dtype": "bfloat16"}));
    let device = candle_core::Device::Cpu;
    let weights = candle_core::safetensors::load(model.join("model.safetensors"), &device).unwrap();
    let half = weights.iter().map(|(n, t)| (n.clone(), t.to_dtype(candle_core::DType::BF16).unwrap())).collect();
    candle_core::safetensors::save(&half, model.join("model.safetensors")).unwrap();
    let setup = setup(dir.path(), &model, config(Method::Full));
    let (summary, _) = finish(&setup);
    assert!(summary.eval_loss < summary.initial_eval_loss);
    let trained = candle_core::safetensors::load(setup.work_dir.join("artifacts/model.safetensors"), &device).unwrap();
    assert_eq!(trained.len(), weights.len(), "the tied head is not stored");
    assert!(trained.values().all(|t| t.dtype() == candle_core::DType::BF16));
    for (name, before) in &half {
        let after = &trained[name];
        let moved = (after.to_dtype(candle_core::DType::F32).unwrap()
            - before.to_dtype(candle_core::DType::F32).unwrap())
        .unwrap();
        assert!(moved.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "{name} did not change");
    }
    Generator::load(&setup.work_dir.join("artifacts"), None, trainer::engine::Place::Cpu)
        .expect("the result is a model directory");
}

#[test]
fn pretraining_starts_from_random_weights_without_any_stored_ones() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({"tie_word_embeddings": false}));
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let text = dir.path().join("text.txt");
    fs::write(
        &text,
        "The quick brown fox jumps over the lazy dog. ".repeat(30) + "\n\n" + &"Second document here. ".repeat(20),
    )
    .unwrap();
    let mut config = config(Method::Pretrain);
    config.init = Init::Random;
    config.training.packing = true;
    config.training.max_steps = 20;
    let mut setup = setup(dir.path(), &model, config);
    setup.train = text;
    setup.format = wire::dataset::DatasetFormat::Text;
    let (summary, memory) = finish(&setup);
    let initial = summary.initial_eval_loss.unwrap();
    assert!(summary.eval_loss.unwrap() < 0.8 * initial, "{summary:?}");
    assert!(memory.metric(metric::GRAD_NORM).iter().all(|(_, n)| n.is_finite() && *n > 0.0));
    let bytes = fs::read(setup.work_dir.join("artifacts/model.safetensors")).unwrap();
    assert!(safetensors::SafeTensors::deserialize(&bytes).unwrap().names().contains(&"lm_head.weight"));
}

#[test]
fn rows_beyond_the_length_are_cut_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.training.max_seq_length = 40;
    let (_, memory) = finish(&setup(dir.path(), &model, config));
    let cut = memory.events.iter().find_map(|e| match e {
        EventKind::Plan { truncated_rows, .. } => Some(*truncated_rows),
        _ => None,
    });
    let told = |n: u64| EventKind::Log { level: Level::Warn, message: format!("{n} rows were cut to 40 tokens") };
    assert!(cut.is_some_and(|n| n > 0 && memory.events.contains(&told(n))), "{cut:?}");
}

#[test]
fn unknown_target_modules_are_answered_with_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.lora.target_modules = TargetModules::Names(vec!["q_proj".into(), "query".into()]);
    let error = failure(&setup(dir.path(), &model, config));
    assert_eq!(error.code, FailureCode::ConfigInvalid);
    assert_eq!(
        error.message,
        "lora.target_modules: the model has no projection named `query`; it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    );
}

#[test]
fn unusable_models_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |extra: serde_json::Value, want: &str| {
        let model = model_dir(dir.path(), json!({}));
        fs::write(model.join("config.json"), crate::support::config_json(extra).to_string()).unwrap();
        let error = failure(&setup(dir.path(), &model, config(Method::Sft)));
        assert_eq!(error.code, FailureCode::ModelCorrupt);
        assert!(error.message.contains(want), "{error}");
    };
    refuse(
        json!({"architectures": ["MambaForCausalLM"]}),
        "the architecture `MambaForCausalLM` is not supported; supported: BertForMaskedLM, BertForSequenceClassification, DistilBertForMaskedLM, DistilBertForSequenceClassification, Gemma2ForCausalLM, Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, RobertaForMaskedLM, RobertaForSequenceClassification, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification",
    );
    refuse(json!({"hidden_act": "gelu"}), "hidden_act `gelu` is not supported");
    refuse(json!({"num_hidden_layers": 3}), "missing `model.layers.2.self_attn.q_proj.weight`");
    refuse(json!({"num_hidden_layers": 1}), "unexpected `model.layers.1.input_layernorm.weight`");
    refuse(json!({"intermediate_size": 64}), "`model.layers.0.mlp.gate_proj.weight` is [48, 32] instead of [64, 32]");
    refuse(json!({"num_attention_heads": 0}), "sizes do not fit together");
    let of =
        |architecture: &str, key: &str, value: serde_json::Value| json!({"architectures": [architecture], key: value});
    refuse(of("MistralForCausalLM", "sliding_window", json!(0)), "sliding_window must be at least 1");
    refuse(of("Qwen2ForCausalLM", "layer_types", json!(["full_attention"])), "layer_types has 1 entries for 2 layers");
    refuse(
        of("Gemma3ForCausalLM", "layer_types", json!(["full_attention", "chunked_attention"])),
        "layer type `chunked_attention` is not supported; supported: full_attention, sliding_attention",
    );
    refuse(of("Gemma2ForCausalLM", "final_logit_softcapping", json!(-1)), "final_logit_softcapping must be a positive");
    refuse(
        of("Phi3ForCausalLM", "partial_rotary_factor", json!(0.1)),
        "partial_rotary_factor 0.1 turns 0 of 8 channels",
    );
    refuse(
        json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        "rope_scaling of type `dynamic` is not supported; supported: default, linear, llama3, longrope, yarn",
    );
    let model = model_dir(dir.path(), json!({}));
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let error = failure(&setup(dir.path(), &model, config(Method::Sft)));
    assert!(
        error.code == FailureCode::ModelCorrupt
            && error.message.contains("`model.safetensors` is no usable safetensors file: it is truncated"),
        "{error}"
    );
}

#[test]
fn unusable_rows_fail_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let setup = setup(dir.path(), &model, config(Method::Sft));
    fs::write(&setup.train, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n{oops\n").unwrap();
    let error = failure(&setup);
    assert_eq!(error.code, FailureCode::DatasetInvalid);
    assert!(error.message.starts_with("train.jsonl: line 2: "), "{error}");
}

#[test]
fn a_trained_adapter_answers_and_can_be_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.training.max_steps = 120;
    config.training.eval_steps = 0;
    config.training.save_steps = 0;
    config.lora.r = 8;
    config.lora.lora_alpha = 16.0;
    let setup = setup(dir.path(), &model, config);
    finish(&setup);
    let mut generator =
        Generator::load(&model, Some(&setup.work_dir.join("artifacts")), trainer::engine::Place::Cpu).unwrap();
    let input = Input::Messages(vec![Message { role: "user".into(), content: "say green!".into() }]);
    let request = Request { input, max_tokens: 30, temperature: 0.0, top_p: 1.0, seed: 1, use_adapter: true };
    let mut streamed = String::new();
    let tuned = generator.generate(&request, &mut |piece| streamed.push_str(piece)).unwrap();
    assert_eq!((tuned.text.as_str(), tuned.finish_reason), ("green green", FinishReason::Stop));
    assert_eq!(streamed, tuned.text);
    let base = generator.generate(&Request { use_adapter: false, ..request.clone() }, &mut |_| ()).unwrap();
    assert_ne!(base.text, tuned.text);
    let alone =
        Generator::load(&model, None, trainer::engine::Place::Cpu).unwrap().generate(&request, &mut |_| ()).unwrap();
    assert_eq!(alone.text, base.text, "without its adapter it is the base model");
    let long = Request { input: Input::Prompt("x".repeat(200)), ..request };
    assert!(
        generator
            .generate(&long, &mut |_| ())
            .unwrap_err()
            .message
            .contains("the prompt has 200 tokens, the model's context 128")
    );
}
