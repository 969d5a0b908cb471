//! `TRAINING_MODE=http`: a trainer service with the contract of `wire::job`, whose trainers are real processes.

use crate::world::{PATIENCE, Settings, World, script_trainer};
use actix_web::{App, HttpResponse, HttpServer, web};
use backend::jobs::launcher::{Launcher, http::Http};
use chrono::Utc;
use serde_json::json;
use std::{
    collections::HashMap,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command},
    sync::Mutex,
    time::{Duration, Instant},
};
use wire::{
    JobId, JobState,
    job::{StartTraining, TrainerCapabilities, TrainerRun, TrainerRunState},
    job_env,
};

struct Service {
    dir: PathBuf,
    runs: Mutex<HashMap<(JobId, u32), Child>>,
}

impl Service {
    fn view(job_id: JobId, attempt: u32, child: &mut Child) -> TrainerRun {
        let status = child.try_wait().unwrap();
        TrainerRun {
            job_id,
            attempt,
            state: if status.is_some() { TrainerRunState::Exited } else { TrainerRunState::Running },
            pid: child.id(),
            exit_code: status.and_then(|s| s.code()),
            signal: status.and_then(|s| s.signal()),
            started_at: Utc::now(),
            finished_at: None,
        }
    }
}

async fn start(request: web::Json<StartTraining>, service: web::Data<Service>) -> HttpResponse {
    let (job, attempt) = (request.job_id, request.attempt);
    let mut runs = service.runs.lock().unwrap();
    let child = runs.entry((job, attempt)).or_insert_with(|| {
        let file = |name: &str, text: String| {
            let path = service.dir.join(format!("{job}-{attempt}-{name}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Command::new(script_trainer())
            .env(job_env::JOB_ID, job.to_string())
            .env(job_env::ATTEMPT, attempt.to_string())
            .env(job_env::JOB_SPEC_FILE, file("spec", serde_json::to_string(&request.spec).unwrap()))
            .env(job_env::JOB_TOKEN_FILE, file("token", request.job_token.clone()))
            .env(job_env::CALLBACK_URL, &request.callback_url)
            .env(job_env::STORAGE_GATEWAY_URL, &request.storage_gateway_url)
            .spawn()
            .unwrap()
    });
    HttpResponse::Created().json(Service::view(job, attempt, child))
}

async fn status(path: web::Path<(JobId, u32)>, service: web::Data<Service>) -> HttpResponse {
    match service.runs.lock().unwrap().get_mut(&path) {
        Some(child) => HttpResponse::Ok().json(Service::view(path.0, path.1, child)),
        None => HttpResponse::NotFound().finish(),
    }
}

async fn stop(path: web::Path<(JobId, u32)>, service: web::Data<Service>) -> HttpResponse {
    match service.runs.lock().unwrap().get_mut(&path) {
        Some(child) => {
            child.kill().unwrap();
            HttpResponse::Ok().json(Service::view(path.0, path.1, child))
        }
        None => HttpResponse::NotFound().finish(),
    }
}

async fn models() -> HttpResponse {
    HttpResponse::Ok().json(TrainerCapabilities {
        architectures: Vec::new(),
        methods: Vec::new(),
        version: "1".into(),
        capacity: 1,
        running: 0,
        memory_bytes: Some(4096),
    })
}

fn serve(dir: PathBuf, listener: TcpListener) {
    let service = web::Data::new(Service { dir, runs: Mutex::default() });
    let server = HttpServer::new(move || {
        App::new()
            .app_data(service.clone())
            .app_data(web::JsonConfig::default().limit(1 << 20))
            .route("/training/start", web::post().to(start))
            .route("/training/{job}/{attempt}", web::get().to(status))
            .route("/training/{job}/{attempt}/stop", web::post().to(stop))
            .route("/models", web::get().to(models))
    });
    tokio::spawn(server.workers(1).disable_signals().listen(listener).unwrap().run());
}

/// A socket that nobody accepts on, and its URL.
fn reserve() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_on_a_trainer_service_and_are_retried_and_cancelled_there() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, url) = reserve();
    serve(dir.path().to_path_buf(), listener);
    let world = World::with(Settings::default().with("TRAINING_MODE", "http").with("TRAINER_SERVICE_URL", url)).await;
    let script = json!({
        "1": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 2}, {"op": "signal", "number": 9}],
        "2": [{"op": "started"}, {"op": "metrics", "from": 1, "to": 3}, {"op": "finish", "steps": 3}],
    });
    let job = world.job(script).await;
    assert_eq!(world.wait(job, JobState::Succeeded).await.attempt, 2);
    let job = world.job(json!({"1": [{"op": "started"}, {"op": "defy"}]})).await;
    world.wait(job, JobState::Running).await;
    world.post(&format!("/training/jobs/{job}/cancel")).await;
    world.wait(job, JobState::Cancelled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_on_an_unreachable_service_is_cancelled_once_nothing_can_run_there() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, url) = reserve();
    drop(listener);
    let settings = Settings::default().with("TRAINING_MODE", "http").with("TRAINER_SERVICE_URL", &url);
    let world = World::with(settings).await;
    let job = world.job(json!({})).await;
    world.wait(job, JobState::Starting).await;
    let (_, view) = world.post(&format!("/training/jobs/{job}/cancel")).await;
    assert_eq!(view["state"], "cancelling", "a trainer may live there");
    let address = url.trim_start_matches("http://");
    serve(dir.path().to_path_buf(), TcpListener::bind(address).unwrap());
    world.wait(job, JobState::Cancelled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_service_tells_its_memory_and_one_that_is_gone_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, url) = reserve();
    serve(dir.path().to_path_buf(), listener);
    let launcher = Http::new(&url, None).unwrap();
    assert_eq!(launcher.memory().await, Some(4096));
    // Bound, but nobody answers.
    let (_silent, url) = reserve();
    let launcher = Http::new(&url, None).unwrap();
    let began = Instant::now();
    assert_eq!((launcher.memory().await, launcher.memory().await), (None, None));
    assert!(began.elapsed() < Duration::from_millis(900), "asked once, and not for long: {:?}", began.elapsed());
}

/// `hone-trainer serve` that wants `token`, and its URL.
async fn trainer_service(dir: &std::path::Path, token: &str) -> (testkit::Process, String) {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_hone-backend")).with_file_name("hone-trainer");
    assert!(program.is_file(), "{} is missing: build the programs with `scripts/build.sh dev`", program.display());
    let ready = dir.join("ready.json");
    let mut command = Command::new(program);
    command.arg("serve").env_clear().env("HONE_LISTEN", "127.0.0.1:0").env("HONE_READY_FILE", &ready);
    command.env("SCRATCH_DIR", dir.join("scratch")).env("TRAINER_SERVICE_TOKEN", token);
    let process = testkit::Process::spawn(&mut command).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !ready.is_file() {
        assert!(Instant::now() < deadline, "the trainer service does not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    (process, ready["url"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_a_trainer_service_is_sent_and_a_wrong_one_is_told_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let (mut process, url) = trainer_service(dir.path(), "the right token").await;
    let right = Http::new(&url, Some(&"the right token".into())).unwrap();
    assert!(right.memory().await.is_some(), "the service knows its memory and tells who may ask");

    let settings = Settings::default().with("TRAINING_MODE", "http").with("TRAINER_SERVICE_URL", &url);
    let world = World::with(settings.with("TRAINER_SERVICE_TOKEN", "a wrong token")).await;
    let job = world.job(json!({})).await;
    world.wait(job, JobState::Starting).await;
    let deadline = Instant::now() + PATIENCE;
    while !world.log().contains("set TRAINER_SERVICE_TOKEN") {
        assert!(Instant::now() < deadline, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!world.log().contains("a wrong token"), "the token is in the log");

    // It goes away: `/ready` shows that it is left alone.
    process.kill().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let breakers = world.get("/ready").await["breakers"].clone();
        let seen = breakers.as_array().unwrap().iter().find(|b| b["service"] == "trainer service").cloned();
        let seen = seen.expect("a breaker before the trainer service");
        if seen["state"] == "open" {
            break;
        }
        assert!(Instant::now() < deadline, "the breaker stays closed: {seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
