//! Rows 6, 19 and 20: trainers without memory, without disk, without a spool.

use crate::{
    harness::{alive, wait},
    world::{Dice, World, seeds},
};
use std::{fs, path::PathBuf};
use wire::EventKind;

/// A control group with a limit on memory; removed when dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// None where this machine does not let tests make one.
    fn new() -> Option<Self> {
        let name = format!("hone-test-{}", std::process::id());
        let (v1, v2) = (PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("/sys/fs/cgroup"));
        let root = if v1.join("memory.limit_in_bytes").exists() { v1 } else { v2 };
        let group = Self(root.join(name));
        fs::create_dir(&group.0).ok()?;
        // A new group is full of files; a plain directory is not one.
        group.0.join("cgroup.procs").exists().then_some(group)
    }

    fn limit(&self, bytes: u64) -> bool {
        let files = ["memory.limit_in_bytes", "memory.max"];
        let file = files.iter().map(|f| self.0.join(f)).find(|f| f.exists());
        file.is_some_and(|file| fs::write(file, bytes.to_string()).is_ok())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The dead processes of the group may still be on their way out.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[test]
fn row_6_a_trainer_out_of_memory_fails_with_its_peak_and_a_hint_and_is_not_tried_again() {
    let Some(group) = MemoryGroup::new() else {
        eprintln!("skipped: control groups cannot be made here");
        return;
    };
    let world = World::start(&[]);
    for seed in seeds() {
        assert!(group.limit(Dice::new(seed).next(7..11) << 20));
        world.trainer(&format!("echo $$ > {}/cgroup.procs", group.0.display()));
        let id = world.job("max_steps: 100000, per_device_train_batch_size: 64");
        let parts = ["killed the trainer for memory", "per_device_train_batch_size", "having used up to "];
        let view = world.assert_fails(&id, "TRAINER_OOM", &parts);
        assert_eq!(view["attempt"], 1, "seed {seed}: it must not be tried again blindly: {view:#}");
    }
}

/// A file system of `size` in memory over the scratch directory, which only the trainer sees.
fn small_disk(size: &str) -> String {
    format!(
        "mkdir -p \"$SCRATCH_DIR\"; export PROGRAM; exec unshare --map-root-user --mount sh -c 'mount -t tmpfs -o \
         size={size} tmpfs \"$SCRATCH_DIR\" && exec \"$PROGRAM\" \"$@\"' sh \"$@\""
    )
}

#[test]
fn row_19_a_full_disk_says_what_is_needed_and_keeps_the_last_checkpoint() {
    let world = World::start(&[]);
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        world.trainer(&small_disk(&format!("{}m", dice.next(8..60))));
        let id = world.job("max_steps: 100");
        let parts = ["not enough disk space for ", "need ", " have ", "SCRATCH_DIR"];
        let view = world.assert_fails(&id, "DISK_FULL", &parts);
        assert_eq!(view["attempt"], 1, "{view:#}");

        world.trainer(&small_disk("80m"));
        let id = world.job("max_steps: 1000000, save_steps: 20");
        let stored = || world.told(&id).iter().filter(|(_, k)| matches!(k, EventKind::Checkpoint { .. })).count();
        wait("a checkpoint", || stored() > 0);
        let trainer = world.hone.trainer_pid();
        // Its disk, seen through its process.
        let scratch = world.hone.data_dir().join("run/scratch");
        let inside = PathBuf::from(format!("/proc/{trainer}/root{}", scratch.canonicalize().unwrap().display()));
        fill(&inside.join("filler"));
        let parts = ["not enough disk space for the checkpoint of step ", " is kept)", "need ", " have "];
        let view = world.assert_fails(&id, "DISK_FULL", &parts);
        assert!(!alive(trainer.into()), "{view:#}");
        let listed = world.hone.with_api(async |api| {
            api.client.get::<serde_json::Value>(&format!("/training/jobs/{id}/checkpoints")).await.unwrap()
        });
        assert!(listed.to_string().contains("checkpoint-"), "seed {seed}: the last checkpoint is kept: {listed:#}");
    }
}

/// Writes until there is no room.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[test]
fn row_20_a_spool_that_cannot_be_written_is_told_and_loses_nothing() {
    let world = World::start(&[]);
    for seed in seeds() {
        let options = if seed % 2 == 0 { "ro".to_owned() } else { format!("size={}k", Dice::new(seed).next(4..64)) };
        let mount = "mount -t tmpfs -o \"$1\" tmpfs \"$2\" && shift 2 && exec \"$PROGRAM\" \"$@\"";
        world.trainer(&format!(
            "SPOOL=\"$SCRATCH_DIR/jobs/$JOB_ID/attempt-$ATTEMPT/spool\"; mkdir -p \"$SPOOL\"; export PROGRAM\n\
             exec unshare --map-root-user --mount sh -c '{mount}' sh '{options}' \"$SPOOL\" \"$@\""
        ));
        let id = world.job("max_steps: 300");
        world.hone.wait_for_end(&id);
        world.assert_told(&id, "the event spool cannot be written");
        world.assert_whole(&id, 300);
    }
}
