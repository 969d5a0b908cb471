//! A running backend with a database and a gateway of its own test process.

use backend::{
    auth,
    db::{Conn, Db, DbConfig},
    schema::api_keys,
};
use diesel::ExpressionMethods;
use diesel_async::RunQueryDsl;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;
use service::{
    Env,
    server::Ready,
    token::{Grant, TokenKey},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};
use testkit::Postgres;
use tokio::sync::OnceCell;
use wire::{
    KeyId, UserId,
    account::{Role, Scope},
    storage::{ObjectList, UploadSession},
};

pub const SIGNING_KEY: &str = "a signing key that only these tests use";
pub const KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000001";
/// Small enough to test the limit with little data.
pub const DATASET_MAX_BYTES: usize = 1 << 20;

/// The gateway all tests of this process share; keys of different tests differ by user.
static GATEWAY: OnceCell<String> = OnceCell::const_new();

async fn gateway() -> &'static str {
    GATEWAY.get_or_init(start_gateway).await
}

async fn start_gateway() -> String {
    let dir = scratch("gateway");
    let ready = dir.join("ready.json");
    let env: Env = [
        ("HONE_LISTEN", "127.0.0.1:0".to_owned()),
        ("HONE_READY_FILE", ready.display().to_string()),
        ("HONE_WORKERS", "1".to_owned()),
        ("DATA_DIR", dir.join("data").display().to_string()),
        ("TOKEN_SIGNING_KEY", SIGNING_KEY.to_owned()),
        ("RUST_LOG", "warn".to_owned()),
    ]
    .into_iter()
    .collect();
    std::thread::spawn(move || {
        // A runtime of its own: the tests' runtimes end with their tests.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(storage_gateway::run(env)).unwrap();
    });
    wait_ready(&ready, || true).url
}

/// A directory below the target directory; those of processes that are gone are removed.
fn scratch(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("backend-tests");
    for entry in std::fs::read_dir(&root).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().split('-').next().map(str::to_owned).unwrap_or_default();
        if !Path::new("/proc").join(&pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let dir = root.join(format!("{}-{name}-{}", std::process::id(), uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Waits for the file a service writes once it serves.
fn wait_ready(path: &Path, mut alive: impl FnMut() -> bool) -> Ready {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok(bytes) = std::fs::read(path) {
            return serde_json::from_slice(&bytes).unwrap();
        }
        assert!(alive(), "the service ended before it was ready");
        assert!(Instant::now() < deadline, "the service is not ready after a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A backend process; killed on drop.
pub struct TestApp {
    pub url: String,
    pub db: Db,
    pub database_url: String,
    pub user: UserId,
    http: reqwest::Client,
    gateway: String,
    dir: PathBuf,
    child: Mutex<Child>,
}

impl Drop for TestApp {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl TestApp {
    pub async fn new() -> Self {
        let database = Postgres::database().await.unwrap();
        Self::with(&database, gateway().await, &[]).await
    }

    /// A backend with other settings.
    pub async fn set(changes: &[(&str, &str)]) -> Self {
        let database = Postgres::database().await.unwrap();
        Self::with(&database, gateway().await, changes).await
    }

    /// kill -9, as a crash would.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A second backend on the same database and gateway, with other settings.
    pub async fn sibling(&self, changes: &[(&str, &str)]) -> Self {
        Self::with(&self.database_url, &self.gateway, changes).await
    }

    async fn with(database: &str, gateway: &str, changes: &[(&str, &str)]) -> Self {
        let dir = scratch("backend");
        let ready = dir.join("ready.json");
        let mut command = command(&dir, database, gateway);
        command.env("HONE_READY_FILE", &ready).envs(changes.iter().copied());
        let mut child = command.stderr(File::create(dir.join("log")).unwrap()).spawn().unwrap();
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        let ready = wait_ready(&ready, || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the backend ended: {}", log());
            true
        });
        let db = Db::new(&DbConfig::new(database.to_owned().into())).unwrap();
        let user = db.system(async |conn| auth::bootstrap(conn, "local", Role::Admin, &key()).await).await.unwrap();
        Self {
            url: ready.url,
            db,
            database_url: database.to_owned(),
            user,
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap(),
            gateway: gateway.to_owned(),
            dir,
            child: Mutex::new(child),
        }
    }

    /// Everything the backend has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    pub fn gateway_url(&self) -> &str {
        &self.gateway
    }

    /// Adds a user with a key.
    pub async fn add_user(&self, name: &str, key: &str) -> UserId {
        let (name, key) = (name.to_owned(), SecretString::from(key.to_owned()));
        let add = async move |conn: &mut Conn| auth::bootstrap(conn, &name, Role::User, &key).await;
        self.db.system(add).await.unwrap()
    }

    /// Gives `user` one more key.
    pub async fn add_key(&self, user: UserId, key: &str, scopes: &[Scope]) -> KeyId {
        use sha2::Digest;
        let id = KeyId::random();
        let row = (
            api_keys::id.eq(id.0),
            api_keys::user_id.eq(user.0),
            api_keys::name.eq(id.to_string()),
            api_keys::prefix.eq(key.chars().take(12).collect::<String>()),
            api_keys::key_hash.eq(sha2::Sha256::digest(key).to_vec()),
            api_keys::scopes.eq(scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>()),
        );
        let add = async move |conn: &mut Conn| {
            diesel::insert_into(api_keys::table).values(row).execute(conn).await?;
            Ok(())
        };
        self.db.system(add).await.unwrap();
        id
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.anonymous(method, path).bearer_auth(KEY)
    }

    pub fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.url) };
        self.http.request(method, url)
    }

    pub async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        send(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: &(impl Serialize + ?Sized)) -> Reply {
        send(self.request(Method::POST, path).json(body)).await
    }

    /// Uploads a dataset as a form.
    pub async fn upload(&self, name: &str, content: impl Into<Vec<u8>>) -> Reply {
        self.upload_form(form(name, content)).await
    }

    pub async fn upload_form(&self, form: reqwest::multipart::Form) -> Reply {
        send(self.request(Method::POST, "/datasets/upload").multipart(form)).await
    }

    /// Puts the parts of a session straight to storage.
    pub async fn put_parts(&self, session: &UploadSession, content: &[u8]) {
        for part in &session.parts {
            let from = usize::try_from(part.offset).unwrap();
            let to = from + usize::try_from(part.size).unwrap();
            let put = self.anonymous(Method::PUT, &part.url).body(content[from..to].to_vec());
            let reply = put.send().await.unwrap();
            assert!(reply.status().is_success(), "{}", reply.text().await.unwrap());
        }
    }

    /// Keys of all objects below `prefix`.
    pub async fn objects(&self, prefix: &str) -> Vec<String> {
        let key = TokenKey::new(SIGNING_KEY.to_owned().into()).unwrap();
        let token = key.mint(Grant::Service { name: "test".into() }, Duration::from_secs(60)).unwrap();
        let url = format!("{}/objects?prefix={prefix}", self.gateway);
        let get = self.http.get(url).bearer_auth(secrecy::ExposeSecret::expose_secret(&token));
        let list: ObjectList = get.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        list.objects.into_iter().map(|o| o.key).collect()
    }
}

pub fn key() -> SecretString {
    SecretString::from(KEY)
}

/// A backend that can start; `HONE_READY_FILE` is up to the caller.
pub fn command(dir: &Path, database: &str, gateway: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone-backend"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HONE_LISTEN", "127.0.0.1:0")
        .env("HONE_WORKERS", "2")
        .env("DATABASE_URL", database)
        .env("STORAGE_GATEWAY_URL", gateway)
        .env("TOKEN_SIGNING_KEY", SIGNING_KEY)
        .env("HONE_BOOTSTRAP_KEY", KEY)
        .env("RUN_DIR", dir.join("run"))
        // These tests end where training begins.
        .env("TRAINER_BIN", "/bin/false")
        // Limits have tests of their own.
        .env("RATE_LIMIT_PER_MINUTE", "0")
        .env("AUTH_FAILURES_PER_MINUTE", "0")
        .env("DATASET_MAX_BYTES", DATASET_MAX_BYTES.to_string())
        .env("RUST_LOG", "debug,hyper_util=info,h2=info")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

pub fn form(name: &str, content: impl Into<Vec<u8>>) -> reqwest::multipart::Form {
    reqwest::multipart::Form::new().text("name", name.to_owned()).part("file", file("train.jsonl", content))
}

pub fn file(name: &str, content: impl Into<Vec<u8>>) -> reqwest::multipart::Part {
    reqwest::multipart::Part::bytes(content.into()).file_name(name.to_owned())
}

/// Status and JSON body.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Value,
}

pub async fn send(request: reqwest::RequestBuilder) -> Reply {
    let reply = request.send().await.unwrap();
    let status = reply.status();
    let text = reply.text().await.unwrap();
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) };
    Reply { status, body }
}

impl Reply {
    /// The body of a reply with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{:#}", self.body);
        self.body
    }

    /// What a user reads: `status CODE: detail`, then the located errors.
    pub fn problem(&self) -> String {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        assert_eq!(self.body["status"], self.status.as_u16(), "not a problem: {:#}", self.body);
        assert_eq!(self.body["trace_id"].as_str().map(str::len), Some(32), "{:#}", self.body);
        let mut lines =
            vec![format!("{} {}: {}", self.status.as_u16(), text(&self.body["code"]), text(&self.body["detail"]))];
        for e in self.body["errors"].as_array().into_iter().flatten() {
            let suggestion = e["suggestion"].as_str().map(|s| format!(" ({s})")).unwrap_or_default();
            lines.push(format!("- {}: {}{suggestion}", text(&e["path"]), text(&e["message"])));
        }
        lines.join("\n")
    }
}

/// Rows of a small, good chat dataset.
pub fn chat_rows(rows: usize) -> String {
    let row = |i: usize| {
        let messages = serde_json::json!([
            {"role": "user", "content": format!("What is word {i}?")},
            {"role": "assistant", "content": format!("Word {i} is a word.")},
        ]);
        format!("{}\n", serde_json::json!({"messages": messages}))
    };
    (0..rows).map(row).collect()
}
