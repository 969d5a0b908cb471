//! A stand-in for a Kubernetes cluster, which cannot be had in these tests: they have neither a kubelet nor the rights to run
//! one. What talks to it talks the real protocol over HTTP: resource versions, lists in pages, watches with bookmarks, 409, 410,
//! 429 with `Retry-After`, finalizers, deletion by propagation policy, owners. What a cluster does by itself is done as its
//! controllers document it: Jobs make pods, owners take what they own with them, finished Jobs go after their time to live.
//! A pod's container is a real process on this machine, with the variables and files that the pod would have.
//!
//! Not here: admission (pod security, quotas), scheduling, networks, images, control groups.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod controllers;
mod faults;
mod http;
mod objects;

pub use faults::Faults;
use nix::sys::signal::Signal;
use objects::{Objects, text};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::watch;

pub const NAMESPACE: &str = "trainers";
const TOKEN: &str = "a-service-account-token";

/// What becomes of a pod that is made.
#[derive(Debug, Clone, Default)]
pub enum Fate {
    #[default]
    Run,
    /// It waits for its container, with this reason (`ImagePullBackOff` …).
    Waiting {
        reason: String,
        message: String,
    },
    Unschedulable {
        message: String,
    },
    /// The container runtime cannot run it.
    CannotRun {
        message: String,
    },
}

/// What a cluster does to a pod that runs.
#[derive(Debug, Clone)]
pub enum Whim {
    OutOfMemory,
    /// By the kubelet.
    Evict {
        message: String,
    },
    /// By the scheduler: SIGTERM, its grace, SIGKILL.
    Preempt,
    LoseNode,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub verb: &'static str,
    pub resource: String,
    pub name: String,
    pub status: u16,
}

#[derive(Debug)]
struct Inner {
    objects: Objects,
    memory: controllers::Memory,
    dir: PathBuf,
    program: PathBuf,
    /// By the label `hone.dev/attempt`; what is not here runs.
    fates: HashMap<String, Fate>,
    /// Suspended Jobs of a queue are let in.
    admits: bool,
    requests: Vec<Request>,
    faults: faults::State,
}

impl Inner {
    fn fate(&self, pod: &Value) -> Fate {
        let attempt = pod["metadata"]["labels"]["hone.dev/attempt"].as_str().unwrap_or_default();
        self.fates.get(attempt).cloned().unwrap_or_default()
    }
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    over: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The cluster; it and its pods end with this value.
#[derive(Debug)]
pub struct Kube {
    pub url: String,
    pub kubeconfig: PathBuf,
    shared: Arc<Shared>,
    server: actix_web::dev::ServerHandle,
    threads: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Kube {
    /// `program` runs as the container of every pod; `seed` decides what goes wrong when [`Self::disturb`] says so.
    #[must_use]
    pub fn start(program: &Path, seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = Inner {
            objects: Objects::default(),
            memory: controllers::Memory::default(),
            dir: dir.path().to_owned(),
            program: program.to_owned(),
            fates: HashMap::new(),
            admits: true,
            requests: Vec::new(),
            faults: faults::State::new(seed),
        };
        let shared =
            Arc::new(Shared { inner: Mutex::new(inner), changed: watch::Sender::new(0), over: AtomicBool::new(false) });
        let (url, server, serving) = http::serve(Arc::clone(&shared));
        let state = Arc::clone(&shared);
        let controlling = std::thread::spawn(move || {
            while !state.over.load(Ordering::Relaxed) {
                let version = {
                    let mut inner = state.lock();
                    controllers::tick(&mut inner);
                    inner.objects.version
                };
                state.changed.send_if_modified(|seen| std::mem::replace(seen, version) != version);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let kubeconfig = dir.path().join("kubeconfig");
        let content = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
        });
        fs::write(&kubeconfig, content.to_string()).unwrap();
        Self { url, kubeconfig, shared, server, threads: vec![serving, controlling], _dir: dir }
    }

    /// What a backend needs to use it.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("TRAINING_MODE", "kubernetes".into()),
            ("TRAINER_IMAGE", "hone-trainer:test".into()),
            ("KUBECONFIG", self.kubeconfig.to_string_lossy().into_owned()),
        ]
    }

    /// From now on so much goes wrong.
    pub fn disturb(&self, faults: Faults) {
        self.shared.lock().faults.set(faults);
    }

    /// What becomes of the pods of every job's attempt `number`.
    pub fn fate(&self, number: u32, fate: Fate) {
        self.shared.lock().fates.insert(number.to_string(), fate);
    }

    /// Whether queues let Jobs in.
    pub fn admit(&self, yes: bool) {
        self.shared.lock().admits = yes;
    }

    /// Does something to the running pod of a Job.
    pub fn strike(&self, job: &str, whim: Whim) {
        let mut inner = self.shared.lock();
        let pod = inner.objects.find("pods", "").into_iter().find(|pod| text(pod, "/metadata/name").starts_with(job));
        let name = text(&pod.expect("a pod of that Job"), "/metadata/name").to_owned();
        inner.memory.whims.insert(name, whim);
    }

    /// `kubectl delete job NAME --cascade=POLICY`.
    pub fn delete_job(&self, name: &str, policy: &str) {
        let options = json!({"propagationPolicy": policy});
        self.shared.lock().objects.delete("jobs", name, &options).expect("the Job");
    }

    /// Forgets the past, so that watches from there get 410.
    pub fn compact(&self) {
        self.shared.lock().objects.compact();
    }

    /// Every object of a kind (`jobs`, `pods`, `secrets`, `configmaps`).
    #[must_use]
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let kind = objects::KINDS.iter().find(|(name, ..)| *name == kind).expect("a kind").0;
        self.shared.lock().objects.find(kind, "")
    }

    #[must_use]
    pub fn job(&self, name: &str) -> Option<Value> {
        self.shared.lock().objects.get("jobs", name).ok()
    }

    /// Creates an object past the API.
    pub fn put(&self, kind: &'static str, object: Value) {
        self.shared.lock().objects.create(kind, object).expect("a fresh name");
    }

    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Each (verb, resource) that was used, as a Role names them.
    #[must_use]
    pub fn used(&self) -> BTreeSet<(String, String)> {
        let lock = self.shared.lock();
        lock.requests.iter().map(|r| (r.verb.to_owned(), r.resource.clone())).collect()
    }

    /// Requests that came before the time that their 429 named.
    #[must_use]
    pub fn impatient(&self) -> u64 {
        self.shared.lock().faults.impatient
    }

    /// Sends a signal to the container of a Job's pod, as a process on its machine would.
    pub fn signal(&self, job: &str, signal: Signal) {
        controllers::signal_job(&self.shared.lock().memory, job, signal);
    }

    /// Containers that run.
    #[must_use]
    pub fn running(&self) -> usize {
        controllers::running(&mut self.shared.lock().memory)
    }
}

impl Drop for Kube {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        drop(self.server.stop(false));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
