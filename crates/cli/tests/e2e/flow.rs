//! From an empty directory to an adapter, and everything still there the next time.

use crate::{
    harness::{Hone, wait},
    material,
};
use std::{fs, time::Instant};

#[test]
fn a_model_is_trained_downloaded_and_talked_to_and_survives_a_restart() {
    let mut hone = Hone::started();
    let model = material::model(&hone.path("model"));
    let data = material::dataset(&hone.path("rows.jsonl"), 64);
    let heldout = material::dataset(&hone.path("heldout.jsonl"), 8);

    let imported = hone.json(&["models", "import", &model, "--name", "tiny"]);
    assert_eq!(imported["status"], "ready");
    assert_eq!(imported["info"]["architecture"], "LlamaForCausalLM");
    let uploaded = hone.json(&["datasets", "upload", &data, "--validation", &heldout, "--name", "rows"]);
    assert_eq!((&uploaded["status"], &uploaded["rows"]), (&"ready".into(), &72.into()));
    let preview = hone.json(&["datasets", "preview", "rows", "-n", "2"]);
    assert_eq!(preview["rows"].as_array().unwrap().len(), 2);

    let config = hone.path("config.yaml");
    let settings = "model: tiny\ndataset: rows\nname: first\ntraining: {learning_rate: 1.0e-2, num_train_epochs: 2, eval_steps: 8}\n";
    fs::write(&config, settings).unwrap();
    let config = config.to_str().unwrap();
    let told = hone.json(&["train", config, "--estimate", "--set", "training.max_steps=12"]);
    assert_eq!((&told["basis"], &told["fits"], &told["total_steps"]), (&"rehearsal".into(), &true.into(), &12.into()));
    for known in ["total_tokens", "peak_memory_bytes", "memory_limit_bytes", "train_seconds", "total_seconds"] {
        assert!(told[known].as_f64().unwrap() > 0.0, "{known}: {told:#}");
    }
    assert!(hone.json(&["jobs", "ls"]).as_array().unwrap().is_empty(), "an estimate creates nothing");
    let out = hone.run(&["train", config, "--follow", "--set", "lora.r=4", "--set", "training.max_steps=12"]);
    let (text, progress) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{text}{progress}\n{}", hone.logs());
    assert!(text.contains("succeeded: 12 steps"), "{text}");
    for told in ["validation loss", " → ", "adapter_model.safetensors", "lies in", "data/s3/"] {
        assert!(text.contains(told), "no `{told}` in:\n{text}");
    }
    for told in ["step     12   validation loss", "step 12/12"] {
        assert!(progress.contains(told), "no `{told}` in:\n{progress}");
    }

    let job = hone.job("latest");
    let losses = |k: &str| job["progress"][k].as_f64().unwrap();
    assert!(losses("eval_loss") < losses("initial_eval_loss"), "{job:#}");
    let metrics = hone.json(&["jobs", "metrics", "latest"]);
    let steps = metrics.as_array().unwrap().iter().filter(|p| p["values"]["train_loss"].is_f64());
    assert_eq!(steps.map(|p| p["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    assert!(!hone.ok(&["jobs", "logs", "latest"]).trim().is_empty());

    let download = hone.path("adapter");
    hone.ok(&["jobs", "artifacts", "latest", "--download", download.to_str().unwrap()]);
    let adapter = fs::read(download.join("adapter_model.safetensors")).unwrap();
    let adapter_config: serde_json::Value =
        serde_json::from_slice(&fs::read(download.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&adapter_config["peft_type"], &adapter_config["r"]), (&"LORA".into(), &4.into()));

    let ask = ["chat", "latest", "--compare", "--temperature", "0", "--max-tokens", "6", "--prompt", "What follows?"];
    let answers = hone.json(&ask);
    assert_ne!(answers["base"]["text"], answers["tuned"]["text"], "{answers:#}");

    hone.stop();
    let (code, message) = hone.fails(&["jobs", "ls"]);
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("start it with `hone up`"), "{message}");
    let begun = Instant::now();
    hone.up();
    // The bar is 3 s with release programs on an idle machine; `make bench` measures that.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    assert_eq!(hone.json(&["models", "ls"])[0]["name"], "tiny");
    assert_eq!(hone.json(&["datasets", "ls"])[0]["name"], "rows");
    let short = job["id"].as_str().unwrap().get(..13).unwrap();
    assert_eq!(hone.job(short)["state"], "succeeded");
    fs::remove_dir_all(&download).unwrap();
    hone.ok(&["jobs", "artifacts", short, "--download", download.to_str().unwrap()]);
    assert_eq!(fs::read(download.join("adapter_model.safetensors")).unwrap(), adapter);
}

#[test]
fn a_running_job_stores_a_checkpoint_at_shutdown_and_goes_on_at_the_next_start() {
    let mut hone = Hone::with_material();
    let id = hone.train("training: {max_steps: 3000, num_train_epochs: 10000, eval_steps: 0, save_steps: 0}");
    hone.wait_for_step(&id, 5);
    hone.stop();
    assert!(hone.up_log().contains("stores a checkpoint"), "{}", hone.up_log());
    hone.up();
    let job = hone.wait_for_end(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", hone.logs());
    assert!(job["attempt"].as_u64().unwrap() >= 2, "{job:#}");
    let resumed = hone.with_api(async |api| {
        let events = api.events(id.parse().unwrap(), 0).await.unwrap().items;
        events.iter().any(|m| {
            let text = serde_json::to_value(&m.body).unwrap();
            text["event"]["resumed_from_step"].as_u64().is_some_and(|step| step >= 5)
        })
    });
    // The page holds the first 200 messages; a late resume is found in the metrics instead.
    let metrics = hone.json(&["jobs", "metrics", &id]);
    let first_of_second =
        metrics.as_array().unwrap().iter().filter(|p| p["attempt"] == 2).map(|p| p["step"].as_u64().unwrap());
    assert!(resumed || first_of_second.min().is_some_and(|step| step > 5), "the second attempt began anew");
}

#[test]
fn following_goes_on_past_a_pause_that_was_resumed() {
    let hone = Hone::with_material();
    let id = hone.train("training: {max_steps: 3000, num_train_epochs: 10000, eval_steps: 0, save_steps: 0}");
    hone.wait_for_step(&id, 5);
    hone.ok(&["jobs", "pause", &id]);
    wait("the pause", || hone.job(&id)["state"] == "paused");
    let out = hone.run(&["jobs", "show", &id, "--follow"]);
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && told.contains("is paused at step"), "{told}");
    hone.ok(&["jobs", "resume", &id]);
    let out = hone.run(&["jobs", "show", &id, "--follow"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("succeeded: 3000 steps"), "{text}{}", String::from_utf8_lossy(&out.stderr));
}
