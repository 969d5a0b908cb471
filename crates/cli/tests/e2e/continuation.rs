//! A job that continues from the adapter of an earlier one.

use crate::{harness::Hone, material};
use std::fs;

fn number(job: &serde_json::Value, name: &str) -> f64 {
    job["progress"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {job:#}"))
}

#[test]
fn a_job_continues_from_the_adapter_of_an_earlier_one_and_says_so() {
    let hone = Hone::with_material();
    let settings = "training: {max_steps: 8, learning_rate: 1.0e-2, eval_steps: 0, val_set_size: 0.2, seed: 7}";
    let first = hone.train(&format!("lora: {{r: 4}}\n{settings}"));
    let before = hone.wait_for_end(&first);
    assert_eq!(before["state"], "succeeded", "{before:#}\n{}", hone.logs());

    let config = hone.path("next.yaml");
    let write = |lora: &str, rest: &str| {
        fs::write(&config, format!("model: tiny\ndataset: rows\nlora: {{{lora}}}\n{rest}\n")).unwrap();
        config.display().to_string()
    };
    let told = hone.json(&["train", &write(&format!("init_from: {first}"), settings), "--estimate"]);
    assert_eq!(told["basis"], "rehearsal", "{told:#}");
    let second = hone.train(&format!("lora: {{init_from: {first}}}\n{settings}"));
    let after = hone.wait_for_end(&second);
    assert_eq!(after["state"], "succeeded", "{after:#}\n{}", hone.logs());
    // It begins where the first one ended, and goes on.
    let (ended, began) = (number(&before, "eval_loss"), number(&after, "initial_eval_loss"));
    assert!((ended - began).abs() < 1e-5, "{ended} {began}");
    assert!(number(&before, "initial_eval_loss") - ended > 0.1, "the first job learned something");
    assert!(number(&after, "eval_loss") < ended);

    let download = hone.path("adapter");
    hone.ok(&["jobs", "artifacts", &second, "--download", download.to_str().unwrap()]);
    let made: serde_json::Value =
        serde_json::from_slice(&fs::read(download.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(made["r"], 4, "the adapter decides its rank, not the default of the configuration");
    let card = fs::read_to_string(download.join("README.md")).unwrap();
    assert!(card.contains(&format!("| init_from | {first} |")), "{card}");
    assert_eq!(after["config"]["lora"]["init_from"], first.as_str());

    let refused = |lora: &str, rest: &str| hone.fails(&["train", &write(lora, rest)]);
    let (code, message) = refused("init_from: ./adapter", "");
    assert_eq!(code, 4);
    assert!(message.contains("lora.init_from") && message.contains("is no job's id"), "{message}");
    let (code, message) = refused("init_from: 00000000-0000-4000-8000-000000000000", "");
    assert_eq!(code, 3, "{message}");
    let (code, message) = refused(&format!("init_from: {first}"), "method: dpo");
    assert_eq!(code, 4);
    assert!(message.contains("lora.init_from"), "{message}");

    let whole = hone.train("method: full\ntraining: {max_steps: 1, eval_steps: 0}");
    assert_eq!(hone.wait_for_end(&whole)["state"], "succeeded", "{}", hone.logs());
    let (code, message) = refused(&format!("init_from: {whole}"), "");
    assert_eq!(code, 4);
    assert!(message.contains("trained all weights, not an adapter"), "{message}");

    let dir = hone.path("other");
    let other = material::model(&dir);
    let changed = fs::read_to_string(dir.join("config.json")).unwrap().replace("512", "256");
    fs::write(dir.join("config.json"), changed).unwrap();
    hone.ok(&["models", "import", &other, "--name", "other"]);
    fs::write(&config, format!("model: other\ndataset: rows\nlora: {{init_from: {first}}}\n")).unwrap();
    let (code, message) = hone.fails(&["train", config.to_str().unwrap()]);
    assert_eq!(code, 4);
    assert!(message.contains("trained an adapter of tiny@") && message.contains("does not fit other@"), "{message}");
}
