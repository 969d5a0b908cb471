//! Things die in the middle of training.

use crate::harness::{Hone, alive, signal, wait};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use wire::event::{EventKind, StreamBody, metric};

/// How long the backend stays away.
const DOWNTIME: Duration = Duration::from_secs(20);

#[test]
fn training_goes_on_without_the_backend_and_every_step_is_recorded_exactly_once() {
    let hone = Hone::with_material();
    // On two cores this goes on after the downtime.
    let id = hone.train("training: {max_steps: 2500, num_train_epochs: 1000, per_device_train_batch_size: 32, eval_steps: 0, save_steps: 200}");
    hone.wait_for_step(&id, 3);
    let (backend, trainer) = (hone.service_pid("backend"), hone.trainer_pid());
    // `hone up` would start the backend again at once; frozen, it does so when it wakes.
    signal(hone.up_pid(), "STOP");
    signal(backend, "KILL");
    wait("the backend to be dead", || !alive(backend.into()));
    assert!(alive(trainer.into()), "training was over before the backend died");
    std::thread::sleep(DOWNTIME);
    signal(hone.up_pid(), "CONT");
    wait("a new backend", || hone.service_pid("backend") != backend);
    wait("the backend to answer", || hone.run(&["jobs", "ls"]).status.success());

    let job = hone.wait_for_end(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&"succeeded".into(), &1.into()), "{job:#}\n{}", hone.logs());
    assert!(!alive(trainer.into()), "the trainer outlived its job");
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    hone.with_api(async |api| {
        let mut after = 0;
        loop {
            let page = api.events(id.parse().unwrap(), after).await.unwrap();
            let Some(last) = page.items.last() else { break };
            after = last.id;
            for message in &page.items {
                if let StreamBody::Event { event } = &message.body
                    && let EventKind::Metrics { step, values, .. } = &event.kind
                    && values.contains_key(metric::TRAIN_LOSS)
                {
                    *seen.entry(*step).or_default() += 1;
                }
            }
        }
    });
    assert_eq!(seen, (1..=2500).map(|step| (step, 1)).collect(), "steps and how often each was reported");
}

#[test]
fn a_killed_trainer_is_replaced_and_a_cancelled_job_ends_within_5_seconds() {
    let hone = Hone::with_material();
    let id = hone.train("training: {max_steps: 1000000, num_train_epochs: 10000, eval_steps: 0, save_steps: 20}");
    hone.wait_for_step(&id, 25);
    let first = hone.trainer_pid();
    signal(first, "KILL");
    wait("the second attempt", || hone.job(&id)["attempt"] == 2);
    let second = hone.trainer_pid();
    assert_ne!(first, second);
    let step = hone.job(&id)["progress"]["step"].as_u64().unwrap();
    hone.wait_for_step(&id, step + 1);

    let begun = Instant::now();
    hone.ok(&["jobs", "cancel", &id]);
    wait("the trainer to end", || !alive(second.into()));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(hone.wait_for_end(&id)["state"], "cancelled");
}

#[test]
fn a_trainer_that_dies_every_time_ends_the_job_with_the_cause() {
    let hone = Hone::with_material();
    let config = hone.path("config.yaml");
    let settings = "model: tiny\ndataset: rows\ntraining: {max_steps: 1000000, num_train_epochs: 10000, eval_steps: 0, save_steps: 0}\n";
    std::fs::write(&config, settings).unwrap();
    let job = hone.json(&["train", config.to_str().unwrap(), "--max-attempts", "1"]);
    let id = job["id"].as_str().unwrap();
    hone.wait_for_step(id, 1);
    signal(hone.trainer_pid(), "KILL");
    let job = hone.wait_for_end(id);
    assert_eq!((&job["state"], &job["failure"]["code"]), (&"failed".into(), &"TRAINER_DIED".into()), "{job:#}");
    let (code, message) = hone.fails(&["jobs", "show", id, "--follow"]);
    assert_eq!(code, 1);
    assert!(message.contains("SIGKILL"), "{message}");
}

#[test]
fn services_and_database_that_die_are_started_again() {
    let hone = Hone::started();
    let before: Vec<u32> = ["postgres", "gateway", "backend"].map(|s| hone.service_pid(s)).into();
    for pid in &before {
        signal(*pid, "KILL");
    }
    for (name, old) in ["postgres", "gateway", "backend"].iter().zip(&before) {
        wait(&format!("a new {name}"), || hone.service_pid(name) != *old);
    }
    wait("everything to work again", || hone.run(&["jobs", "ls"]).status.success());
    let status = hone.json(&["status"]);
    assert_eq!(status["healthy"], true, "{status:#}");
}
