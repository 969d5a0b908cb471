//! Pre-flight: what is counted is exact, what is measured is plausible, and nothing is left behind.

use crate::support::{Memory, chat_file, config, model_dir, setup};
use serde_json::json;
use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};
use trainer::engine::{Outcome, estimate, train};
use wire::{config::Method, estimate::Estimate, event::EventKind};

#[test]
fn steps_tokens_and_parameters_are_those_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let mut config = config(Method::Sft);
    config.training.max_steps = 10; // more than two epochs of 16 rows
    config.training.gradient_accumulation_steps = 2;
    config.training.per_device_train_batch_size = 3;
    let mut run = setup(dir.path(), &model, config);
    run.work_dir = dir.path().join("rehearsal");
    let told = estimate(&run, Duration::from_millis(100)).unwrap();
    assert!(!run.work_dir.join("artifacts").exists());
    run.work_dir = dir.path().join("run");
    let mut memory = Memory::default();
    let Outcome::Finished { summary, .. } = train(&run, &mut memory).unwrap() else { panic!("it finishes") };
    let (steps, trainable, total) = memory
        .events
        .iter()
        .find_map(|e| match e {
            EventKind::Plan { total_steps, trainable_parameters, total_parameters, .. } => {
                Some((*total_steps, *trainable_parameters, *total_parameters))
            }
            _ => None,
        })
        .unwrap();
    assert_eq!((told.total_steps, told.trainable_parameters, told.total_parameters), (steps, trainable, total));
    let off = told.total_tokens.abs_diff(summary.tokens);
    assert!(
        off * 50 <= summary.tokens,
        "{} {}: only the epochs beyond the third are extrapolated",
        told.total_tokens,
        summary.tokens
    );
    assert!(told.train_seconds > 0.0 && told.total_seconds > told.train_seconds);
    assert!(told.peak_memory_bytes > 1 << 20 && told.fits());
}

#[test]
fn the_command_prints_one_document_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (model_dir(dir.path(), json!({})), chat_file(dir.path(), 20));
    let config = dir.path().join("sft.json");
    fs::write(&config, json!({"training": {"max_steps": 5, "max_seq_length": 64}}).to_string()).unwrap();
    let before = fs::read_dir(dir.path()).unwrap().count();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone-trainer"));
    command.args(["estimate", "--json", "--rehearse", "0.1", "--config"]).arg(&config);
    command.arg("--model").arg(&model).arg("--data").arg(&data).env("HONE_THREADS", "1").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Estimate = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told.total_steps, 5);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}
