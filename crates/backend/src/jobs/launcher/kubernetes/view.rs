//! What the objects of an attempt say about it. A pure function of a Job and its pods.

use super::manifest::{CONTAINER, FINALIZER, PREPARED, STOPPED, is_queued};
use crate::jobs::{
    decide::Runtime,
    verdict::{Ending, Exit},
};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::{ContainerStatus, Pod, PodCondition},
};
use kube::ResourceExt;
use wire::job_env::exit;

/// Set by the API server while it deletes what the Job owns.
pub const FOREGROUND: &str = "foregroundDeletion";

/// One attempt in the cluster.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    pub job: Option<Job>,
    /// Those that exist.
    pub pods: Vec<Pod>,
    /// Those that do not any more, as they were last.
    pub departed: Vec<Pod>,
    /// A Job of that name was there before.
    pub known: bool,
}

/// How long a pod may stay as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Nobody will help it.
    None,
    /// Its image cannot be pulled, or its container not be made, now.
    Pull,
    /// It waits for a machine or for its image.
    Start,
}

#[derive(Debug, Clone, PartialEq)]
pub enum View {
    /// What it is and stays, until something changes.
    Is(Runtime),
    /// It does not run yet; what it is depends on how long that has been so.
    Pending { limit: Limit, reason: String },
}

impl Sight {
    #[must_use]
    pub fn view(&self) -> View {
        let is = |runtime| View::Is(runtime);
        let lives = self.pods.iter().any(is_live);
        let Some(job) = &self.job else {
            return is(match (lives, self.known || !self.pods.is_empty()) {
                (true, _) => Runtime::Doomed(self.deleted()),
                (false, true) => Runtime::Gone(self.ending(None).unwrap_or_else(|| self.deleted())),
                (false, false) => Runtime::NotStarted,
            });
        };
        if is_finished(job) {
            return is(match lives {
                // Its deadline is over, and it has its grace.
                true => Runtime::Alive,
                false => Runtime::Gone(self.last(job)),
            });
        }
        let deleting = job.metadata.deletion_timestamp.is_some();
        if has_annotation(job, STOPPED) {
            let started = has_annotation(job, PREPARED);
            let over = deleting && !has_finalizer(job, FOREGROUND) && !lives;
            let began = job.status.as_ref().is_some_and(|s| s.start_time.is_some());
            let ending = || if began { Ending::Lost } else { Ending::Withdrawn };
            return is(match over || (!started && !lives) {
                true => Runtime::Gone(self.ending(Some(job)).unwrap_or_else(|| Exit::new(ending()))),
                false => Runtime::Alive,
            });
        }
        if deleting {
            return is(match lives || has_finalizer(job, FOREGROUND) {
                true => Runtime::Doomed(self.deleted()),
                false => Runtime::Gone(self.ending(Some(job)).unwrap_or_else(|| self.deleted())),
            });
        }
        if !has_annotation(job, PREPARED) {
            return is(Runtime::NotStarted);
        }
        if job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false) {
            return is(match is_queued(job) {
                true => Runtime::Waiting,
                false => Runtime::NotStarted,
            });
        }
        self.unfinished(job)
    }

    /// A Job that goes on.
    fn unfinished(&self, job: &Job) -> View {
        let Some(pod) = self.pods.iter().find(|pod| is_live(pod)) else {
            return match self.pods.is_empty() {
                // It ended; Kubernetes takes a moment to draw the conclusion.
                false => View::Is(Runtime::Alive),
                true => View::Pending {
                    limit: Limit::Start,
                    reason: format!(
                        "Kubernetes makes no pod for it; `kubectl describe job {}` says why",
                        job.name_any()
                    ),
                },
            };
        };
        let state = container(pod).and_then(|c| c.state.as_ref());
        if state.is_some_and(|s| s.running.is_some() || s.terminated.is_some()) {
            return View::Is(Runtime::Alive);
        }
        let waiting = state.and_then(|s| s.waiting.as_ref());
        let reason = waiting.and_then(|w| w.reason.as_deref()).unwrap_or_default();
        let said = waiting.and_then(|w| w.message.as_deref()).unwrap_or_default();
        match reason {
            "InvalidImageName" | "ErrImageNeverPull" => {
                View::Pending { limit: Limit::None, reason: image(pod, reason, said) }
            }
            "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => {
                View::Pending { limit: Limit::Pull, reason: image(pod, reason, said) }
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                let reason = format!("its container cannot be made ({reason}: {said})");
                View::Pending { limit: Limit::Pull, reason }
            }
            _ => View::Pending { limit: Limit::Start, reason: unscheduled(pod) },
        }
    }

    /// The end of a Job that is over.
    fn last(&self, job: &Job) -> Exit {
        let exit = self.ending(Some(job));
        let told_to_go = |exit: &Exit| {
            matches!(exit.ending, Ending::Signal { out_of_memory: false, .. } | Ending::Code { code: exit::PREEMPTED })
        };
        match exit {
            Some(exit) if !(told_to_go(&exit) && was_deleted_first(job)) => exit,
            _ if was_deleted_first(job) => self.deleted(),
            _ => Exit::new(Ending::Lost),
        }
    }

    fn deleted(&self) -> Exit {
        Exit::new(Ending::Deleted { what: "the Kubernetes Job of the trainer".into() })
    }

    /// How it ended, if the pods or the Job can tell.
    fn ending(&self, job: Option<&Job>) -> Option<Exit> {
        let failed = job.and_then(|job| condition(job, "Failed"));
        let pod = self.pods.iter().chain(&self.departed).max_by_key(|pod| pod.metadata.creation_timestamp.clone());
        if failed.is_some_and(|c| c.reason.as_deref() == Some("DeadlineExceeded")) {
            return Some(Exit {
                log_tail: pod.map(last_words).unwrap_or_default(),
                ..Exit::new(Ending::DeadlineExceeded)
            });
        }
        pod.and_then(of_pod).or_else(|| failed.and_then(of_condition))
    }
}

fn image(pod: &Pod, reason: &str, said: &str) -> String {
    let spec = pod.spec.as_ref().and_then(|s| s.containers.iter().find(|c| c.name == CONTAINER));
    let image = spec.and_then(|c| c.image.as_deref()).unwrap_or_default();
    format!("its image {image} cannot be pulled ({reason}: {said}); check TRAINER_IMAGE and KUBE_IMAGE_PULL_SECRETS")
}

fn unscheduled(pod: &Pod) -> String {
    let scheduled = pod_condition(pod, "PodScheduled").filter(|c| c.status == "False");
    match scheduled.and_then(|c| c.message.as_deref()) {
        Some(why) => format!("no machine has room for it ({why})"),
        None => format!("its pod {} does not start; `kubectl describe pod` says why", pod.name_any()),
    }
}

fn has_annotation(job: &Job, name: &str) -> bool {
    job.annotations().contains_key(name)
}

#[must_use]
pub fn has_finalizer(job: &Job, name: &str) -> bool {
    job.finalizers().iter().any(|f| f == name)
}

/// Somebody else deleted it, and nothing has kept it from finishing but us.
#[must_use]
pub fn is_deleted_by_others(job: &Job) -> bool {
    job.metadata.deletion_timestamp.is_some() && !has_annotation(job, STOPPED) && has_finalizer(job, FINALIZER)
}

#[must_use]
pub fn is_stopping(job: &Job) -> bool {
    job.metadata.deletion_timestamp.is_some() && has_annotation(job, STOPPED)
}

/// Somebody deleted it, and that is why it failed. Its time to live deletes it later than it ends, unless that is 0.
fn was_deleted_first(job: &Job) -> bool {
    let lives_on = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished).is_some_and(|ttl| ttl > 0);
    let ended = condition(job, "Failed").and_then(|c| c.last_transition_time.as_ref());
    let deleted = job.metadata.deletion_timestamp.as_ref();
    let first = deleted.zip(ended).is_some_and(|(deleted, ended)| deleted <= ended);
    lives_on && first && !has_annotation(job, STOPPED)
}

#[must_use]
pub fn is_finished(job: &Job) -> bool {
    condition(job, "Complete").or_else(|| condition(job, "Failed")).is_some()
}

fn condition<'a>(job: &'a Job, name: &str) -> Option<&'a JobCondition> {
    let all = job.status.as_ref()?.conditions.as_ref()?;
    all.iter().find(|c| c.type_ == name && c.status == "True")
}

fn pod_condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == name)
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|c| c.name == CONTAINER)
}

/// It may run, now or later.
fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// What the container wrote last, as the kubelet noted it.
fn last_words(pod: &Pod) -> String {
    let terminated = container(pod).and_then(|c| c.state.as_ref()?.terminated.as_ref());
    terminated.and_then(|t| t.message.clone()).unwrap_or_default()
}

fn of_pod(pod: &Pod) -> Option<Exit> {
    let status = pod.status.as_ref()?;
    let terminated = container(pod).and_then(|c| c.state.as_ref()?.terminated.as_ref());
    let code = terminated.map(|t| t.exit_code);
    let with = |ending| Exit { log_tail: last_words(pod), ..Exit::new(ending) };
    match terminated.and_then(|t| t.reason.as_deref()) {
        Some("OOMKilled") => {
            let ending = Ending::Signal { signal: libc::SIGKILL, out_of_memory: true };
            return Some(Exit { memory_limit: memory_limit(pod), ..with(ending) });
        }
        Some("StartError" | "ContainerCannotRun") => {
            let said = terminated.and_then(|t| t.message.clone()).unwrap_or_default();
            return Some(Exit::new(Ending::StartFailed { reason: format!("its container cannot run ({said})") }));
        }
        _ => {}
    }
    // A trainer that ended by itself knows why.
    let own = |code: &i32| matches!(*code, exit::SUCCEEDED | exit::FATAL..=exit::FENCED | exit::PREEMPTED);
    if let Some(code) = code.filter(own) {
        return Some(with(Ending::Code { code }));
    }
    let disruption = pod_condition(pod, "DisruptionTarget").filter(|c| c.status == "True");
    let reason = disruption.and_then(|c| c.reason.as_deref()).or(status.reason.as_deref()).unwrap_or_default();
    let said = status.message.as_deref().or_else(|| disruption.and_then(|c| c.message.as_deref())).unwrap_or_default();
    if let Some(ending) = of_disruption(reason, said) {
        return Some(with(ending));
    }
    Some(with(of_code(code?)))
}

fn of_disruption(reason: &str, said: &str) -> Option<Ending> {
    let cause = || if said.is_empty() { reason.to_owned() } else { format!("{reason}: {said}") };
    let own_fault = said.contains("ephemeral") && said.contains("exceeds") || said.contains("EmptyDir");
    Some(match reason {
        "Evicted" | "TerminationByKubelet" if own_fault => Ending::OutOfDisk { cause: cause() },
        "Evicted"
        | "TerminationByKubelet"
        | "PreemptionByScheduler"
        | "Preempting"
        | "EvictionByEvictionAPI"
        | "NodeShutdown"
        | "Terminated" => Ending::Evicted { cause: cause() },
        "DeletionByPodGC" | "DeletionByTaintManager" | "NodeLost" => Ending::NodeLost { cause: cause() },
        _ => return None,
    })
}

fn of_code(code: i32) -> Ending {
    // A container has no signals: what ends by one has 128 and its number.
    match code.checked_sub(128) {
        Some(signal @ 1..=31) => Ending::Signal { signal, out_of_memory: false },
        _ => Ending::Code { code },
    }
}

/// A Job whose pod is gone says in a sentence why it failed.
fn of_condition(failed: &JobCondition) -> Option<Exit> {
    let said = failed.message.as_deref().unwrap_or_default();
    if said.contains("DisruptionTarget") {
        return Some(Exit::new(Ending::Evicted { cause: said.to_owned() }));
    }
    let code = said.split_once("exit code ")?.1;
    let code = code.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    Some(Exit::new(of_code(code)))
}

fn memory_limit(pod: &Pod) -> Option<u64> {
    let spec = pod.spec.as_ref()?.containers.iter().find(|c| c.name == CONTAINER)?;
    bytes(&spec.resources.as_ref()?.limits.as_ref()?.get("memory")?.0)
}

/// `1536Mi`, `2G`, `1.5Gi`, `4096`. None for what is no size.
fn bytes(quantity: &str) -> Option<u64> {
    let split = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at_checked(split)?;
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = u32::try_from(fraction.len()).ok().filter(|n| *n <= 6)?;
    let scale = 10_u64.checked_pow(digits)?;
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let parts = whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(fraction)?;
    Some(parts.checked_mul(factor)? / scale)
}

#[cfg(test)]
mod tests;
