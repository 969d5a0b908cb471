//! `hone-trainer merge`: shards, element types, and what it refuses.

use crate::{ref_lora::fixture, support::model_dir};
use candle_core::{DType, Device, safetensors};
use serde_json::{Value, json};
use std::{collections::HashMap, fs, path::Path};
use trainer::engine::{
    files::{Tensors, write_tensors},
    merge::{MergedDtype, merge},
    weights::WeightFiles,
};

/// The fixture's base in bf16, in two shards.
fn sharded_bf16(dir: &Path) -> std::path::PathBuf {
    let model = dir.join("sharded");
    fs::create_dir(&model).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(fixture("model").join(file), model.join(file)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(fixture("model/config.json")).unwrap()).unwrap();
    config["dtype"] = json!("bfloat16");
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let whole = safetensors::load(fixture("model/model.safetensors"), &Device::Cpu).unwrap();
    let shard = |name: &str| format!("model-0000{}-of-00002.safetensors", 1 + usize::from(name.contains("layers.1")));
    let mut map = HashMap::new();
    for file in [shard(""), shard("layers.1")] {
        let part: Tensors = whole
            .iter()
            .filter(|(n, _)| shard(n) == file)
            .map(|(n, t)| (n.clone(), t.to_dtype(DType::BF16).unwrap()))
            .collect();
        map.extend(part.keys().map(|n| (n.clone(), file.clone())));
        write_tensors(&model.join(&file), part).unwrap();
    }
    fs::write(model.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    model
}

#[test]
fn shards_and_element_types_are_kept_or_widened() {
    let dir = tempfile::tempdir().unwrap();
    let model = sharded_bf16(dir.path());
    let index = |dir: &Path| -> Value {
        serde_json::from_slice(&fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap()
    };
    let dtype = |dir: &Path| -> Value {
        serde_json::from_slice::<Value>(&fs::read(dir.join("config.json")).unwrap()).unwrap()["dtype"].clone()
    };
    let (same, wide) = (dir.path().join("same"), dir.path().join("wide"));
    merge(&model, &fixture("adapter-final"), &same, MergedDtype::Base).unwrap();
    merge(&model, &fixture("adapter-final"), &wide, MergedDtype::F32).unwrap();
    assert_eq!((dtype(&same), dtype(&wide)), (json!("bfloat16"), json!("float32")));
    for out in [&same, &wide] {
        assert_eq!(index(out)["weight_map"], index(&model)["weight_map"]);
    }
    let (before, same, wide) = (&model, &same, &wide);
    let [before, same, wide] = [before, same, wide].map(|d| WeightFiles::open_dir(d).unwrap());
    for name in before.names() {
        assert_eq!(same.dtype(name), before.dtype(name));
        let [old, same, wide] = [&before, &same, &wide].map(|w| w.load(name).unwrap().0);
        let rounded: Vec<f32> = wide.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(same, rounded, "{name}: merged in f32, rounded once");
        assert_eq!(old != wide, name.ends_with("proj.weight"), "{name}");
    }
    assert_eq!(index(dir.path().join("wide").as_path())["metadata"]["total_size"], 4 * elements(&wide));
}

fn elements(weights: &WeightFiles) -> usize {
    weights.names().map(|n| weights.shape(n).unwrap().iter().product::<usize>()).sum()
}

#[test]
fn an_adapter_of_another_model_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_dir(dir.path(), json!({}));
    let out = dir.path().join("merged");
    let error = merge(&model, &fixture("adapter-final"), &out, MergedDtype::Base).unwrap_err();
    assert!(error.message.starts_with("the adapter does not fit this model: "), "{error}");
    assert!(!out.exists());
}
