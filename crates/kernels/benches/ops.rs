//! Speed of every op, forward and backward, against the machine's own matrix product.
//!
//! `cargo bench -p kernels --bench ops [-- NAME]`. Shapes are those of a Llama with hidden size 512 trained
//! on 4 sequences of 512 tokens (`scripts/bench_peft.py` has the same). Each time is the best of several
//! runs; GFLOP/s count multiplications and additions of the textbook formulas, GB/s one read of every
//! input and one write of every output, so extra work inside an op shows as a lower figure.
//!
//! On a machine that is busy with other things, `RAYON_NUM_THREADS=1 cargo bench … -- --cpu` counts
//! processor time instead of time on the clock.
#![expect(
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench prints, and stops at the first error"
)]

use candle_core::{Device, Tensor, Var};
use kernels::{
    AttentionShape, RopeTable, Segments, attention, linear, linear_cross_entropy, linear_trainable, lora_linear,
    rms_norm, rope, swiglu,
};
use std::sync::LazyLock;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: kernels::alloc::CachingAllocator = kernels::alloc::CachingAllocator::new(2 << 30);

const SEQUENCES: usize = 4;
const LENGTH: usize = 512;
const N: usize = SEQUENCES * LENGTH;
const C: usize = 512;
const KV: usize = 256;
const F: usize = 1376;
const V: usize = 8192;
const R: usize = 16;

/// Seconds on the clock, or of processor time with `--cpu`.
fn now() -> f64 {
    static START: LazyLock<(Instant, bool)> =
        LazyLock::new(|| (Instant::now(), std::env::args().any(|a| a == "--cpu")));
    if !START.1 {
        return START.0.elapsed().as_secs_f64();
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds of the fastest of several runs.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (mut best, begin) = (f64::INFINITY, now());
    let mut runs = 0;
    while runs < 5 || (now() - begin < 0.4 && runs < 100) {
        let start = now();
        run();
        best = best.min(now() - start);
        runs += 1;
    }
    best
}

fn random(rows: usize, cols: usize) -> Var {
    Var::from_tensor(&Tensor::randn(0f32, 1.0, (rows, cols), &Device::Cpu).unwrap()).unwrap()
}

/// What an op's work is counted in.
enum Work {
    /// Floating point operations of the forward pass and of the backward pass.
    Flops(f64, f64),
    /// Floats moved by each.
    Floats(f64, f64),
}

struct Table {
    filter: Option<String>,
    /// GFLOP/s of a square product.
    peak: f64,
}

impl Table {
    fn line(&self, name: &str, shape: &str, seconds: f64, work: &str, of_peak: Option<f64>) {
        let of_peak = of_peak.map_or_else(String::new, |p| format!("{:5.1} %", 100.0 * p));
        println!("{name:34} {shape:26} {:9.2} ms  {work:>16}  {of_peak}", seconds * 1e3);
    }

    /// Times `op` alone and `op` with its backward pass; the difference is the backward pass.
    fn op(&self, name: &str, shape: &str, work: &Work, op: impl Fn() -> Tensor) {
        if self.filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
            return;
        }
        let forward = best(|| drop(op()));
        let y = op();
        let backward = best(|| drop(y.backward().unwrap()));
        for (pass, seconds, index) in [("forward", forward, 0), ("backward", backward, 1)] {
            let (work, of_peak) = match *work {
                Work::Flops(f, b) => {
                    let rate = [f, b][index] / seconds / 1e9;
                    (format!("{rate:.1} GFLOP/s"), Some(rate / self.peak))
                }
                Work::Floats(f, b) => (format!("{:.1} GB/s", 4.0 * [f, b][index] / seconds / 1e9), None),
            };
            self.line(&format!("{name} {pass}"), shape, seconds, &work, of_peak);
        }
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let flops = |m: usize, n: usize, k: usize| 2.0 * (m * n * k) as f64;
    let (a, b) = (random(2048, 2048).detach(), random(2048, 2048).detach());
    let square = best(|| drop(linear(&a, &b).unwrap()));
    let peak = flops(2048, 2048, 2048) / square / 1e9;
    let table = Table { filter, peak };
    println!("{} threads", rayon::current_num_threads());
    table.line("matrix product (the peak below)", "2048 x 2048 x 2048", square, &format!("{peak:.1} GFLOP/s"), None);

    for (out, k) in [(C, C), (KV, C), (F, C), (C, F)] {
        let (x, w) = (random(N, k), random(out, k));
        let shape = format!("({N}, {k}) -> {out}");
        let once = flops(N, out, k);
        table.op("linear", &shape, &Work::Flops(once, once), || linear(&x, &w).unwrap());
        let (a, b) = (random(R, k), random(out, R));
        let low = flops(N, R, k + out);
        let work = Work::Flops(once + low, once + 2.0 * low);
        table.op("lora_linear r16", &shape, &work, || lora_linear(&x, &w, &a, &b, 2.0).unwrap());
        table.op("linear_trainable", &shape, &Work::Flops(once, 2.0 * once), || linear_trainable(&x, &w).unwrap());
    }

    let nc = (N * C) as f64;
    let (x, w) = (random(N, C), random(1, C).flatten_all().unwrap().detach());
    let shape = format!("({N}, {C})");
    table.op("rms_norm", &shape, &Work::Floats(2.0 * nc, 3.0 * nc), || rms_norm(&x, &w, 1e-5).unwrap());
    let segments = Segments::from_lengths(&[LENGTH; SEQUENCES]).unwrap();
    let (rope_table, positions) = (RopeTable::new(10_000.0, 64, LENGTH).unwrap(), segments.positions());
    let work = Work::Floats(2.0 * nc, 2.0 * nc);
    table.op("rope", &shape, &work, || rope(&x, &rope_table, &positions, 64).unwrap());
    let (gate, up) = (random(N, F), random(N, F));
    let nf = (N * F) as f64;
    let work = Work::Floats(3.0 * nf, 5.0 * nf);
    table.op("swiglu", &format!("({N}, {F})"), &work, || swiglu(&gate, &up).unwrap());

    for lengths in [vec![LENGTH; SEQUENCES], vec![N], vec![64; N / 64]] {
        let half_square = lengths.iter().map(|l| (l * l) as f64 / 2.0).sum::<f64>();
        let shape = AttentionShape::causal(C / 64, KV / 64, 64, Segments::from_lengths(&lengths).unwrap());
        let (q, k, v) = (random(N, C), random(N, KV), random(N, KV));
        let product = 2.0 * half_square * C as f64;
        let name = format!("{} x {} tokens, 8/4 heads", lengths.len(), lengths[0]);
        let work = Work::Flops(2.0 * product, 5.0 * product);
        table.op("attention", &name, &work, || attention(&q, &k, &v, &shape).unwrap());
    }

    let (x, w) = (random(N, C), random(V, C).detach());
    let targets: Vec<u32> = (0..N).map(|i| (i % V) as u32).collect();
    let both = 2.0 * flops(N, V, C);
    let seconds = best(|| drop(linear_cross_entropy(&x, &w, &targets, N as f64, None).unwrap()));
    let rate = both / seconds / 1e9;
    let shape = format!("({N}, {C}) -> {V}");
    table.line("linear_cross_entropy, both passes", &shape, seconds, &format!("{rate:.1} GFLOP/s"), Some(rate / peak));
}
