//! A Hone whose trainers start through a script of the test's, and whose storage may lie behind a fault proxy.

use crate::harness::{HONE, Hone};
use serde_json::Value;
use service::{
    ExposeSecret,
    token::{Grant, TokenKey},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use testkit::fault::{Proxy, Target};
use wire::event::{EventKind, StreamBody, StreamMessage};

const SIGNING_KEY: &str = "a signing key of the fault tests' store";

/// The seeds of every row.
pub fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let first = number("FAULT_FIRST_SEED", 1);
    first..first + number("FAULT_SEEDS", 1)
}

/// Deterministic choices of a seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + self.0 % (range.end - range.start)
    }
}

/// `hone-gateway` beside the `hone` under test, or that of HONE_TEST_GATEWAY.
pub fn gateway_program() -> PathBuf {
    std::env::var_os("HONE_TEST_GATEWAY").map_or_else(|| Path::new(HONE).with_file_name("hone-gateway"), PathBuf::from)
}

/// An embedded S3 in a gateway process of its own; that gateway's API is only used to open uploads.
pub struct Store {
    child: Child,
    pub url: String,
    pub dir: tempfile::TempDir,
    /// `host:port` of the S3.
    pub address: String,
    pub keys: (String, String),
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Store {
    pub fn start(dir: tempfile::TempDir, settings: &[(&str, &str)]) -> Self {
        let ready = dir.path().join("ready.json");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(gateway_program());
        command.env_clear().env("HONE_LISTEN", "127.0.0.1:0").env("TOKEN_SIGNING_KEY", SIGNING_KEY);
        command.env("HONE_READY_FILE", &ready).env("DATA_DIR", dir.path().join("data"));
        command.envs(settings.iter().copied()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            let ended = child.try_wait().unwrap();
            let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "the store does not start: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let told: Value = serde_json::from_slice(&fs::read(&ready).unwrap()).unwrap();
        let keys: Value =
            serde_json::from_slice(&fs::read(dir.path().join("data/s3-credentials.json")).unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut store = Self {
            child,
            url: text(&told["url"]),
            dir,
            address: String::new(),
            keys: (text(&keys["access_key"]), text(&keys["secret_key"])),
        };
        if !settings.iter().any(|(name, _)| *name == "S3_LISTEN") {
            let signed = store.call("POST", "/sign", &serde_json::json!({"method": "GET", "key": "jobs/a"}));
            let url = text(&signed["url"]);
            store.address = url.split('/').nth(2).unwrap().to_owned();
        }
        store
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn token() -> String {
        let key = TokenKey::new(SIGNING_KEY.into()).unwrap();
        let token = key.mint(Grant::Service { name: "test".into() }, Duration::from_secs(24 * 3600)).unwrap();
        token.expose_secret().to_owned()
    }

    /// A call of the gateway's API that must succeed.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, reply) = self.try_call(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {reply:#}");
        reply
    }

    pub fn try_call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let method: reqwest::Method = method.parse().unwrap();
            let request = reqwest::Client::new().request(method, format!("{}{path}", self.url));
            let reply = request.bearer_auth(Self::token()).json(body).send().await.unwrap();
            (reply.status().as_u16(), reply.json().await.unwrap_or_default())
        })
    }

    /// Largest resident set so far in KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

pub struct World {
    pub hone: Hone,
    /// Between everything of this Hone and the S3.
    pub proxy: Option<Proxy>,
    _store: Option<Store>,
    /// Keeps the proxy going.
    pub runtime: tokio::runtime::Runtime,
}

impl World {
    /// With the storage of `hone up` itself.
    pub fn start(settings: &[(&'static str, &str)]) -> Self {
        Self::build(settings, None)
    }

    /// With an S3 behind a fault proxy.
    pub fn behind_proxy(settings: &[(&'static str, &str)]) -> Self {
        Self::build(settings, Some(Store::start(tempfile::tempdir().unwrap(), &[])))
    }

    fn build(settings: &[(&'static str, &str)], store: Option<Store>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut hone = Hone::new();
        let mut proxy = None;
        if let Some(store) = &store {
            let started = runtime.block_on(Proxy::http(Target::Tcp(store.address.clone()), 1)).unwrap();
            hone.settings.push(("S3_ENDPOINT", started.url()));
            hone.settings.push(("AWS_ACCESS_KEY_ID", store.keys.0.clone()));
            hone.settings.push(("AWS_SECRET_ACCESS_KEY", store.keys.1.clone()));
            proxy = Some(started);
        }
        hone.settings.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        hone.settings.push(("TRAINER_BIN", hone.path("trainer.sh").display().to_string()));
        let world = Self { hone, proxy, _store: store, runtime };
        world.trainer("");
        let mut world = world;
        world.hone.up();
        world.hone.import_material();
        world
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    /// From now on trainers start through `script`, which may `export` settings, or `exec` "$PROGRAM" "$@" itself.
    pub fn trainer(&self, script: &str) {
        let program = Path::new(HONE).with_file_name("hone-trainer");
        let text = format!(
            "#!/bin/sh\nPROGRAM='{}'\nexport STORAGE_RETRY_FIRST_MS=20 STORAGE_RETRY_MAX_MS=200 CALLBACK_RETRY_FIRST_MS=20 \
             CALLBACK_RETRY_MAX_MS=200 REPORT_INTERVAL_MS=50 RUST_LOG=info\n{script}\nexec \"$PROGRAM\" \"$@\"\n",
            program.display()
        );
        let path = self.hone.path("trainer.sh");
        // Replaced, not rewritten: a shell may be reading the old one.
        let next = self.hone.path("trainer.next");
        fs::write(&next, text).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(next, path).unwrap();
    }

    /// A job with `training` settings; its id.
    pub fn job(&self, training: &str) -> String {
        self.hone.train(&format!("training: {{num_train_epochs: 10000, eval_steps: 0, {training}}}\nlora: {{r: 4}}"))
    }

    /// Everything the job's log of events has.
    pub fn events(&self, job: &str) -> Vec<StreamMessage> {
        self.hone.with_api(async |api| {
            let (mut all, mut after) = (Vec::new(), 0);
            loop {
                let page = api.events(job.parse().unwrap(), after).await.unwrap();
                let Some(last) = page.items.last() else { return all };
                after = last.id;
                all.extend(page.items);
            }
        })
    }

    /// What trainers said: attempt and event.
    pub fn told(&self, job: &str) -> Vec<(u32, EventKind)> {
        let event = |message: StreamMessage| match message.body {
            StreamBody::Event { event } => Some((message.attempt, event.kind)),
            StreamBody::State { .. } => None,
        };
        self.events(job).into_iter().filter_map(event).collect()
    }

    /// Texts of phases and log events.
    pub fn texts(&self, job: &str) -> Vec<String> {
        let text = |(_, kind)| match kind {
            EventKind::Log { message, .. } | EventKind::Phase { message, .. } => Some(message),
            _ => None,
        };
        self.told(job).into_iter().filter_map(text).collect()
    }

    #[track_caller]
    pub fn assert_told(&self, job: &str, part: &str) {
        let texts = self.texts(job);
        assert!(
            texts.iter().any(|text| text.contains(part)),
            "nothing tells `{part}`: {texts:#?}\n{}",
            self.hone.logs()
        );
    }

    /// The oracle of a job that succeeded: every step was reported exactly once over the attempts that counted, in
    /// order; the sequence of every attempt has no hole; the results arrive with the right digests.
    #[track_caller]
    pub fn assert_whole(&self, job: &str, steps: u64) {
        let view = self.hone.job(job);
        assert_eq!(view["state"], "succeeded", "{view:#}\n{}", self.hone.logs());
        let mut seqs = std::collections::BTreeMap::<u32, Vec<u64>>::new();
        let mut trained = std::collections::BTreeMap::<u64, u32>::new();
        for message in self.events(job) {
            let StreamBody::Event { event } = message.body else { continue };
            seqs.entry(message.attempt).or_default().push(event.seq);
            if let EventKind::Metrics { step, values, .. } = &event.kind
                && values.contains_key(wire::event::metric::TRAIN_LOSS)
            {
                trained.insert(*step, message.attempt);
            }
        }
        for (attempt, mut seqs) in seqs {
            seqs.sort_unstable();
            let expected: Vec<u64> = (1..=u64::try_from(seqs.len()).unwrap()).collect();
            assert_eq!(seqs, expected, "attempt {attempt} of {job}: each event once, no hole");
        }
        assert_eq!(trained.keys().copied().collect::<Vec<_>>(), (1..=steps).collect::<Vec<_>>());
        let dir = self.hone.path(&format!("result-{job}"));
        self.hone.ok(&["jobs", "artifacts", job, "--download", dir.to_str().unwrap()]);
        assert!(dir.join("adapter_model.safetensors").is_file());
        fs::remove_dir_all(dir).unwrap();
    }

    /// Waits for the end, and for this failure.
    #[track_caller]
    pub fn assert_fails(&self, job: &str, code: &str, parts: &[&str]) -> Value {
        let view = self.hone.wait_for_end(job);
        let found = (&view["state"], &view["failure"]["code"]);
        assert_eq!(found, (&"failed".into(), &code.into()), "{view:#}\n{}", self.hone.logs());
        let message = view["failure"]["message"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "no `{part}` in: {message}");
        }
        view
    }
}
