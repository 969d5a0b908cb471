//! Every op once more, from candle's tensor operations, for tensors that are not on the CPU.
//!
//! The public functions check their arguments and then come here when an input is on another device. Forward and
//! backward pass are both written out, with the properties of the CPU ops: frozen weights get no gradient, logits
//! exist for a chunk of rows, scores of attention for a tile of queries. Where a CUDA kernel of ours does a part
//! better it takes that part (`cuda`, with the feature of that name); everything else here is device-neutral, so
//! [`with_portable`] runs it on the CPU too, where the tests compare it with finite differences and the CPU ops.
//!
//! **Element types.** An op computes in the type of its activations: f32, or 16 bits where products run in 16 bits
//! and sums, norms, activations and softmax in f32. A weight of another type is converted for the call; its gradient
//! has the weight's type, so adapters and their gradients are f32 under activations of 16 bits.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod head;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod rope;

use crate::tape::{self, Saves};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, InplaceOp1, Layout, Result, Shape, Storage,
    Tensor, bail,
};
use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    static ON_CPU: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with the portable form of every op called on this thread, also for tensors on the CPU.
///
/// Slower than the CPU ops. It shows on any machine that what a GPU would compute is right.
pub fn with_portable<R>(f: impl FnOnce() -> R) -> R {
    /// Puts the outer choice back even when `f` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ON_CPU.set(self.0);
        }
    }
    let _outer = Restore(ON_CPU.replace(true));
    f()
}

/// Whether an op on `x` takes its portable form.
#[must_use]
pub fn is_portable(x: &Tensor) -> bool {
    !x.device().is_cpu() || ON_CPU.get()
}

/// An op with a backward pass of its own. Both passes see tensors outside of any graph.
pub(crate) trait Op: Send + Sync {
    fn name(&self) -> &'static str;

    /// The result, in memory of its own: never a view of an input or a weight.
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor>;

    /// Gradients of the inputs that are `wanted`; others may be left out.
    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>>;
}

/// What a backward pass is given. Inputs and output are there as far as the op [`Saves`] them.
pub(crate) struct Backward<'a> {
    pub(crate) inputs: &'a [Tensor],
    pub(crate) wanted: &'a [bool],
    pub(crate) output: &'a Tensor,
    /// Contiguous.
    pub(crate) grad: &'a Tensor,
}

impl<'a> Backward<'a> {
    pub(crate) fn input(&self, at: usize) -> Result<&'a Tensor> {
        match self.inputs.get(at) {
            Some(input) => Ok(input),
            None => bail!("there is no input {at}"),
        }
    }

    pub(crate) fn wants(&self, at: usize) -> bool {
        self.wanted.get(at).copied().unwrap_or(false)
    }

    /// `make()` when input `at` wants a gradient.
    pub(crate) fn when(&self, at: usize, make: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
        if self.wants(at) { make().map(Some) } else { Ok(None) }
    }
}

/// Runs `op`: recorded on the tape, else joined to candle's graph where a gradient must flow.
pub(crate) fn apply(inputs: &[&Tensor], op: impl Op + 'static, saves: Saves) -> Result<Tensor> {
    if tape::recording() {
        return tape::note_portable(inputs, Box::new(op), saves);
    }
    let y = op.forward(&detached(inputs)?)?;
    if !inputs.iter().any(|t| t.track_op()) {
        return Ok(y);
    }
    let wanted = inputs.iter().map(|t| t.track_op()).collect();
    let joined =
        Joined { op: Arc::new(op), wanted, result: Mutex::new(Some((take_storage(y.clone())?, y.shape().clone()))) };
    match inputs {
        [a] => a.apply_op1(joined),
        [a, b] => a.apply_op2(b, joined),
        [a, b, c] => a.apply_op3(b, c, joined),
        inputs => bail!("{}: {} inputs", joined.op.name(), inputs.len()),
    }
}

/// The inputs as the passes see them: outside of any graph, contiguous.
pub(crate) fn detached(inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    inputs.iter().map(|t| t.detach().contiguous()).collect()
}

/// A variable with the value of `y`, in the same memory.
pub(crate) fn into_variable(y: Tensor) -> Result<Tensor> {
    let shape = y.shape().clone();
    Ok(Tensor::from_storage(take_storage(y)?, shape, BackpropOp::none(), true))
}

/// Takes the memory of a contiguous tensor that [`Op::forward`] made and nobody else looks at.
fn take_storage(y: Tensor) -> Result<Storage> {
    struct Take {
        taken: Mutex<Option<Storage>>,
    }
    impl InplaceOp1 for Take {
        fn name(&self) -> &'static str {
            "take-storage"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
            let all = std::mem::replace(storage, CpuStorage::U8(Vec::new()));
            *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(Storage::Cpu(all));
            Ok(())
        }

        fn cuda_fwd(&self, storage: &mut CudaStorage, _layout: &Layout) -> Result<()> {
            let taken = replace_cuda(storage)?;
            *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(Storage::Cuda(taken));
            Ok(())
        }
    }
    let whole = {
        let (_, layout) = y.storage_and_layout();
        layout.is_contiguous() && layout.start_offset() == 0
    };
    let y = if whole { y } else { y.force_contiguous()? };
    let take = Take { taken: Mutex::new(None) };
    y.inplace_op1(&take)?;
    match take.taken.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(storage) => Ok(storage),
        None => bail!("the memory of a result was not taken"),
    }
}

/// Takes the memory of `storage` and leaves one element.
#[cfg(feature = "cuda")]
fn replace_cuda(storage: &mut CudaStorage) -> Result<CudaStorage> {
    let device = storage.device.clone();
    let nothing = CudaStorage::wrap_cuda_slice(device.alloc_zeros::<u8>(1)?, device);
    Ok(std::mem::replace(storage, nothing))
}

#[cfg(not(feature = "cuda"))]
fn replace_cuda(_storage: &mut CudaStorage) -> Result<CudaStorage> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

/// A result that is there already, as a node of candle's graph.
struct Joined<O> {
    op: Arc<O>,
    wanted: Vec<bool>,
    result: Mutex<Option<(Storage, Shape)>>,
}

impl<O: Op> Joined<O> {
    fn result(&self) -> Result<(Storage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: the same op ran forward twice", self.op.name()),
        }
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.result()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: the result is not on the cpu", self.op.name()),
        }
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.result()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: the result is not on a cuda device", self.op.name()),
        }
    }

    fn gradients(&self, inputs: &[&Tensor], output: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        backward(self.op.as_ref(), &detached(inputs)?, &self.wanted, output, grad)
    }
}

/// Runs a backward pass outside of any graph.
pub(crate) fn backward(
    op: &dyn Op,
    inputs: &[Tensor],
    wanted: &[bool],
    output: &Tensor,
    grad: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let grad = grad.detach().contiguous()?;
    op.backward(&Backward { inputs, wanted, output: &output.detach(), grad: &grad })
}

impl<O: Op> CustomOp1 for Joined<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(&[x], y, g)?.into_iter().next().flatten())
    }
}

impl<O: Op> CustomOp2 for Joined<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(&[a, b], y, g)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl<O: Op> CustomOp3 for Joined<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(&[a, b, c], y, g)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}

/// Makes `t` fit for an op: f32, bf16 or f16.
pub(crate) fn prepare(op: &str, name: &str, t: &Tensor) -> Result<()> {
    match t.dtype() {
        DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        other => bail!("{op}: {name} is {other:?}; expected f32, bf16 or f16"),
    }
}

/// In f32, for sums and functions.
pub(crate) fn wide(t: &Tensor) -> Result<Tensor> {
    t.to_dtype(DType::F32)
}
