//! What the tests of the job machinery and the fault matrix share: jobs with a scripted trainer, and what became of them.

use backend::jobs::supervisor;
use serde_json::{Value, json};
use service::{
    ExposeSecret,
    token::{Grant, JobGrant, TokenKey},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_postgres::{Client, NoTls};
use wire::{JobId, UserId, dataset::DatasetFormat, layout};

pub const KEY: &str = "hone_sk_0123456789abcdef0123456789abcdef";
pub const SIGNING_KEY: &str = "a signing key of more than 32 characters";

/// The scripted trainer. Built with the tests, because it is an example of this package.
pub fn script_trainer() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_hone-backend")).with_file_name("examples").join("script_trainer");
    assert!(path.is_file(), "{} is missing: `cargo build --workspace --examples`", path.display());
    path
}

pub async fn connect(url: &str) -> Client {
    let (db, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    db
}

/// The user that a backend makes at its first start, with a model `tiny` and a dataset `data`.
pub async fn fixtures(db: &Client) -> UserId {
    let row = db.query_one("SELECT id::text FROM users WHERE name = 'local'", &[]).await.unwrap();
    let user: &str = row.get(0);
    let model = "INSERT INTO models (name, revision, user_id, status) VALUES ('tiny', 'r1', $1::text::uuid, 'ready')";
    db.execute(model, &[&user]).await.unwrap();
    let files = json!([{"split": "train", "key": "datasets/x", "size": 1, "sha256": "", "report":
        {"format": "text", "rows": 1, "bytes": 1, "duplicates": 0, "errors": [], "error_count": 0}}]);
    let dataset = "INSERT INTO datasets (id, user_id, name, status, format, storage_path, files)
        VALUES ($1::text::uuid, $1::text::uuid, 'data', 'ready', 'text', 'datasets/', $2::text::jsonb)";
    db.execute(dataset, &[&user, &files.to_string()]).await.unwrap();
    user.parse().unwrap()
}

/// A job whose trainer follows `script` (attempt number or `*` to operations).
pub async fn insert(db: &Client, user: UserId, job: JobId, script: &Value, (max_attempts, state): (i32, &str)) {
    let config = json!({"name": script.to_string(), "model": "tiny", "dataset": "data"});
    let train = json!({"key": "datasets/x", "size": 1, "sha256": ""});
    let spec = json!({
        "model": {"name": "tiny", "revision": "r1", "prefix": layout::model_prefix("tiny", "r1"), "files": []},
        "dataset": {"id": user.0, "name": "data", "format": DatasetFormat::Text, "train": train},
    });
    let insert = "INSERT INTO training_jobs (id, user_id, name, state, config, model_name, model_revision,
            dataset_id, dataset_name, spec, max_attempts)
        VALUES ($1::text::uuid, $2::text::uuid, 'test', $3, $4::text::jsonb, 'tiny', 'r1', $2::text::uuid, 'data',
            $5::text::jsonb, $6)";
    let (id, user, config, spec) = (job.to_string(), user.to_string(), config.to_string(), spec.to_string());
    db.execute(insert, &[&id, &user, &state, &config, &spec, &max_attempts]).await.unwrap();
}

/// A trainer's token.
pub fn token(user: UserId, job: JobId, attempt: u32, epoch: i64) -> String {
    let grant = JobGrant { user, job, attempt, epoch, read: vec![], write: vec![] };
    let key = TokenKey::new(SIGNING_KEY.into()).unwrap();
    key.mint(Grant::Job(grant), Duration::from_secs(3600)).unwrap().expose_secret().to_owned()
}

/// One number from the database.
pub async fn count(db: &Client, query: &str, job: JobId) -> i64 {
    db.query_one(query, &[&job.to_string()]).await.unwrap().get(0)
}

/// Every state the job went through, from its log.
pub async fn states(db: &Client, job: JobId) -> Vec<String> {
    let query = "SELECT body ->> 'state' FROM job_events WHERE job_id = $1::text::uuid AND seq IS NULL ORDER BY id";
    db.query(query, &[&job.to_string()]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The record directory of an attempt below a RUN_DIR.
pub fn attempt_dir(run_dir: &Path, job: JobId, attempt: u32) -> PathBuf {
    run_dir.join("attempts").join(layout::workload_name(job, attempt))
}

/// What lies in the record directories of a job, to explain a failing test.
pub fn records(run_dir: &Path, job: JobId) -> String {
    let mut text = String::new();
    for attempt in 1..=3 {
        for name in ["record.json", "exit.json", "supervisor.log", "trainer.log"] {
            let path = attempt_dir(run_dir, job, attempt).join(name);
            if let Ok(content) = fs::read_to_string(&path) {
                text += &format!("{}: {content}\n", path.display());
            }
        }
    }
    text
}

/// Trainers outlive the backend by design, but not the test.
pub fn stop_trainers(run_dir: &Path) {
    for entry in fs::read_dir(run_dir.join("attempts")).into_iter().flatten().flatten() {
        for _ in 0..200 {
            let left = supervisor::stop_step(&entry.path(), Duration::ZERO);
            if !matches!(left, Ok(supervisor::record::State::Alive { .. })) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
