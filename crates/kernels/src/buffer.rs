//! Memory in and out of candle, and the two ways work is spread over threads.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows are handed to threads in pieces of about this many floats: large enough to hide the hand-over,
/// small enough to stay in a second-level cache between zeroing and filling.
pub(crate) const PIECE: usize = 16 * 1024;

/// The floats of a contiguous op input.
pub(crate) fn input<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: input with shape {:?} and strides {:?} is not contiguous", layout.shape(), layout.stride());
    };
    match storage.as_slice::<f32>()?.get(start..end) {
        Some(data) => Ok(data),
        None => bail!("{op}: input layout {layout:?} leaves its storage"),
    }
}

/// Makes `t` fit for an op: f32, on the CPU, contiguous.
pub(crate) fn prepare(op: &str, name: &str, t: &Tensor) -> Result<Tensor> {
    if t.dtype() != DType::F32 || !t.device().is_cpu() {
        bail!("{op}: {name} is {:?} on {:?}; only f32 on the cpu is supported", t.dtype(), t.device().location());
    }
    t.contiguous()
}

/// Makes a frozen weight fit for an op: f32, or f16 and bf16, which [`with_weight`] widens.
pub(crate) fn prepare_weight(op: &str, w: &Tensor) -> Result<Tensor> {
    match w.dtype() {
        DType::F16 | DType::BF16 if w.device().is_cpu() => w.detach().contiguous(),
        _ => prepare(op, "w", &w.detach()),
    }
}

/// Runs `f` on the floats of a frozen weight. One of 16 bits is widened for this call only: it takes half the
/// memory between calls, and widening is exact.
pub(crate) fn with_weight<R>(op: &str, w: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = w.storage_and_layout();
    let range = layout.contiguous_offsets();
    match (&*storage, range) {
        (Storage::Cpu(CpuStorage::BF16(w)), Some((start, end))) if end <= w.len() => {
            Ok(f(&widened(w.split_at(end).0.split_at(start).1, |w| w.to_f32())))
        }
        (Storage::Cpu(CpuStorage::F16(w)), Some((start, end))) if end <= w.len() => {
            Ok(f(&widened(w.split_at(end).0.split_at(start).1, |w| w.to_f32())))
        }
        _ => with_data(op, w, f),
    }
}

fn widened<T: Copy + Sync>(values: &[T], widen: impl Fn(T) -> f32 + Sync) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    uninit(&mut out, values.len()).par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).for_each(|(out, values)| {
        for (out, value) in out.iter_mut().zip(values) {
            out.write(widen(*value));
        }
    });
    // SAFETY: the chunks cover all elements, and each was written.
    unsafe { out.set_len(values.len()) };
    out
}

/// Runs `f` on the floats of `t`, which is made contiguous first.
pub(crate) fn with_data<R>(op: &str, t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(input(op, cpu, layout)?)),
        _ => bail!("{op}: tensor is on {:?}; only the cpu is supported", t.device().location()),
    }
}

/// Wraps op output for candle.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// A `rows × cols` matrix whose rows are written by `fill(row index, row)`, in parallel. Rows start zeroed.
///
/// Zeroing happens a piece at a time just before `fill`, in cache: that costs next to nothing, where
/// `vec![0.0; n]` would send the whole matrix to memory twice.
pub(crate) fn fill_rows(rows: usize, cols: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * cols);
    let piece = rows_per_piece(cols);
    uninit(&mut out, rows * cols).par_chunks_mut((piece * cols).max(1)).enumerate().for_each(|(i, chunk)| {
        for (j, row) in zeroed(chunk).chunks_exact_mut(cols).enumerate() {
            fill(i * piece + j, row);
        }
    });
    // SAFETY: `zeroed` initialised every chunk, and the chunks cover `rows * cols` elements.
    unsafe { out.set_len(rows * cols) };
    out
}

/// [`fill_rows`] for two matrices of one shape.
pub(crate) fn fill_rows_pair(
    rows: usize,
    cols: usize,
    fill: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let (mut a, mut b) = (Vec::with_capacity(rows * cols), Vec::with_capacity(rows * cols));
    let piece = rows_per_piece(cols);
    let chunk = (piece * cols).max(1);
    let pairs =
        uninit(&mut a, rows * cols).par_chunks_mut(chunk).zip(uninit(&mut b, rows * cols).par_chunks_mut(chunk));
    pairs.enumerate().for_each(|(i, (a, b))| {
        let rows = zeroed(a).chunks_exact_mut(cols).zip(zeroed(b).chunks_exact_mut(cols));
        for (j, (a, b)) in rows.enumerate() {
            fill(i * piece + j, a, b);
        }
    });
    // SAFETY: `zeroed` initialised every chunk of both, and the chunks cover `rows * cols` elements.
    unsafe {
        a.set_len(rows * cols);
        b.set_len(rows * cols);
    }
    (a, b)
}

/// A vector of `len` floats that `write` initialises completely.
///
/// # Safety
/// `write` must initialise every element.
pub(crate) unsafe fn write_all(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    write(uninit(&mut out, len));
    // SAFETY: the capacity is at least `len`, and the caller promises that `write` initialised it.
    unsafe { out.set_len(len) };
    out
}

/// `a + b`.
pub(crate) fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "summands differ in length");
    let write = |out: &mut [MaybeUninit<f32>]| {
        let pieces = out.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).zip(b.par_chunks(PIECE));
        pieces.for_each(|((out, a), b)| {
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                out.write(a + b);
            }
        });
    };
    // SAFETY: the pieces cover `out`, and the summands are as long.
    unsafe { write_all(a.len(), write) }
}

/// Runs `work(scratch, task)` for every task in `0..tasks`. Threads take the next task as they become
/// free, so put the largest first. Which thread runs a task must not influence its result.
pub(crate) fn for_each_task<S>(tasks: usize, scratch: impl Fn() -> S + Sync, work: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let workers = rayon::current_num_threads().min(tasks);
    (0..workers).into_par_iter().with_max_len(1).for_each(|_| {
        let mut scratch = scratch();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(&mut scratch, task);
        }
    });
}

fn rows_per_piece(cols: usize) -> usize {
    (PIECE / cols.max(1)).max(1)
}

fn uninit(v: &mut Vec<f32>, len: usize) -> &mut [MaybeUninit<f32>] {
    v.spare_capacity_mut().split_at_mut(len).0
}

fn zeroed(chunk: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    for x in chunk.iter_mut() {
        x.write(0.0);
    }
    // SAFETY: every element was just written, and MaybeUninit<f32> has the layout of f32.
    unsafe { std::slice::from_raw_parts_mut(chunk.as_mut_ptr().cast(), chunk.len()) }
}
