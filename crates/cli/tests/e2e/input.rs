//! Bad input: each case with the message the user reads, and nothing kept.

use crate::{harness::Hone, material};
use std::fs;

/// Uploads `content` as a dataset; returns exit code and message.
fn upload(hone: &Hone, name: &str, content: &[u8]) -> (i32, String) {
    let path = hone.path(&format!("{name}.jsonl"));
    fs::write(&path, content).unwrap();
    hone.fails(&["datasets", "upload", path.to_str().unwrap(), "--name", name])
}

const GOOD: &str = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;

#[test]
fn broken_datasets_are_refused_with_the_line_and_only_the_report_is_kept() {
    let hone = Hone::started();
    let cases: [(&str, Vec<u8>, &str, &str); 5] = [
        ("json", format!("{GOOD}\n{{\"messages\": [\n").into(), "line 2", "JSON"),
        ("roles", format!("{GOOD}\n{}\n", GOOD.replace("assistant", "robot")).into(), "line 2", "robot"),
        ("empty-row", format!("{GOOD}\n{}\n", GOOD.replace("\"a\"", "\"\"")).into(), "line 2", "empty"),
        ("utf8", [GOOD.as_bytes(), b"\n{\"messages\": \"\xff\"}\n"].concat(), "line 2", "UTF-8"),
        (
            "no-answer",
            format!("{GOOD}\n{{\"messages\": [{{\"role\": \"user\", \"content\": \"q\"}}]}}\n").into(),
            "line 2",
            "assistant",
        ),
    ];
    for (name, content, line, reason) in cases {
        let (code, message) = upload(&hone, name, &content);
        assert_eq!(code, 4, "{name}: {message}");
        assert!(message.contains(line) && message.contains(reason), "{name}: no `{line}` or `{reason}` in:\n{message}");
        let local = hone.path(&format!("{name}.jsonl"));
        let (code, message) = hone.fails(&["datasets", "validate", local.to_str().unwrap()]);
        assert_eq!(code, 4, "{name}: {message}");
        assert!(message.contains(line) && message.contains(reason), "{name} locally: {message}");
    }
    let many = "nonsense\n".repeat(50);
    let (_, message) = upload(&hone, "many", format!("{GOOD}\n{many}").as_bytes());
    assert_eq!(message.matches("\n  line ").count(), 20, "{message}");
    assert!(message.contains("50"), "the number of all errors: {message}");
    let listed = hone.json(&["datasets", "ls"]);
    assert!(
        listed.as_array().unwrap().len() == 6 && listed.as_array().unwrap().iter().all(|d| d["status"] == "invalid")
    );
    let shown = hone.ok(&["datasets", "show", "roles"]);
    assert!(shown.contains("1 error in") && shown.contains("line 2") && shown.contains("robot"), "{shown}");
    // The corrected file takes the name.
    let good = hone.path("good.jsonl");
    fs::write(&good, GOOD).unwrap();
    hone.ok(&["datasets", "upload", good.to_str().unwrap(), "--name", "roles"]);
    assert_eq!(hone.json(&["datasets", "show", "roles"])["status"], "ready");
    hone.ok(&["datasets", "rm", "roles"]);
    assert_eq!(stored(&hone, "datasets"), Vec::<String>::new(), "objects of refused datasets");
}

#[test]
fn configurations_models_and_datasets_that_do_not_exist_are_named_with_near_ones() {
    let hone = Hone::with_material();
    let train = |yaml: &str| {
        let path = hone.path("bad.yaml");
        fs::write(&path, yaml).unwrap();
        hone.fails(&["train", path.to_str().unwrap()])
    };
    let (code, message) = train("model: tiny\ndataset: rows\ntraining: {learning_rat: 1, max_steps: 0}\nlara: {}\n");
    assert_eq!(code, 4);
    for told in ["training.learning_rat", "did you mean `training.learning_rate`?", "did you mean `lora`?"] {
        assert!(message.contains(told), "no `{told}` in:\n{message}");
    }
    let (code, message) = train("model: tiny\ndataset: rows\ntraining: {learning_rate: -1, max_steps: 0}\n");
    assert_eq!(code, 4);
    assert!(message.contains("training.learning_rate") && message.contains("training.max_steps"), "{message}");
    let (code, message) = train("model: tinny\ndataset: rows\n");
    assert_eq!(code, 3);
    assert!(message.contains("no model named `tinny`; did you mean tiny?"), "{message}");
    let (code, message) = train("model: tiny\ndataset: rowz\n");
    assert_eq!(code, 3);
    assert!(message.contains("no dataset named `rowz`; did you mean rows?"), "{message}");
    let (code, message) = train("model: [tiny\n");
    assert_eq!(code, 4);
    assert!(message.contains("bad.yaml is not valid YAML"), "{message}");
    let (code, message) = hone.fails(&["train", "absent.yaml"]);
    assert_eq!(code, 4);
    assert!(message.contains("cannot read absent.yaml: no such file or directory"), "{message}");
    let (code, message) = hone.fails(&["jobs", "show", "latest"]);
    assert_eq!(code, 3);
    assert!(message.contains("there is no job yet"), "{message}");
    let (code, message) = hone.fails(&["jobs", "show", "0123"]);
    assert_eq!(code, 3);
    assert!(message.contains("no job has an id that begins with `0123`"), "{message}");
    let (code, message) = hone.fails(&["datasets", "preview", "rowz"]);
    assert_eq!(code, 3);
    assert!(message.contains("did you mean rows?"), "{message}");
    assert_eq!(hone.fails(&["jobs", "frobnicate"]).0, 2);
    assert!(hone.json(&["jobs", "ls"]).as_array().unwrap().is_empty(), "no job was created");
}

#[test]
fn unusable_models_are_refused_with_the_file_and_the_reason() {
    let hone = Hone::started();
    let dir = hone.path("model");
    let model = material::model(&dir);
    let import = || hone.fails(&["models", "import", &model, "--name", "bad"]);
    let whole = fs::read(dir.join("model.safetensors")).unwrap();

    fs::write(dir.join("pytorch_model.bin"), b"\x80\x02}q\x00.").unwrap();
    let (code, message) = import();
    assert_eq!(code, 4);
    assert!(
        message.contains("pytorch_model.bin") && message.contains("pickled weights, which can run code"),
        "{message}"
    );
    fs::remove_file(dir.join("pytorch_model.bin")).unwrap();

    fs::write(dir.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let (code, message) = import();
    assert_eq!(code, 4);
    assert!(message.contains("model.safetensors") && message.contains("is truncated"), "{message}");

    fs::write(dir.join("model.safetensors"), &whole).unwrap();
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    let (code, message) = import();
    assert_eq!(code, 4);
    assert!(message.contains("tokenizer.json  is missing; it holds the tokenizer"), "{message}");
    let ready = hone.json(&["models", "ls"]);
    assert!(ready.as_array().unwrap().iter().all(|m| m["status"] != "ready"), "{ready:#}");
}

#[test]
fn an_upload_over_the_limit_is_refused_before_it_is_stored() {
    let mut hone = Hone::new();
    hone.limits = Some(("10000", "20000"));
    hone.up();
    let rows = format!("{GOOD}\n").repeat(200);
    let (code, message) = upload(&hone, "large", rows.as_bytes());
    assert_eq!(code, 4, "{message}");
    assert!(message.contains("10000") || message.contains("10.0 kB") || message.contains("10 kB"), "{message}");
    let model = material::model(&hone.path("model"));
    let (code, message) = hone.fails(&["models", "import", &model, "--name", "large"]);
    assert_eq!(code, 4, "{message}");
    assert_eq!(stored(&hone, "datasets"), Vec::<String>::new());
    assert_eq!(stored(&hone, "models"), Vec::<String>::new());
}

/// Objects below a prefix of the embedded storage, whatever bucket they are in.
fn stored(hone: &Hone, prefix: &str) -> Vec<String> {
    fn walk(dir: &std::path::Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    for bucket in fs::read_dir(hone.data_dir().join("s3")).into_iter().flatten().flatten() {
        walk(&bucket.path().join(prefix), &mut found);
    }
    found
}
