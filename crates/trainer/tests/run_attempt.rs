//! `hone-trainer run` as a process, against a real storage gateway and a scripted backend (the test double).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod run_support;

use nix::sys::signal::Signal;
use run_support::{
    World,
    backend::{Backend, Reaction},
    config, digest, read_object, storage,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use wire::{
    CallbackBatch, Directive, Event, EventKind,
    event::{Level, StopReason},
    job::FailureCode,
    job_env::exit,
    storage::{FileRef, Manifest},
};

const LONG: i64 = 1_000_000;

fn manifest(last: &EventKind) -> &[FileRef] {
    let EventKind::Finished { manifest, .. } = last else { panic!("not finished but {last:?}") };
    manifest
}

fn adapter(files: &[FileRef]) -> &FileRef {
    files.iter().find(|f| f.key.ends_with("artifacts/adapter_model.safetensors")).unwrap()
}

#[tokio::test]
async fn a_job_trains_stores_its_results_and_reports_every_event_once() {
    let (world, mut trainer) = World::started(Backend::start(), 20).await;
    assert_eq!(trainer.code().await, exit::SUCCEEDED);
    let last = world.backend.assert_complete();
    let EventKind::Finished { last_seq, manifest, summary } = &last else { panic!("{last:?}") };
    assert_eq!(*last_seq, world.backend.ledger().contiguous());
    assert_eq!(summary.steps, 20);
    world.assert_stored(manifest).await;
    let stored: Manifest =
        serde_json::from_slice(&read_object(&format!("{}artifacts/manifest.json", world.spec.output_prefix)).await)
            .unwrap();
    assert_eq!(&stored.files, manifest);
    let steps: Vec<u64> = world
        .backend
        .ledger()
        .kinds()
        .iter()
        .filter_map(|k| match k {
            EventKind::Metrics { step, values, .. } if values.contains_key("train_loss") => Some(*step),
            _ => None,
        })
        .collect();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>());
    let log = String::from_utf8(read_object(&format!("{}logs/trainer.log", world.spec.output_prefix)).await).unwrap();
    assert!(log.contains("finished after 20 steps"), "{log}");
    assert!(!world.scratch().join("jobs").join(world.spec.job_id.to_string()).exists(), "scratch is cleaned up");
}

#[tokio::test]
async fn old_checkpoints_go_once_newer_ones_are_known_and_none_is_left_half() {
    let mut config = config(60);
    config.training.save_total_limit = 2;
    let world = World::new(Backend::start(), config).await;
    assert_eq!(world.trainer().code().await, exit::SUCCEEDED);
    let keys = world.stored("checkpoints/").await;
    let mut dirs: BTreeMap<&str, bool> = BTreeMap::new();
    for key in &keys {
        let dir = key.rsplit_once('/').unwrap().0;
        *dirs.entry(dir).or_default() |= key.ends_with("/manifest.json");
    }
    assert!((1..=3).contains(&dirs.len()), "{dirs:?}");
    assert!(dirs.values().all(|complete| *complete), "{dirs:?}");
    let ledger = world.backend.ledger();
    let (_, newest) = ledger.checkpoints().pop().unwrap();
    assert!(dirs.keys().any(|dir| newest.ends_with(&format!("{dir}/"))), "{newest} is not among {dirs:?}");
}

#[tokio::test]
async fn lost_replies_and_errors_lead_to_every_event_exactly_once() {
    let mut calls = 0;
    let backend = Backend::scripted(move |_| {
        calls += 1;
        [Reaction::AcceptAndLoseReply, Reaction::Refuse(500), Reaction::Accept, Reaction::Refuse(503)][calls % 4]
    });
    let (world, mut trainer) = World::started(backend, 20).await;
    assert_eq!(trainer.code().await, exit::SUCCEEDED);
    world.assert_stored(manifest(&world.backend.assert_complete())).await;
}

#[tokio::test]
async fn a_backend_that_is_down_for_good_finds_every_event_in_storage() {
    let backend = Backend::scripted(|_| Reaction::Refuse(503));
    let (world, mut trainer) = World::started(backend, 20).await;
    assert_eq!(trainer.code().await, exit::SUCCEEDED);
    assert!(world.backend.ledger().events.is_empty());
    let mut events: Vec<Event> = Vec::new();
    for key in world.stored("events/").await {
        let object = read_object(&format!("{}{key}", world.spec.output_prefix)).await;
        let batch: CallbackBatch = serde_json::from_slice(&object).unwrap();
        let (first, last) = (batch.events.first().unwrap().seq, batch.events.last().unwrap().seq);
        assert_eq!(key, format!("events/{}", wire::layout::event_batch_name(first, last)));
        events.extend(batch.events);
    }
    let seqs: Vec<u64> = events.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, (1..=u64::try_from(seqs.len()).unwrap()).collect::<Vec<_>>());
    world.assert_stored(manifest(&events.last().unwrap().kind)).await;
}

#[tokio::test]
async fn a_backend_that_comes_back_asks_for_what_went_to_storage_and_gets_it() {
    let mut calls = 0;
    let backend = Backend::scripted(move |_| {
        calls += 1;
        if calls <= 5 { Reaction::Refuse(503) } else { Reaction::Accept }
    });
    let (world, mut trainer) = World::started(backend, 200).await;
    assert_eq!(trainer.code().await, exit::SUCCEEDED);
    assert!(!world.stored("events/").await.is_empty(), "the first batch went to storage");
    manifest(&world.backend.assert_complete());
}

#[tokio::test]
async fn one_event_that_is_refused_for_good_does_not_hold_up_the_others() {
    let backend = Backend::scripted(|batch| {
        if batch.events.iter().any(|e| e.seq == 7) { Reaction::Refuse(422) } else { Reaction::Accept }
    });
    let (world, mut trainer) = World::started(backend, 60).await;
    assert_eq!(trainer.code().await, exit::SUCCEEDED);
    assert!(trainer.log().contains("the backend refused this event for good"), "it is logged");
    let ledger = world.backend.ledger();
    assert_eq!(ledger.contiguous(), 6);
    assert_eq!(ledger.conflicts, Vec::<u64>::new());
}

#[tokio::test]
async fn a_fenced_instance_leaves_at_once_and_without_a_word() {
    let backend = Backend::scripted(|_| Reaction::Refuse(410));
    let (world, mut trainer) = World::started(backend, LONG).await;
    assert_eq!(trainer.code().await, exit::FENCED);
    assert!(world.stored("artifacts/").await.is_empty());
    assert!(world.stored("events/").await.is_empty());
}

#[tokio::test]
async fn a_second_process_of_the_same_attempt_is_turned_away() {
    let (world, _first) = World::started(Backend::start(), LONG).await;
    world.backend.until("the first to claim", |l| l.instance.is_some()).await;
    assert_eq!(world.trainer().code().await, exit::FENCED);
}

#[tokio::test]
async fn cancelling_stops_the_training_and_keeps_no_promise() {
    let (world, mut trainer) = World::started(Backend::start(), LONG).await;
    world.backend.until("training", |l| l.events.len() > 10).await;
    world.backend.direct(Directive::Cancel);
    assert_eq!(trainer.code().await, exit::CANCELLED);
    let last = world.backend.assert_complete();
    assert!(matches!(last, EventKind::Stopped { reason: StopReason::Cancelled, checkpoint: None, .. }), "{last:?}");
}

#[tokio::test]
async fn cancelling_reaches_a_trainer_that_has_not_started_to_train() {
    let backend = Backend::start();
    backend.direct(Directive::Cancel);
    let (world, mut trainer) = World::started(backend, LONG).await;
    assert_eq!(trainer.code().await, exit::CANCELLED);
    world.backend.assert_complete();
}

#[tokio::test]
async fn pausing_leaves_a_durable_checkpoint_of_the_step_it_stopped_at() {
    let (world, mut trainer) = World::started(Backend::start(), LONG).await;
    world.backend.until("training", |l| l.events.len() > 10).await;
    world.backend.direct(Directive::Pause);
    assert_eq!(trainer.code().await, exit::PAUSED);
    assert_checkpointed(&world, StopReason::Paused).await;
}

async fn assert_checkpointed(world: &World, wanted: StopReason) {
    let last = world.backend.assert_complete();
    let EventKind::Stopped { reason, step, checkpoint: Some(prefix) } = last else { panic!("{last:?}") };
    assert_eq!(reason, wanted);
    assert!(prefix.ends_with(&format!("checkpoints/checkpoint-{step}/")), "{prefix} is not of step {step}");
    let stored: Manifest = storage().read_json(&format!("{prefix}manifest.json")).await.unwrap();
    assert_eq!(stored.step, Some(step));
    world.assert_stored(&stored.files).await;
    assert_eq!(world.backend.ledger().checkpoints().pop(), Some((step, prefix)));
}

#[tokio::test]
async fn sigterm_ends_in_a_durable_checkpoint_within_the_grace_time() {
    let (world, mut trainer) = World::started(Backend::start(), LONG).await;
    world.backend.until("training", |l| l.events.len() > 10).await;
    let asked = Instant::now();
    trainer.signal(Signal::SIGTERM);
    assert_eq!(trainer.code().await, exit::PREEMPTED);
    assert!(asked.elapsed() < Duration::from_secs(25), "{:?}", asked.elapsed());
    assert_checkpointed(&world, StopReason::Preempted).await;
}

#[tokio::test]
async fn sigterm_is_obeyed_in_time_even_when_the_backend_is_gone() {
    let gone = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let refuse = std::sync::Arc::clone(&gone);
    let backend = Backend::scripted(move |_| {
        if refuse.load(std::sync::atomic::Ordering::SeqCst) { Reaction::Refuse(500) } else { Reaction::Accept }
    });
    let world = World::new(backend, config(LONG)).await;
    let mut command = world.command();
    // The waits of a real deployment.
    command.env("CALLBACK_RETRY_FIRST_MS", "4000").env("CALLBACK_RETRY_MAX_MS", "30000");
    let mut trainer = run_support::Trainer::spawn(command, world.dir.path().join("log"));
    world.backend.until("training", |l| l.kinds().iter().any(|k| matches!(k, EventKind::Metrics { .. }))).await;
    gone.store(true, std::sync::atomic::Ordering::SeqCst);
    let asked = Instant::now();
    trainer.signal(Signal::SIGTERM);
    assert_eq!(trainer.code().await, exit::PREEMPTED);
    assert!(asked.elapsed() < Duration::from_secs(25), "{:?}", asked.elapsed());
    assert!(!world.stored("events/").await.is_empty(), "the last words are in storage");
}

#[tokio::test]
async fn a_killed_attempt_is_resumed_and_ends_with_the_same_adapter() {
    let (whole, mut trainer) = World::started(Backend::start(), 300).await;
    assert_eq!(trainer.code().await, exit::SUCCEEDED);
    let expected = adapter(manifest(&whole.backend.assert_complete())).sha256.clone();

    let (mut world, mut trainer) = World::started(Backend::start(), 300).await;
    world.backend.until("a checkpoint", |l| !l.checkpoints().is_empty()).await;
    trainer.signal(Signal::SIGKILL);
    assert_eq!(trainer.status().await.code(), None);
    let (step, prefix) = world.backend.ledger().checkpoints().pop().unwrap();
    assert!(step < 300, "the run ended before it was killed");
    world.next_attempt(Some(prefix));
    assert_eq!(world.trainer().code().await, exit::SUCCEEDED);
    let last = world.backend.assert_complete();
    let ledger = world.backend.ledger();
    assert!(matches!(ledger.kinds()[0], EventKind::Started { resumed_from_step: Some(s), .. } if *s == step));
    assert_eq!(adapter(manifest(&last)).sha256, expected);
}

#[tokio::test]
async fn a_damaged_model_file_is_refused_with_both_digests() {
    let mut world = World::new(Backend::start(), config(5)).await;
    let weights = world.spec.model.files.iter_mut().find(|f| f.path == "model.safetensors").unwrap();
    let actual = std::mem::replace(&mut weights.sha256, digest(b"something else"));
    let expected = weights.sha256.clone();
    let mut trainer = world.trainer();
    assert_eq!(trainer.code().await, exit::RETRYABLE);
    let last = world.backend.assert_complete();
    let EventKind::Failed { failure } = last else { panic!("{last:?}") };
    assert_eq!(failure.code, FailureCode::ChecksumMismatch);
    for part in ["model.safetensors", &actual, &expected, "upload it again"] {
        assert!(failure.message.contains(part), "{part} is not in: {}", failure.message);
    }
    assert!(!world.scratch().join("cache/sha256").join(&expected).exists());
    assert!(!world.scratch().join("cache/partial").join(&expected).exists());
}

#[tokio::test]
async fn a_deleted_dataset_is_named() {
    let world = World::new(Backend::start(), config(5)).await;
    storage().delete(&world.spec.dataset.train.key).await.unwrap();
    assert_eq!(world.trainer().code().await, exit::RETRYABLE);
    let last = world.backend.assert_complete();
    let EventKind::Failed { failure } = last else { panic!("{last:?}") };
    assert_eq!(failure.code, FailureCode::ArtifactMissing);
    assert!(failure.message.contains(&world.spec.dataset.train.key), "{}", failure.message);
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_the_model_fails_for_good() {
    let mut config = config(5);
    config.lora.target_modules = wire::config::TargetModules::Names(vec!["no_such_module".into()]);
    let world = World::new(Backend::start(), config).await;
    assert_eq!(world.trainer().code().await, exit::FATAL);
    let last = world.backend.assert_complete();
    assert!(matches!(&last, EventKind::Failed { failure } if failure.code == FailureCode::ConfigInvalid), "{last:?}");
}

#[tokio::test]
async fn a_storage_outage_during_training_costs_checkpoints_but_not_the_training() {
    let mut world = World::new(Backend::start(), config(LONG)).await;
    let proxy = run_support::proxy::Proxy::start(&world.gateway_url, 0, 0).await;
    world.gateway_url = proxy.url.clone();
    let mut trainer = world.trainer();
    world.backend.until("a checkpoint", |l| !l.checkpoints().is_empty()).await;
    proxy.stop();
    let warned = |kind: &&EventKind| matches!(kind, EventKind::Log { level: Level::Warn, message } if message.contains("could not be stored"));
    world.backend.until("the warning", |l| l.kinds().iter().any(&warned)).await;
    let seen = world.backend.ledger().contiguous();
    world.backend.until("more steps", |l| l.contiguous() > seen + 20).await;
    world.backend.direct(Directive::Cancel);
    assert_eq!(trainer.code().await, exit::CANCELLED);
}

#[tokio::test]
async fn the_token_is_in_no_log() {
    let (world, mut trainer) = World::started(Backend::scripted(|_| Reaction::Refuse(401)), 5).await;
    trainer.code().await;
    let token = world.token();
    let secret = service::ExposeSecret::expose_secret(&token);
    assert!(!trainer.log().contains(secret.split('.').next_back().unwrap()));
}
