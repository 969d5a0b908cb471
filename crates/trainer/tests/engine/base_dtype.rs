//! Frozen base weights in 16 bits: exact when they were stored so, close when rounded, and half the memory.

use crate::support::{Memory, chat_file, config, model_dir, setup};
use candle_core::{DType, Device, safetensors};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use trainer::engine::{Outcome, Setup, model, model::BuildOptions, train};
use wire::{
    config::{BaseDtype, Method, TrainingConfig},
    dataset::DatasetFormat,
    estimate::Estimate,
    event::metric,
};

/// The tiny model with its weights rounded to `dtype` in the file.
fn stored_as(dir: &Path, dtype: DType, extra: serde_json::Value) -> PathBuf {
    let model = model_dir(dir, extra);
    let file = model.join("model.safetensors");
    let weights = safetensors::load(&file, &Device::Cpu).unwrap();
    let rounded = weights.iter().map(|(n, t)| (n.clone(), t.to_dtype(dtype).unwrap())).collect();
    safetensors::save(&rounded, file).unwrap();
    model
}

/// All losses of a run, training's and evaluation's.
fn losses(setup: &Setup, base_dtype: BaseDtype) -> Vec<f64> {
    let work = tempfile::tempdir().unwrap();
    let mut setup = Setup { work_dir: work.path().to_owned(), ..setup.clone() };
    setup.config.training.base_dtype = base_dtype;
    let mut memory = Memory::default();
    assert!(matches!(train(&setup, &mut memory).unwrap(), Outcome::Finished { .. }));
    [metric::TRAIN_LOSS, metric::EVAL_LOSS].iter().flat_map(|n| memory.metric(n)).map(|(_, v)| v).collect()
}

/// The same run, on preference pairs.
fn on_pairs(setup: Setup, dir: &Path) -> Setup {
    let train = dir.join("pairs.jsonl");
    let pair = |n| json!({"prompt": format!("say {n}"), "chosen": format!("{n} {n}"), "rejected": "no"}).to_string();
    fs::write(&train, (0..12).map(|n| pair(n) + "\n").collect::<String>()).unwrap();
    let config = TrainingConfig { method: Method::Dpo, ..setup.config };
    Setup { train, format: DatasetFormat::PreferenceJsonl, config, ..setup }
}

#[test]
fn weights_kept_as_stored_give_the_same_bits_as_widened_ones() {
    for dtype in [DType::BF16, DType::F16] {
        let dir = tempfile::tempdir().unwrap();
        let model = stored_as(dir.path(), dtype, json!({"tie_word_embeddings": false}));
        let mut config = config(Method::Sft);
        config.lora.use_dora = dtype == DType::F16;
        let setup = setup(dir.path(), &model, config);
        assert_eq!(losses(&setup, BaseDtype::Auto), losses(&setup, BaseDtype::F32), "{dtype:?}");
        let setup = on_pairs(setup, dir.path());
        assert_eq!(losses(&setup, BaseDtype::Auto), losses(&setup, BaseDtype::F32), "{dtype:?}, pairs");
    }
}

#[test]
fn rounded_weights_give_nearly_the_same_losses() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let setup = setup(dir.path(), &model, config(Method::Sft));
    let exact = losses(&setup, BaseDtype::Auto);
    assert_eq!(exact, losses(&setup, BaseDtype::F32), "stored as f32");
    for (kept, limit) in [(BaseDtype::Bf16, 2e-2), (BaseDtype::F16, 2e-3)] {
        let rounded = losses(&setup, kept);
        let worst = exact.iter().zip(&rounded).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
        println!("{kept:?}: largest relative difference of {} losses {worst:.2e}", exact.len());
        assert!(worst > 0.0 && worst < limit, "{kept:?}: {worst:.2e}");
    }
}

/// Peak memory of a run, rehearsed in a process of its own.
fn peak_of_a_run(dir: &Path, model: &Path, base_dtype: &str) -> u64 {
    let config = dir.join("sft.json");
    let training = json!({"max_steps": 1, "val_set_size": 0, "max_seq_length": 32, "base_dtype": base_dtype});
    fs::write(&config, json!({"training": training}).to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone-trainer"));
    command.args(["estimate", "--json", "--rehearse", "0", "--config"]).arg(&config).arg("--model").arg(model);
    let output = command.arg("--data").arg(chat_file(dir, 4)).env("HONE_THREADS", "1").output().unwrap();
    serde_json::from_slice::<Estimate>(&output.stdout).unwrap().peak_memory_bytes
}

#[test]
fn sixteen_bits_take_half_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let extra = json!({"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 9});
    let model = stored_as(dir.path(), DType::BF16, extra);
    let options = BuildOptions {
        train_weights: false,
        random: None,
        max_positions: 8,
        base_dtype: BaseDtype::Auto,
        place: trainer::engine::Place::Cpu,
        classes: None,
    };
    let weights = model::load(&model, options).unwrap().weights();
    let half = peak_of_a_run(dir.path(), &model, "auto");
    let whole = peak_of_a_run(dir.path(), &model, "f32");
    println!("{weights} weights: a run peaks at {half} bytes with 16 bits and at {whole} with f32");
    let saved = whole.saturating_sub(half);
    // Two bytes each, but for the one matrix that is widened at a time.
    assert!(saved > weights * 17 / 10 && saved < weights * 26 / 10, "{saved} bytes saved for {weights} weights");
}
