//! Rows 11 and 21, which need a trainer that spools, retries and falls back to storage as it does for users.

use crate::{
    oracle, seeds,
    world::{SIGNING_KEY, Setup, World, program},
};
use reqwest::Method;
use serde_json::{Value, json};
use service::{
    ExposeSecret,
    token::{Grant, TokenKey},
};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use testkit::{
    fault::{Link, Way},
    limits::Clock,
};
use wire::{JobId, JobState, layout};

#[path = "../../../cli/tests/e2e/material.rs"]
mod material;

/// `hone-trainer` with more in its environment, which the backend would not pass on.
fn trainer(dir: &Path, environment: &[(&str, &str)]) -> PathBuf {
    let path = dir.join("hone-trainer");
    let exports: String = environment.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    std::fs::write(&path, format!("#!/bin/sh\n{exports}exec '{}' \"$@\"\n", program("hone-trainer").display()))
        .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn hone(world: &World, args: &[&str]) {
    let mut command = Command::new(program("hone"));
    command.args(args).env_clear().env("PATH", std::env::var("PATH").unwrap()).env("HOME", world.dir.path());
    command.env("HONE_URL", &world.backend.url).env("HONE_API_KEY", crate::world::KEY);
    let out = command.output().unwrap();
    assert!(out.status.success(), "hone {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A job that really trains.
async fn train(world: &World, steps: u64) -> JobId {
    let config = json!({"model": "little", "dataset": "rows", "training": {"max_steps": steps, "num_train_epochs": 1000,
        "per_device_train_batch_size": 8, "eval_steps": 0, "save_steps": 0}});
    let request = world.request(Method::POST, "/training/jobs").json(&json!({"config": config}));
    let reply = request.send().await.unwrap();
    let job: Value = reply.json().await.unwrap();
    job["id"].as_str().unwrap_or_else(|| panic!("{job}")).parse().unwrap()
}

fn import(world: &World) {
    let model = material::model(&world.dir.path().join("model"));
    let rows = material::dataset(&world.dir.path().join("rows.jsonl"), 64);
    hone(world, &["models", "import", &model, "--name", "little"]);
    hone(world, &["datasets", "upload", &rows, "--name", "rows"]);
}

async fn complete_curve(world: &World, job: JobId, steps: u64, seed: u64) {
    let page = world.get(&format!("/training/jobs/{job}/metrics?limit=1000")).await;
    let with_loss = page["items"].as_array().unwrap().iter().filter(|p| p["values"].get("train_loss").is_some());
    let seen: Vec<u64> = with_loss.map(|p| p["step"].as_u64().unwrap()).collect();
    assert_eq!(seen, (1..=steps).collect::<Vec<_>>(), "seed {seed}: the curve");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_11_a_partition_longer_than_the_retries_goes_by_storage() {
    let dir = tempfile::tempdir().unwrap();
    let impatient = [("CALLBACK_RETRY_FIRST_MS", "50"), ("CALLBACK_RETRY_MAX_MS", "100"), ("CALLBACK_RETRIES", "2")];
    let program = trainer(dir.path(), &impatient);
    let world = Setup::seed(1).trainer(&program).with("HONE_THREADS", 1).start().await;
    import(&world);
    for seed in seeds() {
        let steps = 150;
        let job = train(&world, steps).await;
        world.until(job, "a step", |view| view.progress.step > seed % 20).await;
        world.callbacks.link(Link::way(Way::Refuse));
        // What nobody can apply, beside what the trainer leaves: a program of another make, or a defect.
        let prefix = format!("{}{}", layout::attempt_prefix(world.user, job, 1), layout::EVENTS);
        put_object(&world, &format!("{prefix}0-broken.json"), b"{\"job_id\": 1}".to_vec()).await;
        let view = oracle::check(&world, job).await;
        let seen = (view.state, view.attempt, &view.failure);
        assert_eq!(seen, (JobState::Succeeded, 1, &None), "seed {seed}\n{}", world.log());
        complete_curve(&world, job, steps, seed).await;
        world.callbacks.link(Link::default());

        let letters = world.get(&format!("/training/jobs/{job}/dead-letters")).await;
        let letter = &letters["items"][0];
        assert!(letter["reason"].as_str().unwrap().contains("not a callback batch"), "seed {seed}: {letters}");
        let path = format!("/training/jobs/{job}/dead-letters/replay");
        let reply = world.request(Method::POST, &path).json(&json!({})).send().await.unwrap();
        let replayed: Value = reply.json().await.unwrap();
        assert_eq!((&replayed["applied"], &replayed["kept"][0]["id"]), (&json!([]), &letter["id"]), "seed {seed}");
    }
}

async fn put_object(world: &World, key: &str, body: Vec<u8>) {
    let signing = TokenKey::new(SIGNING_KEY.into()).unwrap();
    let token = signing.mint(Grant::Service { name: "test".into() }, Duration::from_secs(60)).unwrap();
    let url = format!("{}/objects/{key}", world.storage.url());
    let put = reqwest::Client::builder().no_proxy().build().unwrap().put(url);
    let reply = put.bearer_auth(token.expose_secret()).body(body).send().await.unwrap();
    assert!(reply.status().is_success(), "{}", reply.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_21_the_trainers_clock_is_an_hour_off() {
    let dir = tempfile::tempdir().unwrap();
    let clock = match Clock::new(dir.path()) {
        Ok(clock) => clock,
        Err(skip) => return eprintln!("row 21 {skip}"),
    };
    let environment = clock.environment().map(|(name, value)| (name, value.to_str().unwrap()));
    let program = trainer(dir.path(), &environment);
    let world = Setup::seed(1).trainer(&program).with("HONE_THREADS", 1).start().await;
    import(&world);
    for seed in seeds() {
        clock.set(if seed % 2 == 0 { 3600 } else { -3600 }).unwrap();
        let steps = 60;
        let job = train(&world, steps).await;
        let view = oracle::check(&world, job).await;
        let seen = (view.state, view.attempt, &view.failure);
        assert_eq!(seen, (JobState::Succeeded, 1, &None), "seed {seed}\n{}", world.log());
        complete_curve(&world, job, steps, seed).await;
    }
}
