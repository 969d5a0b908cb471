//! Numbers of the model itself: caching, packing and gradients.

use crate::support::{VOCAB, flat, model_dir};
use candle_core::Tensor;
use dataset::Sequence;
use serde_json::json;
use trainer::engine::{
    data::{Batch, Corpus},
    files::{Tensors, write_tensors},
    generate::Session,
    lora,
    model::{self, BuildOptions, CausalLm},
    params::Gradients,
    rng::Key,
    step::{self, StepOptions},
};
use wire::config::{BaseDtype, LoraConfig};

fn corpus(lengths: &[usize]) -> Corpus {
    let mut corpus = Corpus::default();
    for (i, n) in (0..).zip(lengths) {
        let key = Key::new(9, "rows").at(i);
        let tokens: Vec<u32> = (0..).take(*n).map(|j| u32::try_from(key.bits(j) % VOCAB as u64).unwrap()).collect();
        let trained = (0..*n).map(|j| j % 3 != 0).collect();
        corpus.push(&Sequence { tokens, trained, cut: 0 }, VOCAB).unwrap();
    }
    corpus
}

fn load(extra: serde_json::Value, train_weights: bool) -> Box<dyn CausalLm> {
    let dir = tempfile::tempdir().unwrap();
    let path = model_dir(dir.path(), extra);
    model::load(
        &path,
        BuildOptions {
            train_weights,
            random: None,
            max_positions: 64,
            base_dtype: BaseDtype::Auto,
            place: trainer::engine::Place::Cpu,
            classes: None,
        },
    )
    .unwrap()
}

/// A model with an adapter whose B is not zero.
fn adapted() -> Box<dyn CausalLm> {
    let mut model = load(json!({}), false);
    lora::attach(model.as_mut(), &LoraConfig { r: 4, ..LoraConfig::default() }, 3).unwrap();
    for (name, var) in model.params().iter() {
        if name.ends_with("lora_B.weight") {
            let key = Key::new(4, name);
            let values: Vec<f32> = (0..).take(var.elem_count()).map(|i| (key.normal(i) * 0.1) as f32).collect();
            var.set(&Tensor::from_vec(values, var.dims(), var.device()).unwrap()).unwrap();
        }
    }
    model
}

fn run(model: &dyn CausalLm, batch: &Batch, denominator: f64) -> (f64, Gradients) {
    let mut grads = Gradients::default();
    let options = StepOptions { denominator, dropout: None, recompute: false };
    let loss = step::forward_backward(model, batch, options, &mut grads).unwrap();
    (loss, grads)
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_through_the_cache_equal_those_without_it() {
    let model = adapted();
    let corpus = corpus(&[23]);
    let batch = corpus.batch(&[0]).unwrap();
    let whole = step::logits(model.as_ref(), &batch).unwrap();
    let mut session = Session::new(model.as_ref(), true, 23);
    let (prompt, rest) = batch.tokens.split_at(9);
    let mut got = session.feed(prompt).unwrap();
    for (position, token) in (8..).zip(rest.iter().map(Some).chain([None])) {
        let want = flat(&whole.get(position).unwrap());
        let worst = max_difference(&got, &want);
        assert!(worst < 2e-5, "position {position}: {worst:.2e}");
        if let Some(token) = token {
            got = session.feed(&[*token]).unwrap();
        }
    }
    assert!(session.feed(&[1]).is_err(), "the capacity is a bound");
}

#[test]
fn rows_laid_end_to_end_give_the_loss_and_gradients_of_separate_ones() {
    let model = adapted();
    let corpus = corpus(&[17, 5, 30]);
    let packed = corpus.batch(&[0, 1, 2]).unwrap();
    let n = packed.target_count() as f64;
    let (loss, grads) = run(model.as_ref(), &packed, n);
    let mut sum = Gradients::default();
    let mut separate = 0.0;
    for row in 0..3 {
        let options = StepOptions { denominator: n, dropout: None, recompute: false };
        separate += step::forward_backward(model.as_ref(), &corpus.batch(&[row]).unwrap(), options, &mut sum).unwrap();
    }
    assert!((loss - separate).abs() < 1e-6, "{loss} {separate}");
    for (name, grad) in grads.iter() {
        let worst = max_difference(&flat(grad), &flat(sum.get(name).unwrap()));
        assert!(worst < 1e-5, "{name}: {worst:.2e}");
    }
    let evaluated = step::total_loss(model.as_ref(), &packed).unwrap() / n;
    assert!((loss - evaluated).abs() < 1e-6, "{loss} {evaluated}");
}

#[test]
fn every_trainable_tensor_gets_a_gradient_and_no_other_does() {
    let batch = corpus(&[12, 20]).batch(&[0, 1]).unwrap();
    for model in [adapted(), load(json!({}), true), load(json!({"tie_word_embeddings": false}), true)] {
        let (_, grads) = run(model.as_ref(), &batch, 10.0);
        assert_eq!(grads.missing(model.params()), Vec::<&str>::new());
        assert_eq!(grads.iter().count(), model.params().len());
        assert!(grads.iter().all(|(_, g)| flat(g).iter().any(|v| *v != 0.0)));
    }
    let names: Vec<String> = adapted().params().iter().map(|(n, _)| n.to_owned()).collect();
    assert!(names.iter().all(|n| n.contains(".lora_")), "{names:?}");
}

/// Central differences through the whole model, blocks cut apart and put together again.
#[test]
fn gradients_equal_finite_differences() {
    let batch = corpus(&[12, 7]).batch(&[0, 1]).unwrap();
    let n = batch.target_count() as f64;
    let model = load(
        json!({"num_hidden_layers": 3, "head_dim": 6, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
        true,
    );
    let (_, grads) = run(model.as_ref(), &batch, n);
    for (name, var) in model.params().iter() {
        let values = flat(var);
        let grad = flat(grads.get(name).unwrap());
        // Along the gradient, where the difference is largest against rounding.
        let norm = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let loss_at = |t: f64| {
            let moved: Vec<f32> =
                values.iter().zip(&grad).map(|(v, g)| (f64::from(*v) + t * f64::from(*g) / norm) as f32).collect();
            var.set(&Tensor::from_vec(moved, var.dims(), var.device()).unwrap()).unwrap();
            step::total_loss(model.as_ref(), &batch).unwrap() / n
        };
        let h = 2e-3;
        let slope = (loss_at(h) - loss_at(-h)) / (2.0 * h);
        var.set(&Tensor::from_vec(values.clone(), var.dims(), var.device()).unwrap()).unwrap();
        assert!((slope - norm).abs() < 0.02 * norm + 1e-4, "{name}: slope {slope}, gradient norm {norm}");
    }
}

#[test]
fn shards_give_the_model_of_a_single_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = model_dir(dir.path(), json!({}));
    let options = BuildOptions {
        train_weights: false,
        random: None,
        max_positions: 64,
        base_dtype: BaseDtype::Auto,
        place: trainer::engine::Place::Cpu,
        classes: None,
    };
    let batch = corpus(&[9]).batch(&[0]).unwrap();
    let whole = step::logits(model::load(&path, options).unwrap().as_ref(), &batch).unwrap();
    let single = path.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&single, &candle_core::Device::Cpu).unwrap();
    std::fs::remove_file(single).unwrap();
    let shard = |name: &str| if name.contains("layers.0.") { "model-1.safetensors" } else { "model-2.safetensors" };
    for file in ["model-1.safetensors", "model-2.safetensors"] {
        let part: Tensors =
            tensors.iter().filter(|(n, _)| shard(n) == file).map(|(n, t)| (n.clone(), t.clone())).collect();
        write_tensors(&path.join(file), part).unwrap();
    }
    let map: serde_json::Map<String, serde_json::Value> =
        tensors.keys().map(|n| (n.clone(), shard(n).into())).collect();
    std::fs::write(path.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    let sharded = step::logits(model::load(&path, options).unwrap().as_ref(), &batch).unwrap();
    assert_eq!(flat(&whole), flat(&sharded));
}
