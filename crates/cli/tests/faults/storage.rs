//! Rows 13 to 18, and the checkpoints of row 25: an S3 that fails, hangs, cuts, lies, and forgets.

use crate::{
    harness::wait,
    material,
    world::{Dice, World, seeds},
};
use std::{fs, path::PathBuf, process::Stdio, time::Duration};
use testkit::fault::{Fault, Link, Rule};
use wire::EventKind;

const SLOW_DOWN: &str =
    "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>";
const INTERNAL: &str = "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><Message>We failed</Message></Error>";
/// Objects of jobs and models, as the proxy sees them.
const JOBS: &str = "PUT /lora-models/jobs/";

/// A model directory whose weights have `mib` MiB that differ with the seed.
fn big_model(world: &World, seed: u64, mib: u64) -> String {
    let dir = world.hone.path(&format!("big-{seed}"));
    let path = material::model(&dir);
    let size = mib << 20;
    let header = format!("{{\"w\":{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[0,{size}]}}}}", size / 4);
    let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    let mut dice = Dice::new(seed);
    let noise =
        std::iter::repeat_with(|| dice.next(0..u64::MAX).to_le_bytes()).take(usize::try_from(size / 8).unwrap());
    bytes.extend(noise.flatten());
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
    path
}

/// Imports a big model, which must work, and removes the local copy.
fn import(world: &World, name: &str, seed: u64, mib: u64) {
    let path = big_model(world, seed, mib);
    let view = world.hone.json(&["models", "import", &path, "--name", name]);
    assert_eq!(view["status"], "ready", "{view:#}");
    fs::remove_dir_all(path).unwrap();
}

#[test]
fn row_13_storage_that_fails_or_asks_to_slow_down_is_tried_again_and_that_is_shown() {
    let world = World::behind_proxy(&[]);
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let (status, body) = if seed % 2 == 0 { (500, INTERNAL) } else { (503, SLOW_DOWN) };
        let answer = || Fault::Answer(status, body.to_owned());
        // More in a row than the gateway's own patience, so that the trainer notices.
        let times = u32::try_from(dice.next(40..60)).unwrap();
        world.proxy().rules([Rule::new(answer()).on(JOBS).times(times), Rule::new(answer()).chance(0.05)]);
        let id = world.job("max_steps: 120, save_steps: 40");
        world.hone.wait_for_end(&id);
        world.proxy().rules([]);
        assert!(world.proxy().injected("answer") >= u64::from(times));
        world.assert_told(&id, "storage retrying");
        world.assert_whole(&id, 120);
    }
}

#[test]
fn row_14_storage_that_hangs_times_out_and_a_slow_one_shows_its_progress() {
    let world = World::behind_proxy(&[]);
    for seed in seeds() {
        world.trainer("export STORAGE_TIMEOUT_MS=1000");
        let times = u32::try_from(Dice::new(seed).next(1..4)).unwrap();
        world.proxy().rules([Rule::new(Fault::Hang).on(JOBS).times(times)]);
        let id = world.job("max_steps: 60, save_steps: 20");
        world.hone.wait_for_end(&id);
        world.proxy().rules([]);
        world.assert_told(&id, "storage retrying");
        world.assert_whole(&id, 60);

        world.trainer("rm -rf \"$SCRATCH_DIR/cache\"");
        world.proxy().link(Link::slow(100_000));
        let id = world.job("max_steps: 5");
        wait("progress", || world.texts(&id).iter().any(|text| text.contains("tiny: ") && text.contains(" of ")));
        world.proxy().link(Link::default());
        world.hone.wait_for_end(&id);
        world.assert_whole(&id, 5);
    }
}

#[test]
fn row_15_a_connection_that_is_cut_inside_a_part_costs_that_part() {
    let world = World::behind_proxy(&[]);
    for seed in seeds() {
        let at = Dice::new(seed).next(1..8 << 20);
        world.proxy().rules([Rule::new(Fault::CutRequest(at)).on("partNumber=").times(3)]);
        let before = world.proxy().injected("cut_request");
        import(&world, &format!("cut-{seed}"), seed, 20);
        assert_eq!(world.proxy().injected("cut_request") - before, 3, "seed {seed}");
        world.proxy().rules([]);
    }
}

#[test]
fn row_15_an_upload_of_a_dataset_that_is_killed_goes_on_where_it_stopped() {
    let world = World::behind_proxy(&[]);
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let said = |text: u64| serde_json::json!({"role": "assistant", "content": format!("{text:0>4000}")});
        let rows =
            std::iter::repeat_with(|| format!("{}\n", serde_json::json!({"messages": [said(dice.next(0..u64::MAX))]})));
        let file = world.hone.path("large.jsonl");
        fs::write(&file, rows.take(5000).collect::<String>()).unwrap();
        let name = format!("large-{seed}");
        let upload = ["datasets", "upload", file.to_str().unwrap(), "--name", &name];
        // The second of three parts hangs, so the others are there when the command is killed.
        world.proxy().rules([Rule::new(Fault::Hang).on("partNumber=2&")]);
        let hung = world.proxy().injected("hang");
        let mut first = world.hone.command(&upload).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let missing = || {
            let found = world.hone.with_api(async |api| api.dataset_uploads(&name).await.ok());
            let sessions = found.map(|found| found.uploads).unwrap_or_default();
            sessions.iter().flat_map(|session| &session.parts).map(|part| part.number).collect::<Vec<_>>()
        };
        wait("all parts but one", || missing() == [2] && world.proxy().injected("hang") > hung);
        first.kill().unwrap();
        first.wait().unwrap();
        // What is there already is not sent again: nobody would take it.
        let refuse = |part: u32| Rule::new(Fault::Answer(400, String::new())).on(&format!("partNumber={part}&"));
        world.proxy().rules([refuse(1), refuse(3)]);
        let view = world.hone.json(&upload);
        assert_eq!((&view["status"], &view["rows"]), (&"ready".into(), &5000.into()), "seed {seed}: {view:#}");
        world.proxy().rules([]);
        world.hone.ok(&["datasets", "rm", &name]);
    }
}

#[test]
fn row_16_a_completion_whose_reply_is_lost_or_is_an_error_in_disguise_ends_right() {
    let world = World::behind_proxy(&[]);
    for seed in seeds() {
        let fault = if seed % 2 == 0 { Fault::LoseReply } else { Fault::Answer(200, INTERNAL.to_owned()) };
        let name = fault.name();
        let before = world.proxy().injected(name);
        // `uploadId=` in a POST is a completion; parts are PUTs, and opening says `uploads`.
        world.proxy().rules([Rule::new(fault).on("POST /lora-models/_staging").times(3)]);
        import(&world, &format!("complete-{seed}"), seed, 9);
        assert!(world.proxy().injected(name) > before, "seed {seed}");
        world.proxy().rules([]);
    }
}

#[test]
fn row_17_a_flipped_bit_in_a_download_never_reaches_training() {
    let world = World::behind_proxy(&[]);
    let weights = "GET /lora-models/models/tiny/";
    world.trainer("rm -rf \"$SCRATCH_DIR/cache\"");
    for _ in seeds() {
        // Once: it is fetched again. Always: the job says so.
        world.proxy().rules([Rule::new(Fault::FlipReply).on(weights).times(1)]);
        let id = world.job("max_steps: 5");
        world.hone.wait_for_end(&id);
        world.assert_whole(&id, 5);
        world.proxy().rules([Rule::new(Fault::FlipReply).on(weights)]);
        let config = world.hone.path("flip.yaml");
        fs::write(&config, "model: tiny\ndataset: rows\ntraining: {max_steps: 5, eval_steps: 0}\n").unwrap();
        let job = world.hone.json(&["train", config.to_str().unwrap(), "--max-attempts", "1"]);
        let id = job["id"].as_str().unwrap();
        world.assert_fails(id, "CHECKSUM_MISMATCH", &["arrived damaged twice", "expected", "upload it again"]);
        world.proxy().rules([]);
    }
}

#[test]
fn row_18_urls_that_expire_while_an_upload_goes_on_are_issued_again() {
    let world = World::behind_proxy(&[("SIGNED_URL_SECONDS", "2")]);
    for seed in seeds() {
        // A part takes longer than the URLs live, so those after the first two meet dead ones.
        world.proxy().link(Link::slow(Dice::new(seed).next(2_500_000..3_500_000)));
        std::thread::scope(|scope| {
            let upload = scope.spawn(|| import(&world, &format!("expired-{seed}"), seed, 25));
            std::thread::sleep(Duration::from_secs(5));
            assert!(!upload.is_finished(), "seed {seed}: the URLs did not run out");
            world.proxy().link(Link::default());
        });
    }
}

/// The file of an object in the embedded S3 of `hone up`.
fn object_file(world: &World, prefix: &str, name: &str) -> PathBuf {
    world.hone.data_dir().join("s3/lora-models").join(prefix).join(name)
}

#[test]
fn row_25_a_damaged_checkpoint_is_told_and_the_one_before_it_used() {
    let world = World::start(&[]);
    for seed in seeds() {
        let id = world.job("max_steps: 900, save_steps: 30, save_total_limit: 5");
        let stored = || {
            let told = world.told(&id);
            let prefix = |(_, kind): &(u32, EventKind)| match kind {
                EventKind::Checkpoint { step, prefix, .. } => Some((*step, prefix.clone())),
                _ => None,
            };
            told.iter().filter_map(prefix).collect::<Vec<_>>()
        };
        wait("two checkpoints", || stored().len() >= 2);
        world.hone.ok(&["jobs", "pause", &id]);
        wait("the pause", || world.hone.job(&id)["state"] == "paused");
        let mut stored = stored();
        stored.sort();
        let ((newest, damaged), (before, _)) = (stored.pop().unwrap(), stored.pop().unwrap());
        assert!(before < newest);
        let path = object_file(&world, &damaged, "adapter_model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        match seed % 3 {
            0 => bytes[middle] ^= 1,
            1 => bytes.truncate(middle),
            _ => bytes[..8].copy_from_slice(&[0xff; 8]),
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        world.trainer("rm -rf \"$SCRATCH_DIR/cache\"");
        world.hone.ok(&["jobs", "resume", &id]);
        world.hone.wait_for_end(&id);
        world.assert_told(&id, &format!("going on from the checkpoint of step {before}"));
        let started = world.told(&id).into_iter().filter_map(|(attempt, kind)| match kind {
            EventKind::Started { resumed_from_step, .. } if attempt == 2 => Some(resumed_from_step),
            _ => None,
        });
        assert_eq!(started.collect::<Vec<_>>(), [Some(newest), Some(before)], "seed {seed}: what it began with");
        world.assert_whole(&id, 900);
    }
}
