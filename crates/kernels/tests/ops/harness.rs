//! Compares an op with its naive f64 form.

use candle_core::{Device, Result, Tensor, Var};
use kernels::{Emulator, record, with_emulator, with_portable};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// Central differences are taken at this many elements of each input at most, spread evenly; at few of an
/// input with many rows, whose naive form is slow.
const SAMPLES: usize = 48;
const SAMPLES_OF_MANY_ROWS: usize = 6;
const STEP: f64 = 1e-5;

/// One input of an op.
pub struct Input {
    pub name: &'static str,
    pub dims: Vec<usize>,
    pub trained: bool,
    /// Values are drawn from `offset ± spread`.
    pub offset: f64,
    pub spread: f64,
}

pub fn trained(name: &'static str, dims: &[usize]) -> Input {
    Input { name, dims: dims.to_vec(), trained: true, offset: 0.0, spread: 1.0 }
}

pub fn frozen(name: &'static str, dims: &[usize]) -> Input {
    Input { trained: false, ..trained(name, dims) }
}

impl Input {
    pub fn around(self, offset: f64, spread: f64) -> Self {
        Self { offset, spread, ..self }
    }
}

/// Uniform in [-1, 1), the same on every machine (splitmix64).
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// One run of the op: its value and the gradient of `Σ value ⊙ probe` for every input that got one.
struct Run {
    value: Vec<f32>,
    gradients: Vec<Option<Vec<f32>>>,
}

/// Who differentiates.
#[derive(Clone, Copy)]
enum By {
    Candle,
    Tape,
}

fn run(by: By, inputs: &[Input], data: &[Vec<f32>], op: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Run {
    let vars: Vec<Var> =
        inputs.iter().zip(data).map(|(i, d)| Var::from_vec(d.clone(), i.dims.clone(), &Device::Cpu).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let probe = |y: &Tensor| Tensor::from_vec(noise(99, y.elem_count()), y.shape(), &Device::Cpu).unwrap();
    let (y, gradients) = match by {
        By::Candle => {
            let y = op(&tensors).unwrap();
            let gradients = (&y * probe(&y)).unwrap().sum_all().unwrap().backward().unwrap();
            (y, gradients)
        }
        By::Tape => {
            let (y, tape) = record(|| op(&tensors).unwrap());
            let gradients = tape.backward(&y, probe(&y)).unwrap();
            (y, gradients)
        }
    };
    Run { value: values(&y), gradients: vars.iter().map(|v| gradients.get(v).map(values)).collect() }
}

/// The CUDA kernels, compiled for this CPU.
pub fn emulator() -> Arc<Emulator> {
    static EMULATOR: OnceLock<Arc<Emulator>> = OnceLock::new();
    // SAFETY: the library was made from the kernels of this crate.
    EMULATOR.get_or_init(|| Arc::new(unsafe { Emulator::load(&compile()) }.unwrap())).clone()
}

/// The emulated kernels as a library, made once for all test processes.
fn compile() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let made = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let changed = ["kernels.cu", "emulator.hpp"].map(|name| made(&sources.join(name))).into_iter().max().unwrap();
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels.so");
    if made(&library) > changed {
        return library;
    }
    let unfinished = library.with_extension(std::process::id().to_string());
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-include"]);
    compiler.arg(sources.join("emulator.hpp")).args(["-x", "c++"]).arg(sources.join("kernels.cu"));
    let status = compiler.arg("-o").arg(&unfinished).status();
    let status = status.unwrap_or_else(|e| panic!("`make setup` installs a C++ compiler, but c++ does not run: {e}"));
    assert!(status.success(), "the kernels do not compile as C++: {status}");
    std::fs::rename(&unfinished, &library).unwrap();
    library
}

/// Checks `op`, as the CPU runs it, in its portable form, and with the CUDA kernels emulated, against `naive`, which
/// maps the inputs' values to the output's, both row-major.
///
/// `tolerance` is on the difference relative to the largest element of the tensor compared. Every input
/// is a candle variable; one that is not `trained` must get no gradient all the same.
pub fn check(
    inputs: &[Input],
    tolerance: f64,
    op: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    naive: &dyn Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let scaled = |(seed, i): (usize, &Input)| -> Vec<f32> {
        let draw = noise(seed as u64 + 1, i.dims.iter().product());
        draw.iter().map(|x| (f64::from(*x) * i.spread + i.offset) as f32).collect()
    };
    let data: Vec<Vec<f32>> = inputs.iter().enumerate().map(scaled).collect();
    let both = || [By::Candle, By::Tape].map(|by| run(by, inputs, &data, op));
    let emulated = with_emulator(&emulator(), both);
    let forms = [("cpu", both()), ("portable", with_portable(both)), ("cuda kernels", emulated)];
    for (form, [first, second]) in &forms {
        assert_eq!(bits(&first.value), bits(&second.value), "{form}: two runs gave different values");
    }
    let mut wide: Vec<Vec<f64>> = data.iter().map(|d| d.iter().map(|&x| f64::from(x)).collect()).collect();
    let expected = naive(&wide);
    for (form, [first, _]) in &forms {
        close(&format!("{form} value"), &first.value, &expected, tolerance);
    }

    let probe: Vec<f64> = noise(99, expected.len()).iter().map(|&x| f64::from(x)).collect();
    let objective = |wide: &[Vec<f64>]| naive(wide).iter().zip(&probe).map(|(y, p)| y * p).sum::<f64>();
    for (at, input) in inputs.iter().enumerate() {
        let samples = if input.dims[0] > 1000 { SAMPLES_OF_MANY_ROWS } else { SAMPLES };
        let every = wide[at].len().div_ceil(samples);
        let mut want = Vec::new();
        for i in (0..wide[at].len()).step_by(every).take_while(|_| input.trained) {
            let center = wide[at][i];
            wide[at][i] = center + STEP;
            let above = objective(&wide);
            wide[at][i] = center - STEP;
            let below = objective(&wide);
            wide[at][i] = center;
            want.push((above - below) / (2.0 * STEP));
        }
        for (form, [first, second]) in &forms {
            let name = input.name;
            let (gradient, taped) = (&first.gradients[at], &second.gradients[at]);
            if !input.trained {
                assert!(gradient.is_none() && taped.is_none(), "{form}: frozen {name} got a gradient");
                continue;
            }
            let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{form}: {name} got no gradient"));
            assert_eq!(bits(gradient), bits(taped.as_ref().unwrap()), "{form}: candle and the tape differ");
            let got: Vec<f32> = gradient.iter().step_by(every).copied().collect();
            close(&format!("{form} gradient of {name}"), &got, &want, tolerance);
        }
    }
}

/// Bits, with both zeros the same: candle adds gradients to 0.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| (x + 0.0).to_bits()).collect()
}

/// Asserts that no element is further off than `tolerance` times the largest expected one.
pub fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let size = want.iter().fold(1e-2, |m: f64, x| m.max(x.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(got) - want).abs();
        assert!(off <= tolerance * size, "{what}[{i}] is {got}, expected {want} (largest {size})");
    }
}
