use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn job(value: Value) -> Job {
    serde_json::from_value(value).unwrap()
}

fn pod(status: Value) -> Pod {
    let spec = json!({"containers": [{"name": "trainer", "image": "i", "resources": {"limits": {"memory": "1.5Gi"}}}]});
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": status})).unwrap()
}

fn terminated(code: i32, reason: &str) -> Value {
    json!([{"name": "trainer", "ready": false, "restartCount": 0, "image": "i", "imageID": "",
        "state": {"terminated": {"exitCode": code, "reason": reason, "message": "last words"}}}])
}

fn failed(code: i32, reason: &str) -> Pod {
    pod(json!({"phase": "Failed", "containerStatuses": terminated(code, reason)}))
}

fn disrupted(code: i32, reason: &str, message: &str) -> Pod {
    let target = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]);
    pod(json!({"phase": "Failed", "containerStatuses": terminated(code, "Error"), "conditions": target}))
}

fn finished(reason: &str, message: &str) -> Job {
    job(json!({"metadata": {"name": "j", "annotations": {PREPARED: "true"}},
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message}]}}))
}

fn ending(job: Job, pods: Vec<Pod>) -> Exit {
    match (Sight { job: Some(job), pods, ..Sight::default() }).view() {
        View::Is(Runtime::Gone(exit)) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_end_of_a_pod_has_its_name() {
    let of = |pod| ending(finished("PodFailurePolicy", ""), vec![pod]);
    let oom = of(failed(137, "OOMKilled"));
    assert_eq!(oom.ending, Ending::Signal { signal: 9, out_of_memory: true });
    assert_eq!((oom.memory_limit, oom.log_tail.as_str()), (Some(1536 << 20), "last words"));
    assert_eq!(of(failed(143, "Error")).ending, Ending::Signal { signal: 15, out_of_memory: false });
    assert_eq!(of(failed(65, "Error")).ending, Ending::Code { code: 65 });
    assert_eq!(of(failed(101, "Error")).ending, Ending::Code { code: 101 });
    assert!(matches!(of(failed(128, "StartError")).ending, Ending::StartFailed { .. }));
    for reason in ["TerminationByKubelet", "PreemptionByScheduler", "EvictionByEvictionAPI"] {
        assert!(matches!(of(disrupted(137, reason, "m")).ending, Ending::Evicted { .. }), "{reason}");
    }
    for reason in ["DeletionByPodGC", "DeletionByTaintManager"] {
        assert!(matches!(of(disrupted(137, reason, "m")).ending, Ending::NodeLost { .. }), "{reason}");
    }
    // It had the time to leave in order.
    assert_eq!(of(disrupted(75, "PreemptionByScheduler", "m")).ending, Ending::Code { code: 75 });
    let full = of(disrupted(
        137,
        "TerminationByKubelet",
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi.",
    ));
    assert!(matches!(full.ending, Ending::OutOfDisk { .. }), "{full:?}");
}

#[test]
fn a_job_whose_pod_is_gone_still_tells_why_it_failed() {
    let said = "Container trainer for pod n/p failed with exit code 137 matching FailJob rule at index 0";
    assert_eq!(
        ending(finished("PodFailurePolicy", said), vec![]).ending,
        Ending::Signal { signal: 9, out_of_memory: false }
    );
    let said = "Pod n/p has condition DisruptionTarget matching FailJob rule at index 1";
    assert!(matches!(ending(finished("PodFailurePolicy", said), vec![]).ending, Ending::Evicted { .. }));
    let late = finished("DeadlineExceeded", "Job was active longer than specified deadline");
    assert_eq!(ending(late, vec![failed(75, "Error")]).ending, Ending::DeadlineExceeded);
    assert_eq!(ending(finished("BackoffLimitExceeded", ""), vec![]).ending, Ending::Lost);
}

#[test]
fn sizes_are_read_as_kubernetes_writes_them() {
    let cases = [("4096", 4096), ("1536Mi", 1536 << 20), ("2G", 2_000_000_000), ("1.5Gi", 3 << 29), ("100k", 100_000)];
    for (text, size) in cases {
        assert_eq!(bytes(text), Some(size), "{text}");
    }
    assert!(["", "Gi", "1e3", "-1Gi", "99999999999Ti"].iter().all(|text| bytes(text).is_none()));
}

fn any_job() -> impl Strategy<Value = Option<Job>> {
    let flags = proptest::array::uniform7(any::<bool>());
    let made = flags.prop_map(|[prepared, stopped, deleting, foreground, suspended, complete, held]| {
        let mut annotations = json!({});
        for (name, there) in [(PREPARED, prepared), (STOPPED, stopped)] {
            if there {
                annotations[name] = json!("true");
            }
        }
        let finalizers: Vec<&str> = [(FINALIZER, held), (FOREGROUND, foreground && deleting)]
            .into_iter()
            .filter(|(_, is)| *is)
            .map(|(f, _)| f)
            .collect();
        let mut value = json!({"metadata": {"name": "j", "annotations": annotations, "finalizers": finalizers},
            "spec": {"suspend": suspended, "template": {}}});
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if complete {
            value["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
        }
        job(value)
    });
    proptest::option::weighted(0.9, made)
}

fn any_pods() -> impl Strategy<Value = Vec<Pod>> {
    let one = prop_oneof![
        Just(pod(json!({"phase": "Pending"}))),
        Just(pod(json!({"phase": "Running"}))),
        Just(pod(json!({"phase": "Succeeded", "containerStatuses": terminated(0, "Completed")}))),
        Just(failed(137, "OOMKilled")),
        Just(disrupted(137, "PreemptionByScheduler", "m")),
    ];
    proptest::collection::vec(one, 0..3)
}

proptest! {
    /// Whatever is there: over means that no pod can run, and not started that none did.
    #[test]
    fn what_may_run_is_never_called_over(job in any_job(), pods in any_pods(), departed in any_pods(), known: bool) {
        let lives = pods.iter().any(is_live);
        let sight = Sight { job, pods, departed, known };
        let has = |name: &str| sight.job.as_ref().is_some_and(|job| has_annotation(job, name));
        match sight.view() {
            View::Is(Runtime::Gone(_)) => {
                prop_assert!(!lives);
                let ends = |job: &Job| is_finished(job) || job.metadata.deletion_timestamp.is_some();
                let never = has(STOPPED) && !has(PREPARED);
                prop_assert!(never || sight.job.as_ref().is_none_or(ends), "a pod may still be made");
            }
            View::Is(Runtime::NotStarted) => {
                let suspended = |job: &Job| job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false);
                prop_assert!(!has(PREPARED) || sight.job.as_ref().is_some_and(suspended));
            }
            View::Is(Runtime::Unknown) => prop_assert!(false, "it was looked at"),
            _ => {}
        }
    }
}
