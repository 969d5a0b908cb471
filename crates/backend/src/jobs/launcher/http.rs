//! Trainers behind a long-running trainer service (`hone-trainer serve`), reached over HTTP.

use super::{Handle, LaunchError, LaunchSpec, Launcher, RehearsalError, rehearsal};
use crate::jobs::{
    decide::Runtime,
    verdict::{Ending, Exit},
};
use futures::{FutureExt, future::BoxFuture};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use service::{Client, ClientConfig, ClientError, client::RetryPolicy};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use wire::{
    JobId,
    estimate::Estimate,
    job::{StartTraining, TrainerCapabilities, TrainerRun, TrainerRunState},
};

/// How long a trainer's answer about itself is good for; its absence, too.
const REMEMBERED: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Http {
    client: Client,
    /// For rehearsals, which take their time.
    patient: Client,
    /// For questions inside of a user's request.
    quick: Client,
    memory: Mutex<Option<(Instant, Option<u64>)>>,
}

const WRONG_TOKEN: &str = "the trainer service does not accept our token; set TRAINER_SERVICE_TOKEN to the one it was \
                           started with";

impl Http {
    /// `url` is `TRAINER_SERVICE_URL`, `token` what the service wants of its callers. The three clients share a breaker.
    pub fn new(url: &str, token: Option<&SecretString>) -> Result<Self, ClientError> {
        // The reconciler comes back every second, so a call is not repeated here.
        let config = |timeout| {
            let config = ClientConfig::new("trainer service", url).retry(RetryPolicy::NONE);
            let config = config.timeout(timeout).read_timeout(timeout);
            match token {
                Some(token) => config.bearer(token.clone()),
                None => config,
            }
        };
        Ok(Self {
            client: Client::new(config(Duration::from_secs(5)))?,
            patient: Client::new(config(rehearsal::PATIENCE))?,
            quick: Client::new(config(Duration::from_millis(500)))?,
            memory: Mutex::default(),
        })
    }

    async fn ask_memory(&self) -> Option<u64> {
        let mut known = self.memory.lock().await;
        if let Some((at, answer)) = *known
            && at.elapsed() < REMEMBERED
        {
            return answer;
        }
        let answer = match self.quick.get::<TrainerCapabilities>("/models").await {
            Ok(can) => can.memory_bytes,
            Err(e) => {
                tracing::warn!(error = %service::error::chain(&e), "cannot ask the trainer for its memory");
                None
            }
        };
        *known = Some((Instant::now(), answer));
        answer
    }

    async fn estimate(&self, launch: &LaunchSpec) -> Result<Estimate, RehearsalError> {
        let error = match self.patient.post("/estimate", &request(launch)).await {
            Ok(estimate) => return Ok(estimate),
            Err(e) => e,
        };
        Err(match &error {
            ClientError::Problem { problem, .. } if problem.status == 422 => {
                RehearsalError::Refused(problem.detail.trim_start_matches("the run cannot be estimated: ").to_owned())
            }
            e if e.status() == Some(409) => RehearsalError::Busy,
            e => RehearsalError::Unavailable(service::error::chain(e)),
        })
    }

    fn path(handle: &Handle) -> String {
        format!("/training/{}/{}", handle.job, handle.attempt)
    }

    async fn start(&self, launch: &LaunchSpec) -> Result<(), LaunchError> {
        match self.client.post::<_, TrainerRun>("/training/start", &request(launch)).await {
            Ok(_) => Ok(()),
            Err(e) if e.status() == Some(401) => Err(LaunchError::Fatal(WRONG_TOKEN.to_owned())),
            Err(e) if e.is_transient() || e.status() == Some(409) => {
                Err(LaunchError::Transient(service::error::chain(&e)))
            }
            Err(e) => Err(LaunchError::Fatal(service::error::chain(&e))),
        }
    }
}

fn request(launch: &LaunchSpec) -> StartTraining {
    StartTraining {
        job_id: launch.spec.job_id,
        attempt: launch.spec.attempt,
        spec: launch.spec.clone(),
        callback_url: launch.callback_url.clone(),
        storage_gateway_url: launch.storage_gateway_url.clone(),
        job_token: launch.token.expose_secret().to_owned(),
    }
}

fn runtime(run: &TrainerRun) -> Runtime {
    match run.state {
        TrainerRunState::Running => Runtime::Alive,
        TrainerRunState::Exited => {
            let ending = match (run.exit_code, run.signal) {
                (Some(code), _) => Ending::Code { code },
                (None, Some(signal)) => Ending::Signal { signal, out_of_memory: false },
                (None, None) => Ending::Lost,
            };
            Runtime::Gone(Exit::new(ending))
        }
    }
}

impl Launcher for Http {
    fn describe(&self, _job: JobId, _attempt: u32) -> Value {
        json!({"kind": "http", "url": self.client.base_url()})
    }

    fn launch<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<(), LaunchError>> {
        self.start(spec).boxed()
    }

    fn observe<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Runtime> {
        async move {
            match self.client.get::<TrainerRun>(&Self::path(handle)).await {
                Ok(run) => runtime(&run),
                Err(e) if e.status() == Some(404) => Runtime::NotStarted,
                Err(e) => {
                    if e.status() == Some(401) {
                        // Nothing else: a trainer that works is none the worse for our lacking the token.
                        tracing::warn!(job.id = %handle.job, "{WRONG_TOKEN}");
                    }
                    Runtime::Unknown
                }
            }
        }
        .boxed()
    }

    fn stop<'a>(&'a self, handle: &'a Handle, _grace: Duration) -> BoxFuture<'a, Runtime> {
        async move {
            let path = format!("{}/stop", Self::path(handle));
            match self.client.post::<(), TrainerRun>(&path, &()).await {
                Ok(run) => runtime(&run),
                // The service has no such process. Should a delayed start still arrive, its first callback
                // tells it to stop.
                Err(e) if e.status() == Some(404) => Runtime::Gone(Exit::new(Ending::Withdrawn)),
                Err(_) => Runtime::Unknown,
            }
        }
        .boxed()
    }

    fn memory(&self) -> BoxFuture<'_, Option<u64>> {
        self.ask_memory().boxed()
    }

    fn rehearse<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Estimate, RehearsalError>> {
        self.estimate(spec).boxed()
    }

    fn refuse<'a>(&'a self, _handle: &'a Handle, reason: &'a str) -> BoxFuture<'a, Runtime> {
        let reason = reason.to_owned();
        async move { Runtime::Gone(Exit::new(Ending::StartFailed { reason })) }.boxed()
    }
}
