//! A tiny model with random weights, and rows to train it on.

use std::{fs, path::Path};

const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const FEED_FORWARD: usize = 64;
const VOCABULARY: usize = 4096;

/// Writes a Llama in Hugging Face layout, with the tokenizer of the repository's own base model. Returns `dir`.
pub fn model(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/hone-tiny");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(assets.join(name), dir.join(name)).unwrap();
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": HIDDEN / 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": VOCABULARY, "torch_dtype": "float32",
        "bos_token_id": 0, "eos_token_id": 0,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), weights()).unwrap();
    dir.display().to_string()
}

fn weights() -> Vec<u8> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: Vec<usize>| tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        add("self_attn.q_proj", vec![HIDDEN, HIDDEN]);
        add("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]);
        add("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]);
        add("self_attn.o_proj", vec![HIDDEN, HIDDEN]);
        add("mlp.gate_proj", vec![FEED_FORWARD, HIDDEN]);
        add("mlp.up_proj", vec![FEED_FORWARD, HIDDEN]);
        add("mlp.down_proj", vec![HIDDEN, FEED_FORWARD]);
        add("input_layernorm", vec![HIDDEN]);
        add("post_attention_layernorm", vec![HIDDEN]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));

    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    let mut random = 1_u64;
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            // Knuth's MMIX generator; norms are ones, everything else small.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = f32::from(u16::try_from(random >> 48).unwrap()) / 65_536.0 - 0.5;
            let value = if shape.len() == 1 { 1.0 } else { uniform * 0.1 };
            data.extend(value.to_le_bytes());
        }
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

/// Writes chat rows with something to learn. Returns `path`.
pub fn dataset(path: &Path, rows: usize) -> String {
    let row = |i: usize| {
        let (a, b) = (i % 10, i / 10 % 10);
        serde_json::json!({"messages": [
            {"role": "user", "content": format!("What follows {a} and {b} in the list of row {i}?")},
            {"role": "assistant", "content": format!("After {a} and {b} comes the answer, which is always the same.")},
        ]})
    };
    let text: Vec<String> = (0..rows).map(|i| row(i).to_string()).collect();
    fs::write(path, text.join("\n")).unwrap();
    path.display().to_string()
}
