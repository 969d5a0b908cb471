//! Sequence classification against Transformers and PEFT: the same tiny BERT, texts and starting adapter must give
//! the same logits, and the same loss, learning rate and gradient norm in every step. The fixtures are made by
//! `scripts/ref_bert.py` (versions there).

use crate::support::{Memory, compare, model_dir};
use candle_core::{Device, Tensor, safetensors::load};
use dataset::{DatasetFormat, Encoder, LossOn, Row, Rows};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use trainer::engine::{
    Control, Outcome, Setup, TrainError,
    classify::{Classes, Tally},
    data::{Batch, Corpus},
    files::{Tensors, write_tensors},
    lora,
    merge::{MergedDtype, merge},
    model::{self, BuildOptions, CausalLm},
    step, train,
};
use wire::{
    config::{BaseDtype, Method, TrainingConfig, Tuning},
    event::metric,
};

/// Logits are about 1, losses too.
const TOLERANCE: f64 = 1e-4;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_bert").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

fn setup(dir: &Path, tuning: Tuning, reference: &Value) -> Setup {
    let mut config = TrainingConfig {
        model: "ref".into(),
        dataset: "ref".into(),
        method: Method::Classification,
        training: serde_json::from_value(reference["settings"].clone()).unwrap(),
        ..TrainingConfig::default()
    };
    config.classification.tuning = tuning;
    config.training.shuffle = false;
    config.training.val_set_size = 0.0;
    config.training.max_seq_length = 32;
    if let Some(lora) = reference.get("lora") {
        config.lora = serde_json::from_value(lora.clone()).unwrap();
    }
    Setup {
        config,
        model_dir: fixture("model"),
        model_name: "ref".into(),
        model_revision: "1".into(),
        format: DatasetFormat::LabelledJsonl,
        train: fixture("train.jsonl"),
        validation: None,
        adapter: (tuning == Tuning::Lora).then(|| fixture("adapter-initial")),
        work_dir: dir.to_owned(),
        resume: None,
        threads: 2,
        place: trainer::engine::Place::Cpu,
    }
}

fn bert(dir: &Path, adapter: Option<&Path>) -> Box<dyn CausalLm> {
    bert_in(BaseDtype::Auto, dir, adapter)
}

fn bert_in(base_dtype: BaseDtype, dir: &Path, adapter: Option<&Path>) -> Box<dyn CausalLm> {
    let options = BuildOptions {
        train_weights: false,
        random: None,
        max_positions: 32,
        base_dtype,
        place: trainer::engine::Place::Cpu,
        classes: Some(3),
    };
    let mut model = model::load(dir, options).unwrap();
    if let Some(adapter) = adapter {
        lora::load(model.as_mut(), adapter).unwrap();
    }
    model
}

/// Logits of every text of the dataset, `(rows, classes)`.
fn logits(model: &dyn CausalLm) -> Tensor {
    let encoder = Encoder::load(&fixture("model"), 32).unwrap();
    let rows = Rows::new(fs::File::open(fixture("train.jsonl")).unwrap(), DatasetFormat::LabelledJsonl);
    let of_row = |row: Row| {
        let sequence = encoder.encode_row(&row, LossOn::Assistant).unwrap().remove(0);
        let batch = Batch::of(sequence.tokens).unwrap();
        let first = step::hidden(model, &batch, &batch.pass()).unwrap().narrow(0, 0, 1).unwrap();
        model.logits(&first).unwrap()
    };
    Tensor::cat(&rows.map(|row| of_row(row.unwrap())).collect::<Vec<_>>(), 0).unwrap()
}

fn difference(name: &str, ours: &Tensor, theirs: &Tensor) -> f64 {
    let worst = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    println!("{name}: largest difference {worst:.2e}");
    f64::from(worst)
}

fn run(setup: &Setup, memory: &mut Memory) -> PathBuf {
    match train(setup, memory).unwrap() {
        Outcome::Finished { artifacts, .. } => artifacts,
        other => panic!("{other:?}"),
    }
}

#[test]
fn logits_equal_those_of_transformers_and_peft() {
    let theirs = load(fixture("logits.safetensors"), &Device::Cpu).unwrap();
    for (name, adapter) in [("base", None), ("adapter", Some("adapter-initial")), ("final", Some("adapter-final"))] {
        let model = bert(&fixture("model"), adapter.map(fixture).as_deref());
        assert!(difference(name, &logits(model.as_ref()), &theirs[name]) <= TOLERANCE);
    }
    // Rounded to 16 bits the weights are others, but not much.
    let rounded = bert_in(BaseDtype::Bf16, &fixture("model"), Some(&fixture("adapter-initial")));
    let off = difference("adapter on bf16", &logits(rounded.as_ref()), &theirs["adapter"]);
    assert!(off > TOLERANCE && off < 0.1);
}

#[test]
fn twenty_steps_equal_those_of_transformers_and_peft() {
    let theirs = load(fixture("logits.safetensors"), &Device::Cpu).unwrap();
    for (name, tuning) in [("lora", Tuning::Lora), ("full", Tuning::Full)] {
        let reference = json(&format!("{name}.json"));
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::default();
        let artifacts = run(&setup(dir.path(), tuning, &reference), &mut memory);
        for (ours, key) in
            [(metric::TRAIN_LOSS, "loss"), (metric::LEARNING_RATE, "learning_rate"), (metric::GRAD_NORM, "grad_norm")]
        {
            compare(&format!("{name}: {ours}"), &memory.metric(ours), &reference["steps"], key, TOLERANCE);
        }
        if tuning == Tuning::Lora {
            let config: Value =
                serde_json::from_slice(&fs::read(artifacts.join("adapter_config.json")).unwrap()).unwrap();
            assert_eq!(config["task_type"], "SEQ_CLS");
            assert_eq!(config["modules_to_save"], serde_json::json!(["classifier", "score"]));
            let trained = logits(bert(&fixture("model"), Some(&artifacts)).as_ref());
            assert!(difference("trained adapter's logits", &trained, &theirs["final"]) <= TOLERANCE);
            let merged = dir.path().join("merged");
            merge(&fixture("model"), &artifacts, &merged, MergedDtype::F32).unwrap();
            let of_merged = logits(bert(&merged, None).as_ref());
            assert!(difference("merged model's logits", &of_merged, &trained) <= TOLERANCE);

            // For `scripts/ref_peft_load_classifier.py`.
            let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("classifier");
            fs::create_dir_all(&out).unwrap();
            for file in fs::read_dir(&artifacts).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), out.join(file.file_name())).unwrap();
            }
            write_tensors(&out.join("logits.safetensors"), Tensors::from([("logits".to_owned(), trained)])).unwrap();
        } else {
            let trained = load(artifacts.join("model.safetensors"), &Device::Cpu).unwrap();
            let base = load(fixture("model/model.safetensors"), &Device::Cpu).unwrap();
            assert_eq!(trained.len(), base.len());
            for (name, before) in &base {
                let moved = (before - &trained[name]).unwrap().abs().unwrap().max_all().unwrap();
                assert!(moved.to_scalar::<f32>().unwrap() > 0.0, "{name} was not trained");
            }
        }
    }
}

#[test]
fn a_base_model_learns_to_tell_classes_apart_and_goes_on_after_a_pause() {
    let work = tempfile::tempdir().unwrap();
    // A masked language model: no classifier, another head.
    let base = work.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("model").join(file), base.join(file)).unwrap();
    }
    let mut config = json("model/config.json");
    config["architectures"] = serde_json::json!(["BertForMaskedLM"]);
    config.as_object_mut().unwrap().remove("id2label");
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let mut weights = load(fixture("model/model.safetensors"), &Device::Cpu).unwrap();
    weights.retain(|name, _| !name.starts_with("classifier."));
    weights.insert("cls.predictions.bias".into(), Tensor::zeros(23, candle_core::DType::F32, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&weights, base.join("model.safetensors")).unwrap();

    let reference = json("lora.json");
    for tuning in [Tuning::Lora, Tuning::Full] {
        let make = |name: &str, resume: Option<PathBuf>| {
            let mut setup = setup(&work.path().join(format!("{name}{tuning:?}")), tuning, &reference);
            setup.config.training.max_steps = 80;
            setup.config.training.eval_steps = 40;
            setup.config.training.val_set_size = 0.25;
            setup.config.training.learning_rate = 5e-3;
            setup.config.training.shuffle = true;
            Setup { adapter: None, model_dir: base.clone(), resume, ..setup }
        };
        let mut memory = Memory::default();
        let artifacts = run(&make("whole", None), &mut memory);
        let accuracy = memory.metric(metric::EVAL_ACCURACY);
        let f1 = memory.metric(metric::EVAL_F1);
        assert_eq!(accuracy.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 40, 80]);
        assert!(accuracy[2].1 > accuracy[0].1 && accuracy[2].1 >= 0.6, "{accuracy:?}");
        assert!(f1[2].1 > f1[0].1, "{f1:?}");

        let stopped = train(&make("parts", None), &mut Memory::stopping(33, Control::Pause)).unwrap();
        let Outcome::Stopped { checkpoint, .. } = stopped else { panic!("{stopped:?}") };
        let again = run(&make("parts", checkpoint), &mut Memory::default());
        if tuning == Tuning::Lora {
            // Merged, the masked language model is a classifier that knows the classes by name.
            let merged = work.path().join("merged");
            merge(&base, &artifacts, &merged, MergedDtype::Base).unwrap();
            let classes = Classes::of(&Setup { model_dir: merged.clone(), ..make("merged", None) }).unwrap().unwrap();
            assert_eq!(classes.names(), ["bad", "good", "so-so"]);
            let ours = logits(bert(&base, Some(&artifacts)).as_ref());
            assert!(difference("merged classifier", &logits(bert(&merged, None).as_ref()), &ours) <= TOLERANCE);
            let left = load(merged.join("model.safetensors"), &Device::Cpu).unwrap();
            assert!(!left.keys().any(|name| name.starts_with("cls.")), "the other head is gone");
        }
        let file = if tuning == Tuning::Lora { "adapter_model.safetensors" } else { "model.safetensors" };
        assert!(fs::read(artifacts.join(file)).unwrap() == fs::read(again.join(file)).unwrap(), "{file} differs");
        if tuning == Tuning::Full {
            let config: Value = serde_json::from_slice(&fs::read(artifacts.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["architectures"][0], "BertForSequenceClassification");
            assert_eq!(config["id2label"]["2"], "so-so");
            // The result is a classifier, which finds again what it was measured with.
            let classes = Classes::of(&Setup { model_dir: artifacts.clone(), ..make("again", None) }).unwrap().unwrap();
            let mut corpus = Corpus::of_classes(classes);
            let encoder = Encoder::load(&artifacts, 32).unwrap();
            let path = fixture("train.jsonl");
            let go_on = &mut || Ok::<(), TrainError>(());
            corpus.read(&path, DatasetFormat::LabelledJsonl, &encoder, LossOn::Assistant, 23, go_on).unwrap();
            let mut tally = Tally::default();
            let rows: Vec<usize> = (0..corpus.len()).collect();
            tally.add(bert(&artifacts, None).as_ref(), &corpus.batch(&rows).unwrap()).unwrap();
            assert!(tally.metrics(3)[metric::EVAL_ACCURACY] > 0.8);
        }
    }
}

#[test]
fn models_and_methods_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let reference = json("lora.json");
    let refusal = |setup: Setup| train(&setup, &mut Memory::default()).unwrap_err().message;
    let llama = Setup {
        model_dir: model_dir(dir.path(), serde_json::json!({})),
        ..setup(dir.path(), Tuning::Full, &reference)
    };
    assert!(refusal(llama).starts_with("method: `classification` needs an encoder"));
    let mut chat = setup(dir.path(), Tuning::Full, &reference);
    chat.config.method = Method::Sft;
    assert_eq!(refusal(chat), "the model is an encoder, which classifies texts: use `method: classification`");
}
