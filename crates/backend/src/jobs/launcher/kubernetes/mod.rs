//! Trainers as Kubernetes Jobs: one Job per attempt, `ft-{job}-a{attempt}`.
//!
//! What must stay true:
//! - Kubernetes never makes a second pod of an attempt (`backoffLimit: 0`, `restartPolicy: Never`, FailJob); attempts are ours.
//! - A Job keeps our finalizer until the outcome of its attempt is stored, so nothing that happened is forgotten while no
//!   backend looks. Somebody else's deletion is recorded first and carried out then.
//! - Observations come from lists and watches ([`store`]); that an attempt is over, or was never started, is only said
//!   after a look at the API itself.
//! - An attempt that was called off before it started has a Job that never starts, which holds its name.

mod cluster;
pub mod config;
mod jobs;
mod manifest;
pub mod placement;
mod store;
mod view;

use super::{Handle, LaunchError, LaunchSpec, Launcher, Leftover, RehearsalError, http::Http};
use crate::jobs::{
    decide::Runtime,
    verdict::{Ending, Exit},
};
use cluster::{CallError, Cluster};
use config::KubernetesConfig;
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt, api::LogParams};
use manifest::{CONTAINER, FINALIZER, LABEL_ATTEMPT, LABEL_INSTANCE, LABEL_JOB};
use placement::Placements;
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use store::Store;
use tokio::task::JoinSet;
use view::{Limit, Sight, View};
use wire::{JobId, estimate::Estimate, layout};

/// A list or watch older than this many times its interval says nothing any more.
const STALE: u32 = 4;
/// Longest log that is copied to storage.
const LOG_BYTES: i64 = 64 << 20;
/// Lines of a log that is read while its trainer works.
const LIVE_LINES: i64 = 10_000;
/// Between two looks while something is being stopped.
const STOP_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Kubernetes {
    config: KubernetesConfig,
    placements: Placements,
    cluster: Cluster,
    jobs: Arc<Store<Job>>,
    pods: Arc<Store<Pod>>,
    memory: Mutex<Memory>,
    rehearsals: Option<Http>,
    _watches: JoinSet<()>,
}

/// What only this process knows; losing it costs time, never truth.
#[derive(Debug, Default)]
struct Memory {
    /// Jobs that were there.
    known: HashSet<String>,
    /// Since when a pod is held up.
    held_up: HashMap<(String, Limit), Instant>,
    /// When a Job was last asked to go.
    asked: HashMap<String, Instant>,
    logs_kept: HashSet<String>,
}

impl Kubernetes {
    /// Reads the credentials and starts to watch.
    pub async fn new(config: KubernetesConfig, placements: Placements) -> anyhow::Result<Self> {
        let cluster = Cluster::new(&config).await?;
        let rehearsals = match &config.rehearsals {
            Some((url, token)) => Some(Http::new(url, token.as_ref())?),
            None => None,
        };
        let (jobs, pods) = (Arc::<Store<Job>>::default(), Arc::<Store<Pod>>::default());
        let mut watches = JoinSet::new();
        {
            let (selector, resync) = (manifest::selector(&config), config.resync);
            let (jobs, cluster, selector_of_jobs) = (Arc::clone(&jobs), cluster.clone(), selector.clone());
            let (pods, same) = (Arc::clone(&pods), cluster.clone());
            watches.spawn(async move {
                let api = cluster.jobs.clone();
                jobs.follow(cluster, api, selector_of_jobs, resync).await;
            });
            watches.spawn(async move {
                let api = same.pods.clone();
                pods.follow(same, api, selector, resync).await;
            });
        }
        let memory = Mutex::default();
        Ok(Self { config, placements, cluster, jobs, pods, memory, rehearsals, _watches: watches })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None when the attempt belongs to another launcher or namespace.
    fn name(&self, handle: &Handle) -> Option<String> {
        let text = |key: &str| handle.runtime.get(key).and_then(Value::as_str);
        let ours = text("kind") == Some("kubernetes") && text("namespace") == Some(&self.cluster.namespace);
        ours.then(|| layout::workload_name(handle.job, handle.attempt))
    }

    /// What is known of an attempt without asking; None when the Job is not.
    fn remembered(&self, handle: &Handle, name: &str) -> Option<Sight> {
        let entry = self.jobs.get(name).filter(|entry| !entry.gone)?;
        let (departed, pods) = self.pods.find(|pod| belongs(pod, handle)).into_iter().partition(|entry| entry.gone);
        let objects = |entries: Vec<store::Entry<Pod>>| entries.into_iter().map(|e| e.object).collect();
        Some(Sight { job: Some(entry.object), pods: objects(pods), departed: objects(departed), known: true })
    }

    /// Asks the API itself.
    async fn ask(&self, handle: &Handle, name: &str) -> cluster::Result<Sight> {
        let job = self.cluster.call(self.cluster.jobs.get_opt(name)).await?;
        let job = job.filter(|job| self.is_ours(job, handle.job, handle.attempt));
        let mine = format!(
            "{},{LABEL_JOB}={},{LABEL_ATTEMPT}={}",
            manifest::selector(&self.config),
            handle.job,
            handle.attempt
        );
        let params = kube::api::ListParams::default().labels(&mine);
        let pods = self.cluster.call(self.cluster.pods.list(&params)).await?.items;
        for object in &pods {
            self.pods.put(object.clone());
        }
        let there: HashSet<String> = pods.iter().map(ResourceExt::name_any).collect();
        let departed = self.pods.find(|pod| belongs(pod, handle) && !there.contains(&pod.name_any()));
        let departed = departed.into_iter().map(|entry| entry.object).collect();
        let known = match &job {
            Some(job) => {
                self.jobs.put(job.clone());
                !self.memory().known.insert(name.to_owned())
            }
            None => self.memory().known.contains(name),
        };
        Ok(Sight { job, pods, departed, known })
    }

    /// A pod that is held up is doomed after a while.
    fn judge(&self, name: &str, view: View) -> Runtime {
        let mut memory = self.memory();
        let (limit, reason) = match view {
            View::Is(runtime) => {
                memory.held_up.retain(|(of, _), _| of != name);
                return runtime;
            }
            View::Pending { limit, reason } => (limit, reason),
        };
        let since = memory.held_up.entry((name.to_owned(), limit)).or_insert_with(Instant::now);
        let patience = match limit {
            Limit::None => Duration::ZERO,
            Limit::Pull => self.config.pull,
            Limit::Start => self.config.start,
        };
        if since.elapsed() < patience {
            return Runtime::Waiting;
        }
        Runtime::Doomed(Exit::new(Ending::StartFailed { reason }))
    }

    async fn look(&self, handle: &Handle) -> Runtime {
        let Some(name) = self.name(handle) else { return Runtime::Unknown };
        if let Some(sight) = self.remembered(handle, &name) {
            match self.judge(&name, sight.view()) {
                // These have consequences.
                Runtime::Gone(_) | Runtime::Doomed(_) => {}
                _ if self.is_stale() => return Runtime::Unknown,
                other => return other,
            }
        }
        self.look_closely(handle, &name).await
    }

    async fn look_closely(&self, handle: &Handle, name: &str) -> Runtime {
        match self.ask(handle, name).await {
            Ok(sight) => self.judge(name, sight.view()),
            Err(error) => {
                tracing::warn!(job.id = %handle.job, "cannot look after attempt {}: {error}", handle.attempt);
                Runtime::Unknown
            }
        }
    }

    fn is_stale(&self) -> bool {
        let old = |age: Option<Duration>| age.is_none_or(|age| age > self.config.resync * STALE);
        old(self.jobs.age()) || old(self.pods.age())
    }

    async fn read_log(&self, handle: &Handle, params: LogParams) -> Option<Vec<u8>> {
        self.name(handle)?;
        let entries = self.pods.find(|pod| belongs(pod, handle)).into_iter().filter(|entry| !entry.gone);
        let pod = entries.max_by_key(|entry| entry.object.metadata.creation_timestamp.clone())?.object.name_any();
        match self.cluster.call(self.cluster.pods.logs(&pod, &params)).await {
            Ok(text) => (!text.is_empty()).then(|| text.into_bytes()),
            Err(error) => {
                tracing::debug!(job.id = %handle.job, "cannot read the log of {pod}: {error}");
                None
            }
        }
    }

    fn left(&self) -> Vec<Leftover> {
        let jobs = self.jobs.find(|job| view::has_finalizer(job, FINALIZER));
        let handles = jobs.into_iter().filter(|entry| !entry.gone).filter_map(|entry| self.handle_of(&entry.object));
        handles
            .filter_map(|handle| {
                let name = layout::workload_name(handle.job, handle.attempt);
                let view = self.remembered(&handle, &name)?.view();
                let alive = !matches!(view, View::Is(Runtime::Gone(_)));
                let log_due = !alive && !self.memory().logs_kept.contains(&name);
                Some(Leftover { handle, alive, log_due, held: true })
            })
            .collect()
    }

    /// Somebody else may have taken the name.
    fn is_ours(&self, job: &Job, id: JobId, attempt: u32) -> bool {
        let is = |name: &str, value: &str| job.labels().get(name).is_some_and(|label| label == value);
        is(LABEL_INSTANCE, &self.config.instance)
            && is(LABEL_JOB, &id.to_string())
            && is(LABEL_ATTEMPT, &attempt.to_string())
    }

    fn handle_of(&self, job: &Job) -> Option<Handle> {
        let id: JobId = job.labels().get(LABEL_JOB)?.parse().ok()?;
        let attempt = job.labels().get(LABEL_ATTEMPT)?.parse().ok()?;
        Some(Handle { job: id, attempt, runtime: self.describe(id, attempt) })
    }

    /// Forgets what belongs to Jobs that are gone.
    fn forget(&self) {
        let gone = |name: &str| self.jobs.get(name).is_none_or(|entry| entry.gone);
        let owner = |pod: &Pod| self.handle_of_pod(pod).is_none_or(|name| gone(&name));
        self.pods.forget(owner);
        let mut memory = self.memory();
        memory.logs_kept.retain(|name| !gone(name));
        memory.asked.retain(|name, at| !gone(name) || at.elapsed() < Duration::from_secs(3600));
        memory.held_up.retain(|(name, _), _| !gone(name));
        drop(memory);
        // Last, because it says who is gone. Whether a Job was there is remembered for good: there are not that many.
        self.jobs.forget(|_| true);
    }

    fn handle_of_pod(&self, pod: &Pod) -> Option<String> {
        let id: JobId = pod.labels().get(LABEL_JOB)?.parse().ok()?;
        Some(layout::workload_name(id, pod.labels().get(LABEL_ATTEMPT)?.parse().ok()?))
    }
}

fn belongs(pod: &Pod, handle: &Handle) -> bool {
    let is = |name: &str, value: String| pod.labels().get(name) == Some(&value);
    is(LABEL_JOB, handle.job.to_string()) && is(LABEL_ATTEMPT, handle.attempt.to_string())
}

/// What a refused or lost call means for a launch.
fn launch_error(what: &str, error: &CallError) -> LaunchError {
    let text = format!("{what}: {error}");
    match error {
        CallError::Unreachable(_) => LaunchError::Transient(text),
        CallError::Refused(status) => match status.code {
            // Room may come free, and credentials are renewed.
            403 if status.message.contains("exceeded quota") => LaunchError::Transient(text),
            401 | 409 | 429 => LaunchError::Transient(text),
            403 => LaunchError::Fatal(format!("{text}; check the Role of the backend's service account (k8s/base)")),
            code if code < 500 => LaunchError::Fatal(text),
            _ => LaunchError::Transient(text),
        },
    }
}

impl Launcher for Kubernetes {
    fn describe(&self, job: JobId, attempt: u32) -> Value {
        json!({
            "kind": "kubernetes",
            "namespace": self.cluster.namespace,
            "name": layout::workload_name(job, attempt),
        })
    }

    fn launch<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<(), LaunchError>> {
        self.start(spec).boxed()
    }

    fn observe<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Runtime> {
        self.look(handle).boxed()
    }

    /// The grace is that of the pod, `KUBE_GRACE_SECONDS`.
    fn stop<'a>(&'a self, handle: &'a Handle, _grace: Duration) -> BoxFuture<'a, Runtime> {
        self.stop_step(handle).boxed()
    }

    fn refuse<'a>(&'a self, handle: &'a Handle, reason: &'a str) -> BoxFuture<'a, Runtime> {
        self.turn_down(handle, reason).boxed()
    }

    /// It depends on the GPU configuration, and the trainer checks it.
    fn memory(&self) -> BoxFuture<'_, Option<u64>> {
        std::future::ready(None).boxed()
    }

    fn rehearse<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Estimate, RehearsalError>> {
        async move {
            match &self.rehearsals {
                Some(service) => service.rehearse(spec).await,
                None => Err(RehearsalError::Unavailable(
                    "rehearsals need a trainer service; set TRAINER_SERVICE_URL".into(),
                )),
            }
        }
        .boxed()
    }

    fn leftovers(&self) -> BoxFuture<'_, Vec<Leftover>> {
        std::future::ready(self.left()).boxed()
    }

    fn log<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Option<Vec<u8>>> {
        let params =
            LogParams { container: Some(CONTAINER.into()), limit_bytes: Some(LOG_BYTES), ..LogParams::default() };
        self.read_log(handle, params).boxed()
    }

    fn live_log<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Option<Vec<u8>>> {
        let params =
            LogParams { container: Some(CONTAINER.into()), tail_lines: Some(LIVE_LINES), ..LogParams::default() };
        self.read_log(handle, params).boxed()
    }

    fn log_kept<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, ()> {
        self.memory().logs_kept.insert(layout::workload_name(handle.job, handle.attempt));
        std::future::ready(()).boxed()
    }

    fn release<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, ()> {
        self.let_go(handle).boxed()
    }

    fn tidy(&self) -> BoxFuture<'_, ()> {
        self.forget();
        std::future::ready(()).boxed()
    }
}
