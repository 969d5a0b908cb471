//! Configurations as they are on the Hub: understood, and wanting the weights that Transformers wants. The fixture
//! is made by `scripts/ref_hub_configs.py` (versions there).

use serde_json::{Map, Value, json};
use std::{fs, io::Write, path::Path};
use trainer::engine::model::{self, BuildOptions};
use wire::config::BaseDtype;

/// A model directory with every tensor the fixture names, in a file that is a hole but for its header, and one more:
/// the check of names and shapes gets as far as that, and nothing is read.
fn write_hollow_model(dir: &Path, model: &Value) {
    let layers = model["layers"].as_u64().unwrap();
    let mut names: Vec<(String, Vec<u64>)> = vec![("one_too_many".into(), vec![1])];
    for (name, shape) in model["tensors"].as_object().unwrap() {
        let shape: Vec<u64> = serde_json::from_value(shape.clone()).unwrap();
        let copies = if name.contains("{i}") { layers } else { 1 };
        names.extend((0..copies).map(|i| (name.replace("{i}", &i.to_string()), shape.clone())));
    }
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in names {
        let bytes = 2 * shape.iter().product::<u64>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    assert_eq!(end, 2 * (model["weights"].as_u64().unwrap() + 1), "the fixture's tensors are its weights");
    let header = Value::Object(header).to_string();
    fs::write(dir.join("config.json"), model["config"].to_string()).unwrap();
    let mut file = fs::File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

#[test]
fn models_of_the_hub_want_the_weights_that_transformers_wants() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hub_configs.json");
    let models: Map<String, Value> = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    assert_eq!(models.len(), 12);
    for (name, model) in &models {
        let dir = tempfile::tempdir().unwrap();
        write_hollow_model(dir.path(), model);
        let options = BuildOptions {
            train_weights: false,
            random: None,
            base_dtype: BaseDtype::Auto,
            place: trainer::engine::Place::Cpu,
            max_positions: 128,
            classes: None,
        };
        let error = model::load(dir.path(), options).unwrap_err();
        assert_eq!(error.message, "the weights do not fit `config.json`: unexpected `one_too_many`", "{name}");
    }
}
