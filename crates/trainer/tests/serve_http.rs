//! `hone-trainer serve` as a process, with real attempts below it; the backend is the scripted test double.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod run_support;

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use run_support::{QUICK_ENV, Trainer, World, backend::Backend, config};
use service::{ExposeSecret, server::Ready};
use std::{fs, process::Command, time::Duration};
use tempfile::TempDir;
use wire::{
    EventKind,
    config::TargetModules,
    estimate::Estimate,
    job::{StartTraining, TrainerCapabilities, TrainerRun, TrainerRunState},
    job_env::exit,
};

const LONG: i64 = 1_000_000;
const SECRET: &str = "the trainer service's token";

struct Service {
    process: Trainer,
    url: String,
    dir: TempDir,
}

impl Service {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready.json");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hone-trainer"));
        command
            .arg("serve")
            .env_clear()
            .envs(QUICK_ENV)
            .env("HONE_LISTEN", "127.0.0.1:0")
            .env("HONE_READY_FILE", &ready)
            .env("SCRATCH_DIR", dir.path().join("scratch"))
            .env("TRAINER_SERVICE_TOKEN", SECRET);
        let process = Trainer::spawn(command, dir.path().join("log"));
        let mut content = None;
        for _ in 0..3000 {
            content = fs::read(&ready).ok();
            if content.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let ready: Ready = serde_json::from_slice(&content.unwrap()).unwrap();
        Self { process, url: ready.url, dir }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&StartTraining>) -> reqwest::Response {
        let request = reqwest::Client::new().request(method, format!("{}{path}", self.url)).bearer_auth(SECRET);
        match body {
            Some(body) => request.json(body).send().await.unwrap(),
            None => request.send().await.unwrap(),
        }
    }

    async fn launch(&self, world: &World) -> reqwest::Response {
        self.call(Method::POST, "/training/start", Some(&request(world))).await
    }

    async fn ended(&self, world: &World) -> TrainerRun {
        let path = path(world);
        for _ in 0..6000 {
            let run: TrainerRun = self.call(Method::GET, &path, None).await.json().await.unwrap();
            if run.state == TrainerRunState::Exited {
                return run;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the attempt does not end")
    }
}

fn path(world: &World) -> String {
    format!("/training/{}/{}", world.spec.job_id, world.spec.attempt)
}

fn request(world: &World) -> StartTraining {
    StartTraining {
        job_id: world.spec.job_id,
        attempt: world.spec.attempt,
        spec: world.spec.clone(),
        callback_url: world.backend.url.clone(),
        storage_gateway_url: world.gateway_url.clone(),
        job_token: world.token().expose_secret().to_owned(),
    }
}

#[tokio::test]
async fn an_attempt_started_over_http_runs_to_its_end() {
    let service = Service::start().await;
    let world = World::new(Backend::start(), config(10)).await;
    let reply = service.launch(&world).await;
    assert_eq!(reply.status(), StatusCode::CREATED);
    let started: TrainerRun = reply.json().await.unwrap();
    assert_eq!(started.job_id, world.spec.job_id);
    let run = service.ended(&world).await;
    assert_eq!((run.exit_code, run.signal, run.pid), (Some(exit::SUCCEEDED), None, started.pid));
    assert!(matches!(world.backend.assert_complete(), EventKind::Finished { .. }));
    let again = service.launch(&world).await;
    assert_eq!(again.status(), StatusCode::OK, "starting twice is starting once");
    assert_eq!(again.json::<TrainerRun>().await.unwrap(), run);
    let secrets = fs::read_dir(service.dir.path().join("scratch/serve")).unwrap().count();
    assert_eq!(secrets, 0, "the token's file is gone");
}

#[tokio::test]
async fn a_full_trainer_says_when_to_come_back_and_a_stopped_attempt_leaves_a_checkpoint() {
    let service = Service::start().await;
    let (first, second) =
        (World::new(Backend::start(), config(LONG)).await, World::new(Backend::start(), config(5)).await);
    assert_eq!(service.launch(&first).await.status(), StatusCode::CREATED);
    let refused = service.launch(&second).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().is_ok());
    assert_eq!(service.call(Method::GET, &path(&second), None).await.status(), StatusCode::NOT_FOUND);
    first.backend.until("training", |l| l.events.len() > 10).await;
    for _ in 0..2 {
        let stopping = service.call(Method::POST, &format!("{}/stop", path(&first)), None).await;
        assert_eq!(stopping.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(service.ended(&first).await.exit_code, Some(exit::PREEMPTED));
    let last = first.backend.assert_complete();
    assert!(matches!(last, EventKind::Stopped { checkpoint: Some(_), .. }), "{last:?}");
    assert_eq!(service.launch(&second).await.status(), StatusCode::CREATED);
    assert_eq!(service.ended(&second).await.exit_code, Some(exit::SUCCEEDED));
}

#[tokio::test]
async fn a_killed_attempt_is_reported_with_its_signal() {
    let service = Service::start().await;
    let world = World::new(Backend::start(), config(LONG)).await;
    let run: TrainerRun = service.launch(&world).await.json().await.unwrap();
    world.backend.until("training", |l| l.events.len() > 3).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let run = service.ended(&world).await;
    assert_eq!((run.exit_code, run.signal), (None, Some(9)));
}

#[tokio::test]
async fn stopping_the_service_stops_its_attempts_in_order() {
    let mut service = Service::start().await;
    let world = World::new(Backend::start(), config(LONG)).await;
    service.launch(&world).await;
    world.backend.until("training", |l| l.events.len() > 10).await;
    service.process.signal(Signal::SIGTERM);
    assert_eq!(service.process.code().await, 0);
    let last = world.backend.assert_complete();
    assert!(matches!(last, EventKind::Stopped { checkpoint: Some(_), .. }), "{last:?}");
}

#[tokio::test]
async fn strangers_are_turned_away_and_health_is_open() {
    let service = Service::start().await;
    let world = World::new(Backend::start(), config(5)).await;
    let stranger = reqwest::Client::new();
    for (method, path) in [
        (Method::POST, "/training/start".to_owned()),
        (Method::POST, "/estimate".to_owned()),
        (Method::GET, path(&world)),
        (Method::POST, format!("{}/stop", path(&world))),
        (Method::GET, "/models".to_owned()),
    ] {
        let call =
            stranger.request(method, format!("{}{path}", service.url)).bearer_auth("wrong").json(&request(&world));
        assert_eq!(call.send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(stranger.get(format!("{}{path}", service.url)).send().await.unwrap().status(), StatusCode::OK);
    }
    let can: TrainerCapabilities = service.call(Method::GET, "/models", None).await.json().await.unwrap();
    assert!(can.architectures.contains(&"LlamaForCausalLM".to_owned()));
    assert_eq!((can.capacity, can.running), (1, 0));
}

#[tokio::test]
async fn an_attempt_can_be_estimated_without_running() {
    let service = Service::start().await;
    let world = World::new(Backend::start(), config(10)).await;
    let reply = service.call(Method::POST, "/estimate", Some(&request(&world))).await;
    assert_eq!(reply.status(), StatusCode::OK);
    let told: Estimate = reply.json().await.unwrap();
    assert_eq!(told.total_steps, 10);
    assert!(told.peak_memory_bytes > 1 << 20 && told.train_seconds > 0.0, "{told:?}");
    assert_eq!(service.call(Method::GET, &path(&world), None).await.status(), StatusCode::NOT_FOUND, "nothing ran");
    let mut impossible = request(&world);
    impossible.spec.config.lora.target_modules = TargetModules::Names(vec!["query".into()]);
    let reply = service.call(Method::POST, "/estimate", Some(&impossible)).await;
    assert_eq!(reply.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(reply.text().await.unwrap().contains("the model has no projection named `query`"));
    let secrets = fs::read_dir(service.dir.path().join("scratch/serve")).unwrap().count();
    assert_eq!(secrets, 0, "the tokens' files are gone");
}

#[tokio::test]
async fn a_request_that_contradicts_itself_is_refused() {
    let service = Service::start().await;
    let world = World::new(Backend::start(), config(5)).await;
    let body = StartTraining { attempt: 2, ..request(&world) };
    let reply = service.call(Method::POST, "/training/start", Some(&body)).await;
    assert_eq!(reply.status(), StatusCode::UNPROCESSABLE_ENTITY);
}
