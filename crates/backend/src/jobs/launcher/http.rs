//! Trainers behind a long-running trainer service (`hone-trainer serve`), reached over HTTP.

use super::{Handle, LaunchError, LaunchSpec, Launcher};
use crate::jobs::{
    decide::Runtime,
    verdict::{Ending, Exit},
};
use futures::{FutureExt, future::BoxFuture};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use service::{Client, ClientConfig, ClientError, client::RetryPolicy};
use std::time::Duration;
use wire::{
    JobId,
    job::{StartTraining, TrainerRun, TrainerRunState},
};

#[derive(Debug)]
pub struct Http {
    client: Client,
}

impl Http {
    /// `url` is `TRAINER_SERVICE_URL`.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        // The reconciler comes back every second, so a call is not repeated here.
        let config = ClientConfig::new("trainer service", url).retry(RetryPolicy::NONE).timeout(Duration::from_secs(5));
        Ok(Self { client: Client::new(config)? })
    }

    fn path(handle: &Handle) -> String {
        format!("/training/{}/{}", handle.job, handle.attempt)
    }

    async fn start(&self, launch: &LaunchSpec) -> Result<(), LaunchError> {
        let body = StartTraining {
            job_id: launch.spec.job_id,
            attempt: launch.spec.attempt,
            spec: launch.spec.clone(),
            callback_url: launch.callback_url.clone(),
            storage_gateway_url: launch.storage_gateway_url.clone(),
            job_token: launch.token.expose_secret().to_owned(),
        };
        match self.client.post::<_, TrainerRun>("/training/start", &body).await {
            Ok(_) => Ok(()),
            Err(e) if e.is_transient() || e.status() == Some(409) => {
                Err(LaunchError::Transient(service::error::chain(&e)))
            }
            Err(e) => Err(LaunchError::Fatal(service::error::chain(&e))),
        }
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
                Err(_) => Runtime::Unknown,
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

    fn refuse<'a>(&'a self, _handle: &'a Handle, reason: &'a str) -> BoxFuture<'a, Runtime> {
        let reason = reason.to_owned();
        async move { Runtime::Gone(Exit::new(Ending::StartFailed { reason })) }.boxed()
    }
}
