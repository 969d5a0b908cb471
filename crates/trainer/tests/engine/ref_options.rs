//! LoRA's options against PEFT: rank and alpha patterns, rsLoRA, DoRA. Every run starts from an adapter that PEFT
//! saved (`lora.init_from`). The fixtures are made by `scripts/ref_lora_options.py` (versions there).

use crate::{
    ref_lora::{compare_steps, fixture, max_difference, setup},
    support::{Memory, flat},
};
use candle_core::{DType, Device, Tensor, safetensors::load};
use serde_json::Value;
use std::{collections::HashMap, fs, path::PathBuf};
use trainer::engine::{
    Outcome,
    data::{Batch, Corpus},
    lora,
    merge::{MergedDtype, merge},
    model::{self, BuildOptions, CausalLm},
    params::Gradients,
    step::{self, StepOptions},
    train,
};
use wire::config::{BaseDtype, Method};

const OPTIONS: [&str; 3] = ["patterns", "rslora", "dora"];

fn option(name: &str) -> PathBuf {
    fixture("").with_file_name("ref_lora_options").join(name)
}

fn base(dir: &std::path::Path) -> Box<dyn CausalLm> {
    model::load(
        dir,
        BuildOptions {
            train_weights: false,
            random: None,
            max_positions: 128,
            base_dtype: BaseDtype::Auto,
            place: trainer::engine::Place::Cpu,
            classes: None,
        },
    )
    .unwrap()
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    load(option(name).join("tensors.safetensors"), &Device::Cpu).unwrap()
}

fn row(tensors: &HashMap<String, Tensor>) -> Batch {
    Batch::of(tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec1().unwrap()).unwrap()
}

#[test]
fn twenty_steps_with_every_option_equal_those_of_peft() {
    for name in OPTIONS {
        let dir = tempfile::tempdir().unwrap();
        let reference: Value = serde_json::from_slice(&fs::read(option(name).join("run.json")).unwrap()).unwrap();
        let mut run = setup(dir.path(), Method::Sft, &reference);
        run.adapter = Some(option(name));
        let mut memory = Memory::default();
        assert!(matches!(train(&run, &mut memory).unwrap(), Outcome::Finished { .. }));
        println!("{name}:");
        compare_steps(&memory, &reference);

        let tensors = tensors(name);
        let mut tuned = base(&fixture("model"));
        lora::load(tuned.as_mut(), &dir.path().join("artifacts")).unwrap();
        let worst = max_difference(&step::logits(tuned.as_ref(), &row(&tensors)).unwrap(), &tensors["trained"]);
        println!("{name}: logits of the trained adapter differ by {worst:.2e}");
        assert!(worst <= 1e-4, "{name}: {worst:.2e}");

        let config = |dir: PathBuf| -> Value {
            serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (config(dir.path().join("artifacts")), config(option(name)));
        for key in ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"] {
            let number = |v: &Value| v.as_object().map(|m| m.iter().map(|(k, v)| (k.clone(), v.as_f64())).collect());
            let map = |v: &Value| -> Option<HashMap<String, Option<f64>>> { number(v) };
            assert!(ours[key] == theirs[key] || map(&ours[key]) == map(&theirs[key]) && ours[key].is_object(), "{key}");
        }
    }
}

#[test]
fn gradients_with_every_option_point_where_those_of_peft_do() {
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(fixture("rows.json")).unwrap()).unwrap();
    let mut corpus = Corpus::default();
    for row in rows.iter().take(4) {
        let list = |key: &str| -> Vec<i64> { serde_json::from_value(row[key].clone()).unwrap() };
        let tokens: Vec<u32> = list("input_ids").iter().map(|t| u32::try_from(*t).unwrap()).collect();
        let trained = list("labels").iter().map(|l| *l >= 0).collect();
        corpus.push(&dataset::Sequence { tokens, trained, cut: 0 }, 1000).unwrap();
    }
    let batch = corpus.batch(&[0, 1, 2, 3]).unwrap();
    for name in OPTIONS {
        let theirs = tensors(name);
        let mut model = base(&fixture("model"));
        lora::load(model.as_mut(), &option(name)).unwrap();
        let mut grads = Gradients::default();
        let denominator = batch.target_count() as f64;
        let options = StepOptions { denominator, dropout: None, recompute: false };
        step::forward_backward(model.as_ref(), &batch, options, &mut grads).unwrap();
        assert_eq!(grads.missing(model.params()), Vec::<&str>::new());
        let mut worst = 1.0_f64;
        let mut count = 0;
        for (tensor, want) in theirs.iter().filter_map(|(n, t)| Some((n.strip_prefix("grad.base_model.model.")?, t))) {
            let (a, b) = (flat(grads.get(tensor).unwrap()), flat(want));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            worst = worst.min(dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt());
            count += 1;
        }
        println!("{name}: {count} gradients, smallest cosine {worst:.8}");
        assert_eq!(count, grads.iter().count());
        assert!(worst > 0.9999, "{name}: {worst}");
    }
}

#[test]
fn a_merged_model_equals_the_adapter_and_what_peft_merges() {
    for name in OPTIONS {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("merged");
        assert_eq!(merge(&fixture("model"), &option(name), &out, MergedDtype::Base).unwrap(), 14);
        let tensors = tensors(name);
        let batch = row(&tensors);
        let merged = step::logits(base(&out).as_ref(), &batch).unwrap();
        let mut adapted = base(&fixture("model"));
        lora::load(adapted.as_mut(), &option(name)).unwrap();
        let adapted = step::logits(adapted.as_ref(), &batch).unwrap();
        let worst = [&adapted, &tensors["logits"], &tensors["merged"]].map(|want| max_difference(&merged, want));
        println!("{name}: merged against our adapter, PEFT's adapter and PEFT's merged model: {worst:?}");
        assert!(worst.iter().all(|w| *w <= 1e-4), "{name}: {worst:?}");
        assert!(out.join("tokenizer.json").is_file() && out.join("config.json").is_file());
    }
}
