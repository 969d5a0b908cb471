//! Changes in the cluster: starting, stopping and letting go of an attempt's Job. Every step can be repeated, by this
//! backend or another one.

use super::{
    Kubernetes, STOP_WAIT,
    cluster::{CallError, Result},
    launch_error,
    manifest::{self, FINALIZER, PREPARED, STOPPED, is_queued},
    view::{self, Sight, View},
};
use crate::jobs::{
    decide::Runtime,
    launcher::{Handle, LaunchError, LaunchSpec},
    verdict::{Ending, Exit},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use wire::layout;

/// Before the same Job is asked to go once more.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Others change the same Job; so often we look again and try once more.
const CONFLICTS: usize = 5;

impl Kubernetes {
    pub(super) async fn start(&self, launch: &LaunchSpec) -> std::result::Result<(), LaunchError> {
        let (id, attempt) = (launch.spec.job_id, launch.spec.attempt);
        let name = layout::workload_name(id, attempt);
        let unusable = |e: serde_json::Error| LaunchError::Fatal(format!("cannot write down its Kubernetes Job: {e}"));
        let placement = self.config.placement(&self.placements, launch.gpu.as_ref());
        let job = manifest::job(&self.config, &placement, launch).map_err(unusable)?;
        let job = match self.cluster.call(self.cluster.jobs.create(&PostParams::default(), &job)).await {
            Ok(job) => job,
            Err(e) if e.code() == Some(409) => self.existing(launch, &name).await?,
            Err(e) => return Err(launch_error("cannot create its Kubernetes Job", &e)),
        };
        self.memory().known.insert(name.clone());
        if job.annotations().contains_key(STOPPED) || job.metadata.deletion_timestamp.is_some() {
            // Called off meanwhile.
            self.jobs.put(job);
            return Ok(());
        }
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let secret = manifest::secret(&self.config, launch, &uid).map_err(unusable)?;
        self.cluster
            .ensure_secret(&secret)
            .await
            .map_err(|e| launch_error("cannot create the Secret of its token", &e))?;
        if let Some(map) = manifest::config_map(&self.config, launch, &uid).map_err(unusable)? {
            let failed = |e| launch_error("cannot create the ConfigMap of its specification", &e);
            self.cluster.ensure_config_map(&map).await.map_err(failed)?;
        }
        self.unless_stopped(&name, job).await.map_err(|e| launch_error("cannot start its Kubernetes Job", &e))
    }

    /// The Job that has the name already, if it is the attempt's.
    async fn existing(&self, launch: &LaunchSpec, name: &str) -> std::result::Result<Job, LaunchError> {
        let found = self.cluster.call(self.cluster.jobs.get(name)).await;
        let job = found.map_err(|e| launch_error("cannot read its Kubernetes Job", &e))?;
        if self.is_ours(&job, launch.spec.job_id, launch.spec.attempt) {
            return Ok(job);
        }
        Err(LaunchError::Fatal(format!(
            "there is a Kubernetes Job {name} that is not Hone's; delete it and start the job again"
        )))
    }

    /// Lets it start, unless somebody called it off since it was read.
    async fn unless_stopped(&self, name: &str, mut job: Job) -> Result<()> {
        for _ in 0..CONFLICTS {
            if job.annotations().contains_key(STOPPED) || job.annotations().contains_key(PREPARED) {
                break;
            }
            let mut change = json!({"metadata": {"annotations": {PREPARED: "true"}}});
            if !is_queued(&job)
                && let Some(fields) = change.as_object_mut()
            {
                fields.insert("spec".into(), json!({"suspend": false}));
            }
            match self.patch(&job, change).await {
                Ok(patched) => {
                    job = patched;
                    break;
                }
                Err(e) if e.code() == Some(409) => job = self.cluster.call(self.cluster.jobs.get(name)).await?,
                Err(e) => return Err(e),
            }
        }
        self.jobs.put(job);
        Ok(())
    }

    /// Changes a Job that is still as it was read; 409 when it is not.
    async fn patch(&self, job: &Job, mut change: Value) -> Result<Job> {
        if let Some(metadata) = change.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), json!(job.metadata.resource_version));
        }
        let (name, params) = (job.name_any(), PatchParams::default());
        let patched = self.cluster.call(self.cluster.jobs.patch(&name, &params, &Patch::Merge(&change))).await?;
        // A deleted one goes with its last finalizer.
        match patched.metadata.deletion_timestamp.is_some() && patched.finalizers().is_empty() {
            true => self.jobs.put_gone(patched.clone()),
            false => self.jobs.put(patched.clone()),
        }
        Ok(patched)
    }

    /// One step of stopping, and what is left after it.
    pub(super) async fn stop_step(&self, handle: &Handle) -> Runtime {
        let Some(name) = self.name(handle) else { return Runtime::Unknown };
        let remembered = self.remembered(handle, &name);
        if remembered.as_ref().is_some_and(|sight| self.is_going(&name, sight)) {
            self.jobs.changed(STOP_WAIT).await;
            match self.remembered(handle, &name).map(|sight| self.judge(&name, sight.view())) {
                None | Some(Runtime::Gone(_)) => {}
                Some(_) => return Runtime::Alive,
            }
        }
        self.call_off(handle).await
    }

    /// It was asked to go not long ago.
    fn is_going(&self, name: &str, sight: &Sight) -> bool {
        let recently = self.memory().asked.get(name).is_some_and(|at| at.elapsed() < ASK_AGAIN);
        recently && sight.job.as_ref().is_some_and(view::is_stopping)
    }

    /// An attempt cannot be started, for this reason.
    pub(super) async fn turn_down(&self, handle: &Handle, reason: &str) -> Runtime {
        let Some(name) = self.name(handle) else { return Runtime::Unknown };
        let started = |job: &Job| job.annotations().contains_key(PREPARED);
        match self.ask(handle, &name).await {
            // Another launch was faster.
            Ok(sight) if sight.job.as_ref().is_some_and(started) => self.judge(&name, sight.view()),
            Ok(_) => {
                self.call_off(handle).await;
                Runtime::Gone(Exit::new(Ending::StartFailed { reason: reason.to_owned() }))
            }
            Err(_) => Runtime::Unknown,
        }
    }

    /// Makes sure that an attempt ends, or never starts.
    pub(super) async fn call_off(&self, handle: &Handle) -> Runtime {
        let Some(name) = self.name(handle) else { return Runtime::Unknown };
        match self.try_to_call_off(handle, &name).await {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::warn!(job.id = %handle.job, "cannot stop attempt {} yet: {error}", handle.attempt);
                Runtime::Unknown
            }
        }
    }

    async fn try_to_call_off(&self, handle: &Handle, name: &str) -> Result<Runtime> {
        for _ in 0..CONFLICTS {
            let sight = self.ask(handle, name).await?;
            let view = sight.view();
            if let View::Is(gone @ Runtime::Gone(_)) = view {
                return Ok(gone);
            }
            let done = match &sight.job {
                // Its pods are orphans, which the fence ends.
                None if !sight.pods.is_empty() => Ok(Runtime::Alive),
                None => self.withdraw(handle).await,
                Some(job) if view::is_deleted_by_others(job) => self.give_way(job).await,
                Some(job) => self.ask_to_go(job).await,
            };
            match done {
                Err(e) if matches!(e.code(), Some(404 | 409)) => {}
                other => return other,
            }
        }
        Ok(Runtime::Alive)
    }

    /// Takes the name of an attempt, so that a launch that is under way cannot start it.
    async fn withdraw(&self, handle: &Handle) -> Result<Runtime> {
        let at = chrono::Utc::now().to_rfc3339();
        let made = manifest::withdrawn(&self.config, handle.job, handle.attempt, &at);
        let job = made.map_err(|e| CallError::Unreachable(e.to_string()))?;
        match self.cluster.call(self.cluster.jobs.create(&PostParams::default(), &job)).await {
            Ok(job) => self.jobs.put(job),
            // What may not be created now cannot be started either; later on the sweep sees to it.
            Err(e) if matches!(e.code(), Some(400 | 403 | 422)) => {}
            Err(e) if e.code() == Some(409) => {
                let name = layout::workload_name(handle.job, handle.attempt);
                let found = self.cluster.call(self.cluster.jobs.get(&name)).await?;
                // Ours: a launch was faster. Another's: it is in the way for good.
                if self.is_ours(&found, handle.job, handle.attempt) {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
        Ok(Runtime::Gone(Exit::new(Ending::Withdrawn)))
    }

    async fn ask_to_go(&self, job: &Job) -> Result<Runtime> {
        let name = job.name_any();
        let mut stopping = job.clone();
        if !job.annotations().contains_key(STOPPED) {
            let change = json!({"metadata": {"annotations": {STOPPED: chrono::Utc::now().to_rfc3339()}}});
            stopping = self.patch(job, change).await?;
        }
        if stopping.metadata.deletion_timestamp.is_none() {
            let uid = Preconditions { uid: job.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams::foreground().preconditions(uid);
            self.cluster.call(self.cluster.jobs.delete(&name, &params)).await?;
        }
        self.memory().asked.insert(name, Instant::now());
        self.jobs.changed(STOP_WAIT).await;
        Ok(Runtime::Alive)
    }

    /// Lets somebody else's deletion happen.
    async fn give_way(&self, job: &Job) -> Result<Runtime> {
        self.drop_finalizer(job).await?;
        self.jobs.changed(STOP_WAIT).await;
        Ok(Runtime::Alive)
    }

    async fn drop_finalizer(&self, job: &Job) -> Result<()> {
        let left: Vec<&String> = job.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        self.patch(job, json!({"metadata": {"finalizers": left}})).await.map(drop)
    }

    /// The outcome of an attempt is stored: Kubernetes may remove its Job.
    pub(super) async fn let_go(&self, handle: &Handle) {
        let Some(name) = self.name(handle) else { return };
        if let Err(error) = self.try_to_let_go(&name).await {
            tracing::debug!(job.id = %handle.job, "cannot let go of attempt {} yet: {error}", handle.attempt);
        }
    }

    async fn try_to_let_go(&self, name: &str) -> Result<()> {
        for _ in 0..CONFLICTS {
            let Some(job) = self.cluster.call(self.cluster.jobs.get_opt(name)).await? else { return Ok(()) };
            // A finished one stays for a look until its time to live is over.
            if !view::is_finished(&job) && job.metadata.deletion_timestamp.is_none() {
                self.cluster.call(self.cluster.jobs.delete(name, &DeleteParams::background())).await?;
                continue;
            }
            if !view::has_finalizer(&job, FINALIZER) {
                self.jobs.put(job);
                return Ok(());
            }
            match self.drop_finalizer(&job).await {
                Err(e) if matches!(e.code(), Some(404 | 409)) => {}
                other => return other,
            }
        }
        Ok(())
    }
}
