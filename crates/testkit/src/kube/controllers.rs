//! What a cluster does by itself: the Job controller, garbage collection, time to live, and a kubelet that runs each pod's
//! container as a process on this machine, or fails as it was told to.

use super::{
    Fate, Inner, Whim,
    objects::{FOREGROUND, Objects, has_finalizer, is_deleting, list, now, text},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// What controllers remember, by pod or uid of a Job.
#[derive(Debug, Default)]
pub struct Memory {
    made: HashMap<String, String>,
    started: HashMap<String, Instant>,
    finished: HashMap<String, Instant>,
    containers: HashMap<String, Container>,
    /// Pods that somebody does something to.
    pub whims: HashMap<String, Whim>,
}

#[derive(Debug)]
struct Container {
    child: Child,
    /// When it is killed.
    until: Option<Instant>,
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn log_of(dir: &Path, pod: &str) -> PathBuf {
    dir.join(format!("{pod}.log"))
}

fn set_condition(object: &mut Value, name: &str, reason: &str, message: &str) {
    let mut all = list(object, "/status/conditions").to_vec();
    all.retain(|c| c["type"] != name);
    all.push(
        json!({"type": name, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}),
    );
    object["status"]["conditions"] = json!(all);
}

fn has_condition(object: &Value, name: &str) -> bool {
    list(object, "/status/conditions").iter().any(|c| c["type"] == name && c["status"] == "True")
}

fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// One round of everything.
pub fn tick(inner: &mut Inner) {
    for job in inner.objects.find("jobs", "") {
        run_job(inner, job);
    }
    for pod in inner.objects.find("pods", "") {
        run_pod(inner, pod);
    }
    collect(&mut inner.objects);
}

fn collect(objects: &mut Objects) {
    for job in objects.find("jobs", "").into_iter().filter(|job| has_finalizer(job, FOREGROUND)) {
        let blocking = |o: &Value| list(o, "/metadata/ownerReferences").iter().any(|r| r["blockOwnerDeletion"] == true);
        let owned = objects.owned_by(text(&job, "/metadata/uid"));
        if !owned.iter().any(|(_, o)| blocking(o)) {
            objects.drop_finalizer("jobs", job, FOREGROUND);
            continue;
        }
        for (kind, object) in owned {
            let _ = objects.delete(kind, text(&object, "/metadata/name"), &Value::Null);
        }
    }
    for (kind, object) in objects.orphans() {
        // Nobody counts it any more.
        if has_finalizer(&object, TRACKING) {
            objects.drop_finalizer(kind, object.clone(), TRACKING);
        }
        let _ = objects.delete(kind, text(&object, "/metadata/name"), &Value::Null);
    }
}

fn run_job(inner: &mut Inner, mut job: Value) {
    let uid = text(&job, "/metadata/uid").to_owned();
    let name = text(&job, "/metadata/name").to_owned();
    let finished = has_condition(&job, "Complete") || has_condition(&job, "Failed");
    if finished {
        let at = *inner.memory.finished.entry(uid).or_insert_with(Instant::now);
        let ttl = job["spec"]["ttlSecondsAfterFinished"].as_u64().map(Duration::from_secs);
        if ttl.is_some_and(|ttl| at.elapsed() >= ttl) {
            let _ = inner.objects.delete("jobs", &name, &json!({"propagationPolicy": "Foreground"}));
        }
        return;
    }
    let owned = inner.objects.owned_by(&uid).into_iter().filter(|(kind, _)| *kind == "pods").map(|(_, pod)| pod);
    let pods: Vec<Value> = owned.collect();
    let suspended = job["spec"]["suspend"] == true;
    if suspended && inner.admits && job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name").is_some() {
        job["spec"]["suspend"] = json!(false);
        inner.objects.update("jobs", job);
        return;
    }
    if pods.is_empty() && !suspended && !is_deleting(&job) && !inner.memory.made.contains_key(&uid) {
        make_pod(inner, &job, &uid, &name);
        job["status"]["startTime"] = json!(now());
        inner.objects.update("jobs", job);
        inner.memory.started.insert(uid, Instant::now());
        return;
    }
    let deadline = job["spec"]["activeDeadlineSeconds"].as_u64().map(Duration::from_secs);
    let late = deadline.is_some_and(|limit| inner.memory.started.get(&uid).is_some_and(|at| at.elapsed() > limit));
    if late {
        for pod in pods.iter().filter(|pod| !is_over(pod)) {
            let _ = inner.objects.delete("pods", text(pod, "/metadata/name"), &Value::Null);
        }
        if pods.iter().all(is_over) {
            let message = "Job was active longer than specified deadline";
            set_condition(&mut job, "Failed", "DeadlineExceeded", message);
            inner.objects.update("jobs", job);
        }
    } else if let Some(pod) = pods.iter().find(|pod| is_over(pod)) {
        conclude(&mut job, pod);
        inner.objects.update("jobs", job);
    } else if pods.is_empty() && inner.memory.made.contains_key(&uid) && !is_deleting(&job) {
        set_condition(&mut job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit");
        inner.objects.update("jobs", job);
    }
    for pod in pods.into_iter().filter(is_over) {
        inner.objects.drop_finalizer("pods", pod, TRACKING);
    }
}

/// As `podFailurePolicy` says.
fn conclude(job: &mut Value, pod: &Value) {
    let name = text(pod, "/metadata/name");
    if text(pod, "/status/phase") == "Succeeded" {
        job["status"]["succeeded"] = json!(1);
        set_condition(job, "Complete", "CompletionsReached", "Reached expected number of succeeded pods");
        return;
    }
    let code = pod.pointer("/status/containerStatuses/0/state/terminated/exitCode").and_then(Value::as_i64);
    let message = match code {
        _ if has_condition(pod, "DisruptionTarget") => {
            format!("Pod trainers/{name} has condition DisruptionTarget matching FailJob rule at index 1")
        }
        Some(code) => {
            format!(
                "Container trainer for pod trainers/{name} failed with exit code {code} matching FailJob rule at index 0"
            )
        }
        None => format!("Pod trainers/{name} failed"),
    };
    job["status"]["failed"] = json!(1);
    set_condition(job, "Failed", "PodFailurePolicy", &message);
}

fn make_pod(inner: &mut Inner, job: &Value, uid: &str, name: &str) {
    let template = &job["spec"]["template"];
    let pod_name = format!("{name}-{:05x}", inner.objects.version & 0xf_ffff);
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name,
            "labels": template["metadata"]["labels"],
            "finalizers": [TRACKING],
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": true,
                "blockOwnerDeletion": true}],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    });
    inner.memory.made.insert(uid.to_owned(), pod_name);
    inner.objects.create("pods", pod).expect("a fresh name");
}

fn waiting(mut pod: Value, reason: &str, message: &str) -> Value {
    let state = json!({"waiting": {"reason": reason, "message": message}});
    pod["status"]["containerStatuses"] = json!([status(state)]);
    pod
}

fn status(state: Value) -> Value {
    json!({"name": "trainer", "ready": false, "restartCount": 0, "image": "x", "imageID": "", "state": state})
}

fn end(inner: &mut Inner, mut pod: Value, code: i32, reason: &str) {
    let name = text(&pod, "/metadata/name").to_owned();
    let log = fs::read_to_string(log_of(&inner.dir, &name)).unwrap_or_default();
    let mut terminated = json!({"exitCode": code, "reason": reason, "finishedAt": now()});
    if code != 0 && !log.is_empty() {
        let from = log.char_indices().rev().nth(2047).map_or(0, |(i, _)| i);
        terminated["message"] = json!(&log[from..]);
    }
    pod["status"]["containerStatuses"] = json!([status(json!({"terminated": terminated}))]);
    pod["status"]["phase"] = json!(if code == 0 { "Succeeded" } else { "Failed" });
    inner.objects.update("pods", pod);
}

fn run_pod(inner: &mut Inner, mut pod: Value) {
    let name = text(&pod, "/metadata/name").to_owned();
    if is_over(&pod) {
        // The kubelet has done its part; it goes once nobody holds it.
        if is_deleting(&pod) && list(&pod, "/metadata/finalizers").is_empty() {
            pod["status"]["gone"] = json!(true);
            inner.objects.update("pods", pod);
        }
        return;
    }
    if let Some(whim) = inner.memory.whims.remove(&name) {
        return act(inner, pod, whim);
    }
    if let Some(container) = inner.memory.containers.get_mut(&name) {
        if let Some(exit) = container.child.try_wait().expect("a child of ours") {
            inner.memory.containers.remove(&name);
            let code = exit.code().unwrap_or_else(|| 128 + exit.signal().unwrap_or_default());
            let reason = if code == 0 { "Completed" } else { "Error" };
            return end(inner, pod, code, reason);
        }
        if is_deleting(&pod) {
            let grace = Duration::from_secs(pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30));
            match container.until {
                None => {
                    signal(&container.child, Signal::SIGTERM);
                    container.until = Some(Instant::now() + grace);
                }
                Some(until) if Instant::now() >= until => signal(&container.child, Signal::SIGKILL),
                Some(_) => {}
            }
        }
        return;
    }
    if is_deleting(&pod) {
        // It never ran.
        pod["status"]["phase"] = json!("Failed");
        inner.objects.update("pods", pod);
        return;
    }
    match inner.fate(&pod) {
        Fate::Run => start(inner, pod, &name),
        Fate::Waiting { reason, message } => {
            let pod = waiting(pod, &reason, &message);
            inner.objects.update("pods", pod);
        }
        Fate::Unschedulable { message } => {
            let all =
                json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]);
            pod["status"]["conditions"] = all;
            inner.objects.update("pods", pod);
        }
        Fate::CannotRun { message } => {
            let terminated = json!({"exitCode": 128, "reason": "StartError", "message": message});
            pod["status"]["containerStatuses"] = json!([status(json!({"terminated": terminated}))]);
            pod["status"]["phase"] = json!("Failed");
            inner.objects.update("pods", pod);
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal);
}

fn act(inner: &mut Inner, mut pod: Value, whim: Whim) {
    let name = text(&pod, "/metadata/name").to_owned();
    match whim {
        Whim::OutOfMemory => {
            inner.memory.containers.remove(&name);
            end(inner, pod, 137, "OOMKilled");
        }
        Whim::Evict { message } => {
            inner.memory.containers.remove(&name);
            set_condition(&mut pod, "DisruptionTarget", "TerminationByKubelet", &message);
            (pod["status"]["reason"], pod["status"]["message"]) = (json!("Evicted"), json!(message));
            end(inner, pod, 137, "Error");
        }
        Whim::Preempt => {
            let message = "trainers/other: preempting to accommodate a higher priority pod";
            set_condition(&mut pod, "DisruptionTarget", "PreemptionByScheduler", message);
            inner.objects.update("pods", pod);
            let _ = inner.objects.delete("pods", &name, &Value::Null);
        }
        Whim::LoseNode => {
            inner.memory.containers.remove(&name);
            set_condition(&mut pod, "DisruptionTarget", "DeletionByPodGC", "PodGC: node no longer exists");
            pod["status"]["phase"] = json!("Failed");
            inner.objects.update("pods", pod);
            let _ = inner.objects.delete("pods", &name, &Value::Null);
        }
    }
}

/// Runs the container; it waits while one of its volumes is not there.
fn start(inner: &mut Inner, mut pod: Value, name: &str) {
    let dir = inner.dir.join(name);
    let volumes = match mount(&inner.objects, &pod, &dir) {
        Ok(volumes) => volumes,
        Err(missing) => {
            let pod = waiting(pod, "ContainerCreating", &missing);
            inner.objects.update("pods", pod);
            return;
        }
    };
    let container = &pod["spec"]["containers"][0];
    let real = |value: &str| {
        let below = volumes.iter().find(|(mount, _)| value == mount || value.starts_with(&format!("{mount}/")));
        below.map_or_else(|| value.to_owned(), |(mount, real)| value.replacen(mount, &real.to_string_lossy(), 1))
    };
    let log = File::create(log_of(&inner.dir, name)).expect("a log");
    let mut command = Command::new(&inner.program);
    command.args(list(container, "/command").iter().skip(1).filter_map(Value::as_str));
    command.env_clear().current_dir(&dir).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a log")).stderr(log);
    for variable in list(container, "/env") {
        command.env(text(variable, "/name"), real(text(variable, "/value")));
    }
    let child = command.spawn().expect("the trainer");
    inner.memory.containers.insert(name.to_owned(), Container { child, until: None });
    pod["status"]["phase"] = json!("Running");
    pod["status"]["containerStatuses"] = json!([status(json!({"running": {"startedAt": now()}}))]);
    inner.objects.update("pods", pod);
}

/// Lays out the volumes: mount path to directory.
fn mount(objects: &Objects, pod: &Value, dir: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let mut mounted = Vec::new();
    for mount in list(pod, "/spec/containers/0/volumeMounts") {
        let volume = list(pod, "/spec/volumes").iter().find(|v| v["name"] == mount["name"]).ok_or("no such volume")?;
        let real = dir.join(text(mount, "/name"));
        fs::create_dir_all(&real).expect("a directory");
        let files = if let Some(secret) = volume.pointer("/secret/secretName").and_then(Value::as_str) {
            objects.get("secrets", secret).map_err(|e| e.message)?["stringData"].clone()
        } else if let Some(map) = volume.pointer("/configMap/name").and_then(Value::as_str) {
            objects.get("configmaps", map).map_err(|e| e.message)?["data"].clone()
        } else {
            Value::Null
        };
        for (name, content) in files.as_object().into_iter().flatten() {
            fs::write(real.join(name), content.as_str().unwrap_or_default()).expect("a file");
        }
        mounted.push((text(mount, "/mountPath").to_owned(), real));
    }
    Ok(mounted)
}

pub fn signal_job(memory: &Memory, job: &str, number: Signal) {
    let mut all = memory.containers.iter().filter(|(pod, _)| pod.starts_with(job));
    let (_, container) = all.next().expect("a container of that Job");
    signal(&container.child, number);
}

pub fn running(memory: &mut Memory) -> usize {
    memory.containers.values_mut().map(|c| usize::from(matches!(c.child.try_wait(), Ok(None)))).sum()
}
