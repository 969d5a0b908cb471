//! What the backend may do in its namespace is what it does there.

use super::{empty, finishes, name, world};
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeSet, path::Path};
use wire::JobState;

#[derive(Deserialize)]
struct Role {
    kind: String,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

/// (verb, resource) of the Role in `k8s/base/rbac.yaml`.
fn granted() -> BTreeSet<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../k8s/base/rbac.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|d| serde_yaml_ng::Value::deserialize(d).unwrap());
    let objects = documents.filter_map(|d| serde_yaml_ng::from_value::<Role>(d).ok());
    let roles: Vec<Role> = objects.filter(|object| object.kind == "Role").collect();
    assert_eq!(roles.len(), 1, "one Role, and no ClusterRole");
    let mut all = BTreeSet::new();
    for rule in &roles[0].rules {
        for resource in &rule.resources {
            let group = if resource == "jobs" { "batch" } else { "" };
            assert_eq!(rule.api_groups, [group], "{resource}");
            all.extend(rule.verbs.iter().map(|verb| (verb.clone(), resource.clone())));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_grants_what_is_used_and_nothing_else() {
    let (kube, world) = world(&[]).await;
    let long = "x".repeat(100_000);
    let job = world.job(json!({"1": [{"op": "print", "text": "x"}, {"op": "started"}, {"op": "obey"}], "9": [{"op": "print", "text": long}]})).await;
    world.wait(job, JobState::Running).await;
    let log = world.request(reqwest::Method::GET, &format!("/training/jobs/{job}/logs")).send().await.unwrap();
    assert!(log.status().is_success());
    world.post(&format!("/training/jobs/{job}/cancel")).await;
    world.wait(job, JobState::Cancelled).await;
    let job = world.job(json!({"1": finishes(2)})).await;
    world.wait(job, JobState::Succeeded).await;
    let job = world.job(json!({"1": [{"op": "started"}, {"op": "defy"}]})).await;
    world.wait(job, JobState::Running).await;
    kube.delete_job(&name(job, 1), "Background");
    world.wait(job, JobState::Failed).await;
    empty(&kube, &world).await;
    assert_eq!(kube.used(), granted());
}
