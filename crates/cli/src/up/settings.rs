//! The settings that `hone up` passes on to the services. A service sees nothing else of the environment.

/// Passed on to every service.
pub const COMMON: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "HONE_WORKERS",
    "LOG_FORMAT",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_RESOURCE_ATTRIBUTES",
];
pub const GATEWAY: &[&str] = &[
    "BUCKET_NAME",
    "DATASETS_BUCKET",
    "MODELS_BUCKET",
    "DATASET_MAX_BYTES",
    "MODEL_MAX_BYTES",
    "SIGNED_URL_SECONDS",
    "S3_PUBLIC_ENDPOINT",
];
/// Only for an outside S3: the embedded one makes its own keys.
pub const OUTSIDE_S3: &[&str] = &[
    "S3_ENDPOINT",
    "AWS_ACCESS_KEY_ID",
    "AWS_ACCESS_KEY_ID_FILE",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_ACCESS_KEY_FILE",
    "AWS_REGION",
];
/// Neither S3 keys nor anything else of the gateway: trainers are children of the backend.
pub const BACKEND: &[&str] = &[
    "TRAINING_MODE",
    "TRAINER_SERVICE_URL",
    "TRAINER_SERVICE_TOKEN",
    "TRAINER_SERVICE_TOKEN_FILE",
    "TRAINER_IMAGE",
    "KUBECONFIG",
    "KUBE_NAMESPACE",
    "KUBE_INSTANCE",
    "KUBE_IMAGE_PULL_POLICY",
    "KUBE_IMAGE_PULL_SECRETS",
    "KUBE_TRAINER_SERVICE_ACCOUNT",
    "KUBE_RUN_AS_USER",
    "KUBE_CPU",
    "KUBE_MEMORY",
    "KUBE_SCRATCH",
    "KUBE_GPU_RESOURCE",
    "KUBE_QUEUE",
    "KUBE_PRIORITY_CLASS",
    "KUBE_DEADLINE_SECONDS",
    "KUBE_TTL_SECONDS",
    "KUBE_GRACE_SECONDS",
    "KUBE_START_SECONDS",
    "KUBE_PULL_SECONDS",
    "KUBE_RESYNC_SECONDS",
    "TRAINER_BIN",
    "TRAINER_MEMORY_BYTES",
    "BACKEND_BASE_URL",
    "MAX_CONCURRENT_JOBS",
    "MAX_UNFINISHED_JOBS",
    "LEASE_SECONDS",
    "HEARTBEAT_SECONDS",
    "CLAIM_SECONDS",
    "RETRY_SECONDS",
    "EXTERNAL_LEASE_SECONDS",
    "EXTERNAL_CLAIM_SECONDS",
    "SLOW_CLIENT_SECONDS",
    "LEADER_SECONDS",
    "DATABASE_POOL_SIZE",
    "DATABASE_WAIT_SECONDS",
    "DATABASE_LOCK_SECONDS",
    "DATASET_MAX_BYTES",
    "DATASETS_PER_USER",
    "DATASET_BYTES_PER_USER",
    "KEYS_PER_USER",
    "RATE_LIMIT_PER_MINUTE",
    "RATE_LIMIT_BURST",
    "AUTH_FAILURES_PER_MINUTE",
    "TRUSTED_PROXIES",
    "OIDC_ISSUER",
    "OIDC_AUDIENCE",
    "OIDC_JWKS_URL",
    "OIDC_ADMIN_CLAIM",
    "OIDC_REFRESH_SECONDS",
    "BUDGET_ALERTS",
    "CATALOG_FILE",
    "OUTGOING_ALLOW",
    "HONE_THREADS",
    "HONE_DEVICE",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LIB_DIR",
    "LD_LIBRARY_PATH",
    "SCRATCH_DIR",
    "CALLBACK_RETRY_FIRST_MS",
    "CALLBACK_RETRY_MAX_MS",
    "CALLBACK_RETRIES",
    "STORAGE_RETRY_FIRST_MS",
    "STORAGE_RETRY_MAX_MS",
    "STORAGE_RETRIES",
    "STORAGE_TIMEOUT_MS",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_TOKEN_FILE",
    "PULL_MAX_BYTES",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_TOKEN_FILE",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_PASSWORD_FILE",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs, path::Path};

    type Names = BTreeSet<String>;

    /// What [`super::super::stack`] gives the backend itself, whatever the environment says.
    const GIVEN: &[&str] = &[
        "HONE_LISTEN",
        "HONE_READY_FILE",
        "DATABASE_URL",
        "STORAGE_GATEWAY_URL",
        "TOKEN_SIGNING_KEY",
        "HONE_BOOTSTRAP_KEY",
        "RUN_DIR",
    ];
    const GIVEN_GATEWAY: &[&str] = &["HONE_LISTEN", "HONE_READY_FILE", "TOKEN_SIGNING_KEY", "DATA_DIR"];
    /// Other programs' own, which our documentation need not explain.
    const FOREIGN: &[&str] = &["CUDA_VISIBLE_DEVICES", "CUDA_LIB_DIR", "LD_LIBRARY_PATH"];

    fn names(lists: &[&[&str]]) -> Names {
        lists.iter().flat_map(|l| l.iter()).map(|n| (*n).to_owned()).collect()
    }

    fn is_name(text: &str) -> bool {
        text.len() > 2
            && !text.ends_with('_')
            && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    }

    fn repository(path: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
    }

    /// The variables that CONFIGURATION.md gives these services, or all.
    fn documented(services: &[&str]) -> Names {
        let text = fs::read_to_string(repository("docs/CONFIGURATION.md")).unwrap();
        let table = text.split("| variable | service |").nth(1).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let mut found = Names::new();
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let of = |service: &str| cells[2].split(", ").any(|s| s == "all" || s == service);
            if services.iter().any(|s| of(s)) {
                found.extend(cells[1].split('`').filter(|part| is_name(part)).map(str::to_owned));
            }
        }
        assert!(found.len() > 10, "{found:?}");
        found
    }

    /// The variables that the backend's sources read, and those of them that are secrets.
    fn read(dir: &Path, all: &mut Names, secrets: &mut Names) {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                read(&entry, all, secrets);
                continue;
            }
            let text = fs::read_to_string(&entry).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for call in text.split("env.").skip(1) {
                let Some((function, rest)) = call.split_once("(\"") else { continue };
                let name = rest.split('"').next().unwrap();
                if function.chars().all(|c| c.is_ascii_lowercase() || c == '_') && is_name(name) {
                    all.insert(name.to_owned());
                    if function.contains("secret") {
                        secrets.insert(name.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_documented_is_passed_on_and_what_is_passed_on_is_documented() {
        let (passed, given) = (names(&[COMMON, BACKEND]), names(&[GIVEN]));
        // Trainers are children of the backend.
        let wanted = documented(&["backend", "trainer"]);
        let dropped: Vec<&String> = wanted.iter().filter(|n| !passed.contains(*n) && !given.contains(*n)).collect();
        assert!(dropped.is_empty(), "`hone up` drops settings of the backend: {dropped:?}");
        let plain = |n: &str| n.strip_suffix("_FILE").unwrap_or(n).to_owned();
        let known: Names = wanted.iter().cloned().chain(names(&[FOREIGN])).collect();
        let untold: Vec<&&str> =
            BACKEND.iter().filter(|n| !known.contains(**n) && !known.contains(&plain(n))).collect();
        assert!(untold.is_empty(), "CONFIGURATION.md does not name {untold:?}");

        let passed = names(&[COMMON, GATEWAY, OUTSIDE_S3, GIVEN_GATEWAY]);
        let dropped: Vec<String> = documented(&["gateway"]).into_iter().filter(|n| !passed.contains(n)).collect();
        assert!(dropped.is_empty(), "`hone up` drops settings of the gateway: {dropped:?}");
    }

    #[test]
    fn what_the_backend_reads_is_documented_and_secrets_may_come_as_files() {
        let (mut all, mut secrets) = (Names::new(), Names::new());
        read(&repository("crates/backend/src"), &mut all, &mut secrets);
        assert!(all.len() > 30 && secrets.len() > 2, "the sources are not read as they are written: {all:?}");
        let documented = documented(&["backend"]);
        let untold: Vec<&String> = all.iter().filter(|n| !documented.contains(*n)).collect();
        assert!(untold.is_empty(), "CONFIGURATION.md does not give the backend {untold:?}");
        let (passed, given) = (names(&[BACKEND]), names(&[GIVEN]));
        let lost = secrets.iter().filter(|n| !given.contains(*n) && !passed.contains(&format!("{n}_FILE")));
        assert_eq!(lost.collect::<Vec<_>>(), Vec::<&String>::new(), "files of secrets that are not passed on");
    }
}
