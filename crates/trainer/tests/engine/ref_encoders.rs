//! Sequence classification against Transformers and PEFT: the same tiny encoders, texts and starting adapters must
//! give the same logits, and the same loss, learning rate and gradient norm in every step. The fixtures are made by
//! `scripts/ref_encoders.py` (versions there).

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

/// Folder of the fixtures, and what names its architectures begin with.
const ENCODERS: [(&str, &str); 4] =
    [("bert", "Bert"), ("distilbert", "DistilBert"), ("roberta", "Roberta"), ("xlm-roberta", "XLMRoberta")];

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ref_encoders").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

fn setup(encoder: &str, dir: &Path, tuning: Tuning, reference: &Value) -> Setup {
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
        model_dir: fixture(&format!("{encoder}/model")),
        model_name: "ref".into(),
        model_revision: "1".into(),
        format: DatasetFormat::LabelledJsonl,
        train: fixture("train.jsonl"),
        validation: None,
        adapter: (tuning == Tuning::Lora).then(|| fixture(&format!("{encoder}/adapter-initial"))),
        work_dir: dir.to_owned(),
        resume: None,
        threads: 2,
        place: trainer::engine::Place::Cpu,
    }
}

fn load_model(dir: &Path, adapter: Option<&Path>) -> Box<dyn CausalLm> {
    load_in(BaseDtype::Auto, dir, adapter)
}

fn load_in(base_dtype: BaseDtype, dir: &Path, adapter: Option<&Path>) -> Box<dyn CausalLm> {
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
fn logits(encoder: &str, model: &dyn CausalLm) -> Tensor {
    let encoder = Encoder::load(&fixture(&format!("{encoder}/model")), 32).unwrap();
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
    for (encoder, _) in ENCODERS {
        let at = |path: &str| fixture(&format!("{encoder}/{path}"));
        let theirs = load(at("logits.safetensors"), &Device::Cpu).unwrap();
        for (name, adapter) in [("base", None), ("adapter", Some("adapter-initial")), ("final", Some("adapter-final"))]
        {
            let model = load_model(&at("model"), adapter.map(at).as_deref());
            let ours = logits(encoder, model.as_ref());
            assert!(difference(&format!("{encoder}, {name}"), &ours, &theirs[name]) <= TOLERANCE);
        }
        // Rounded to 16 bits the weights are others, but not much.
        let rounded = load_in(BaseDtype::Bf16, &at("model"), Some(&at("adapter-initial")));
        let off = difference("adapter on bf16", &logits(encoder, rounded.as_ref()), &theirs["adapter"]);
        assert!(off > TOLERANCE && off < 0.1);
    }
}

#[test]
fn twenty_steps_equal_those_of_transformers_and_peft() {
    for (encoder, _) in ENCODERS {
        for (name, tuning) in [("lora", Tuning::Lora), ("full", Tuning::Full)] {
            let reference = json(&format!("{encoder}/{name}.json"));
            let dir = tempfile::tempdir().unwrap();
            let mut memory = Memory::default();
            let artifacts = run(&setup(encoder, dir.path(), tuning, &reference), &mut memory);
            let series = [
                (metric::TRAIN_LOSS, "loss"),
                (metric::LEARNING_RATE, "learning_rate"),
                (metric::GRAD_NORM, "grad_norm"),
            ];
            for (ours, key) in series {
                let what = format!("{encoder}, {name}: {ours}");
                compare(&what, &memory.metric(ours), &reference["steps"], key, TOLERANCE);
            }
            match tuning {
                Tuning::Lora => check_adapter(encoder, dir.path(), &artifacts),
                Tuning::Full => every_weight_moved(encoder, &artifacts),
            }
        }
    }
}

/// The trained adapter gives the logits of PEFT's, loaded and merged; it is left for
/// `scripts/ref_peft_load_classifier.py`.
fn check_adapter(encoder: &str, dir: &Path, artifacts: &Path) {
    let at = |path: &str| fixture(&format!("{encoder}/{path}"));
    let theirs = load(at("logits.safetensors"), &Device::Cpu).unwrap();
    let config =
        |dir: &Path| -> Value { serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap() };
    let (ours, peft) = (config(artifacts), config(&at("adapter-final")));
    assert_eq!(ours["task_type"], "SEQ_CLS");
    assert_eq!(ours["modules_to_save"], peft["modules_to_save"], "{encoder}");
    let trained = logits(encoder, load_model(&at("model"), Some(artifacts)).as_ref());
    let off = difference(&format!("{encoder}, trained adapter's logits"), &trained, &theirs["final"]);
    assert!(off <= TOLERANCE);
    let merged = dir.join("merged");
    merge(&at("model"), artifacts, &merged, MergedDtype::F32).unwrap();
    let of_merged = logits(encoder, load_model(&merged, None).as_ref());
    assert!(difference(&format!("{encoder}, merged model's logits"), &of_merged, &trained) <= TOLERANCE);

    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(encoder);
    fs::create_dir_all(&out).unwrap();
    for file in fs::read_dir(artifacts).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), out.join(file.file_name())).unwrap();
    }
    write_tensors(&out.join("logits.safetensors"), Tensors::from([("logits".to_owned(), trained)])).unwrap();
}

fn every_weight_moved(encoder: &str, artifacts: &Path) {
    let trained = load(artifacts.join("model.safetensors"), &Device::Cpu).unwrap();
    let base = load(fixture(&format!("{encoder}/model/model.safetensors")), &Device::Cpu).unwrap();
    assert_eq!(trained.len(), base.len());
    for (name, before) in &base {
        let moved = (before - &trained[name]).unwrap().abs().unwrap().max_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 0.0, "{encoder}: {name} was not trained");
    }
}

#[test]
fn a_base_model_learns_to_tell_classes_apart_and_goes_on_after_a_pause() {
    for (encoder, architecture) in ENCODERS {
        learn_and_go_on(encoder, architecture);
    }
}

/// Texts of the fixtures' words, enough of them to learn from: one word of each tells the class.
fn many_rows() -> String {
    const CLASSES: [(&str, [&str; 3]); 3] = [
        ("bad", ["awful", "dull", "poor"]),
        ("good", ["great", "fine", "lovely"]),
        ("so-so", ["average", "plain", "usual"]),
    ];
    const OTHER: [&str; 10] = ["the", "a", "film", "book", "was", "is", "really", "not", "very", "and"];
    let row = |i: usize| {
        let (label, words) = CLASSES[i % 3];
        let mut text: Vec<&str> = (0..1 + i % 7).map(|j| OTHER[(i * 7 + j * 3) % 10]).collect();
        text.insert(i % (text.len() + 1), words[i / 3 % 3]);
        format!("{}\n", serde_json::json!({"text": text.join(" "), "label": label}))
    };
    (0..160).map(row).collect()
}

fn learn_and_go_on(encoder: &str, architecture: &str) {
    let at = |path: &str| fixture(&format!("{encoder}/{path}"));
    let work = tempfile::tempdir().unwrap();
    // A masked language model: no classifier, another head.
    let base = work.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(at("model").join(file), base.join(file)).unwrap();
    }
    let mut config = json(&format!("{encoder}/model/config.json"));
    config["architectures"] = serde_json::json!([format!("{architecture}ForMaskedLM")]);
    config.as_object_mut().unwrap().remove("id2label");
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let mut weights = load(at("model/model.safetensors"), &Device::Cpu).unwrap();
    weights.retain(|name, _| !name.starts_with("classifier.") && !name.starts_with("pre_classifier."));
    let other_head = match encoder {
        "bert" => "cls.predictions.bias",
        "distilbert" => "vocab_projector.bias",
        _ => "lm_head.bias",
    };
    weights.insert(other_head.into(), Tensor::zeros(23, candle_core::DType::F32, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&weights, base.join("model.safetensors")).unwrap();

    let train_file = work.path().join("many.jsonl");
    fs::write(&train_file, many_rows()).unwrap();
    let reference = json(&format!("{encoder}/lora.json"));
    for tuning in [Tuning::Lora, Tuning::Full] {
        let make = |name: &str, resume: Option<PathBuf>| {
            let mut setup = setup(encoder, &work.path().join(format!("{name}{tuning:?}")), tuning, &reference);
            setup.config.training.max_steps = 300;
            setup.config.training.eval_steps = 150;
            setup.config.training.val_set_size = 0.25;
            setup.config.training.learning_rate = 1e-2;
            setup.config.training.shuffle = true;
            setup.config.training.max_grad_norm = 1.0;
            Setup { adapter: None, model_dir: base.clone(), train: train_file.clone(), resume, ..setup }
        };
        let mut memory = Memory::default();
        let artifacts = run(&make("whole", None), &mut memory);
        let accuracy = memory.metric(metric::EVAL_ACCURACY);
        let f1 = memory.metric(metric::EVAL_F1);
        println!("{encoder}, {tuning:?}: accuracy {accuracy:?}");
        assert_eq!(accuracy.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 150, 300]);
        assert!(accuracy[2].1 > accuracy[0].1 && accuracy[2].1 >= 0.7, "{encoder}: {accuracy:?}");
        assert!(f1[2].1 > f1[0].1, "{encoder}: {f1:?}");

        let stopped = train(&make("parts", None), &mut Memory::stopping(33, Control::Pause)).unwrap();
        let Outcome::Stopped { checkpoint, .. } = stopped else { panic!("{stopped:?}") };
        let again = run(&make("parts", checkpoint), &mut Memory::default());
        if tuning == Tuning::Lora {
            // Merged, the masked language model is a classifier that knows the classes by name.
            let merged = work.path().join("merged");
            merge(&base, &artifacts, &merged, MergedDtype::Base).unwrap();
            let classes = Classes::of(&Setup { model_dir: merged.clone(), ..make("merged", None) }).unwrap().unwrap();
            assert_eq!(classes.names(), ["bad", "good", "so-so"]);
            let ours = logits(encoder, load_model(&base, Some(&artifacts)).as_ref());
            assert!(
                difference("merged classifier", &logits(encoder, load_model(&merged, None).as_ref()), &ours)
                    <= TOLERANCE
            );
            let left = load(merged.join("model.safetensors"), &Device::Cpu).unwrap();
            assert!(!left.contains_key(other_head), "the other head is gone");
        }
        let file = if tuning == Tuning::Lora { "adapter_model.safetensors" } else { "model.safetensors" };
        assert!(fs::read(artifacts.join(file)).unwrap() == fs::read(again.join(file)).unwrap(), "{file} differs");
        if tuning == Tuning::Full {
            let config: Value = serde_json::from_slice(&fs::read(artifacts.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["architectures"][0], format!("{architecture}ForSequenceClassification"));
            assert_eq!(config["id2label"]["2"], "so-so");
            // The result is a classifier, which finds again what it was measured with.
            let classes = Classes::of(&Setup { model_dir: artifacts.clone(), ..make("again", None) }).unwrap().unwrap();
            let mut corpus = Corpus::of_classes(classes);
            let encoder = Encoder::load(&artifacts, 32).unwrap();
            let path = train_file.clone();
            let go_on = &mut || Ok::<(), TrainError>(());
            corpus.read(&path, DatasetFormat::LabelledJsonl, &encoder, LossOn::Assistant, 23, go_on).unwrap();
            let mut tally = Tally::default();
            let rows: Vec<usize> = (0..corpus.len()).collect();
            tally.add(load_model(&artifacts, None).as_ref(), &corpus.batch(&rows).unwrap()).unwrap();
            assert!(tally.metrics(3)[metric::EVAL_ACCURACY] > 0.8);
        }
    }
}

#[test]
fn models_and_methods_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let reference = json("bert/lora.json");
    let refusal = |setup: Setup| train(&setup, &mut Memory::default()).unwrap_err().message;
    let llama = Setup {
        model_dir: model_dir(dir.path(), serde_json::json!({})),
        ..setup("bert", dir.path(), Tuning::Full, &reference)
    };
    assert!(refusal(llama).starts_with("method: `classification` needs an encoder"));
    let mut chat = setup("bert", dir.path(), Tuning::Full, &reference);
    chat.config.method = Method::Sft;
    assert_eq!(refusal(chat), "the model is an encoder, which classifies texts: use `method: classification`");
}
