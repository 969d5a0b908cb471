//! Speed and memory of LoRA training steps, on the CPU unless told otherwise, on a case that `scripts/bench_peft.py prepare` wrote: the same
//! weights, adapter and rows as PyTorch's side. `make bench-trainer` runs both in turn.
//!
//! ```text
//! bench_step CASE_DIR [--device cuda] [--threads 2] [--steps 3] [--recompute] [--peak] [--started UNIX_SECONDS]
//! ```
//! Runs one warm-up step and then `--steps` more, one per batch and from the first batch again after the last. Prints
//! JSON: tokens per second (on the clock, and per second of processor time, which means more on a busy machine), the
//! loss of every step, the peak of resident memory and of the GPU's; with `--peak` the speed of a square matrix product, with
//! `--started` the time from then to the end of the first step.

use anyhow::Context;
use candle_core::{Device, Tensor};
use dataset::Sequence;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use trainer::engine::{
    DeviceChoice, Place,
    data::{Batch, Corpus},
    lora, memory,
    model::{self, BuildOptions, CausalLm},
    optim::{self, AdamW, AdamWConfig},
    params::Gradients,
    step::{self, StepOptions},
};
use wire::config::{BaseDtype, Optim};

#[global_allocator]
static ALLOCATOR: kernels::alloc::CachingAllocator = kernels::alloc::CachingAllocator::new(2 << 30);

/// Edge of the square matrices of `--peak`.
const EDGE: usize = 2048;

/// What `batches.json` holds.
#[derive(Deserialize)]
struct Case {
    vocab_size: usize,
    learning_rate: f64,
    batches: Vec<Vec<Row>>,
}

#[derive(Deserialize)]
struct Row {
    tokens: Vec<u32>,
    /// Which tokens carry loss, as 0 and 1.
    trained: Vec<u8>,
}

fn flag(name: &str) -> bool {
    std::env::args().any(|a| a == name)
}

fn option<T: std::str::FromStr>(name: &str) -> anyhow::Result<Option<T>> {
    let mut args = std::env::args().skip_while(|a| a != name);
    let (Some(_), Some(value)) = (args.next(), args.next()) else { return Ok(None) };
    Ok(Some(value.parse().ok().with_context(|| format!("{name} needs another value than `{value}`"))?))
}

fn main() -> anyhow::Result<()> {
    // As `hone-trainer` does.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let threads = option("--threads")?.unwrap_or(2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let report = pool.install(|| bench(threads))?;
    // Written, not printed, because standard output is denied to library code by lint.
    use std::io::Write;
    writeln!(std::io::stdout(), "{report}").context("cannot print")
}

fn bench(threads: usize) -> anyhow::Result<Value> {
    let dir = std::env::args().nth(1).context("name the directory of a case")?;
    let dir = Path::new(&dir);
    let case: Case = serde_json::from_slice(&fs::read(dir.join("batches.json"))?)?;
    let batches = batches(&case)?;
    let longest = case.batches.iter().flatten().map(|r| r.tokens.len()).max().unwrap_or(1);
    let place = option("--device")?.unwrap_or(DeviceChoice::Exactly(Place::Cpu)).place()?;
    let options = BuildOptions {
        train_weights: false,
        random: None,
        max_positions: longest,
        base_dtype: BaseDtype::Auto,
        place,
        classes: None,
    };
    let mut model = model::load(dir, options)?;
    lora::load(model.as_mut(), &dir.join("adapter"))?;
    let config = AdamWConfig { optim: Optim::AdamwTorch, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(config);

    let steps = option("--steps")?.unwrap_or(3_usize);
    let first = batches.first().context("the case has no batch")?;
    let mut losses = vec![one_step(model.as_ref(), first, &mut optimizer, case.learning_rate)?];
    let first_step = option::<f64>("--started")?.map(|t| Ok::<_, anyhow::Error>(unix_seconds()? - t)).transpose()?;
    place.wait()?;
    let (started, used, mut tokens) = (Instant::now(), cpu_seconds()?, 0.0);
    for batch in batches.iter().cycle().skip(usize::from(batches.len() > 1)).take(steps) {
        losses.push(one_step(model.as_ref(), batch, &mut optimizer, case.learning_rate)?);
        tokens += f64::from(u32::try_from(batch.tokens.len())?);
    }
    place.wait()?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds()? - used);
    let peak_mib = memory::resident().map(|(_, peak)| peak >> 20);
    Ok(json!({
        "threads": threads, "tokens_per_second": tokens / seconds, "tokens_per_cpu_second": tokens / cpu,
        "seconds": seconds, "cpu_seconds": cpu, "losses": losses, "peak_mib": peak_mib,
        "device_peak_mib": place.peak_memory().map(|peak| peak >> 20),
        "first_step_seconds": first_step, "peak_gflops": if flag("--peak") { Some(square_product()?) } else { None },
    }))
}

fn batches(case: &Case) -> anyhow::Result<Vec<Batch>> {
    let mut corpus = Corpus::default();
    let mut batches = Vec::new();
    for rows in &case.batches {
        let from = corpus.len();
        for row in rows {
            let trained = row.trained.iter().map(|t| *t == 1).collect();
            corpus.push(&Sequence { tokens: row.tokens.clone(), trained, cut: 0 }, case.vocab_size)?;
        }
        batches.push(corpus.batch(&(from..corpus.len()).collect::<Vec<_>>())?);
    }
    Ok(batches)
}

fn one_step(model: &dyn CausalLm, batch: &Batch, optimizer: &mut AdamW, rate: f64) -> anyhow::Result<f64> {
    let mut grads = Gradients::default();
    let denominator = f64::from(u32::try_from(batch.target_count())?);
    let options = StepOptions { denominator, dropout: None, recompute: flag("--recompute") };
    let loss = step::forward_backward(model, batch, options, &mut grads)?;
    let clip = optim::clip_factor(optim::global_norm(&grads)?, 1.0);
    optimizer.step(model.params(), &grads, clip, rate)?;
    Ok(loss)
}

/// GFLOP/s of a square product per second of processor time, the best of several: by the `gemm` crate (through candle)
/// and by our own kernels.
fn square_product() -> anyhow::Result<Value> {
    let random = || Tensor::randn(0_f32, 1.0, (EDGE, EDGE), &Device::Cpu);
    let (a, b) = (random()?, random()?);
    let flops = 2.0 * f64::from(u32::try_from(EDGE)?).powi(3);
    let best = |product: &dyn Fn() -> candle_core::Result<Tensor>| -> anyhow::Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..6 {
            let started = cpu_seconds()?;
            product()?;
            best = best.min(cpu_seconds()? - started);
        }
        Ok(flops / best / 1e9)
    };
    Ok(json!({ "gemm_crate": best(&|| a.matmul(&b))?, "own": best(&|| kernels::linear(&a, &b))? }))
}

/// Processor time of all threads so far.
fn cpu_seconds() -> anyhow::Result<f64> {
    use nix::sys::{resource, time::TimeValLike};
    let usage = resource::getrusage(resource::UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds().saturating_add(usage.system_time().num_microseconds());
    Ok(Duration::from_micros(u64::try_from(micros)?).as_secs_f64())
}

fn unix_seconds() -> anyhow::Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}
