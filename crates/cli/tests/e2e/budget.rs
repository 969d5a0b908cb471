//! A job with a budget: paused at a checkpoint just below its limit, and resumed without a step lost.

use crate::harness::{Hone, wait};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};

/// One unit of money per second, so that amounts are seconds.
const CATALOG: &str =
    "gpu_configs: [{id: metered, name: Metered, gpu_count: 0, memory_gb: 1, price_per_hour: 3600, currency: EUR}]";
/// Short steps, so that one percent of the budget is several of them; checkpoints on the way, so that it is known how
/// long one takes.
const SETTINGS: &str =
    "training: {max_steps: 8000, num_train_epochs: 10000, eval_steps: 0, save_steps: 500, learning_rate: 1.0e-3}";

fn adapter(hone: &Hone, id: &str) -> Value {
    let files = hone.json(&["jobs", "artifacts", id]);
    let found = files.as_array().unwrap().iter().find(|f| f["path"] == "adapter_model.safetensors").cloned();
    found.unwrap_or_else(|| panic!("no adapter in {files:#}"))["sha256"].clone()
}

fn metered(hone: &Hone, more: &[&str]) -> String {
    let config = hone.path("config.yaml");
    fs::write(&config, format!("model: tiny\ndataset: rows\n{SETTINGS}\n")).unwrap();
    let job = hone.json(&[&["train", config.to_str().unwrap(), "--gpu-config", "metered"], more].concat());
    job["id"].as_str().unwrap().to_owned()
}

fn spent(job: &Value) -> f64 {
    job["cost"]["actual"].as_f64().unwrap()
}

#[test]
fn a_job_pauses_within_one_percent_of_its_budget_and_loses_no_step() {
    let mut hone = Hone::new();
    let catalog = hone.path("catalog.yaml");
    fs::write(&catalog, CATALOG).unwrap();
    hone.settings.push(("CATALOG_FILE", catalog.display().to_string()));
    hone.up();
    hone.import_material();

    // Without a limit: what the whole run costs, and what it makes. Half of that is reached at half or twice the speed.
    let whole = metered(&hone, &[]);
    let reference = hone.wait_for_end(&whole);
    assert_eq!(reference["state"], "succeeded", "{reference:#}\n{}", hone.logs());
    let price = spent(&reference);
    let estimated = reference["cost"]["estimated"].as_f64().unwrap();
    assert!(estimated > 0.0, "{reference:#}");

    let limit = (price * 0.5 * 100.0).round() / 100.0;
    let id = metered(&hone, &["--budget", &limit.to_string()]);
    wait("the pause", || {
        let job = hone.job(&id);
        assert!(!matches!(job["state"].as_str(), Some("failed" | "succeeded")), "{job:#}\n{}", hone.logs());
        job["state"] == "paused"
    });
    let paused = hone.job(&id);
    let share = spent(&paused) / limit;
    eprintln!(
        "spent {:.3} of {limit:.3}: {:.2} %; the whole run {price:.3}, estimated {estimated:.3}",
        spent(&paused),
        share * 100.0
    );
    assert!((0.99..=1.01).contains(&share), "spent {share} of the limit: {paused:#}");
    assert_eq!(paused["pause"]["reason"], "budget");
    let shown = hone.ok(&["jobs", "show", &id]);
    assert!(shown.contains("raise its budget_limit") && shown.contains("of at most"), "{shown}");
    let step = paused["progress"]["step"].as_u64().unwrap();
    let (notes, events, stored) = hone.with_api(async |api| {
        let notes: Value = api.client.get("/api/notifications?limit=100").await.unwrap();
        let job = id.parse().unwrap();
        let mut states = Vec::new();
        let mut after = 0;
        loop {
            let page = api.events(job, after).await.unwrap();
            let Some(last) = page.items.last() else { break };
            after = last.id;
            let bodies = page.items.iter().map(|m| serde_json::to_value(&m.body).unwrap());
            states.extend(bodies.filter(|b| b["stream"] == "state" && !b["pause"].is_null()));
        }
        let stored: Value = api.client.get(&format!("/training/jobs/{id}/checkpoints")).await.unwrap();
        (notes, states, stored)
    });
    assert!(events.iter().any(|e| e["pause"]["reason"] == "budget" && e["state"] == "paused"), "{events:#?}");
    assert_eq!(stored.as_array().unwrap().last().unwrap()["step"], step, "the checkpoint of the pause is durable");
    let mut told: BTreeMap<u64, u32> = BTreeMap::new();
    for note in notes["items"].as_array().unwrap().iter().filter(|n| n["kind"] == "training.job.budget_alert") {
        assert_eq!(note["job_id"], json!(id));
        *told.entry(note["data"]["percent"].as_u64().unwrap()).or_default() += 1;
    }
    assert_eq!(told, [50, 80, 95, 100].map(|percent| (percent, 1)).into(), "{notes:#}");

    let (code, message) = hone.fails(&["jobs", "resume", &id]);
    assert!(code != 0 && message.contains("raise its budget_limit"), "{message}");
    hone.ok(&["jobs", "budget", &id, &(limit * 3.0).to_string()]);
    hone.ok(&["jobs", "resume", &id]);
    let job = hone.wait_for_end(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&"succeeded".into(), &2.into()), "{job:#}\n{}", hone.logs());
    let metrics = hone.json(&["jobs", "metrics", &id]);
    let steps: Vec<(u64, u64)> = metrics
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["values"]["train_loss"].is_f64())
        .map(|p| (p["step"].as_u64().unwrap(), p["attempt"].as_u64().unwrap()))
        .collect();
    let wanted: Vec<(u64, u64)> = (1..=8000).map(|s| (s, if s <= step { 1 } else { 2 })).collect();
    assert!(steps == wanted, "steps were lost or repeated around {step}");
    assert_eq!(adapter(&hone, &id), adapter(&hone, &whole), "the adapter is not that of the uninterrupted run");

    // The sum of the attempts is the cost of the job.
    let records: Value = hone.with_api(async |api| api.client.get(&format!("/api/costs?job_id={id}")).await.unwrap());
    let amounts: f64 = records["items"].as_array().unwrap().iter().map(|r| r["amount"].as_f64().unwrap()).sum();
    assert_eq!(records["items"].as_array().unwrap().len(), 2);
    assert!((amounts - spent(&job)).abs() < 1e-4, "{records:#}\n{job:#}");
}
