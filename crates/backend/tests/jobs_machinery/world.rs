//! A backend with everything around it.

use crate::{gateway::Gateway, support};
use serde_json::{Value, json};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio_postgres::Client;
use uuid::Uuid;
use wire::{JobId, JobState, JobView, UserId};

use support::SIGNING_KEY;
pub use support::{KEY, script_trainer};

/// Longest wait for anything; generous, because test machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What differs between tests.
#[derive(Clone)]
pub struct Settings {
    pub environment: Vec<(&'static str, String)>,
    pub trainer: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { environment: vec![("RETRY_SECONDS", "0".into())], trainer: script_trainer() }
    }
}

impl Settings {
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.environment.push((name, value.to_string()));
        self
    }

    /// A lease short enough to wait for.
    pub fn short_lease(self) -> Self {
        self.with("LEASE_SECONDS", 3).with("HEARTBEAT_SECONDS", 1).with("CLAIM_SECONDS", 5)
    }
}

pub struct World {
    pub url: String,
    pub gateway: Gateway,
    pub db: Client,
    pub user: UserId,
    pub dir: tempfile::TempDir,
    http: reqwest::Client,
    settings: Settings,
    database: String,
    backend: Child,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        let database = testkit::Postgres::database().await.expect("a database");
        Self::on(settings, database).await
    }

    /// On a database of its own cluster, which the test may crash.
    pub async fn on(settings: Settings, database: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start();
        // Fixed, so that trainers find the backend again after its restart.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}");
        let backend = spawn(&settings, &database, &gateway.url, dir.path(), port);
        let db = support::connect(&database).await;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let mut world = Self { url, gateway, db, user: UserId(Uuid::nil()), dir, http, settings, database, backend };
        world.ready().await;
        world.user = support::fixtures(&world.db).await;
        world
    }

    /// Until the running backend can do its work again.
    pub async fn recovered(&mut self) {
        self.ready().await;
    }

    async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.http.get(format!("{}/ready", self.url)).send().await;
            if reply.is_ok_and(|r| r.status().is_success()) {
                return;
            }
            let gone = self.backend.try_wait().unwrap();
            assert!(gone.is_none() && Instant::now() < deadline, "the backend does not start:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Another backend beside the first one; it ends with the returned guard.
    pub async fn second_backend(&self) -> Guard {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Guard(spawn(&self.settings, &self.database, &self.gateway.url, self.dir.path(), port))
    }

    /// Connects again after the database was away.
    pub async fn reconnect(&mut self) {
        self.db = support::connect(&self.database).await;
    }

    /// kill -9, as a crash would.
    pub fn kill_backend(&mut self) {
        self.backend.kill().unwrap();
        self.backend.wait().unwrap();
    }

    pub async fn start_backend(&mut self) {
        let port = self.url.rsplit(':').next().unwrap().parse().unwrap();
        self.backend = spawn(&self.settings, &self.database, &self.gateway.url, self.dir.path(), port);
        self.ready().await;
    }

    /// What the backend logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("backend.log")).unwrap_or_default()
    }

    pub fn attempt_dir(&self, job: JobId, attempt: u32) -> PathBuf {
        support::attempt_dir(&self.dir.path().join("run"), job, attempt)
    }

    /// A queued job whose trainer follows `script`.
    pub async fn job(&self, script: Value) -> JobId {
        self.insert(script, 3, "queued").await
    }

    pub async fn insert(&self, script: Value, max_attempts: i32, state: &str) -> JobId {
        let job = JobId::random();
        support::insert(&self.db, self.user, job, &script, (max_attempts, state)).await;
        job
    }

    /// A job whose first attempt was started on another machine: nobody here touches it, so the test can
    /// play its trainer.
    pub async fn remote_job(&self) -> JobId {
        let job = self.insert(json!({}), 3, "paused").await;
        let runtime = json!({"kind": "subprocess", "host": "another machine", "dir": "/nowhere"});
        let attempt = "INSERT INTO job_attempts (job_id, attempt, user_id, epoch, runtime)
            VALUES ($1::text::uuid, 1, $2::text::uuid, 1, $3::text::jsonb)";
        let (id, user) = (job.to_string(), self.user.to_string());
        self.db.execute(attempt, &[&id, &user, &runtime.to_string()]).await.unwrap();
        let starting = "UPDATE training_jobs SET state = 'starting', attempt = 1, epoch = 1,
            lease_expires_at = now() + interval '1 hour' WHERE id = $1::text::uuid";
        self.db.execute(starting, &[&job.to_string()]).await.unwrap();
        job
    }

    pub fn token(&self, job: JobId, attempt: u32, epoch: i64) -> String {
        support::token(self.user, job, attempt, epoch)
    }

    /// Sends a callback body as it is; status and reply.
    pub async fn callback(&self, job: JobId, token: &str, body: Vec<u8>) -> (u16, Value) {
        let url = format!("{}/training/jobs/{job}/callback", self.url);
        let reply = self.http.post(url).bearer_auth(token).body(body).send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap())
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(KEY)
    }

    pub async fn get(&self, path: &str) -> Value {
        let reply = self.request(reqwest::Method::GET, path).send().await.unwrap();
        assert!(reply.status().is_success(), "{path}: {}", reply.status());
        reply.json().await.unwrap()
    }

    /// Status and reply of a POST without body.
    pub async fn post(&self, path: &str) -> (u16, Value) {
        let reply = self.request(reqwest::Method::POST, path).send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap())
    }

    pub async fn view(&self, job: JobId) -> JobView {
        serde_json::from_value(self.get(&format!("/training/jobs/{job}")).await).unwrap()
    }

    pub async fn until(&self, job: JobId, what: &str, done: impl Fn(&JobView) -> bool) -> JobView {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.view(job).await;
            if done(&view) {
                return view;
            }
            assert!(
                Instant::now() < deadline && !view.state.is_terminal(),
                "waited for {what}, but the job is {}: {:?}\n{}",
                view.state,
                view.failure,
                support::records(&self.dir.path().join("run"), job),
            );
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    pub async fn wait(&self, job: JobId, state: JobState) -> JobView {
        self.until(job, state.as_str(), |view| view.state == state).await
    }

    /// One number from the database.
    pub async fn count(&self, query: &str, job: JobId) -> i64 {
        support::count(&self.db, query, job).await
    }

    /// Every state the job went through, from its log.
    pub async fn states(&self, job: JobId) -> Vec<String> {
        support::states(&self.db, job).await
    }

    /// (step, times it is stored) of a metric over all attempts.
    pub async fn steps(&self, job: JobId) -> Vec<(i64, i64)> {
        let query = "SELECT step, count(*) FROM metrics_points WHERE job_id = $1::text::uuid AND name = 'train_loss'
                     GROUP BY step ORDER BY step";
        self.db.query(query, &[&job.to_string()]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.backend.kill();
        let _ = self.backend.wait();
        support::stop_trainers(&self.dir.path().join("run"));
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

pub struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(settings: &Settings, database: &str, gateway: &str, dir: &Path, port: u16) -> Child {
    let log = std::fs::File::options().append(true).create(true).open(dir.join("backend.log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_hone-backend"))
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("RUST_LOG", "info")
        .env("DATABASE_URL", database)
        .env("STORAGE_GATEWAY_URL", gateway)
        .env("TOKEN_SIGNING_KEY", SIGNING_KEY)
        .env("HONE_BOOTSTRAP_KEY", KEY)
        .env("HONE_LISTEN", format!("127.0.0.1:{port}"))
        .env("RUN_DIR", dir.join("run"))
        .env("TRAINER_BIN", &settings.trainer)
        .envs(settings.environment.iter().map(|(k, v)| (*k, v)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}
