//! What is put into the cluster for an attempt: a Job, a Secret with its token and, for a long specification, a ConfigMap.
//!
//! The Job comes first, suspended; the others name it as their owner and go with it; then it starts. So nothing of an
//! attempt outlives its Job, wherever a backend dies in between.

use super::{config::KubernetesConfig, placement::Placement};
use crate::jobs::launcher::LaunchSpec;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Secret},
};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use wire::{JobId, job_env, layout};

/// Keeps a Job until its outcome is stored.
pub const FINALIZER: &str = "hone.dev/outcome";
/// Its Secret is there: it may start.
pub const PREPARED: &str = "hone.dev/prepared";
/// Hone wants it gone.
pub const STOPPED: &str = "hone.dev/stop-requested";
pub const LABEL_JOB: &str = "hone.dev/job";
pub const LABEL_ATTEMPT: &str = "hone.dev/attempt";
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
pub const LABEL_MANAGER: &str = "app.kubernetes.io/managed-by";
pub const MANAGER: &str = "hone-backend";
pub const CONTAINER: &str = "trainer";
const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// A longer specification is a file: no variable may be longer than 128 KiB.
const LONG_SPEC: usize = 64 << 10;
const SCRATCH: &str = "/scratch";
const TOKEN_DIR: &str = "/var/run/hone";
const SPEC_DIR: &str = "/etc/hone";

/// What selects every object of this Hone.
#[must_use]
pub fn selector(config: &KubernetesConfig) -> String {
    format!("{LABEL_MANAGER}={MANAGER},{LABEL_INSTANCE}={}", config.instance)
}

fn labels(config: &KubernetesConfig, job: JobId, attempt: u32) -> Value {
    json!({
        "app.kubernetes.io/name": "hone-trainer",
        "app.kubernetes.io/component": "trainer",
        LABEL_MANAGER: MANAGER,
        LABEL_INSTANCE: config.instance,
        LABEL_JOB: job.to_string(),
        LABEL_ATTEMPT: attempt.to_string(),
    })
}

/// Writes a value below `object`, when there is one.
fn set(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let (Some(fields), Some(value)) = (object.as_object_mut(), value) {
        fields.insert(key.to_owned(), value.into());
    }
}

/// The Job of an attempt, suspended.
pub fn job(config: &KubernetesConfig, placement: &Placement, launch: &LaunchSpec) -> serde_json::Result<Job> {
    let (id, attempt) = (launch.spec.job_id, launch.spec.attempt);
    let name = layout::workload_name(id, attempt);
    let spec = serde_json::to_string(&launch.spec)?;
    let file = spec.len() > LONG_SPEC;
    let mut env: Map<String, Value> = config.inherited.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    let mut give = |name: &str, value: String| env.insert(name.to_owned(), value.into());
    if let Some(parent) = &launch.traceparent {
        give("TRACEPARENT", parent.clone());
    }
    give(job_env::JOB_ID, id.to_string());
    give(job_env::ATTEMPT, attempt.to_string());
    give(job_env::CALLBACK_URL, launch.callback_url.clone());
    give(job_env::STORAGE_GATEWAY_URL, launch.storage_gateway_url.clone());
    give(job_env::JOB_TOKEN_FILE, format!("{TOKEN_DIR}/token"));
    for name in [job_env::SCRATCH_DIR, "TMPDIR", "HOME"] {
        give(name, SCRATCH.into());
    }
    match file {
        true => give(job_env::JOB_SPEC_FILE, format!("{SPEC_DIR}/spec.json")),
        false => give(job_env::JOB_SPEC, spec),
    };
    let env: Vec<Value> = env.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();

    let mut scratch = json!({});
    set(&mut scratch, "sizeLimit", config.scratch.clone());
    let mut volumes = vec![
        json!({"name": "scratch", "emptyDir": scratch}),
        json!({"name": "token", "secret": {"secretName": name, "defaultMode": 0o440}}),
    ];
    let mut mounts = vec![
        json!({"name": "scratch", "mountPath": SCRATCH}),
        json!({"name": "token", "mountPath": TOKEN_DIR, "readOnly": true}),
    ];
    if file {
        volumes.push(json!({"name": "spec", "configMap": {"name": name}}));
        mounts.push(json!({"name": "spec", "mountPath": SPEC_DIR, "readOnly": true}));
    }
    let mut container = container(config, placement);
    set(&mut container, "env", Some(env));
    set(&mut container, "volumeMounts", Some(mounts));
    let mut pod = pod(config, placement, container);
    set(&mut pod, "volumes", Some(volumes));
    whole(config, placement, (id, attempt), pod)
}

/// A Job that never starts: it holds the name of an attempt that was called off.
pub fn withdrawn(config: &KubernetesConfig, id: JobId, attempt: u32, at: &str) -> serde_json::Result<Job> {
    let placement = Placement::default();
    let mut job = whole(config, &placement, (id, attempt), pod(config, &placement, container(config, &placement)))?;
    job.metadata.annotations.get_or_insert_default().insert(STOPPED.to_owned(), at.to_owned());
    Ok(job)
}

fn container(config: &KubernetesConfig, placement: &Placement) -> Value {
    let mut container = json!({
        "name": CONTAINER,
        "image": placement.image.as_ref().unwrap_or(&config.image),
        "command": ["hone-trainer", "run"],
        "resources": {"requests": placement.requests(), "limits": placement.limits()},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        // The end of its log, for a pod whose log cannot be read any more.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    set(&mut container, "imagePullPolicy", config.pull_policy.clone());
    container
}

/// Pod security *restricted*, and no way into the cluster.
fn pod(config: &KubernetesConfig, placement: &Placement, container: Value) -> Value {
    let mut pod = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": config.grace.get(),
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": config.run_as,
            "runAsGroup": config.run_as,
            "fsGroup": config.run_as,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    });
    let secrets: Vec<Value> = config.pull_secrets.iter().map(|name| json!({"name": name})).collect();
    set(&mut pod, "imagePullSecrets", (!secrets.is_empty()).then_some(secrets));
    set(&mut pod, "serviceAccountName", config.service_account.clone());
    set(&mut pod, "priorityClassName", placement.priority_class.clone());
    set(&mut pod, "runtimeClassName", placement.runtime_class.clone());
    set(&mut pod, "nodeSelector", (!placement.node_selector.is_empty()).then(|| json!(placement.node_selector)));
    set(&mut pod, "tolerations", (!placement.tolerations.is_empty()).then(|| json!(placement.tolerations)));
    pod
}

fn whole(
    config: &KubernetesConfig,
    placement: &Placement,
    (id, attempt): (JobId, u32),
    pod: Value,
) -> serde_json::Result<Job> {
    let labels = labels(config, id, attempt);
    let mut job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": layout::workload_name(id, attempt),
            "labels": labels,
            "finalizers": [FINALIZER],
        },
        "spec": {
            "suspend": true,
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "ttlSecondsAfterFinished": config.ttl,
            // Another attempt is ours to make, with a number and an epoch of its own.
            "podFailurePolicy": {"rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]}},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    });
    if let Some(queue) = &placement.queue {
        set(job.pointer_mut("/metadata/labels").unwrap_or(&mut Value::Null), QUEUE, Some(queue.clone()));
    }
    if let Some(spec) = job.get_mut("spec") {
        set(spec, "activeDeadlineSeconds", placement.deadline_seconds);
    }
    serde_json::from_value(job)
}

/// Whether it waits for Kueue.
#[must_use]
pub fn is_queued(job: &Job) -> bool {
    job.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(QUEUE))
}

fn owned(config: &KubernetesConfig, launch: &LaunchSpec, uid: &str) -> Value {
    let (id, attempt) = (launch.spec.job_id, launch.spec.attempt);
    let name = layout::workload_name(id, attempt);
    json!({
        "name": name,
        "labels": labels(config, id, attempt),
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": false, "blockOwnerDeletion": false}],
    })
}

/// The token of an attempt, which goes with its Job.
pub fn secret(config: &KubernetesConfig, launch: &LaunchSpec, uid: &str) -> serde_json::Result<Secret> {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": owned(config, launch, uid),
        "immutable": true,
        "type": "Opaque",
        "stringData": {"token": launch.token.expose_secret()},
    }))
}

/// The specification of an attempt when it is long.
pub fn config_map(config: &KubernetesConfig, launch: &LaunchSpec, uid: &str) -> serde_json::Result<Option<ConfigMap>> {
    let spec = serde_json::to_string(&launch.spec)?;
    if spec.len() <= LONG_SPEC {
        return Ok(None);
    }
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owned(config, launch, uid),
        "immutable": true,
        "data": {"spec.json": spec},
    }))
    .map(Some)
}
