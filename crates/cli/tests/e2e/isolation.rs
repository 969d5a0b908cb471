//! Who can reach what.

use crate::harness::Hone;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

#[test]
fn the_trainer_has_no_storage_keys_and_nothing_listens_beyond_this_machine() {
    let hone = Hone::with_material();
    let id = hone.train("training: {max_steps: 1000000, num_train_epochs: 10000, eval_steps: 0, save_steps: 0}");
    hone.wait_for_step(&id, 1);
    let trainer = hone.trainer_pid();

    let environment = fs::read(format!("/proc/{trainer}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).replace('\0', "\n");
    assert!(environment.contains("JOB_SPEC"), "{environment}");
    let s3_keys = fs::read_to_string(hone.data_dir().join("s3-credentials.json")).unwrap();
    let s3_keys: serde_json::Value = serde_json::from_str(&s3_keys).unwrap();
    let mut secrets: Vec<String> = s3_keys
        .as_object()
        .unwrap()
        .values()
        .filter_map(|v| v.as_str())
        .filter(|v| v.len() > 8)
        .map(str::to_owned)
        .collect();
    assert!(!secrets.is_empty(), "{s3_keys}");
    for file in fs::read_dir(hone.data_dir().join("secrets")).unwrap() {
        secrets.push(fs::read_to_string(file.unwrap().path()).unwrap().trim().to_owned());
    }
    secrets.push("canary-value".into());
    for secret in &secrets {
        assert!(!environment.contains(secret), "the trainer was given a secret: {environment}");
    }
    for name in ["DATABASE_URL", "AWS_", "TOKEN_SIGNING_KEY", "HONE_BOOTSTRAP_KEY", "postgres://"] {
        assert!(!environment.contains(name), "{name} is in the trainer's environment: {environment}");
    }
    for log in fs::read_dir(hone.data_dir().join("logs")).unwrap() {
        let text = fs::read_to_string(log.unwrap().path()).unwrap();
        assert!(secrets.iter().all(|s| !text.contains(s)), "a secret is in a log");
    }

    let pids = ["postgres", "gateway", "backend"].map(|s| hone.service_pid(s));
    let listeners: Vec<String> =
        pids.iter().chain([&trainer, &hone.up_pid()]).flat_map(|pid| listening(*pid)).collect();
    assert!(listeners.len() >= 3, "gateway, embedded S3 and backend listen: {listeners:?}");
    assert!(listeners.iter().all(|address| address == "127.0.0.1"), "{listeners:?}");
    hone.ok(&["jobs", "cancel", &id]);
}

#[test]
fn files_with_secrets_are_readable_by_their_owner_only() {
    let hone = Hone::started();
    let data = hone.data_dir();
    let mut files = vec![data.join("connection.json"), data.join("s3-credentials.json"), data.join("state.json")];
    files.extend(fs::read_dir(data.join("secrets")).unwrap().map(|e| e.unwrap().path()));
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{}", file.display());
        assert_eq!(meta.uid(), fs::metadata(hone.root.path()).unwrap().uid());
    }
}

/// Addresses the process listens on.
fn listening(pid: u32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets: Vec<String> = fds
        .filter_map(|fd| {
            fs::read_link(fd.path())
                .ok()?
                .to_str()?
                .strip_prefix("socket:[")
                .map(|s| s.trim_end_matches(']').to_owned())
        })
        .collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && sockets.iter().any(|s| s == fields[9]) {
                let (address, _) = fields[1].split_once(':').unwrap();
                let octets =
                    u32::from_str_radix(address, 16).map(|n| std::net::Ipv4Addr::from(n.swap_bytes()).to_string());
                found.push(octets.unwrap_or_else(|_| address.to_owned()));
            }
        }
    }
    found
}
