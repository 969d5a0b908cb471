//! Speed and memory of a LoRA step on the CPU: the shape of `scripts/bench_peft.py` (Llama, hidden size 512,
//! 8 layers, 32.8M parameters, LoRA r 16 on 7 projections, 4 sequences of 512 tokens, every token a target).
//!
//! ```text
//! cargo run --release -p trainer --example bench_step -- [--threads 2] [--steps 8] [--recompute]
//! ```
//! Prints the median and best step after one warm-up step, processor time per step, and the peak of resident
//! memory, as JSON.

use anyhow::Context;
use dataset::Sequence;
use serde_json::json;
use std::{
    fs,
    time::{Duration, Instant},
};
use trainer::engine::{
    data::{Batch, Corpus},
    lora, memory,
    model::{self, BuildOptions, CausalLm},
    optim::{self, AdamW, AdamWConfig},
    params::Gradients,
    rng::Key,
    step::{self, StepOptions},
};
use wire::config::{BaseDtype, LoraConfig, Optim};

#[global_allocator]
static ALLOCATOR: kernels::alloc::CachingAllocator = kernels::alloc::CachingAllocator::new(2 << 30);

const BATCH: usize = 4;
const LENGTH: usize = 512;
const VOCAB: u32 = 8192;

fn option(name: &str, default: usize) -> anyhow::Result<usize> {
    let mut args = std::env::args().skip_while(|a| a != name);
    match (args.next(), args.next()) {
        (Some(_), Some(value)) => value.parse().with_context(|| format!("{name} needs a number")),
        _ => Ok(default),
    }
}

fn main() -> anyhow::Result<()> {
    // As `hone-trainer` does.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let threads = option("--threads", 2)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let report = pool.install(|| bench(threads))?;
    // Written, not printed, because standard output is denied to library code by lint.
    use std::io::Write;
    writeln!(std::io::stdout(), "{report}").context("cannot print")
}

fn bench(threads: usize) -> anyhow::Result<serde_json::Value> {
    let steps = option("--steps", 8)?;
    let recompute = std::env::args().any(|a| a == "--recompute");
    let mut model = random_model()?;
    lora::attach(model.as_mut(), &LoraConfig::default(), 1)?;
    let mut corpus = Corpus::default();
    for row in 0..BATCH {
        let key = Key::new(1, "row").at(u64::try_from(row)?);
        let tokens =
            (0..).take(LENGTH).map(|i| u32::try_from(key.bits(i) % u64::from(VOCAB))).collect::<Result<_, _>>()?;
        corpus.push(&Sequence { tokens, trained: vec![true; LENGTH], cut: 0 }, usize::try_from(VOCAB)?)?;
    }
    let batch = corpus.batch(&[0, 1, 2, 3])?;
    let config = AdamWConfig { optim: Optim::AdamwTorch, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(config);
    let mut loss = one_step(model.as_ref(), &batch, &mut optimizer, recompute)?;
    let (mut seconds, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        let (started, used) = (Instant::now(), cpu_seconds()?);
        loss = one_step(model.as_ref(), &batch, &mut optimizer, recompute)?;
        seconds.push(started.elapsed().as_secs_f64());
        cpu.push(cpu_seconds()? - used);
    }
    seconds.sort_by(f64::total_cmp);
    cpu.sort_by(f64::total_cmp);
    let tokens = f64::from(u32::try_from(BATCH.saturating_mul(LENGTH))?);
    let median = seconds.get(seconds.len() / 2).copied().context("give at least one step")?;
    let best = seconds.first().copied().context("give at least one step")?;
    let peak = memory::resident().map(|(_, peak)| peak >> 20);
    Ok(json!({
        "threads": threads, "recompute": recompute, "parameters": model.weights(), "loss": loss,
        "tokens_per_second": (tokens / median).round(), "best_tokens_per_second": (tokens / best).round(),
        "step_seconds": median, "cpu_seconds": cpu.get(cpu.len() / 2), "peak_mib": peak,
    }))
}

/// Processor time of all threads so far; meaningful where other programs compete for the cores.
fn cpu_seconds() -> anyhow::Result<f64> {
    use nix::sys::{resource, time::TimeValLike};
    let usage = resource::getrusage(resource::UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds().saturating_add(usage.system_time().num_microseconds());
    Ok(Duration::from_micros(u64::try_from(micros)?).as_secs_f64())
}

fn random_model() -> anyhow::Result<Box<dyn CausalLm>> {
    let dir = std::env::temp_dir().join(format!("hone-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    let options =
        BuildOptions { train_weights: false, random: Some(1), max_positions: LENGTH, base_dtype: BaseDtype::Auto };
    let model = model::load(&dir, options);
    fs::remove_dir_all(&dir)?;
    Ok(model?)
}

fn one_step(model: &dyn CausalLm, batch: &Batch, optimizer: &mut AdamW, recompute: bool) -> anyhow::Result<f64> {
    let mut grads = Gradients::default();
    let denominator = f64::from(u32::try_from(batch.target_count())?);
    let options = StepOptions { denominator, dropout: None, recompute };
    let loss = step::forward_backward(model, batch, options, &mut grads)?;
    let clip = optim::clip_factor(optim::global_norm(&grads)?, 1.0);
    optimizer.step(model.params(), &grads, clip, 2e-4)?;
    Ok(loss)
}
