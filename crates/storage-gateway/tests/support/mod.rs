//! A real `hone-gateway` process per test: with its embedded S3, or against the S3 server that
//! `HONE_TEST_S3_ENDPOINT` names (with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`).

#![expect(dead_code, reason = "every test file uses its own part of this")]

use reqwest::{Method, StatusCode, header::HeaderMap};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use service::token::{Grant, JobGrant, TokenKey};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use storage_gateway::{gateway::Gateway, s3::S3Access, settings::Settings};
use tempfile::TempDir;
use uuid::Uuid;
use wire::ids::{JobId, UserId};

pub const SIGNING_KEY: &str = "a signing key for tests, 32 chars";
pub const MIB: usize = 1 << 20;

pub struct TestGateway {
    child: Child,
    pub url: String,
    pub http: reqwest::Client,
    pub dir: TempDir,
    /// Part of every key of this test, so that tests can share one outside S3.
    pub run: String,
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of hone-gateway ---\n{}", self.log());
        }
    }
}

/// Whether the tests run against an outside S3.
pub fn outside() -> bool {
    std::env::var_os("HONE_TEST_S3_ENDPOINT").is_some()
}

/// A `hone-gateway` command with a clean environment and `dir` as its data directory.
pub fn command(dir: &Path, vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone-gateway"));
    command.env_clear().env("HONE_LISTEN", "127.0.0.1:0").env("TOKEN_SIGNING_KEY", SIGNING_KEY);
    command.env("HONE_READY_FILE", dir.join("ready.json")).env("DATA_DIR", dir.join("data"));
    if let Ok(endpoint) = std::env::var("HONE_TEST_S3_ENDPOINT") {
        command.env("S3_ENDPOINT", endpoint);
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"] {
            if let Ok(value) = std::env::var(name) {
                command.env(name, value);
            }
        }
    }
    command.envs(vars.iter().copied());
    command
}

impl TestGateway {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(vars: &[(&str, &str)]) -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), vars).await
    }

    pub async fn in_dir(dir: TempDir, vars: &[(&str, &str)]) -> Self {
        let command = command(dir.path(), vars);
        Self::spawn(dir, command).await
    }

    /// Runs a command that becomes a gateway in `dir`, and waits until it serves.
    pub async fn spawn(dir: TempDir, mut command: Command) -> Self {
        let ready = dir.path().join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut child = command.stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let url = loop {
            if let Ok(bytes) = std::fs::read(&ready) {
                let ready: Value = serde_json::from_slice(&bytes).unwrap();
                break ready["url"].as_str().unwrap().to_owned();
            }
            let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("hone-gateway ended with {status}: {}", log());
            }
            assert!(Instant::now() < deadline, "hone-gateway does not get ready: {}", log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let http = reqwest::Client::new();
        Self { child, url, http, dir, run: Uuid::new_v4().simple().to_string() }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops the process as a crash would and gives its directory back.
    pub fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `models/{run}/r/{name}`
    pub fn model_key(&self, name: &str) -> String {
        format!("models/{}/r/{name}", self.run)
    }

    pub fn dataset_key(&self, name: &str) -> String {
        format!("datasets/{}/d/{name}", self.run)
    }

    pub fn job_key(&self, name: &str) -> String {
        format!("jobs/{}/j/attempt-1/{name}", self.run)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.anonymous(method, path).bearer_auth(service_token())
    }

    pub fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn put(&self, key: &str, body: impl Into<reqwest::Body>) -> Reply {
        Reply::of(self.request(Method::PUT, &object_path(key)).body(body)).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.request(Method::GET, path)).await
    }

    pub async fn get_object(&self, key: &str) -> Reply {
        self.get(&object_path(key)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::of(self.request(Method::POST, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        Reply::of(self.request(Method::DELETE, path)).await
    }

    /// Opens a session, expecting it to work.
    pub async fn open(&self, key: &str, size: usize, sha256: Option<&str>) -> Value {
        let kind = match key.split('/').next() {
            Some("datasets") => "dataset",
            Some("models") => "model",
            _ => "job",
        };
        let mut body = json!({ "key": key, "size": size, "kind": kind });
        if let Some(sha256) = sha256 {
            body["sha256"] = sha256.into();
        }
        self.post("/uploads", &body).await.expect(StatusCode::CREATED).json()
    }

    pub async fn complete(&self, session: &Value, body: &Value) -> Reply {
        self.post(&format!("/uploads/{}/complete", session["id"].as_str().unwrap()), body).await
    }

    /// Puts one part straight to S3.
    pub async fn put_part(&self, part: &Value, data: &[u8]) -> Reply {
        let (offset, size) = (number(&part["offset"]), number(&part["size"]));
        let body = data[offset..offset + size].to_vec();
        Reply::of(self.http.put(part["url"].as_str().unwrap()).body(body)).await
    }

    /// Keys below this test's prefixes.
    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let list = self.get(&format!("/objects?prefix={prefix}")).await.expect(StatusCode::OK).json();
        list["objects"].as_array().unwrap().iter().map(|o| o["key"].as_str().unwrap().to_owned()).collect()
    }
}

pub fn object_path(key: &str) -> String {
    let mut url = url::Url::parse("http://x/objects/").unwrap();
    url.path_segments_mut().unwrap().pop_if_empty().extend(key.split('/'));
    url.path().to_owned()
}

pub fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

pub fn sha256(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// Bytes that look random and differ everywhere, the same for each call.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn service_token() -> String {
    token(Grant::Service { name: "test".into() })
}

pub fn job_token(read: &[&str], write: &[&str]) -> String {
    let list = |prefixes: &[&str]| prefixes.iter().map(|p| (*p).to_owned()).collect();
    token(Grant::Job(JobGrant {
        user: UserId::random(),
        job: JobId::random(),
        attempt: 1,
        epoch: 1,
        read: list(read),
        write: list(write),
    }))
}

fn token(grant: Grant) -> String {
    let key = TokenKey::new(SIGNING_KEY.into()).unwrap();
    key.mint(grant, Duration::from_secs(300)).unwrap().expose_secret().to_owned()
}

/// A reply read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let reply = request.send().await.unwrap();
        let (status, headers) = (reply.status(), reply.headers().clone());
        Self { status, headers, body: reply.bytes().await.unwrap().to_vec() }
    }

    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    /// The detail of a problem with this code.
    #[track_caller]
    pub fn problem(&self, code: &str) -> String {
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], self.status.as_u16(), "{body}");
        body["detail"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// The gateway as a library, in buckets of its own, for what HTTP does not show.
pub async fn library() -> Library {
    let dir = tempfile::tempdir().unwrap();
    let bucket = format!("test-{}", Uuid::new_v4().simple());
    let mut vars = vec![
        ("TOKEN_SIGNING_KEY".to_owned(), SIGNING_KEY.to_owned()),
        ("DATA_DIR".into(), dir.path().join("data").to_str().unwrap().into()),
        ("BUCKET_NAME".into(), bucket),
    ];
    if let Ok(endpoint) = std::env::var("HONE_TEST_S3_ENDPOINT") {
        vars.push(("S3_ENDPOINT".into(), endpoint));
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"] {
            vars.extend(std::env::var(name).map(|value| (name.to_owned(), value)));
        }
    }
    let settings = Settings::from_env(&vars.into_iter().collect()).unwrap();
    let gateway = Gateway::open(&settings).await.unwrap();
    Library { gateway, settings, dir }
}

pub struct Library {
    pub gateway: Arc<Gateway>,
    pub settings: Settings,
    dir: TempDir,
}

impl Library {
    /// How this gateway reaches its store.
    pub fn access(&self) -> S3Access {
        self.gateway.access.clone()
    }
}
