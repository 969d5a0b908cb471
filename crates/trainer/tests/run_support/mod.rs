//! A real storage gateway, the callback double, and `hone-trainer` as a process.
#![allow(dead_code, reason = "every test file uses its own part of this")]
#![allow(clippy::expect_used, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stderr, clippy::as_conversions, reason = "tests")]

pub mod backend;
pub mod gateway;
pub mod proxy;

use backend::Backend;
use service::{
    ExposeSecret, SecretString,
    token::{Grant, JobGrant, TokenKey},
};
use sha2::{Digest, Sha256};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use trainer::{gateway::Gateway, progress::Transfer};
use wire::{
    DatasetId, JobId, JobSpec, TrainingConfig, UserId,
    dataset::DatasetFormat,
    job::{DatasetSpec, ModelSpec},
    layout,
    model::ModelFile,
    storage::{FileRef, ObjectList},
};

const KEY: &str = "a signing key for the trainer's tests";
pub const QUICK: service::client::RetryPolicy = service::client::RetryPolicy {
    first_wait: Duration::from_millis(10),
    max_wait: Duration::from_millis(50),
    retries: 3,
};

fn token(grant: Grant) -> SecretString {
    TokenKey::new(KEY.into()).unwrap().mint(grant, Duration::from_secs(3600)).unwrap()
}

/// One storage gateway for all tests of a file; keys keep them apart.
pub fn gateway_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Lives as long as the process, and goes with the test run's temporary directory.
        let dir = Box::leak(Box::new(tempfile::tempdir().unwrap()));
        let data = dir.path().to_string_lossy().into_owned();
        let vars = [("DATA_DIR", data.as_str()), ("TOKEN_SIGNING_KEY", KEY), ("HONE_WORKERS", "1")];
        let settings = storage_gateway::settings::Settings::from_env(&vars.into_iter().collect()).unwrap();
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(storage_gateway::serve(settings, listener, metrics)).unwrap();
        });
        url
    })
}

/// Storage with a service token: what the backend would do.
pub fn storage() -> Gateway {
    let grant = Grant::Service { name: "test".into() };
    Gateway::new(gateway_url(), token(grant), QUICK).unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A job whose model and data are in storage.
pub struct World {
    pub backend: Backend,
    pub spec: JobSpec,
    pub dir: TempDir,
    pub gateway_url: String,
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_lora").join(name)
}

/// A run of `steps` steps with a checkpoint every five.
pub fn config(steps: i64) -> TrainingConfig {
    let mut config = TrainingConfig { model: "tiny".into(), dataset: "rows".into(), ..TrainingConfig::default() };
    config.training.max_steps = steps;
    config.training.per_device_train_batch_size = 2;
    config.training.max_seq_length = 64;
    config.training.save_steps = 5;
    config.training.eval_steps = 0;
    config.training.val_set_size = 0.2;
    config.lora.r = 4;
    config
}

impl World {
    pub async fn new(backend: Backend, config: TrainingConfig) -> Self {
        let (user, job) = (UserId::random(), JobId::random());
        let storage = storage();
        let (name, revision) = (format!("tiny-{job}"), "r1");
        let prefix = layout::model_prefix(&name, revision);
        let mut files = Vec::new();
        for path in trainer::gateway::files_below(&fixture("model")).unwrap() {
            let stored = storage
                .put_file(&format!("{prefix}{path}"), &fixture("model").join(&path), &Transfer::default())
                .await
                .unwrap();
            files.push(ModelFile { path, size: stored.size, sha256: stored.sha256 });
        }
        let dataset = DatasetId::random();
        let key = format!("{}train.jsonl", layout::dataset_prefix(user, dataset));
        let train = storage.put_file(&key, &fixture("train.jsonl"), &Transfer::default()).await.unwrap();
        let spec = JobSpec {
            job_id: job,
            user_id: user,
            attempt: 1,
            config,
            model: ModelSpec { name, revision: revision.into(), prefix, files },
            dataset: DatasetSpec {
                id: dataset,
                name: "rows".into(),
                format: DatasetFormat::ChatJsonl,
                train,
                validation: None,
            },
            adapter: None,
            output_prefix: layout::attempt_prefix(user, job, 1),
            resume_from: None,
            heartbeat_seconds: 1,
        };
        Self { backend, spec, dir: tempfile::tempdir().unwrap(), gateway_url: gateway_url().to_owned() }
    }

    pub async fn started(backend: Backend, steps: i64) -> (Self, Trainer) {
        let world = Self::new(backend, config(steps)).await;
        let trainer = world.trainer();
        (world, trainer)
    }

    /// The next attempt of the same job, with a backend that has heard nothing yet.
    pub fn next_attempt(&mut self, resume_from: Option<String>) {
        self.spec.attempt += 1;
        self.spec.output_prefix = layout::attempt_prefix(self.spec.user_id, self.spec.job_id, self.spec.attempt);
        self.spec.resume_from = resume_from;
        self.backend = Backend::start();
    }

    pub fn token(&self) -> SecretString {
        let spec = &self.spec;
        let read = vec![
            spec.model.prefix.clone(),
            layout::dataset_prefix(spec.user_id, spec.dataset.id),
            layout::job_prefix(spec.user_id, spec.job_id),
        ];
        let write = vec![spec.output_prefix.clone()];
        let (user, job, attempt) = (spec.user_id, spec.job_id, spec.attempt);
        token(Grant::Job(JobGrant { user, job, attempt, epoch: 1, read, write }))
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hone-trainer"));
        command
            .arg("run")
            .env_clear()
            .env("JOB_ID", self.spec.job_id.to_string())
            .env("ATTEMPT", self.spec.attempt.to_string())
            .env("JOB_SPEC", serde_json::to_string(&self.spec).unwrap())
            .env("CALLBACK_URL", &self.backend.url)
            .env("STORAGE_GATEWAY_URL", &self.gateway_url)
            .env("JOB_TOKEN", self.token().expose_secret())
            .env("SCRATCH_DIR", self.scratch())
            .envs(QUICK_ENV);
        command
    }

    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    pub fn trainer(&self) -> Trainer {
        Trainer::spawn(self.command(), self.dir.path().join(format!("log-{}", self.spec.attempt)))
    }

    /// Keys below a folder of this attempt, without the attempt's prefix.
    pub async fn stored(&self, folder: &str) -> Vec<String> {
        let prefix = format!("{}{folder}", self.spec.output_prefix);
        let url = format!("{}/objects?prefix={prefix}&limit=1000", gateway_url());
        let service = token(Grant::Service { name: "test".into() });
        let reply = reqwest::Client::new().get(url).bearer_auth(service.expose_secret()).send().await.unwrap();
        let list: ObjectList = reply.error_for_status().unwrap().json().await.unwrap();
        list.objects.iter().map(|o| o.key.strip_prefix(&self.spec.output_prefix).unwrap().to_owned()).collect()
    }

    /// Asserts that every file is in storage with its digest.
    pub async fn assert_stored(&self, files: &[FileRef]) {
        assert!(!files.is_empty());
        for file in files {
            assert_eq!(digest(&read_object(&file.key).await), file.sha256, "{}", file.key);
        }
    }
}

pub const QUICK_ENV: [(&str, &str); 8] = [
    ("CALLBACK_RETRY_FIRST_MS", "20"),
    ("CALLBACK_RETRY_MAX_MS", "100"),
    ("CALLBACK_RETRIES", "4"),
    ("STORAGE_RETRY_FIRST_MS", "20"),
    ("STORAGE_RETRY_MAX_MS", "100"),
    ("STORAGE_RETRIES", "4"),
    ("REPORT_INTERVAL_MS", "20"),
    ("HONE_THREADS", "1"),
];

pub async fn read_object(key: &str) -> Vec<u8> {
    storage().open(key, 0, false).await.unwrap().bytes().await.unwrap().to_vec()
}

/// A running `hone-trainer`; its log is printed when the test fails.
pub struct Trainer {
    child: Child,
    log: PathBuf,
}

impl Drop for Trainer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of hone-trainer ---\n{}", self.log());
        }
    }
}

impl Trainer {
    pub fn spawn(mut command: Command, log: PathBuf) -> Self {
        let file = fs::File::create(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end and returns the exit code.
    pub async fn code(&mut self) -> i32 {
        self.status().await.code().expect("the trainer was killed")
    }

    pub async fn status(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the trainer does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
