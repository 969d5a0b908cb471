use super::*;
use std::fs;
use tempfile::TempDir;
use wire::{event::Phase, storage::FileRef};

fn metrics(step: u64) -> EventKind {
    EventKind::Metrics { step, epoch: 0.5, values: [(metric::TRAIN_LOSS.to_owned(), 1.25)].into() }
}

fn stopped() -> EventKind {
    EventKind::Stopped { reason: wire::event::StopReason::Paused, step: 1, checkpoint: None }
}

fn open(dir: &TempDir) -> (Spool, Writer) {
    Spool::open(SpoolConfig::new(dir.path().join("spool"))).unwrap()
}

fn fill(dir: &TempDir, count: u64) -> InstanceId {
    let (spool, writer) = open(dir);
    for step in 1..=count {
        spool.push(metrics(step));
    }
    spool.close();
    writer.join();
    assert_eq!(spool.last_seq(), count);
    spool.instance()
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|e| e.seq).collect()
}

fn last_segment(dir: &TempDir) -> PathBuf {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir.path().join("spool")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "log"));
    paths.sort();
    paths.pop().unwrap()
}

#[test]
fn a_spool_continues_where_a_killed_process_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let first = fill(&dir, 20);
    let (spool, writer) = open(&dir);
    assert_eq!(spool.instance(), first);
    spool.push(stopped());
    spool.close();
    writer.join();
    assert_eq!(seqs(&spool.batch(1, MAX_BATCH)), (1..=21).collect::<Vec<_>>());
    assert!(matches!(spool.batch(20, 1).first().map(|e| e.kind.clone()), Some(EventKind::Metrics { step: 20, .. })));
}

#[test]
fn a_truncated_tail_is_cut_off_at_every_length_and_the_sequence_stays_gap_free() {
    let whole = tempfile::tempdir().unwrap();
    fill(&whole, 3);
    let bytes = fs::read(last_segment(&whole)).unwrap();
    for keep in 0..bytes.len() {
        let dir = tempfile::tempdir().unwrap();
        fill(&dir, 3);
        fs::write(last_segment(&dir), bytes.get(..keep).unwrap()).unwrap();
        let lines = bytes.get(..keep).unwrap().iter().filter(|b| **b == b'\n').count();
        for _ in 0..2 {
            let (spool, writer) = open(&dir);
            assert_eq!(spool.last_seq(), u64::try_from(lines).unwrap(), "kept {keep} bytes");
            spool.close();
            writer.join();
        }
        let (spool, writer) = open(&dir);
        spool.push(metrics(9));
        spool.close();
        writer.join();
        let next = u64::try_from(lines).unwrap() + 1;
        assert_eq!(seqs(&spool.batch(1, MAX_BATCH)), (1..=next).collect::<Vec<_>>());
    }
}

#[test]
fn a_damaged_line_in_the_middle_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    fill(&dir, 5);
    let path = last_segment(&dir);
    let mut lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    lines[2] = lines[2].replace("1.25", "9.99");
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    let (spool, _writer) = open(&dir);
    let events = spool.batch(1, MAX_BATCH);
    assert_eq!(seqs(&events), [1, 2, 3, 4, 5]);
    assert!(matches!(&events[2].kind, EventKind::Log { level: Level::Warn, .. }));
    spool.close();
}

#[test]
fn two_processes_cannot_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _writer) = open(&dir);
    let error = Spool::open(SpoolConfig::new(dir.path().join("spool"))).unwrap_err();
    assert!(matches!(error, SpoolError::Locked(_)));
    spool.close();
}

#[test]
fn acknowledged_segments_go_and_the_sequence_survives() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, writer) = open(&dir);
    let long = "x".repeat(8000);
    // A group of events is written to one segment, so each round waits for the one before.
    for round in 1..=8 {
        for _ in 0..125 {
            spool.push(EventKind::Log { level: Level::Warn, message: long.clone() });
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while spool.last_seq() < round * 125 {
            assert!(std::time::Instant::now() < deadline, "round {round} was not written");
            std::thread::yield_now();
        }
    }
    spool.close();
    writer.join();
    let count = |dir: &TempDir| fs::read_dir(dir.path().join("spool")).unwrap().count();
    assert!(count(&dir) > 3, "the events fill several segments");
    spool.ack(1000);
    drop(spool);
    let (spool, writer) = open(&dir);
    spool.ack(1000);
    spool.push(stopped());
    spool.close();
    writer.join();
    assert_eq!(spool.last_seq(), 1001);
    assert!(count(&dir) <= 3, "only the identity and the newest segments stay");
}

#[test]
fn a_full_spool_drops_detail_announces_it_and_keeps_what_matters() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { max_bytes: 20_000, ..SpoolConfig::new(dir.path().join("spool")) };
    let (spool, writer) = Spool::open(config).unwrap();
    for step in 1..=1000 {
        spool.push(metrics(step));
    }
    spool.push(EventKind::Checkpoint { step: 1000, prefix: "p".into(), size: 1 });
    spool.push(EventKind::Finished { last_seq: 0, manifest: Vec::<FileRef>::new(), summary: Default::default() });
    spool.close();
    writer.join();
    let events = spool.batch(1, MAX_BATCH);
    assert_eq!(seqs(&events), (1..=spool.last_seq()).collect::<Vec<_>>());
    let kept = events.iter().filter(|e| matches!(e.kind, EventKind::Metrics { .. })).count();
    assert!((50..500).contains(&kept), "{kept} of 1000 metrics were kept");
    let tail: Vec<&EventKind> = events.iter().rev().take(3).map(|e| &e.kind).collect();
    let [EventKind::Finished { last_seq, .. }, EventKind::Log { message, .. }, EventKind::Checkpoint { .. }] = tail[..]
    else {
        panic!("unexpected tail {tail:?}")
    };
    assert_eq!(*last_seq, spool.last_seq());
    assert!(message.starts_with(&format!("{} metric and log events (steps ", 1000 - kept)), "{message}");
}

#[test]
fn events_in_storage_make_room_for_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { max_bytes: 5_000, ..SpoolConfig::new(dir.path().join("spool")) };
    let (spool, writer) = Spool::open(config).unwrap();
    for step in 1..=30 {
        spool.push(EventKind::Checkpoint { step, prefix: "x".repeat(200), size: 1 });
    }
    while spool.last_seq() < 30 {
        std::thread::yield_now();
    }
    spool.settle(1, 30);
    assert!(spool.is_delivered());
    spool.push(EventKind::Phase { phase: Phase::Training, message: String::new() });
    spool.close();
    writer.join();
    assert!(spool.first_held().is_some_and(|first| first > 1));
    assert!(spool.batch(31, 1).iter().any(|e| matches!(e.kind, EventKind::Phase { .. })));
    assert!(!spool.is_delivered());
}

#[test]
fn a_directory_that_cannot_be_written_turns_the_spool_into_a_memory_queue_and_says_so() {
    let (spool, writer) = Spool::open(SpoolConfig::new("/proc/no/spool".into())).unwrap();
    spool.push(metrics(1));
    while spool.last_seq() < 2 {
        std::thread::yield_now();
    }
    spool.push(stopped());
    spool.close();
    writer.join();
    let events = spool.batch(1, MAX_BATCH);
    assert_eq!(seqs(&events), [1, 2, 3]);
    assert!(matches!(&events[1].kind, EventKind::Log { message, .. } if message.contains("cannot be written")));
}

#[test]
fn batches_stay_within_count_and_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, writer) = open(&dir);
    for _ in 0..600 {
        spool.push(EventKind::Log { level: Level::Warn, message: "é".repeat(10_000) });
    }
    spool.close();
    writer.join();
    let batch = spool.batch(1, MAX_BATCH);
    let size = serde_json::to_vec(&batch).unwrap().len();
    assert!(size < MAX_BATCH_BYTES && size > MAX_BATCH_BYTES / 2, "{size}");
}

#[test]
fn numbers_that_json_cannot_carry_are_left_out() {
    let values = [("a".to_owned(), f64::NAN), ("b".to_owned(), 1.0), ("c".to_owned(), f64::INFINITY)].into();
    let EventKind::Metrics { values, .. } = bounded(EventKind::Metrics { step: 1, epoch: 0.0, values }) else {
        panic!()
    };
    assert_eq!(values.into_keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_push_takes_microseconds_even_when_the_disk_is_busy_with_thousands_of_events() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, writer) = open(&dir);
    let started = std::time::Instant::now();
    for step in 0..100_000 {
        spool.push(metrics(step));
    }
    let each = started.elapsed() / 100_000;
    spool.close();
    writer.join();
    assert!(each < Duration::from_micros(50), "{each:?} per push");
}
