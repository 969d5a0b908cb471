//! Compares every kernel and twenty training steps on a GPU with the CPU: what to run first on a machine with a GPU.
//!
//! ```text
//! gpu_check [--device cuda:0] [--portable]
//! ```
//! Prints a line per comparison and fails when one is too far off. `--portable` stays on the CPU and compares the
//! portable forms of the kernels, which shows that the comparison itself works on a machine without a GPU.

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Result, Tensor, Var};
use dataset::Sequence;
use kernels::{AttentionShape, IGNORE, RopeTable, Segments};
use std::{fmt::Write as _, io::Write as _};
use trainer::engine::{
    DeviceChoice, Place,
    data::{Batch, Corpus},
    dropout::Dropout,
    lora,
    model::{self, BuildOptions},
    optim::{self, AdamW, AdamWConfig},
    params::Gradients,
    rng::Key,
    step::{self, StepOptions},
};
use wire::config::{BaseDtype, LoraConfig, Optim};

/// Largest difference, relative to the largest value of the tensor compared.
const TOLERANCE_F32: f64 = 1e-4;
const TOLERANCE_BF16: f64 = 4e-2;
/// Of losses, relative.
const LOSS_F32: f64 = 1e-3;
const LOSS_BF16: f64 = 5e-2;

const STEPS: u64 = 20;
const VOCAB: usize = 512;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 128,
"intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
"vocab_size": 512, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "initializer_range": 0.05}"#;

/// Where and how one side of a comparison runs.
#[derive(Clone, Copy)]
struct Side {
    place: Place,
    dtype: DType,
    portable: bool,
}

impl Side {
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        if self.portable { kernels::with_portable(f) } else { f() }
    }
}

fn main() -> anyhow::Result<()> {
    let portable = std::env::args().any(|a| a == "--portable");
    let device = std::env::args().skip_while(|a| a != "--device").nth(1).unwrap_or_else(|| "cuda".into());
    let choice: DeviceChoice = if portable { "cpu" } else { &device }.parse().map_err(anyhow::Error::msg)?;
    let place = choice.place()?;
    let mut report = format!("cpu against {}{}\n", place.describe(), if portable { ", portable forms" } else { "" });
    let cpu = Side { place: Place::Cpu, dtype: DType::F32, portable: false };
    let exact = cpu.run(|| ops(cpu))?;
    let mut worst = Vec::new();
    for (dtype, tolerance) in [(DType::F32, TOLERANCE_F32), (DType::BF16, TOLERANCE_BF16)] {
        let side = Side { place, dtype, portable };
        for ((name, want), (_, got)) in exact.iter().zip(side.run(|| ops(side))?) {
            let off = want.iter().zip(&got).map(|(want, got)| difference(want, got)).collect::<Result<Vec<_>>>()?;
            let off = worst_of(off);
            writeln!(report, "{name:<28} {dtype:?} {off:.1e}")?;
            if off.is_nan() || off > tolerance {
                worst.push(format!("{name} in {dtype:?}: {off:.1e}"));
            }
        }
    }
    let want = cpu.run(|| losses(cpu))?;
    for (dtype, tolerance) in [(DType::F32, LOSS_F32), (DType::BF16, LOSS_BF16)] {
        // The CPU trains in f32 only.
        if portable && dtype == DType::BF16 {
            continue;
        }
        let side = Side { place, dtype, portable };
        let got = side.run(|| losses(side))?;
        let off = worst_of(want.iter().zip(&got).map(|(a, b)| (a / b - 1.0).abs()));
        writeln!(report, "{STEPS} training steps            {dtype:?} {off:.1e}, losses {want:.3?} and {got:.3?}")?;
        if off.is_nan() || off > tolerance {
            worst.push(format!("training in {dtype:?}: {off:.1e}"));
        }
    }
    std::io::stdout().write_all(report.as_bytes())?;
    ensure!(worst.is_empty(), "too far off: {}", worst.join("; "));
    Ok(())
}

/// Largest difference over the largest expected value; NaN where either holds one.
fn difference(want: &Tensor, got: &Tensor) -> Result<f64> {
    let flat = |t: &Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
    let (want, got) = (flat(want)?, flat(got)?);
    let largest = want.iter().fold(1e-3_f32, |m, x| m.max(x.abs()));
    let off = worst_of(want.iter().zip(&got).map(|(a, b)| f64::from((a - b).abs())));
    Ok(if want.len() == got.len() { off / f64::from(largest) } else { f64::NAN })
}

/// The largest value; NaN where there is one.
fn worst_of(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}

/// Standard normal numbers.
#[expect(clippy::as_conversions, reason = "test data in f32")]
fn noise(name: &str, len: usize) -> Vec<f32> {
    let key = Key::new(1, name);
    (0..).take(len).map(|i| key.normal(i) as f32).collect()
}

/// Value and gradients of the variables, by the tape.
fn run(vars: &[&Var], op: &dyn Fn() -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let (y, tape) = kernels::record(op);
    let y = y?;
    let probe = Tensor::from_vec(noise("probe", y.elem_count()), y.shape(), y.device())?.to_dtype(y.dtype())?;
    let gradients = tape.backward(&y, probe)?;
    let of =
        |v: &&Var| gradients.get(v).cloned().context("a variable got no gradient").map_err(candle_core::Error::wrap);
    std::iter::once(Ok(y)).chain(vars.iter().map(of)).collect()
}

/// Every op on this side: its name, value and gradients.
fn ops(side: Side) -> anyhow::Result<Vec<(&'static str, Vec<Tensor>)>> {
    let device = side.place.device()?;
    // Rounded on every side alike, so that only the computation differs.
    let tensor = |name: &str, dims: &[usize], dtype: DType| {
        let t = Tensor::from_vec(noise(name, dims.iter().product()), dims, &Device::Cpu)?;
        t.to_dtype(DType::BF16)?.to_dtype(dtype)?.to_device(&device)
    };
    let var = |name: &str, dims: &[usize]| Var::from_tensor(&tensor(name, dims, side.dtype)?);
    let master = |name: &str, dims: &[usize]| Var::from_tensor(&tensor(name, dims, DType::F32)?);
    let (n, c) = (300, 256);
    let (x, y) = (var("x", &[n, c])?, var("y", &[n, c])?);
    let (k, v) = (var("k", &[n, c / 4])?, var("v", &[n, c / 4])?);
    let (a, b) = (master("a", &[16, c])?, master("b", &[192, 16])?);
    let (norm, bias) = (master("norm", &[c])?, master("bias", &[c])?);
    // The head is small, so that logits are of the size of real ones.
    let (w, square, head) = (
        tensor("w", &[192, c], side.dtype)?,
        master("square", &[c, c])?,
        (tensor("head", &[1000, c], side.dtype)? * 0.0625)?,
    );
    let segments = Segments::from_lengths(&[7, 200, 93])?;
    let positions = segments.positions();
    let table = RopeTable::new(10_000.0, 32, 256)?;
    let plain = AttentionShape::causal(8, 2, 32, segments);
    let sliding = AttentionShape { window: Some(50), soft_cap: Some(5.0), ..plain.clone() };
    let whole = AttentionShape { causal: false, ..plain.clone() };
    let targets: Vec<u32> = (0..300).map(|i| if i % 3 == 1 { IGNORE } else { i * 3 }).collect();
    let small: Vec<u32> = targets.iter().map(|t| if *t < 256 { *t } else { IGNORE }).collect();
    let norms = kernels::merged_row_norms(&w, &a, &b, 0.5)?;
    let dropout = Dropout { probability: 0.1, key: Key::new(2, "dropout") };
    let qkv: [&Var; 3] = [&x, &k, &v];
    Ok(vec![
        ("add", run(&[&x, &y], &|| kernels::add(&x, &y))?),
        ("add_bias", run(&[&x, &bias], &|| kernels::add_bias(&x, &bias))?),
        ("linear", run(&[&x], &|| kernels::linear(&x, &w))?),
        ("linear_trainable", run(&[&x, &square], &|| kernels::linear_trainable(&x, &square))?),
        ("lora_linear", run(&[&x, &a, &b], &|| kernels::lora_linear(&x, &w, &a, &b, 0.5))?),
        ("merged_row_norms", vec![norms]),
        ("rms_norm", run(&[&x], &|| kernels::rms_norm(&x, &norm, 1e-5))?),
        ("rms_norm_trainable", run(&[&x, &norm], &|| kernels::rms_norm_trainable(&x, &norm, 1e-5))?),
        ("layer_norm", run(&[&x, &norm, &bias], &|| kernels::layer_norm(&x, &norm, &bias, 1e-5))?),
        ("swiglu", run(&[&x, &y], &|| kernels::swiglu(&x, &y))?),
        ("geglu", run(&[&x, &y], &|| kernels::geglu(&x, &y))?),
        ("gelu", run(&[&x], &|| kernels::gelu(&x))?),
        ("dropout", run(&[&x], &|| dropout.apply(&x, 1))?),
        ("rope", run(&[&x], &|| kernels::rope(&x, &table, &positions, 32))?),
        ("attention", run(&qkv, &|| kernels::attention(&x, &k, &v, &plain))?),
        ("attention, window and cap", run(&qkv, &|| kernels::attention(&x, &k, &v, &sliding))?),
        ("attention, not causal", run(&qkv, &|| kernels::attention(&x, &k, &v, &whole))?),
        ("linear_cross_entropy", run(&[&x], &|| kernels::linear_cross_entropy(&x, &head, &targets, 200.0, None))?),
        (
            "… trainable, capped",
            run(&[&x, &square], &|| kernels::linear_cross_entropy_trainable(&x, &square, &small, 60.0, Some(20.0)))?,
        ),
        ("linear_log_probs", run(&[&x], &|| kernels::linear_log_probs(&x, &head, &targets, None))?),
    ])
}

/// Rows of random tokens.
fn batches() -> anyhow::Result<Vec<Batch>> {
    let mut corpus = Corpus::default();
    for (i, n) in (0..).zip([120, 300, 70, 250, 400, 90]) {
        let key = Key::new(9, "rows").at(i);
        let tokens: std::result::Result<Vec<u32>, _> = (0..n).map(|j| u32::try_from(key.bits(j) % 512)).collect();
        let trained = (0..n).map(|j| j % 3 != 0).collect();
        corpus.push(&Sequence { tokens: tokens?, trained, cut: 0 }, VOCAB)?;
    }
    [[0, 1], [2, 3], [4, 5]].iter().map(|rows| Ok(corpus.batch(rows)?)).collect()
}

/// The losses of twenty LoRA steps from random weights.
fn losses(side: Side) -> anyhow::Result<Vec<f64>> {
    let dir = std::env::temp_dir().join(format!("hone-gpu-check-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("config.json"), CONFIG)?;
    let options = BuildOptions {
        train_weights: false,
        random: Some(5),
        max_positions: 512,
        base_dtype: if side.dtype == DType::F32 { BaseDtype::F32 } else { BaseDtype::Auto },
        place: side.place,
        classes: None,
    };
    let loaded = model::load(&dir, options);
    std::fs::remove_dir_all(&dir)?;
    let mut model = loaded?;
    lora::attach(model.as_mut(), &LoraConfig { r: 8, ..LoraConfig::default() }, 3)?;
    let config = AdamWConfig { optim: Optim::AdamwTorch, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    let mut optimizer = AdamW::new(config);
    let batches = batches()?;
    let mut losses = Vec::new();
    for (index, batch) in (0..STEPS).zip(batches.iter().cycle()) {
        let dropout = Some(Dropout { probability: 0.05, key: Key::new(1, "dropout").at(index) });
        let denominator = f64::from(u32::try_from(batch.target_count())?);
        let mut grads = Gradients::default();
        let options = StepOptions { denominator, dropout, recompute: index % 2 == 1 };
        losses.push(step::forward_backward(model.as_ref(), batch, options, &mut grads)?);
        ensure!(grads.missing(model.params()).is_empty(), "a trainable tensor got no gradient");
        let norm = optim::global_norm(&grads)?;
        optimizer.step(model.params(), &grads, optim::clip_factor(norm, 1.0), 3e-3)?;
    }
    Ok(losses)
}
