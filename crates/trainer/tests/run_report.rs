//! Reporter and stager in process, against the scripted backend (the test double), a real storage gateway and a
//! proxy that cuts connections.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod run_support;

use run_support::{
    QUICK, World,
    backend::Backend,
    config, digest,
    gateway::{Faults, UploadDouble},
    proxy::Proxy,
    storage,
};
use std::{
    fs,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use trainer::{
    cache::Cache,
    control::{Deadline, Signal, Switch},
    engine::TrainError,
    gateway::Gateway,
    progress::Transfer,
    report::{ReportConfig, Reporter},
    spool::{Spool, SpoolConfig},
    stage::{Item, Stager},
};
use wire::{
    Directive, EventKind,
    event::{Level, StopReason},
    job::FailureCode,
    layout,
    storage::FileRef,
};

const NOBODY: &str = "http://127.0.0.1:9";

fn start(world: &World, callback_url: &str, gateway_url: &str) -> (Spool, Reporter, Switch) {
    let opened = Spool::open(SpoolConfig::new(world.scratch().join("spool"))).unwrap();
    let config = ReportConfig {
        job_id: world.spec.job_id,
        attempt: 1,
        callback_url: callback_url.to_owned(),
        token: world.token(),
        heartbeat: Duration::from_millis(200),
        linger: Duration::from_millis(5),
        retry: QUICK,
        events_prefix: format!("{}{}", world.spec.output_prefix, layout::EVENTS),
    };
    let (spool, switch) = (opened.0.clone(), Switch::default());
    let gateway = Gateway::new(gateway_url, world.token(), QUICK).unwrap();
    let reporter = Reporter::start(config, opened, gateway, switch.clone(), Deadline::default()).unwrap();
    (spool, reporter, switch)
}

fn metrics(step: u64) -> EventKind {
    EventKind::Metrics { step, epoch: 0.0, values: [("train_loss".to_owned(), 1.0)].into() }
}

fn log(message: &str) -> EventKind {
    EventKind::Log { level: Level::Info, message: message.into() }
}

fn stopped() -> EventKind {
    EventKind::Stopped { reason: StopReason::Paused, step: 0, checkpoint: None }
}

fn started() -> EventKind {
    EventKind::Started { trainer_version: "t".into(), device: "cpu".into(), threads: 1, resumed_from_step: None }
}

#[tokio::test]
async fn silence_is_filled_with_heartbeats_that_carry_directives() {
    let world = World::new(Backend::start(), config(1)).await;
    let (_spool, reporter, switch) = start(&world, &world.backend.url, run_support::gateway_url());
    world.backend.until("heartbeats", |l| l.heartbeats >= 3).await;
    world.backend.direct(Directive::Pause);
    assert_eq!(switch.raised(Signal::Pause).await, Signal::Pause);
    assert!(reporter.finish(stopped(), Duration::from_secs(30)).await);
}

/// The runtime of the other tasks has one thread here, and something blocks it.
#[tokio::test]
async fn heartbeats_go_on_while_nothing_else_does() {
    let world = World::new(Backend::start(), config(1)).await;
    let (_spool, reporter, _) = start(&world, &world.backend.url, run_support::gateway_url());
    world.backend.until("a heartbeat", |l| l.heartbeats >= 1).await;
    let before = world.backend.ledger().heartbeats;
    std::thread::sleep(Duration::from_millis(1500));
    let during = world.backend.ledger().heartbeats - before;
    assert!(during >= 3, "{during} heartbeats in 1.5 s, wanted every 0.2 s");
    assert!(reporter.finish(stopped(), Duration::from_secs(30)).await);
    let after = world.backend.ledger().heartbeats;
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(world.backend.ledger().heartbeats, after, "its thread ends with the reporter");
}

#[tokio::test]
async fn pushing_never_waits_for_a_backend_and_a_storage_that_are_down() {
    let world = World::new(Backend::start(), config(1)).await;
    let (spool, reporter, _) = start(&world, NOBODY, NOBODY);
    let mut slowest = Duration::ZERO;
    for step in 0..50_000 {
        let began = Instant::now();
        spool.push(metrics(step));
        slowest = slowest.max(began.elapsed());
    }
    // Far above what a push takes, far below what any network or disk wait would be on a machine this busy.
    assert!(slowest < Duration::from_millis(500), "a push took {slowest:?}");
    let began = Instant::now();
    assert!(!reporter.finish(stopped(), Duration::from_millis(300)).await, "nothing was delivered");
    assert!(began.elapsed() < Duration::from_secs(20));
    let left: u64 =
        fs::read_dir(world.scratch().join("spool")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(left > 1000, "what could not be delivered is on disk");
}

#[tokio::test]
async fn what_a_killed_process_left_in_the_spool_is_delivered_by_its_successor() {
    let world = World::new(Backend::start(), config(1)).await;
    let (spool, writer) = Spool::open(SpoolConfig::new(world.scratch().join("spool"))).unwrap();
    spool.push(started());
    spool.push(log("from the first process"));
    spool.close();
    writer.join();
    drop(spool);
    let (spool, reporter, _) = start(&world, &world.backend.url, run_support::gateway_url());
    spool.push(log("from the second process"));
    assert!(reporter.finish(stopped(), Duration::from_secs(30)).await);
    world.backend.assert_complete();
    assert_eq!(world.backend.ledger().events.len(), 4);
}

#[tokio::test]
async fn thousands_of_events_arrive_in_batches_and_once() {
    let world = World::new(Backend::start(), config(1)).await;
    let (spool, reporter, _) = start(&world, &world.backend.url, run_support::gateway_url());
    spool.push(started());
    for step in 0..5_000 {
        spool.push(metrics(step));
    }
    assert!(reporter.finish(stopped(), Duration::from_secs(60)).await);
    world.backend.assert_complete();
    let ledger = world.backend.ledger();
    assert_eq!(ledger.events.len(), 5_002);
    assert!(ledger.batches < 200, "{} batches", ledger.batches);
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * i + i / 7) % 251).unwrap()).collect()
}

async fn stored(world: &World, bytes: &[u8]) -> FileRef {
    let key = format!("{}blob", world.spec.model.prefix);
    let path = world.dir.path().join("blob");
    fs::write(&path, bytes).unwrap();
    storage().put_file(&key, &path, &Transfer::default()).await.unwrap()
}

fn stager(world: &World, url: &str) -> Stager {
    Stager {
        gateway: Gateway::new(url, world.token(), QUICK).unwrap(),
        cache: Cache::open(world.scratch().join("cache"), 1 << 30).unwrap(),
    }
}

#[tokio::test]
async fn a_download_that_is_cut_again_and_again_resumes_where_it_stopped() {
    let world = World::new(Backend::start(), config(1)).await;
    let bytes = noise(3 << 20);
    let file = stored(&world, &bytes).await;
    let proxy = Proxy::start(run_support::gateway_url(), 3, 900_000).await;
    let target = world.dir.path().join("out");
    let item = Item { file, target: target.clone() };
    let transfer = Transfer::default();
    stager(&world, &proxy.url).stage(&[item], &transfer).await.unwrap();
    assert_eq!(digest(&fs::read(&target).unwrap()), digest(&bytes));
    let moved = proxy.bytes.load(Ordering::Relaxed);
    assert!(moved < (3 << 20) + 400_000, "{moved} bytes were moved for {}", bytes.len());
    assert_eq!(transfer.done.load(Ordering::Relaxed), 3 << 20);
}

#[tokio::test]
async fn a_damaged_partial_download_is_noticed_and_replaced() {
    let world = World::new(Backend::start(), config(1)).await;
    let bytes = noise(100_000);
    let file = stored(&world, &bytes).await;
    let stager = stager(&world, run_support::gateway_url());
    fs::write(stager.cache.partial(&file.sha256), vec![0; 50_000]).unwrap();
    let target = world.dir.path().join("out");
    stager.stage(&[Item { file, target: target.clone() }], &Transfer::default()).await.unwrap();
    assert_eq!(fs::read(&target).unwrap(), bytes);
}

#[tokio::test]
async fn a_cached_file_needs_no_network() {
    let world = World::new(Backend::start(), config(1)).await;
    let file = stored(&world, &noise(1000)).await;
    let item = |name: &str| Item { file: file.clone(), target: world.dir.path().join(name) };
    stager(&world, run_support::gateway_url()).stage(&[item("a")], &Transfer::default()).await.unwrap();
    stager(&world, NOBODY).stage(&[item("b")], &Transfer::default()).await.unwrap();
    assert_eq!(fs::read(world.dir.path().join("b")).unwrap(), noise(1000));
}

#[tokio::test]
async fn large_files_go_straight_to_storage_in_parts_and_come_back_whole() {
    let world = World::new(Backend::start(), config(1)).await;
    let bytes = noise(20 << 20);
    let path = world.dir.path().join("large");
    fs::write(&path, &bytes).unwrap();
    let key = format!("{}checkpoints/large", world.spec.output_prefix);
    let gateway = Gateway::new(run_support::gateway_url(), world.token(), QUICK).unwrap();
    let file = gateway.put_file(&key, &path, &Transfer::default()).await.unwrap();
    assert_eq!(file.sha256, digest(&bytes));
    let target = world.dir.path().join("out");
    stager(&world, run_support::gateway_url())
        .stage(&[Item { file, target: target.clone() }], &Transfer::default())
        .await
        .unwrap();
    assert_eq!(digest(&fs::read(&target).unwrap()), digest(&bytes));
}

async fn upload(faults: Faults) -> (UploadDouble, Result<FileRef, TrainError>, Vec<u8>) {
    let double = UploadDouble::start(faults);
    let gateway = Gateway::new(&double.url, "token".into(), QUICK).unwrap();
    let bytes = noise(6 << 20);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, &bytes).unwrap();
    let result = gateway.put_file("k", &path, &Transfer::default()).await;
    (double, result, bytes)
}

#[tokio::test]
async fn an_upload_whose_urls_expired_asks_for_fresh_ones() {
    let (double, result, bytes) = upload(Faults { expired_urls: true, ..Faults::default() }).await;
    assert_eq!(result.unwrap().sha256, digest(&bytes));
    assert_eq!(double.object(), Some(bytes));
}

#[tokio::test]
async fn parts_that_fail_now_and_then_are_sent_again_as_long_as_others_get_through() {
    let (double, result, bytes) = upload(Faults { failures_per_part: 2, ..Faults::default() }).await;
    result.unwrap();
    assert_eq!(double.object(), Some(bytes));
    assert_eq!(double.sessions(), 1, "the session is resumed");
}

#[tokio::test]
async fn a_lost_reply_to_the_last_call_is_no_failure() {
    let (double, result, bytes) = upload(Faults { lost_complete: true, ..Faults::default() }).await;
    result.unwrap();
    assert_eq!(double.object(), Some(bytes));
}

#[tokio::test]
async fn an_upload_that_arrives_damaged_is_sent_again() {
    let (double, result, bytes) = upload(Faults { damaged_once: true, ..Faults::default() }).await;
    result.unwrap();
    assert_eq!((double.object(), double.sessions()), (Some(bytes), 2));
}

#[tokio::test]
async fn storage_that_never_takes_a_part_is_a_retryable_failure_that_says_so() {
    let (_, result, _) = upload(Faults { failures_per_part: usize::MAX, ..Faults::default() }).await;
    let error = result.unwrap_err();
    assert_eq!(error.code, FailureCode::StorageUnavailable);
    assert!(error.message.starts_with("cannot upload k: ") && error.message.contains("resume the job"), "{error}");
}

#[tokio::test]
async fn a_token_does_not_reach_beyond_its_job() {
    let world = World::new(Backend::start(), config(1)).await;
    let gateway = Gateway::new(run_support::gateway_url(), world.token(), QUICK).unwrap();
    let key = format!("{}config.json", world.spec.model.prefix);
    let error = gateway.put_bytes(&key, "{}".into()).await.unwrap_err();
    assert_eq!(error.status(), Some(403));
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    let file = FileRef { key: "k".into(), size: 0, sha256: String::new() };
    for name in ["../x", "/etc/passwd", "a/../../b", "", ".", "a/./../b"] {
        assert!(Item::below("/dir".as_ref(), name, file.clone()).is_err(), "{name}");
    }
    assert_eq!(Item::below("/dir".as_ref(), "a/b", file).unwrap().target, std::path::Path::new("/dir/a/b"));
}
