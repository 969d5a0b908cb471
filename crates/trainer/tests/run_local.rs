//! `hone-trainer` as a person uses it: training local files, and generating text.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use wire::storage::Manifest;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_lora").join(name)
}

fn trainer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone-trainer"));
    command.args(args).env_clear().env("HONE_THREADS", "1").stdin(Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn succeed(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn generate(extra: &[&str]) -> Command {
    let model = fixture("model");
    trainer(&[&["generate", "--model", text(&model), "--max-tokens", "12"], extra].concat())
}

#[test]
fn local_files_become_an_adapter_that_generates() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (dir.path().join("sft.yaml"), dir.path().join("out"));
    fs::write(&config, "lora: {r: 2}\ntraining: {max_steps: 3, max_seq_length: 64, val_set_size: 0}\n").unwrap();
    let (model, data) = (fixture("model"), fixture("train.jsonl"));
    let args = ["run", "--config", text(&config), "--model", text(&model), "--data", text(&data), "--out", text(&out)];
    let output = succeed(trainer(&args));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("3 steps in ") && said.contains("artifacts in "), "{said}");
    assert!(out.join("adapter_model.safetensors").is_file() && out.join("adapter_config.json").is_file());

    let manifest: Manifest = serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let names: Vec<&str> = manifest.files.iter().map(|f| f.key.as_str()).collect();
    let mut present: Vec<String> =
        fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    present.retain(|name| name != "manifest.json" && name != "work");
    present.sort();
    assert_eq!(names, present);
    for file in &manifest.files {
        let bytes = fs::read(out.join(&file.key)).unwrap();
        assert_eq!(
            (file.size, &file.sha256),
            (u64::try_from(bytes.len()).unwrap(), &hex::encode(Sha256::digest(&bytes))),
            "{}",
            file.key
        );
    }

    let compared = succeed(generate(&["--adapter", text(&out), "--prompt", "hello", "--compare", "--json"]));
    let both: Value = serde_json::from_slice(&compared.stdout).unwrap();
    for name in ["base", "tuned"] {
        assert!(both[name]["completion_tokens"].as_u64().is_some_and(|n| (1..=12).contains(&n)), "{both}");
    }
}

#[test]
fn a_mistake_in_the_configuration_is_named_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (dir.path().join("sft.yaml"), dir.path().join("out"));
    fs::write(&config, "training: {learning_rat: 1}\n").unwrap();
    let (model, data) = (fixture("model"), fixture("train.jsonl"));
    let args = ["run", "--config", text(&config), "--model", text(&model), "--data", text(&data), "--out", text(&out)];
    let output = trainer(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(wire::job_env::exit::FATAL));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("did you mean `training.learning_rate`?"), "{said}");
}

#[test]
fn a_gpu_that_is_not_there_is_a_clear_error_and_auto_takes_the_cpu() {
    let asked = |device: &str| generate(&["--prompt", "hello", "--device", device]).output().unwrap();
    let output = asked("cuda:99");
    assert_eq!(output.status.code(), Some(wire::job_env::exit::FATAL));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the device cuda:99 cannot be used: ") && said.contains("`--device cpu`"), "{said}");
    let said = String::from_utf8(asked("gpu").stderr).unwrap();
    assert!(said.contains("`gpu` is no device; use auto, cpu, cuda or cuda:N"), "{said}");
    let mut auto = generate(&["--prompt", "hello"]);
    auto.env("HONE_DEVICE", "auto");
    succeed(auto);
    let mut chosen = generate(&["--prompt", "hello"]);
    assert!(!chosen.env("HONE_DEVICE", "cuda:99").output().unwrap().status.success());
}

#[test]
fn a_job_without_its_environment_says_what_is_missing() {
    let output = trainer(&["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(wire::job_env::exit::FATAL));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("JOB_SPEC_FILE is not set") && said.contains("--config FILE"), "{said}");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let sample = |seed: &str| {
        let args = ["--prompt", "hello", "--temperature", "1.5", "--seed", seed, "--json"];
        let answer: Value = serde_json::from_slice(&succeed(generate(&args)).stdout).unwrap();
        answer["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

/// Sends request lines and returns the reply lines.
fn talk(requests: &[Value], extra: &[&str]) -> Vec<Value> {
    let mut child =
        generate(&[&["--stdio"], extra].concat()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for request in requests {
        writeln!(input, "{request}").unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn the_line_protocol_streams_tokens_that_add_up_to_the_text() {
    let adapter = fixture("adapter-final");
    let ask = |use_adapter: bool| json!({"messages": [{"role": "user", "content": "hi"}], "use_adapter": use_adapter});
    let replies = talk(&[ask(true), ask(false), ask(true)], &["--adapter", text(&adapter)]);
    let mut texts = Vec::new();
    let mut streamed = String::new();
    for reply in &replies {
        if reply["done"] == true {
            assert_eq!(reply["text"], streamed.as_str());
            assert!(reply["tokens_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{reply}");
            assert!(reply["prompt_tokens"].as_u64().is_some_and(|n| n > 0), "{reply}");
            texts.push(std::mem::take(&mut streamed));
        } else {
            streamed.push_str(reply["token"].as_str().unwrap());
        }
    }
    assert_eq!(texts.len(), 3);
    assert_eq!(texts[0], texts[2]);
    assert_ne!(texts[0], texts[1], "the adapter changes the answer");
}

#[test]
fn a_bad_request_is_answered_and_the_next_one_is_served() {
    let replies = talk(&[json!({"prompt": ""}), json!({"surprise": 1}), json!({}), json!({"prompt": "a"})], &[]);
    let errors: Vec<&str> = replies.iter().filter_map(|r| r["error"].as_str()).collect();
    assert_eq!(errors.len(), 3, "{replies:?}");
    assert!(errors[1].contains("surprise"), "{errors:?}");
    assert_eq!(errors[2], "give either `messages` or `prompt`");
    assert_eq!(replies.last().unwrap()["done"], true);
}
