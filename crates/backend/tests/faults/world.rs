//! Real parts with a proxy on every line: before Postgres, before the gateway, before the backend.

use crate::support;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use testkit::{
    Postgres, Process,
    fault::{Proxy, Target},
};
use tokio_postgres::Client;
use uuid::Uuid;
use wire::{JobId, JobState, JobView, UserId};

pub use support::{KEY, SIGNING_KEY, script_trainer as stub};

/// Longest wait for anything; generous, because test machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Where the backend's log goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogPipe {
    #[default]
    File,
    /// Into a pipe that nobody reads.
    Full,
    /// Into a pipe whose reader is gone.
    Broken,
}

/// What differs between rows.
#[derive(Debug, Default)]
pub struct Setup {
    log: LogPipe,
    seed: u64,
    environment: Vec<(String, String)>,
    trainer: Option<PathBuf>,
    pub postgres: Option<Postgres>,
}

impl Setup {
    pub fn seed(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// A setting of the backend.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    pub const fn log_pipe(mut self, log: LogPipe) -> Self {
        self.log = log;
        self
    }

    pub fn short_lease(self) -> Self {
        self.with("LEASE_SECONDS", 3).with("HEARTBEAT_SECONDS", 1).with("CLAIM_SECONDS", 10)
    }

    /// Instead of the stub.
    pub fn trainer(mut self, program: &Path) -> Self {
        self.trainer = Some(program.to_owned());
        self
    }

    /// A cluster that the row may crash.
    pub fn on(mut self, postgres: Postgres) -> Self {
        self.postgres = Some(postgres);
        self
    }

    pub async fn start(self) -> World {
        World::start(self).await
    }
}

/// A backend process.
#[derive(Debug)]
pub struct Backend {
    pub process: Process,
    pub url: String,
    /// The end of its log's pipe that is not read.
    _pipe: Option<std::io::PipeReader>,
}

pub struct World {
    /// The one that runs now.
    pub backend: Backend,
    /// Straight to Postgres.
    pub db: Client,
    pub user: UserId,
    pub dir: tempfile::TempDir,
    pub setup: Setup,
    /// Before Postgres, as the backend sees it.
    pub database: Proxy,
    /// Before the gateway, as backend and trainers see it.
    pub storage: Proxy,
    /// Before the backend, as trainers see it.
    pub callbacks: Proxy,
    http: reqwest::Client,
    url: String,
    _gateway: Process,
}

/// A program beside the backend under test.
pub fn program(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_hone-backend")).with_file_name(name);
    assert!(path.is_file(), "{} is missing: build the programs with `scripts/build.sh dev`", path.display());
    path
}

impl World {
    async fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ledger")).unwrap();
        let shared;
        let postgres = match &setup.postgres {
            Some(own) => own,
            None => {
                shared = Postgres::shared().await.unwrap();
                shared
            }
        };
        let url = postgres.create_database().await.unwrap();
        let database = Proxy::raw(Target::Unix(postgres.socket()), setup.seed).await.unwrap();
        let (gateway, address) = gateway(dir.path());
        let storage = Proxy::http(Target::Tcp(address), setup.seed).await.unwrap();
        // Nobody listens there yet.
        let callbacks = Proxy::http(Target::Tcp("127.0.0.1:9".into()), setup.seed).await.unwrap();
        let through = postgres.through(&url, database.address()).unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let command = command(&setup, &dir, &through, &storage.url(), &callbacks.url());
        let backend = spawn(command, dir.path(), "backend", setup.log);
        callbacks.retarget(Target::Tcp(backend.url.trim_start_matches("http://").to_owned()));
        let db = support::connect(&url).await;
        let user = UserId(Uuid::nil());
        let mut world =
            Self { backend, db, user, dir, setup, database, storage, callbacks, http, url, _gateway: gateway };
        world.ready().await;
        world.user = support::fixtures(&world.db).await;
        world
    }

    /// Waits until requests are served.
    pub async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.http.get(format!("{}/ready", self.backend.url)).send().await;
            if reply.is_ok_and(|r| r.status().is_success()) {
                return;
            }
            let ended = self.backend.process.ended().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "the backend is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Another backend on the same database, which trainers do not know; `changes` to its settings.
    pub fn another(&self, name: &str, changes: &[(&str, &str)]) -> Backend {
        let through = self.through();
        let mut command = command(&self.setup, &self.dir, &through, &self.storage.url(), &self.callbacks.url());
        command.envs(changes.iter().copied());
        spawn(command, self.dir.path(), name, LogPipe::File)
    }

    /// The database's URL through its proxy.
    pub fn through(&self) -> String {
        let name = self.url.rsplit('/').next().unwrap();
        format!("postgres://hone@{}/{name}", self.database.address())
    }

    /// Starts the backend again, which died or was killed; `changes` to its settings.
    pub async fn restart_with(&mut self, changes: &[(&str, &str)]) {
        self.backend = self.another("backend", changes);
        self.callbacks.retarget(Target::Tcp(self.backend.url.trim_start_matches("http://").to_owned()));
        self.ready().await;
    }

    /// Connects again after the database was away.
    pub async fn reconnect(&mut self) {
        self.db = support::connect(&self.url).await;
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("backend.log")).unwrap_or_default()
    }

    /// Where the stubs of a job note what was acknowledged.
    pub fn ledger(&self, job: JobId) -> PathBuf {
        self.dir.path().join("ledger").join(job.to_string())
    }

    pub fn attempt_dir(&self, job: JobId, attempt: u32) -> PathBuf {
        support::attempt_dir(&self.dir.path().join("run"), job, attempt)
    }

    /// A queued job whose stub keeps a ledger and follows `script` (attempt number or `*` to operations).
    pub async fn job(&self, script: Value) -> JobId {
        self.insert(JobId::random(), script, 3).await
    }

    pub async fn insert(&self, job: JobId, mut script: Value, max_attempts: i32) -> JobId {
        for ops in script.as_object_mut().unwrap().values_mut() {
            let ledger = json!({"op": "ledger", "file": self.ledger(job)});
            ops.as_array_mut().unwrap().insert(0, ledger);
        }
        support::insert(&self.db, self.user, job, &script, (max_attempts, "queued")).await;
        job
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.backend.url)).bearer_auth(KEY)
    }

    /// Status and reply.
    pub async fn ask(&self, method: reqwest::Method, path: &str) -> (u16, Value) {
        let reply = self.request(method, path).send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap_or_default())
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(reqwest::Method::GET, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// None while the backend or its database is away.
    pub async fn try_view(&self, job: JobId) -> Option<JobView> {
        let reply = self.request(reqwest::Method::GET, &format!("/training/jobs/{job}")).send().await.ok()?;
        let body: Value = reply.error_for_status().ok()?.json().await.ok()?;
        Some(serde_json::from_value(body).unwrap())
    }

    pub async fn until(&self, job: JobId, what: &str, done: impl Fn(&JobView) -> bool) -> JobView {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.try_view(job).await;
            if let Some(view) = view.clone().filter(&done) {
                return view;
            }
            let over = view.as_ref().is_some_and(|view| view.state.is_terminal()) || Instant::now() > deadline;
            assert!(
                !over,
                "waited for {what}, but the job is {view:?}\n{}\n{}",
                support::records(&self.dir.path().join("run"), job),
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn wait(&self, job: JobId, state: JobState) -> JobView {
        self.until(job, state.as_str(), |view| view.state == state).await
    }

    /// Waits until the job is over.
    pub async fn end(&self, job: JobId) -> JobView {
        self.until(job, "its end", |view| view.state.is_terminal()).await
    }

    /// One number from the database.
    pub async fn count(&self, query: &str, job: JobId) -> i64 {
        support::count(&self.db, query, job).await
    }

    /// Every state the job went through, from its log.
    pub async fn states(&self, job: JobId) -> Vec<String> {
        support::states(&self.db, job).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.backend.process.kill();
        support::stop_trainers(&self.dir.path().join("run"));
    }
}

fn gateway(dir: &Path) -> (Process, String) {
    let mut command = Command::new(program("hone-gateway"));
    command.env_clear().env("HONE_LISTEN", "127.0.0.1:0").env("TOKEN_SIGNING_KEY", SIGNING_KEY);
    command.env("DATA_DIR", dir.join("storage")).env("S3_ENDPOINT", "");
    let Backend { process, url, .. } = spawn(command, dir, "gateway", LogPipe::File);
    (process, url.trim_start_matches("http://").to_owned())
}

fn command(setup: &Setup, dir: &tempfile::TempDir, database: &str, gateway: &str, base_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone-backend"));
    command
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("RUST_LOG", "info")
        .env("DATABASE_URL", database)
        .env("STORAGE_GATEWAY_URL", gateway)
        .env("BACKEND_BASE_URL", base_url)
        .env("TOKEN_SIGNING_KEY", SIGNING_KEY)
        .env("HONE_BOOTSTRAP_KEY", KEY)
        .env("HONE_LISTEN", "127.0.0.1:0")
        .env("RUN_DIR", dir.path().join("run"))
        .env("TRAINER_BIN", setup.trainer.clone().unwrap_or_else(stub))
        .env("RETRY_SECONDS", "0")
        .env("LEADER_SECONDS", "3")
        .env("RATE_LIMIT_PER_MINUTE", "1000000")
        .env("RATE_LIMIT_BURST", "1000000")
        .env("MAX_CONCURRENT_JOBS", "50")
        .envs(setup.environment.iter().map(|(name, value)| (name, value)));
    command
}

/// Starts a service and waits until it listens.
fn spawn(mut command: Command, dir: &Path, name: &str, pipe: LogPipe) -> Backend {
    let ready = dir.join(format!("{name}.ready"));
    let _ = fs::remove_file(&ready);
    let log = File::options().append(true).create(true).open(dir.join(format!("{name}.log"))).unwrap();
    command.env("HONE_READY_FILE", &ready).stdin(Stdio::null()).stdout(Stdio::null());
    let unread = match pipe {
        LogPipe::File => {
            command.stderr(log);
            None
        }
        LogPipe::Full | LogPipe::Broken => {
            let (reader, writer) = std::io::pipe().unwrap();
            command.stderr(writer);
            (pipe == LogPipe::Full).then_some(reader)
        }
    };
    let mut process = Process::spawn(&mut command).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(bytes) = fs::read(&ready) {
            let ready: Value = serde_json::from_slice(&bytes).unwrap();
            return Backend { process, url: ready["url"].as_str().unwrap().to_owned(), _pipe: unread };
        }
        let log = || fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
        let ended = process.ended().unwrap();
        assert!(ended.is_none() && Instant::now() < deadline, "{name} does not start ({ended:?}):\n{}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A trainer outside Hone, played by the test. It has no process, so a row can have thousands.
pub struct Played<'a> {
    pub world: &'a World,
    pub job: JobId,
    instance: Uuid,
    token: String,
}

impl<'a> Played<'a> {
    /// Creates a job and waits until it may report.
    pub async fn external(world: &'a World) -> Self {
        let job = world.insert(JobId::random(), json!({}), 1).await;
        let external = "UPDATE training_jobs SET framework = 'external' WHERE id = $1::text::uuid";
        world.db.execute(external, &[&job.to_string()]).await.unwrap();
        world.wait(job, JobState::Starting).await;
        let token = support::token(world.user, job, 1, 1);
        Self { world, job, instance: Uuid::new_v4(), token }
    }

    pub fn batch(&self, events: &[Value]) -> Value {
        json!({"job_id": self.job, "attempt": 1, "instance_id": self.instance, "events": events})
    }

    /// Sends (seq, event) pairs past every proxy.
    pub async fn send(&self, events: &[(u64, Value)]) -> (u16, Value) {
        let number = |(seq, event): &(u64, Value)| {
            let mut event = event.clone();
            event["seq"] = json!(seq);
            event["at"] = json!("2026-01-01T00:00:00Z");
            event
        };
        let events: Vec<Value> = events.iter().map(number).collect();
        self.send_bytes(self.batch(&events).to_string().into_bytes()).await
    }

    pub async fn send_bytes(&self, body: Vec<u8>) -> (u16, Value) {
        let url = format!("{}/training/jobs/{}/callback", self.world.backend.url, self.job);
        let reply = self.world.http.post(url).bearer_auth(&self.token).body(body).send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap_or_default())
    }
}
