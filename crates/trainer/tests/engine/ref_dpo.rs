//! Our DPO against TRL's trainer: the same tiny Llama, pairs and starting adapter must give the same loss,
//! rewards and log-probabilities in every step. The fixtures are made by `scripts/ref_dpo.py` (versions there).

use crate::support::{Memory, compare};
use dataset::{DatasetFormat, Encoder, LossOn, Rows};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use trainer::engine::{Control, Outcome, Setup, train};
use wire::{
    config::{Method, TrainingConfig},
    event::metric,
};

/// Absolute; losses are about 1, rewards too, log-probabilities of answers up to 100, gradient norms up to 13.
const TOLERANCE: f64 = 1e-4;

fn fixtures(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures(path)).unwrap()).unwrap()
}

fn setup(dir: &Path, reference: &Value) -> Setup {
    let mut config = TrainingConfig {
        model: "ref".into(),
        dataset: "ref".into(),
        method: Method::Dpo,
        dpo: serde_json::from_value(reference["dpo"].clone()).unwrap(),
        lora: serde_json::from_value(reference["lora"].clone()).unwrap(),
        training: serde_json::from_value(reference["settings"].clone()).unwrap(),
        ..TrainingConfig::default()
    };
    config.training.shuffle = false;
    config.training.val_set_size = 0.0;
    config.training.max_seq_length = 128;
    Setup {
        config,
        model_dir: fixtures("ref_lora/model"),
        model_name: "ref".into(),
        model_revision: "1".into(),
        format: DatasetFormat::PreferenceJsonl,
        train: fixtures("ref_dpo/train.jsonl"),
        validation: None,
        adapter: Some(fixtures("ref_dpo/adapter-initial")),
        work_dir: dir.to_owned(),
        resume: None,
        threads: 2,
        place: trainer::engine::Place::Cpu,
    }
}

#[test]
fn every_loss_equals_trl_s_in_every_step() {
    for name in ["sigmoid", "robust", "ipo", "hinge"] {
        let reference = json(&format!("ref_dpo/{name}.json"));
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::default();
        let outcome = train(&setup(dir.path(), &reference), &mut memory).unwrap();
        assert!(matches!(outcome, Outcome::Finished { .. }));
        for (ours, theirs) in [
            (metric::TRAIN_LOSS, "loss"),
            (metric::REWARDS_CHOSEN, "rewards/chosen"),
            (metric::REWARDS_REJECTED, "rewards/rejected"),
            (metric::REWARDS_ACCURACIES, "rewards/accuracies"),
            (metric::REWARDS_MARGINS, "rewards/margins"),
            (metric::LOGPS_CHOSEN, "logps/chosen"),
            (metric::LOGPS_REJECTED, "logps/rejected"),
            (metric::LEARNING_RATE, "learning_rate"),
            (metric::GRAD_NORM, "grad_norm"),
        ] {
            compare(&format!("{name}: {ours}"), &memory.metric(ours), &reference["steps"], theirs, TOLERANCE);
        }
    }
}

#[test]
fn pairs_become_the_tokens_trl_makes_of_them() {
    let encoder = Encoder::load(&fixtures("ref_lora/model"), 128).unwrap();
    let file = fs::File::open(fixtures("ref_dpo/train.jsonl")).unwrap();
    let reference = json("ref_dpo/rows.json");
    let mut rows = 0;
    for (row, theirs) in Rows::new(file, DatasetFormat::PreferenceJsonl).zip(reference.as_array().unwrap()) {
        let [chosen, rejected] =
            <[_; 2]>::try_from(encoder.encode_row(&row.unwrap(), LossOn::Assistant).unwrap()).unwrap();
        let prompt = usize::try_from(theirs["prompt"].as_u64().unwrap()).unwrap();
        for (ours, key) in [(&chosen, "chosen"), (&rejected, "rejected")] {
            assert_eq!(serde_json::json!(ours.tokens), theirs[key]);
            assert!(ours.trained.iter().enumerate().all(|(i, trained)| *trained == (i >= prompt)));
        }
        rows += 1;
    }
    assert_eq!(rows, reference.as_array().unwrap().len());
}

#[test]
fn a_paused_run_goes_on_to_the_same_adapter() {
    let reference = json("ref_dpo/sigmoid.json");
    let run = |dir: &Path, resume: Option<PathBuf>, memory: &mut Memory| {
        let mut setup = Setup { resume, ..setup(dir, &reference) };
        setup.config.training.val_set_size = 0.2;
        setup.config.training.shuffle = true;
        setup.config.training.group_by_length = true;
        setup.config.lora.lora_dropout = 0.1;
        setup.config.training.eval_steps = 8;
        train(&setup, memory).unwrap()
    };
    let adapter = |outcome: Outcome| match outcome {
        Outcome::Finished { artifacts, .. } => fs::read(artifacts.join("adapter_model.safetensors")).unwrap(),
        other => panic!("{other:?}"),
    };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut memory = Memory::default();
    let uninterrupted = adapter(run(whole.path(), None, &mut memory));
    let margins = memory.metric("eval_rewards/margins");
    assert_eq!(margins.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 8, 16, 20]);
    assert!(margins[3].1 > margins[0].1, "held-out pairs are told apart better: {margins:?}");
    let stopped = run(parts.path(), None, &mut Memory::stopping(7, Control::Pause));
    let Outcome::Stopped { checkpoint, .. } = stopped else { panic!("{stopped:?}") };
    assert!(adapter(run(parts.path(), checkpoint, &mut Memory::default())) == uninterrupted);
}
