//! `kill -9` of a real `hone-trainer run` at random moments, also while it writes a checkpoint: the run that is
//! resumed until it ends leaves the bytes of one that nobody touched.
//!
//! `HONE_KILLS` (20) is how often, `HONE_KILL_SEED` (1) picks the moments. `make test-resume` kills 100 times.

use crate::support::{chat_file, model_dir};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use trainer::engine::rng::Key;

const POLL: Duration = Duration::from_micros(200);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name} must be a number, not `{v}`")))
}

/// One run's inputs, and where they are.
struct Job {
    config: PathBuf,
    model: PathBuf,
    data: PathBuf,
}

impl Job {
    /// Everything whose state must survive is in it: dropout, accumulation, several epochs, evaluation.
    fn new(dir: &Path) -> Self {
        let config = dir.join("sft.json");
        let settings = json!({
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "use_dora": true},
            "training": {"max_steps": 10, "learning_rate": 1e-2, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2,
                "max_seq_length": 64, "eval_steps": 3, "save_steps": 1, "val_set_size": 0.2,
                "load_best_model_at_end": true},
        });
        fs::write(&config, settings.to_string()).unwrap();
        Self { config, model: model_dir(dir, json!({})), data: chat_file(dir, 20) }
    }

    fn start(&self, out: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hone-trainer"));
        command.arg("run").args([Path::new("--config"), &self.config]).args([Path::new("--model"), &self.model]);
        command.args([Path::new("--data"), &self.data]).args([Path::new("--out"), out]).arg("--resume");
        command.env_clear().env("HONE_THREADS", "1").stdin(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }
}

/// When to kill.
#[derive(Debug, Clone, Copy)]
enum Moment {
    After(Duration),
    /// At the `n`th look that finds a checkpoint being written.
    Writing(u64),
}

/// Waits for the moment, or for the end of the process; tells whether it came to an end by itself.
fn await_moment(child: &mut Child, out: &Path, moment: Moment) -> bool {
    let started = Instant::now();
    let checkpoints = out.join("work/checkpoints");
    let (mut seen, mut last) = (0, false);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the trainer failed: {status}");
            return true;
        }
        match moment {
            Moment::After(delay) if started.elapsed() >= delay => return false,
            Moment::After(_) => {}
            Moment::Writing(n) => {
                let now = writing(&checkpoints);
                seen += u64::from(now && !last);
                last = now;
                if seen >= n {
                    return false;
                }
            }
        }
        thread::sleep(POLL);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn writing(checkpoints: &Path) -> bool {
    names(checkpoints).iter().any(|n| n.starts_with(".partial-"))
}

fn digest(out: &Path) -> String {
    hex::encode(Sha256::digest(fs::read(out.join("adapter_model.safetensors")).unwrap()))
}

#[test]
fn a_run_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::new(dir.path());
    let whole = dir.path().join("whole");
    let started = Instant::now();
    assert!(job.start(&whole).wait().unwrap().success());
    let duration = started.elapsed();
    let want = digest(&whole);

    let (wanted, seed) = (number("HONE_KILLS", 20), number("HONE_KILL_SEED", 1));
    let key = Key::new(seed, "kills");
    let (mut kills, mut while_writing, mut runs) = (0, 0, 0);
    while kills < wanted {
        let out = dir.path().join(format!("out-{runs}"));
        runs += 1;
        loop {
            let draw = key.at(kills).at(runs);
            let moment = if draw.unit(0) < 0.4 {
                Moment::Writing(1 + draw.bits(1) % 3)
            } else {
                Moment::After(duration.mul_f64(draw.unit(1)))
            };
            let mut child = job.start(&out);
            if kills < wanted && !await_moment(&mut child, &out, moment) {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                while_writing += u64::from(writing(&out.join("work/checkpoints")));
                complete_or_absent(&out.join("work/checkpoints"));
                continue;
            }
            assert!(child.wait().unwrap().success());
            break;
        }
        assert_eq!(digest(&out), want, "seed {seed}, after {kills} kills");
    }
    println!(
        "{kills} kills in {runs} runs of {duration:.1?}, {while_writing} of them during the write of a checkpoint"
    );
    assert!(while_writing > 0 || wanted < 20, "no kill hit the write of a checkpoint");
}

/// A checkpoint under its final name has all its files, whenever the process died.
fn complete_or_absent(checkpoints: &Path) {
    for name in names(checkpoints).into_iter().filter(|n| !n.starts_with(".partial-")) {
        for file in ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"] {
            assert!(checkpoints.join(&name).join(file).is_file(), "{name} has no {file}");
        }
    }
}
