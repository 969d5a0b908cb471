//! What a job has cost and what it made, by command.

use crate::harness::Hone;
use std::fs;

const CATALOG: &str =
    "gpu_configs: [{id: metered, name: Metered, gpu_count: 0, memory_gb: 1, price_per_hour: 3600, currency: EUR}]";

#[test]
fn costs_are_added_up_and_artifacts_downloaded() {
    let mut hone = Hone::new();
    let catalog = hone.path("catalog.yaml");
    fs::write(&catalog, CATALOG).unwrap();
    hone.settings.push(("CATALOG_FILE", catalog.display().to_string()));
    hone.up();
    hone.import_material();
    assert!(hone.ok(&["costs"]).contains("no attempt of a job started in this time"));
    assert!(hone.ok(&["artifacts", "ls"]).contains("no artifacts yet"));

    let config = hone.path("config.yaml");
    fs::write(&config, "model: tiny\ndataset: rows\ntraining: {max_steps: 20, learning_rate: 1.0e-2}\n").unwrap();
    let config = config.to_str().unwrap();
    let job = hone.json(&["train", config, "--gpu-config", "metered"]);
    let job = hone.wait_for_end(job["id"].as_str().unwrap());
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", hone.logs());
    let cost = job["cost"]["actual"].as_f64().unwrap();
    assert!(cost > 0.0, "{job:#}");
    // Another of a package, on this machine, which costs nothing.
    hone.ok(&["packages", "draft", "support", config]);
    hone.ok(&["packages", "publish", "support"]);
    let free = hone.json(&["packages", "launch", "support"]);
    hone.wait_for_end(free["id"].as_str().unwrap());

    let summary = hone.json(&["costs", "--by", "package"]);
    let groups = summary["groups"].as_array().unwrap();
    let of = |label: &str| groups.iter().find(|g| g["label"].as_str().unwrap_or_default() == label).unwrap();
    assert_eq!((&of("support")["amount"], &of("")["jobs"]), (&0.0.into(), &1.into()), "{summary:#}");
    assert!((of("")["amount"].as_f64().unwrap() - cost).abs() < 1e-4, "{summary:#}");
    let money = format!("{cost:.4} EUR");
    let text = hone.ok(&["costs", "--by", "gpu-config", "--from", "1h"]);
    assert!(text.lines().any(|l| l.starts_with("metered") && l.ends_with(&money)), "{text}");
    assert!(text.lines().any(|l| l.starts_with("this machine")), "{text}");
    assert!(text.lines().any(|l| l.starts_with("total") && l.ends_with(&money)), "{text}");
    let today = chrono::Utc::now().format("%Y-%m-%d").to_string();
    // A run over midnight has yesterday's.
    assert!(hone.ok(&["costs"]).lines().count() >= 4 && hone.ok(&["costs", "--from", "2d"]).contains("total"));
    let text = hone.ok(&["costs", "--by", "user", "--from", &today, "--to", &today]);
    assert!(text.contains("`--from` looks further back"), "{text}");
    let text = hone.ok(&["costs", "--package", "support"]);
    assert!(!text.contains("EUR"), "{text}");
    let text = hone.ok(&["costs", "--job", job["id"].as_str().unwrap()]);
    let attempt: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert!(attempt[0] == "1" && text.contains("metered") && text.contains("3600.00 EUR/h"), "{text}");
    assert!(text.lines().last().unwrap().ends_with(&money), "{text}");
    let (code, message) = hone.fails(&["costs", "--from", "yesterday"]);
    assert_eq!((code, message.contains("`yesterday` is no time")), (2, true), "{message}");
    let (code, message) = hone.fails(&["costs", "--package", "nothing"]);
    assert_eq!(code, 3, "{message}");

    let artifacts = hone.json(&["artifacts", "ls"]);
    let made = artifacts.as_array().unwrap().iter().find(|a| a["job_id"] == job["id"]).unwrap();
    assert_eq!((artifacts.as_array().unwrap().len(), &made["kind"]), (2, &"adapter".into()));
    let text = hone.ok(&["artifacts", "ls"]);
    assert!(text.contains("adapter") && text.contains("tiny@") && text.contains("support-v1"), "{text}");
    let (dir, id) = (hone.path("adapter"), made["id"].as_str().unwrap());
    let download = ["artifacts", "download", id, dir.to_str().unwrap()];
    let text = hone.ok(&download);
    let files = hone.json(&["jobs", "artifacts", job["id"].as_str().unwrap()]);
    let count = files.as_array().unwrap().len();
    assert!(text.contains(&format!("{count} files downloaded to")), "{text}");
    for file in files.as_array().unwrap() {
        let content = fs::read(dir.join(file["path"].as_str().unwrap())).unwrap();
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&content);
        assert_eq!(file["sha256"], hex::encode(digest), "{file}");
    }
    // What was downloaded is not fetched again.
    assert!(hone.ok(&download).contains(&format!("0 files downloaded to {}, {count} were there", dir.display())));
    let nothing = "0198c2f4-71b3-7000-8000-000000000000";
    let (code, message) = hone.fails(&["artifacts", "download", nothing, dir.to_str().unwrap()]);
    assert_eq!((code, message.contains("no artifact")), (3, true), "{message}");
}
