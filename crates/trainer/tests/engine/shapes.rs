//! What other services know of the trainer without asking it: the table of architectures and the memory that shapes
//! tell. Both must be the trainer's own.

use crate::support::{config, model_dir};
use serde_json::json;
use std::path::{Path, PathBuf};
use trainer::engine::{
    Place, lora,
    model::{self, BuildOptions, CausalLm},
    optim::Moments,
    step,
    weights::WeightFiles,
};
use wire::{
    config::{BaseDtype, Method, Optim, TargetModules, Tuning},
    memory::{ModelShape, Need, PART_TOKENS, Rows, TensorShape},
    support::{ARCHITECTURES, Family},
};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn build(dir: &Path, classes: Option<usize>) -> Box<dyn CausalLm> {
    let base_dtype = BaseDtype::Auto;
    model::load(
        dir,
        BuildOptions { train_weights: false, random: None, max_positions: 16, base_dtype, classes, place: Place::Cpu },
    )
    .unwrap()
}

fn shape(dir: &Path) -> ModelShape {
    let files = WeightFiles::open_dir(dir).unwrap();
    let wide = |name: &str| files.shape(name).unwrap().iter().map(|n| *n as u64).collect::<Vec<u64>>();
    let all: Vec<(&str, Vec<u64>)> = files.names().map(|name| (name, wide(name))).collect();
    ModelShape::of(all.iter().map(|(name, shape)| TensorShape { name, shape, bits: 32 }))
}

#[test]
fn the_table_of_architectures_is_the_registry() {
    let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, model::architectures().collect::<Vec<_>>());
    assert_eq!(PART_TOKENS, step::PART_TOKENS as u64);
}

#[test]
fn every_architecture_is_of_the_family_the_table_says() {
    for (name, family) in ARCHITECTURES {
        // The check of what a model is for comes before its weights are looked at.
        let dir = tempfile::tempdir().unwrap();
        let model = model_dir(dir.path(), json!({}));
        let path = model.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["architectures"] = json!([name]);
        config["type_vocab_size"] = json!(2);
        config["hidden_act"] = json!("gelu");
        config["pad_token_id"] = json!(1);
        for (ours, theirs) in [
            ("dim", "hidden_size"),
            ("hidden_dim", "intermediate_size"),
            ("n_layers", "num_hidden_layers"),
            ("n_heads", "num_attention_heads"),
        ] {
            config[ours] = config[theirs].clone();
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let options = BuildOptions {
            train_weights: false,
            random: None,
            max_positions: 16,
            base_dtype: BaseDtype::Auto,
            classes: None,
            place: Place::Cpu,
        };
        let as_decoder = model::load(&model, options).map(|_| ()).map_err(|e| e.message).err().unwrap_or_default();
        let as_encoder = model::load(&model, BuildOptions { classes: Some(2), ..options }).unwrap_err().message;
        assert_eq!(as_decoder.contains("the model is an encoder"), *family == Family::Encoder, "{name}: {as_decoder}");
        assert_eq!(as_encoder.contains("needs an encoder"), *family == Family::Decoder, "{name}: {as_encoder}");
    }
}

#[test]
fn shapes_tell_what_is_trained_and_kept() {
    let names = ["llama2", "llama3", "llama-biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];
    let decoders = names.iter().map(|name| (fixture(&format!("ref_architectures/{name}")), None, "down_proj"));
    let encoders = [("bert", "query"), ("distilbert", "q_lin"), ("roberta", "query"), ("xlm-roberta", "query")];
    let encoders = encoders.iter().map(|(name, one)| (fixture(&format!("ref_encoders/{name}/model")), Some(3), *one));
    for (dir, classes, one) in decoders.chain(encoders) {
        let (shape, mut model) = (shape(&dir), build(&dir, classes));
        let dims = model.dims();
        let at = dir.display();
        assert_eq!((shape.hidden, shape.layers), (dims.hidden as u64, dims.layers as u64), "{at}");
        assert_eq!(shape.parameters, model.weights(), "{at}");
        let outputs: u64 = model.linears().iter().map(|l| l.shape().0 as u64).sum();
        assert_eq!(shape.projections.iter().map(|p| p.outputs * p.count).sum::<u64>(), outputs, "{at}");

        let mut config = config(if classes.is_some() { Method::Classification } else { Method::Sft });
        let head = model.params().elements();
        lora::attach(model.as_mut(), &config.lora, 1).unwrap();
        assert_eq!(shape.trainable(&config), model.params().elements() - head, "{at}");
        config.lora.target_modules = TargetModules::Names(vec![one.into()]);

        let mut model = build(&dir, classes);
        lora::attach(model.as_mut(), &config.lora, 1).unwrap();
        assert_eq!(shape.trainable(&config), model.params().elements() - head, "{at}");
        config.method = if classes.is_some() { Method::Classification } else { Method::Full };
        config.classification.tuning = Tuning::Full;
        assert_eq!(shape.trainable(&config), model.weights(), "{at}");
    }
}

#[test]
fn gradients_and_moments_are_counted_as_they_are_kept() {
    let shape = shape(&fixture("ref_lora/model"));
    let mut config = config(Method::Full);
    for (optim, slack) in [(Optim::AdamwTorch, 0), (Optim::Adamw8bit, 4)] {
        config.training.optim = optim;
        let rows = Rows { bytes: 1, count: 1, context: 8 };
        let need = Need::of(&shape, &config, rows).gradients_and_moments;
        let n = shape.parameters as usize;
        let kept = (4 * n + Moments::bytes(optim, n)) as u64;
        // Scales of blocks are left out.
        assert!(need <= kept && kept <= need + need * slack / 100, "{optim:?}: {need} {kept}");
    }
}
