//! One Hone in a temporary directory, driven by its command line.

use crate::material;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

pub const HONE: &str = env!("CARGO_BIN_EXE_hone");

/// Generous: CI machines are slow, and two tests run at a time.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Hone {
    pub root: tempfile::TempDir,
    /// `hone up` in the foreground.
    up: Option<Child>,
    /// Largest dataset and model in bytes.
    pub limits: Option<(&'static str, &'static str)>,
    /// More of the environment.
    pub settings: Vec<(&'static str, String)>,
}

impl Hone {
    /// A place for a Hone that is not started yet.
    pub fn new() -> Self {
        let bin = Path::new(HONE).parent().unwrap();
        for program in ["hone-backend", "hone-gateway", "hone-trainer"] {
            let path = bin.join(program);
            assert!(path.is_file(), "{} is missing: build the programs with `scripts/build.sh dev`", path.display());
        }
        Self { root: tempfile::tempdir().unwrap(), up: None, limits: None, settings: Vec::new() }
    }

    pub fn started() -> Self {
        let mut hone = Self::new();
        hone.up();
        hone
    }

    /// Started, with the model `tiny` and the dataset `rows`.
    pub fn with_material() -> Self {
        let hone = Self::started();
        hone.import_material();
        hone
    }

    pub fn import_material(&self) {
        let model = material::model(&self.path("model"));
        let data = material::dataset(&self.path("rows.jsonl"), 64);
        self.ok(&["models", "import", &model, "--name", "tiny"]);
        self.ok(&["datasets", "upload", &data, "--name", "rows"]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// `hone` with the settings of this test and nothing of the outside.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(HONE);
        command.env_clear().args(args).stdin(Stdio::null());
        for name in ["PATH", "TMPDIR", "HONE_POSTGRES_BIN"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("HOME", self.root.path()).env("HONE_DATA_DIR", self.data_dir());
        // Short times, so that a test sees retries and heartbeats; one thread, so that two tests share two cores.
        command.env("HEARTBEAT_SECONDS", "1").env("LEASE_SECONDS", "10").env("RETRY_SECONDS", "1");
        command.env("HONE_THREADS", "1").env("AWS_SECRET_ACCESS_KEY", "canary-value");
        if let Some((dataset, model)) = self.limits {
            command.env("DATASET_MAX_BYTES", dataset).env("MODEL_MAX_BYTES", model);
        }
        command.envs(self.settings.iter().map(|(name, value)| (*name, value)));
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert!(
            out.status.success(),
            "hone {args:?} ended with {:?}\n{}{}\n{}",
            out.status.code(),
            text(&out.stdout),
            text(&out.stderr),
            self.logs()
        );
        text(&out.stdout)
    }

    /// The JSON a command prints.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("hone {args:?} printed no JSON ({e}): {text}"))
    }

    /// Exit code and message of a command that must fail.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let out = self.run(args);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success(), "hone {args:?} succeeded: {}", String::from_utf8_lossy(&out.stdout));
        (out.status.code().unwrap_or(-1), text.replace(&self.root.path().display().to_string(), "ROOT"))
    }

    /// Starts `hone up` in the foreground and waits until it is healthy.
    pub fn up(&mut self) {
        let log = fs::File::create(self.path("up.log")).unwrap();
        let mut command = self.command(&["up", "--port", "0"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        wait("Hone to be healthy", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("hone up ended with {status}\n{}\n{}", self.up_log(), self.logs());
            }
            self.state()["hone"]["pid"] == child.id()
        });
        self.up = Some(child);
    }

    pub fn up_log(&self) -> String {
        fs::read_to_string(self.path("up.log")).unwrap_or_default()
    }

    pub fn up_pid(&self) -> u32 {
        self.up.as_ref().unwrap().id()
    }

    /// Ctrl-C's polite sibling; returns when everything is stopped.
    pub fn stop(&mut self) {
        let mut child = self.up.take().unwrap();
        signal(child.id(), "TERM");
        let status = child.wait().unwrap();
        assert!(status.success(), "hone up ended with {status}\n{}", self.up_log());
    }

    /// What runs, as `hone up` records it; null when nothing does.
    pub fn state(&self) -> Value {
        let text = fs::read(self.data_dir().join("state.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Waits while the service is being started again: it has no pid then.
    pub fn service_pid(&self, name: &str) -> u32 {
        let mut pid = None;
        wait(&format!("{name} to run"), || {
            let state = self.state();
            let service = state["services"].as_array().and_then(|all| all.iter().find(|s| s["name"] == name));
            pid = service.and_then(|s| s["process"]["pid"].as_u64());
            pid.is_some()
        });
        u32::try_from(pid.unwrap()).unwrap()
    }

    /// Pid of the trainer of the newest attempt, once its supervisor has recorded it.
    pub fn trainer_pid(&self) -> u32 {
        let mut pid = None;
        wait("a trainer", || {
            pid = self.trainer_records().iter().filter_map(|r| r["trainer"]["pid"].as_u64()).rfind(|p| alive(*p));
            pid.is_some()
        });
        u32::try_from(pid.unwrap()).unwrap()
    }

    fn trainer_records(&self) -> Vec<Value> {
        let attempts = fs::read_dir(self.data_dir().join("run/attempts")).into_iter().flatten().flatten();
        let mut dirs: Vec<PathBuf> = attempts.map(|e| e.path()).collect();
        dirs.sort();
        dirs.iter().filter_map(|d| serde_json::from_slice(&fs::read(d.join("record.json")).ok()?).ok()).collect()
    }

    /// Creates a job that trains `tiny` on `rows`; returns its id.
    pub fn train(&self, settings: &str) -> String {
        let config = self.path("config.yaml");
        fs::write(&config, format!("model: tiny\ndataset: rows\n{settings}\n")).unwrap();
        let job = self.json(&["train", config.to_str().unwrap()]);
        job["id"].as_str().unwrap().to_owned()
    }

    pub fn job(&self, id: &str) -> Value {
        self.json(&["jobs", "show", id])
    }

    pub fn wait_for_step(&self, id: &str, step: u64) {
        wait(&format!("step {step}"), || {
            let job = self.job(id);
            assert!(!matches!(job["state"].as_str(), Some("failed" | "cancelled")), "{job:#}\n{}", self.logs());
            job["progress"]["step"].as_u64().unwrap() >= step
        });
    }

    /// Waits for a terminal state and returns the job.
    pub fn wait_for_end(&self, id: &str) -> Value {
        let mut job = Value::Null;
        wait("the end of the job", || {
            job = self.job(id);
            matches!(job["state"].as_str(), Some("succeeded" | "failed" | "cancelled"))
        });
        job
    }

    /// Runs `work` with a typed client of the API.
    pub fn with_api<T>(&self, work: impl AsyncFnOnce(cli::api::Api) -> T) -> T {
        let env = [("HONE_DATA_DIR", self.data_dir().display().to_string())].into_iter().collect();
        let ui = cli::ui::Ui { json: true, quiet: true };
        let context = cli::context::Context::new(env, ui, None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { work(cli::api::Api { client: context.client().unwrap() }).await })
    }

    /// The end of every log, for failing tests.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let trainers = fs::read_dir(self.data_dir().join("run/attempts")).into_iter().flatten().flatten();
        let trainers = trainers.map(|e| e.path().join("trainer.log"));
        let services = fs::read_dir(self.data_dir().join("logs")).into_iter().flatten().flatten().map(|e| e.path());
        for path in services.chain(trainers) {
            let content = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = content.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            text.push_str(&format!("── {}\n{tail}\n", path.display()));
        }
        text
    }
}

impl Drop for Hone {
    fn drop(&mut self) {
        if let Some(mut child) = self.up.take() {
            // A test may have stopped it with SIGSTOP.
            signal(child.id(), "CONT");
            signal(child.id(), "TERM");
            let _ = child.wait();
        } else {
            let _ = self.run(&["down"]);
        }
    }
}

/// Waits for a condition, looking every 50 ms.
pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {} s for {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn signal(pid: u32, signal: &str) {
    let _ = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).stderr(Stdio::null()).status();
}

/// A zombie is not alive.
pub fn alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
