//! The calls of MLflow's REST API that the exporter needs, within its limits (MLflow 3.17, `utils/validation.py`).

use super::{
    ExportError,
    config::{Credentials, MlflowConfig},
    rows::{Facts, Point},
    run::Pair,
};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use service::{Client, ClientConfig, ClientError, client::RetryPolicy};
use std::time::Duration;
use wire::JobId;

/// Most metrics of one call; 1000 of them have some 150 kB, and a call may have 1 MB.
const METRICS: usize = 1000;
/// Most parameters or tags of one call.
const PAIRS: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(20);

pub struct Tracking {
    client: Client,
    config: MlflowConfig,
    /// Its id, once known.
    experiment: Option<String>,
}

#[derive(Deserialize)]
struct ExperimentReply {
    experiment: Experiment,
}

#[derive(Deserialize)]
struct Experiment {
    experiment_id: String,
    lifecycle_stage: String,
}

#[derive(Deserialize)]
struct Created {
    experiment_id: String,
}

#[derive(Deserialize)]
struct RunReply {
    run: Run,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    info: RunInfo,
}

#[derive(Deserialize)]
struct RunInfo {
    run_id: String,
}

impl Tracking {
    pub fn new(config: MlflowConfig) -> Result<Self, ClientError> {
        // One try per call: the exporter has its own patience, and a word of warning per outage is enough.
        let client = ClientConfig::new("MLflow", config.uri.clone())
            .retry(RetryPolicy::NONE)
            .timeout(TIMEOUT)
            .read_timeout(TIMEOUT);
        let client = match &config.credentials {
            Credentials::Bearer(token) => client.bearer(token.clone()),
            Credentials::Basic { .. } | Credentials::None => client,
        };
        Ok(Self { client: Client::new(client)?, config, experiment: None })
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, ClientError> {
        let mut request = self.client.request(method, &format!("/api/2.0/mlflow/{path}"))?.timeout(TIMEOUT);
        if let Credentials::Basic { username, password } = &self.config.credentials {
            request = request.basic_auth(username, Some(password.expose_secret()));
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = self.client.send(request).await?;
        response.json().await.map_err(|source| ClientError::Decode { service: "MLflow", source })
    }

    async fn post<T: serde::de::DeserializeOwned>(&self, path: &str, body: Value) -> Result<T, ExportError> {
        let reply = self.call(Method::POST, path, Some(body)).await.map_err(failed)?;
        serde_json::from_value(reply).map_err(|e| ExportError::Outage(format!("MLflow's reply to {path}: {e}")))
    }

    /// The experiment of MLFLOW_EXPERIMENT_NAME, made when it is missing.
    pub async fn experiment(&mut self) -> Result<String, ExportError> {
        if let Some(id) = &self.experiment {
            return Ok(id.clone());
        }
        let name = &self.config.experiment;
        let query: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let path = format!("experiments/get-by-name?experiment_name={query}");
        let id = match self.call(Method::GET, &path, None).await {
            Ok(reply) => {
                let found = serde_json::from_value::<ExperimentReply>(reply);
                let found = found.map_err(|e| ExportError::Outage(format!("MLflow's reply to {path}: {e}")))?;
                if found.experiment.lifecycle_stage == "deleted" {
                    let what = format!("the experiment `{name}` is deleted in MLflow; restore it, or name another one");
                    return Err(ExportError::Outage(what));
                }
                found.experiment.experiment_id
            }
            Err(error) if is_about_the_run(&error) => {
                self.post::<Created>("experiments/create", json!({"name": name})).await.map_err(outage)?.experiment_id
            }
            Err(error) => return Err(ExportError::Outage(service::error::chain(&error))),
        };
        self.experiment = Some(id.clone());
        Ok(id)
    }

    /// The run that an earlier try made for a job; its reply may have been lost.
    pub async fn find_run(&self, experiment: &str, job: JobId) -> Result<Option<String>, ExportError> {
        let filter = format!("tags.\"{}\" = '{job}'", super::run::JOB_TAG);
        let body = json!({"experiment_ids": [experiment], "filter": filter, "max_results": 1});
        let found: Found = self.post("runs/search", body).await.map_err(outage)?;
        Ok(found.runs.into_iter().next().map(|run| run.info.run_id))
    }

    pub async fn create_run(&self, experiment: &str, facts: &Facts, tags: Vec<Pair>) -> Result<String, ExportError> {
        let start = facts.started_at.unwrap_or(facts.created_at).timestamp_millis();
        let body = json!({"experiment_id": experiment, "run_name": facts.name, "start_time": start, "tags": tags});
        let made: RunReply = self.post("runs/create", body).await?;
        Ok(made.run.info.run_id)
    }

    pub async fn log_params(&self, run: &str, params: Vec<Pair>) -> Result<(), ExportError> {
        for part in params.chunks(PAIRS) {
            self.post::<Value>("runs/log-batch", json!({"run_id": run, "params": part})).await?;
        }
        Ok(())
    }

    pub async fn log_tags(&self, run: &str, tags: Vec<Pair>) -> Result<(), ExportError> {
        self.post::<Value>("runs/log-batch", json!({"run_id": run, "tags": tags})).await.map(drop)
    }

    pub async fn log_metrics(&self, run: &str, points: &[Point]) -> Result<(), ExportError> {
        for part in points.chunks(METRICS) {
            self.post::<Value>("runs/log-batch", json!({"run_id": run, "metrics": part})).await?;
        }
        Ok(())
    }

    pub async fn end_run(&self, run: &str, facts: &Facts) -> Result<(), ExportError> {
        let end = facts.finished_at.map(|at| at.timestamp_millis());
        let body = json!({"run_id": run, "status": super::run::status(facts.state), "end_time": end});
        self.post::<Value>("runs/update", body).await.map(drop)
    }
}

/// Whether MLflow itself says that what a call names is wrong, rather than that it cannot serve calls.
fn is_about_the_run(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { status, body, .. }
        if matches!(status.as_u16(), 400 | 404) && body.contains("\"error_code\""))
}

fn failed(error: ClientError) -> ExportError {
    let text = service::error::chain(&error);
    if is_about_the_run(&error) { ExportError::Refused(text) } else { ExportError::Outage(text) }
}

/// Where no run is named, a refusal is about all of them.
fn outage(error: ExportError) -> ExportError {
    match error {
        ExportError::Refused(text) => ExportError::Outage(text),
        other => other,
    }
}
