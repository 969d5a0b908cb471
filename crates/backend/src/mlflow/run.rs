//! What a job is as a run of MLflow: parameters, tags, status.

use super::rows::Facts;
use serde::Serialize;
use serde_json::Value;
use wire::JobState;

/// The tag a job's run is found by.
pub const JOB_TAG: &str = "hone.job_id";
/// Longest key, parameter and tag, in characters.
const KEY: usize = 250;
const PARAM: usize = 6000;
const TAG: usize = 8000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    key: String,
    value: String,
}

/// What MLflow takes as the name of a parameter, metric or tag.
pub fn key(name: &str) -> String {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | ':' | '/');
    let clean: String = name.chars().take(KEY).map(|c| if allowed(c) { c } else { '_' }).collect();
    // It must be a path that stays where it is.
    clean.split('/').map(|part| if matches!(part, "" | "." | "..") { "_" } else { part }).collect::<Vec<_>>().join("/")
}

/// The training configuration, flattened: `training.learning_rate`.
pub fn params(facts: &Facts) -> Vec<Pair> {
    let mut params = Vec::new();
    flatten("", &facts.config, &mut params);
    params
}

fn flatten(path: &str, value: &Value, params: &mut Vec<Pair>) {
    let text = match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, params);
            }
            return;
        }
        Value::Null => return,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    params.push(Pair { key: key(path), value: text.chars().take(PARAM).collect() });
}

/// What is known when the run is made.
pub fn tags(facts: &Facts) -> Vec<Pair> {
    let digest = |file: &str| facts.spec.pointer(&format!("/dataset/{file}/sha256")).and_then(Value::as_str);
    let tags = [
        (JOB_TAG, Some(facts.job_id.to_string())),
        ("hone.user", Some(facts.user_name.clone())),
        ("hone.trainer", Some(facts.framework.clone())),
        ("hone.package", facts.package_name.clone()),
        ("hone.version", facts.version_name.clone()),
        ("hone.base_model", Some(facts.model_name.clone())),
        ("hone.base_revision", Some(facts.model_revision.clone())),
        ("hone.dataset", Some(facts.dataset_name.clone())),
        ("hone.dataset_sha256", digest("train").map(str::to_owned)),
        ("hone.validation_sha256", digest("validation").map(str::to_owned)),
        ("mlflow.user", Some(facts.user_name.clone())),
        ("mlflow.source.name", Some("hone".to_owned())),
        ("mlflow.source.type", Some("JOB".to_owned())),
    ];
    pairs(tags)
}

/// What is known when the job is over.
pub fn last_tags(facts: &Facts) -> Vec<Pair> {
    let failure = |field: &str| facts.failure.as_ref().and_then(|f| f.get(field)?.as_str().map(str::to_owned));
    pairs([
        ("hone.state", Some(facts.state.to_string())),
        ("hone.attempts", Some(facts.attempt.to_string())),
        ("hone.failure", failure("code")),
        ("hone.failure_message", failure("message")),
        ("hone.artifact_id", facts.artifact_id.map(|id| id.to_string())),
        ("hone.artifact_path", facts.artifact_path.clone()),
    ])
}

fn pairs<const N: usize>(tags: [(&str, Option<String>); N]) -> Vec<Pair> {
    let pair = |(key, value): (&str, Option<String>)| {
        let value: String = value?.chars().take(TAG).collect();
        Some(Pair { key: key.to_owned(), value })
    };
    tags.into_iter().filter_map(pair).collect()
}

/// A pause or a retry is still a run.
pub const fn status(state: JobState) -> &'static str {
    match state {
        JobState::Succeeded => "FINISHED",
        JobState::Failed => "FAILED",
        JobState::Cancelled => "KILLED",
        JobState::Validating
        | JobState::Queued
        | JobState::Starting
        | JobState::Running
        | JobState::Finalizing
        | JobState::RetryWait
        | JobState::Pausing
        | JobState::Paused
        | JobState::Cancelling => "RUNNING",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_is_flat_and_within_the_limits() {
        let mut params = Vec::new();
        let config = json!({"model": "m", "lora": {"r": 16, "init_from": null, "target_modules": ["q_proj"]},
            "training": {"learning_rate": 2e-4, "packing": false}, "name": "x".repeat(7000)});
        flatten("", &config, &mut params);
        let short: Vec<(&str, String)> =
            params.iter().map(|p| (p.key.as_str(), p.value.chars().take(10).collect())).collect();
        let expected = [
            ("lora.r", "16"),
            ("lora.target_modules", "[\"q_proj\"]"),
            ("model", "m"),
            ("name", "xxxxxxxxxx"),
            ("training.learning_rate", "0.0002"),
            ("training.packing", "false"),
        ];
        assert_eq!(short, expected.map(|(k, v)| (k, v.to_owned())));
        assert_eq!(params[3].value.len(), PARAM);
    }

    #[test]
    fn names_become_what_mlflow_takes() {
        assert_eq!(key("rewards/chosen"), "rewards/chosen");
        assert_eq!(key("a=b/../c{0}"), "a_b/_/c_0_");
        assert_eq!(key("/x//y"), "_/x/_/y");
    }
}
