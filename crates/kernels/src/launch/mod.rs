//! The CUDA kernels of `cuda/kernels.cu`, called from the portable ops where they do a part better.
//!
//! Every function here answers `None` where no kernel runs: on the CPU (unless it is [emulated](emulator)), or for
//! an element type that has none. The portable op then does the part with candle's operations.

mod args;
pub mod emulator;

use crate::portable::adamw::AdamWRule;
use args::Args;
use candle_core::backend::BackendDevice;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use emulator::Emulator;
use std::sync::Arc;

/// Threads of a block that goes over a row, at most; a power of two, as `reduce` in the kernels wants it.
const THREADS: usize = 256;

/// What runs a kernel.
enum Runner {
    #[cfg(feature = "cuda")]
    Cuda(candle_core::CudaDevice),
    Emulated(Arc<Emulator>),
}

/// Blocks and threads.
#[derive(Clone, Copy)]
struct Grid {
    blocks: usize,
    threads: usize,
}

impl Grid {
    /// A block for each of `rows` rows of `cols`.
    fn rows(rows: usize, cols: usize) -> Self {
        Self { blocks: rows, threads: cols.next_power_of_two().clamp(1, THREADS) }
    }

    /// A thread for each of `count` elements.
    fn elements(count: usize) -> Self {
        Self { blocks: count.div_ceil(THREADS), threads: THREADS }
    }
}

fn narrow(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(candle_core::Error::wrap)
}

fn long(n: usize) -> Result<u64> {
    u64::try_from(n).map_err(candle_core::Error::wrap)
}

/// The runner for tensors beside `x`, and the suffix of the kernels for its element type.
fn runner(x: &Tensor) -> Option<(Runner, &'static str)> {
    let suffix = match x.dtype() {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        _ => return None,
    };
    let runner = match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Runner::Cuda(device.clone()),
        Device::Cpu => Runner::Emulated(emulator::chosen()?),
        _ => return None,
    };
    Some((runner, suffix))
}

/// Address of the first element of a contiguous tensor's storage.
fn address(storage: &Storage, offset: usize) -> Result<u64> {
    let (base, size) = match storage {
        Storage::Cpu(CpuStorage::F32(s)) => (s.as_ptr().expose_provenance(), 4),
        Storage::Cpu(CpuStorage::U32(s)) => (s.as_ptr().expose_provenance(), 4),
        Storage::Cpu(CpuStorage::BF16(s)) => (s.as_ptr().expose_provenance(), 2),
        #[cfg(feature = "cuda")]
        Storage::Cuda(s) => return cuda::address(s, offset),
        _ => bail!("a kernel cannot take {:?}", storage.dtype()),
    };
    long(base + offset * size)
}

impl Runner {
    /// Runs `kernel`, whose struct `args` makes from the addresses of inputs and outputs. Outputs are written whole.
    ///
    /// # Safety
    /// The kernel must read and write within these tensors only, and write every element of the outputs.
    unsafe fn launch<const I: usize, const O: usize, A: Args>(
        &self,
        kernel: &str,
        grid: Grid,
        inputs: [&Tensor; I],
        outputs: [(&Shape, DType); O],
        args: impl FnOnce([u64; I], [u64; O]) -> A,
    ) -> Result<[Tensor; O]> {
        let guards = inputs.map(Tensor::storage_and_layout);
        let mut read = [0; I];
        for (slot, (storage, layout)) in read.iter_mut().zip(&guards) {
            let Some((start, _)) = layout.contiguous_offsets() else { bail!("{kernel}: an input is not contiguous") };
            *slot = address(storage, start)?;
        }
        let mut storages = Vec::with_capacity(O);
        for (shape, dtype) in outputs {
            storages.push(match self {
                // SAFETY: the caller promises that every element is written.
                #[cfg(feature = "cuda")]
                Self::Cuda(device) => Storage::Cuda(unsafe { device.alloc_uninit(shape, dtype)? }),
                Self::Emulated(_) => Storage::Cpu(candle_core::cpu_backend::CpuDevice.zeros_impl(shape, dtype)?),
            });
        }
        let mut written = [0; O];
        for (slot, storage) in written.iter_mut().zip(&mut storages) {
            *slot = match storage {
                Storage::Cpu(CpuStorage::F32(s)) => long(s.as_mut_ptr().expose_provenance())?,
                Storage::Cpu(CpuStorage::BF16(s)) => long(s.as_mut_ptr().expose_provenance())?,
                storage => address(storage, 0)?,
            };
        }
        let args = args(read, written);
        let (blocks, threads) = (narrow(grid.blocks)?, narrow(grid.threads)?);
        match self {
            // SAFETY: the addresses are those of tensors held here, and the caller promises the rest.
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => unsafe { cuda::run(device, kernel, blocks, threads, &args)? },
            // SAFETY: as above.
            Self::Emulated(emulator) => unsafe { emulator.run(kernel, blocks, threads, &args)? },
        }
        let mut shapes = outputs.iter().map(|(shape, _)| (*shape).clone());
        let mut made = storages.into_iter().zip(&mut shapes);
        let mut tensors = Vec::with_capacity(O);
        for (storage, shape) in &mut made {
            tensors.push(Tensor::from_storage(storage, shape, BackpropOp::none(), false));
        }
        tensors.try_into().map_err(|_| candle_core::Error::Msg(format!("{kernel}: outputs are missing")))
    }
}

/// What of candle's CUDA backend launching needs.
#[cfg(feature = "cuda")]
mod cuda {
    use super::{Args, long};
    use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg};
    use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
    use candle_core::{CudaDevice, CudaStorage, Result, bail};

    const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

    #[repr(transparent)]
    struct ByValue<A>(A);

    // SAFETY: `Args` are `#[repr(C)]` structs of numbers that mirror the kernels' own.
    unsafe impl<A: Args> DeviceRepr for ByValue<A> {}

    pub(super) fn address(storage: &CudaStorage, offset: usize) -> Result<u64> {
        let stream = storage.device.cuda_stream();
        let (base, size) = match &storage.slice {
            CudaStorageSlice::F32(s) => (s.device_ptr(&stream).0, 4),
            CudaStorageSlice::U32(s) => (s.device_ptr(&stream).0, 4),
            CudaStorageSlice::BF16(s) => (s.device_ptr(&stream).0, 2),
            _ => bail!("a kernel cannot take this element type"),
        };
        Ok(base + long(offset)? * size)
    }

    /// # Safety
    /// As for [`super::Runner::launch`].
    pub(super) unsafe fn run<A: Args>(
        device: &CudaDevice,
        kernel: &str,
        blocks: u32,
        threads: u32,
        args: &A,
    ) -> Result<()> {
        let function = device.get_or_load_custom_func(kernel, "hone-kernels", PTX)?;
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let args = ByValue(*args);
        let mut builder = function.builder();
        builder.arg(&args);
        // SAFETY: the caller promises that the kernel takes these arguments and stays within its tensors.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// `x (N, C)`, `w (C)` in f32.
pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    let Some((runner, of)) = runner(x) else { return Ok(None) };
    let (n, c) = x.dims2()?;
    let (cols, eps) = (narrow(c)?, single(eps));
    // SAFETY: a block reads and writes its row of C elements; `w` has C.
    let [y] = unsafe {
        let name = format!("rms_norm_{of}");
        runner.launch(&name, Grid::rows(n, c), [x, w], [(x.shape(), x.dtype())], |[x, w], [y]| args::RmsNorm {
            x,
            w,
            y,
            cols,
            eps,
        })?
    };
    Ok(Some(y))
}

/// `dx` of [`rms_norm`].
pub(crate) fn rms_norm_backward(x: &Tensor, w: &Tensor, g: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    let Some((runner, of)) = runner(x) else { return Ok(None) };
    let (n, c) = x.dims2()?;
    let (cols, eps) = (narrow(c)?, single(eps));
    // SAFETY: as for `rms_norm`; `g` has the shape of `x`.
    let [dx] = unsafe {
        let name = format!("rms_norm_backward_{of}");
        runner.launch(&name, Grid::rows(n, c), [x, w, g], [(x.shape(), x.dtype())], |[x, w, g], [dx]| {
            args::RmsNormBackward { x, w, g, dx, cols, eps }
        })?
    };
    Ok(Some(dx))
}

/// `x (N, C)` in heads of `head`, `cos` and `sin` `(N, half)` in f32; `sign` −1 turns back.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, head: usize, sign: f32) -> Result<Option<Tensor>> {
    let Some((runner, of)) = runner(x) else { return Ok(None) };
    let (n, c) = x.dims2()?;
    let (cols, head, half) = (narrow(c)?, narrow(head)?, narrow(cos.dim(1)?)?);
    // SAFETY: a block reads and writes its row, and reads its row of the angles; a head has at least 2 · half channels.
    let [y] = unsafe {
        let name = format!("rope_{of}");
        let outputs = [(x.shape(), x.dtype())];
        runner.launch(&name, Grid::rows(n, c), [x, cos, sin], outputs, |[x, cosine, sine], [y]| args::Rope {
            x,
            cosine,
            sine,
            y,
            cols,
            head,
            half,
            sign,
        })?
    };
    Ok(Some(y))
}

/// `f(gate) ⊙ up`, of one shape and type.
pub(crate) fn glu(gate: &Tensor, up: &Tensor, gelu: bool) -> Result<Option<Tensor>> {
    let Some((runner, of)) = runner(gate).filter(|_| gate.dtype() == up.dtype()) else { return Ok(None) };
    let (n, outputs) = (gate.elem_count(), [(gate.shape(), gate.dtype())]);
    let (count, gelu) = (long(n)?, u32::from(gelu));
    // SAFETY: a thread reads and writes its element, below `count`.
    let [y] = unsafe {
        let name = format!("glu_{of}");
        runner.launch(&name, Grid::elements(n), [gate, up], outputs, |[gate, up], [y]| args::Glu {
            gate,
            up,
            y,
            count,
            gelu,
            ..args::Glu::default()
        })?
    };
    Ok(Some(y))
}

/// Gradients of gate and up.
pub(crate) fn glu_backward(gate: &Tensor, up: &Tensor, g: &Tensor, gelu: bool) -> Result<Option<[Tensor; 2]>> {
    let same = gate.dtype() == up.dtype() && gate.dtype() == g.dtype();
    let Some((runner, of)) = runner(gate).filter(|_| same) else { return Ok(None) };
    let (n, output) = (gate.elem_count(), (gate.shape(), gate.dtype()));
    let (count, gelu) = (long(n)?, u32::from(gelu));
    // SAFETY: as for `glu`.
    unsafe {
        let name = format!("glu_backward_{of}");
        let args = |[gate, up, g]: [u64; 3], [y, dup]: [u64; 2]| args::Glu { gate, up, g, y, dup, count, gelu };
        runner.launch(&name, Grid::elements(n), [gate, up, g], [output, output], args).map(Some)
    }
}

/// Losses of `logits (rows, V)` in f32, `(rows)`, and with a factor `(1 or rows, 1)` in f32 their gradient times it.
/// `targets (rows)` are below V.
pub(crate) fn softmax_loss(
    logits: &Tensor,
    targets: &Tensor,
    factor: Option<&Tensor>,
    cap: Option<f32>,
) -> Result<Option<(Tensor, Option<Tensor>)>> {
    let Some((runner, of)) = runner(logits) else { return Ok(None) };
    let (n, v) = logits.dims2()?;
    let (cols, cap, name) = (narrow(v)?, cap.unwrap_or(0.0), format!("softmax_loss_{of}"));
    let (grid, rows) = (Grid::rows(n, v), Shape::from(n));
    let Some(factor) = factor else {
        // SAFETY: a block reads its row and target and writes its loss.
        let [losses] = unsafe {
            runner.launch(&name, grid, [logits, targets], [(&rows, DType::F32)], |[logits, targets], [losses]| {
                let (factor, gradient, factors) = (0, 0, 0);
                args::SoftmaxLoss { logits, targets, factor, losses, gradient, cols, factors, cap }
            })?
        };
        return Ok(Some((losses, None)));
    };
    let factors = u32::from(factor.dim(0)? > 1);
    let outputs = [(&rows, DType::F32), (logits.shape(), logits.dtype())];
    // SAFETY: as above; it also reads its factor, or the only one, and writes its row of the gradient.
    let [losses, gradient] = unsafe {
        let inputs = [logits, targets, factor];
        runner.launch(&name, grid, inputs, outputs, |[logits, targets, factor], [losses, gradient]| {
            args::SoftmaxLoss { logits, targets, factor, losses, gradient, cols, factors, cap }
        })?
    };
    Ok(Some((losses, Some(gradient))))
}

/// Which scores there are: rows are `queries` queries of a sequence from `first_query` on, once for every head,
/// columns its keys from `first_key` on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores {
    pub(crate) queries: usize,
    pub(crate) first_query: usize,
    pub(crate) first_key: usize,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    pub(crate) scale: f32,
    pub(crate) cap: Option<f32>,
}

impl Scores {
    fn args(self, keys: usize) -> Result<args::Attention> {
        Ok(args::Attention {
            queries: narrow(self.queries)?,
            keys: narrow(keys)?,
            first_query: narrow(self.first_query)?,
            first_key: narrow(self.first_key)?,
            causal: u32::from(self.causal),
            window: narrow(self.window.unwrap_or(0))?,
            scale: self.scale,
            cap: self.cap.unwrap_or(0.0),
            ..args::Attention::default()
        })
    }
}

/// Probabilities of unscaled `scores (KV, G·queries, keys)` and the log-sum-exp of the rows, `(KV, G·queries, 1)`.
pub(crate) fn attention_softmax(scores: &Tensor, of: Scores) -> Result<Option<[Tensor; 2]>> {
    let Some((runner, suffix)) = runner(scores) else { return Ok(None) };
    let (kv, rows, keys) = scores.dims3()?;
    let (all, column) = (of.args(keys)?, Shape::from((kv, rows, 1)));
    let outputs = [(scores.shape(), scores.dtype()), (&column, DType::F32)];
    // SAFETY: a block reads and writes its row of `keys` elements; every query sees keys among these.
    unsafe {
        let name = format!("attention_softmax_{suffix}");
        let args = |[scores]: [u64; 1], [p, lse]: [u64; 2]| args::Attention { scores, p, lse, ..all };
        runner.launch(&name, Grid::rows(kv * rows, keys), [scores], outputs, args).map(Some)
    }
}

/// The probabilities again and the gradient of the unscaled scores, given `dp`, that of the probabilities, and for
/// every row the log-sum-exp and `delta`, the probabilities' sum of gradients.
pub(crate) fn attention_backward(
    scores: &Tensor,
    dp: &Tensor,
    lse: &Tensor,
    delta: &Tensor,
    of: Scores,
) -> Result<Option<[Tensor; 2]>> {
    let Some((runner, suffix)) = runner(scores) else { return Ok(None) };
    let (kv, rows, keys) = scores.dims3()?;
    let (all, output) = (of.args(keys)?, (scores.shape(), scores.dtype()));
    // SAFETY: as for `attention_softmax`; `dp` has the shape of `scores`, the others one number per row.
    unsafe {
        let name = format!("attention_backward_{suffix}");
        let args = |[scores, dp, lse, delta]: [u64; 4], [p, ds]: [u64; 2]| args::Attention {
            scores,
            dp,
            lse,
            delta,
            p,
            ds,
            ..all
        };
        let grid = Grid::rows(kv * rows, keys);
        runner.launch(&name, grid, [scores, dp, lse, delta], [output, output], args).map(Some)
    }
}

/// Dropout with the mask of `portable::dropout`.
pub(crate) fn dropout(x: &Tensor, keep: f32, key: u64, threshold: u64) -> Result<Option<Tensor>> {
    let Some((runner, of)) = runner(x) else { return Ok(None) };
    let (n, name) = (x.elem_count(), format!("dropout_{of}"));
    let count = long(n)?;
    // SAFETY: a thread reads and writes its element, below `count`.
    let [y] = unsafe {
        runner.launch(&name, Grid::elements(n), [x], [(x.shape(), x.dtype())], |[x], [y]| args::Dropout {
            x,
            y,
            count,
            key,
            threshold,
            keep,
        })?
    };
    Ok(Some(y))
}

/// New parameters and moments, all flat and in f32.
pub(crate) fn adamw(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, rule: AdamWRule) -> Result<Option<[Tensor; 3]>> {
    let Some((runner, "f32")) = runner(p) else { return Ok(None) };
    let (n, output) = (p.elem_count(), (p.shape(), DType::F32));
    let count = long(n)?;
    let AdamWRule { clip, shrink, beta1, beta2, epsilon, step_size, root2 } = rule;
    // SAFETY: a thread reads and writes its element of all tensors, below `count`.
    unsafe {
        let args = |[p, g, m, v]: [u64; 4], [new_p, new_m, new_v]: [u64; 3]| args::AdamW {
            p,
            g,
            m,
            v,
            new_p,
            new_m,
            new_v,
            count,
            clip,
            shrink,
            beta1,
            beta2,
            epsilon,
            step_size,
            root2,
        };
        runner.launch("adamw_f32", Grid::elements(n), [p, g, m, v], [output; 3], args).map(Some)
    }
}

#[expect(clippy::as_conversions, reason = "applied in f32")]
const fn single(x: f64) -> f32 {
    x as f32
}
