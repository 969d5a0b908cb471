//! A tape for the ops of this crate: the backward pass without candle's graph.
//!
//! Candle's own backward pass zeroes a fresh matrix for every gradient and adds to it, on one thread, and
//! keeps every activation until the last gradient is there. With [`record`] the ops of this crate are noted
//! in order instead; [`Tape::backward`] walks them back, moves gradients instead of adding them to zeros, and
//! frees each op's saved tensors as soon as it is done. Norms and gated activations are not saved for the ops
//! after them but made again, which costs a hundredth of the time and saves a third of the memory.
//!
//! A recorded op returns a tensor that candle takes for a variable, so candle's ops work on it as on any
//! other. When such a result comes back to an op of this crate (or is differentiated), the tape notes the
//! candle graph in between as one entry and lets candle differentiate that part. So any mixture gives the
//! same gradients as candle alone would.

use crate::buffer;
use crate::portable;
use crate::simd;
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, InplaceOp2, Layout, Result, Shape, Storage, Tensor,
    TensorId, Var, bail,
};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

thread_local! {
    static ACTIVE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// What a backward pass reads of its op's inputs and output. The rest is freed after the forward pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saves {
    inputs: bool,
    output: bool,
    /// Ops that save this one's output keep nothing: it is made again from the inputs, which costs next to nothing.
    cheap: bool,
}

impl Saves {
    pub(crate) const NOTHING: Self = Self { inputs: false, output: false, cheap: false };
    pub(crate) const INPUTS: Self = Self { inputs: true, ..Self::NOTHING };
    pub(crate) const INPUTS_CHEAP: Self = Self { cheap: true, ..Self::INPUTS };
    pub(crate) const ALL: Self = Self { output: true, ..Self::INPUTS };
}

/// Recorded ops, in the order they ran.
#[derive(Default)]
pub struct Tape {
    entries: Vec<Entry>,
    /// Results of candle's graph that are noted already.
    graphs: HashSet<TensorId>,
    /// Outputs that can be made again, and by which entry.
    cheap: HashMap<TensorId, usize>,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

enum Entry {
    Op(Recorded),
    /// The result of candle ops on variables.
    Graph(Tensor),
}

struct Recorded {
    inputs: Vec<Kept>,
    /// The variables among the inputs: what the gradients are for.
    wanted: Vec<Option<TensorId>>,
    id: TensorId,
    output: Option<Tensor>,
    op: Op,
}

/// An input as an op keeps it.
#[derive(Clone)]
enum Kept {
    Nothing,
    Tensor(Tensor),
    /// The output of a cheap entry.
    MadeBy(usize),
}

enum Op {
    One(Box<dyn CustomOp1 + Send + Sync>),
    Two(Box<dyn CustomOp2 + Send + Sync>),
    Three(Box<dyn CustomOp3 + Send + Sync>),
    Portable(Box<dyn portable::Op>),
}

/// Runs `f` with the ops of this crate recorded instead of joined to candle's graph.
pub fn record<R>(f: impl FnOnce() -> R) -> (R, Tape) {
    /// Puts the outer tape back even when `f` panics.
    struct Restore(Option<Tape>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.set(self.0.take());
        }
    }
    let outer = Restore(ACTIVE.replace(Some(Tape::default())));
    let result = f();
    let tape = ACTIVE.take().unwrap_or_default();
    drop(outer);
    (result, tape)
}

pub(crate) fn recording() -> bool {
    ACTIVE.with_borrow(Option::is_some)
}

pub(crate) fn apply1<O: CustomOp1 + Send + Sync + 'static>(x: &Tensor, op: O, saves: Saves) -> Result<Tensor> {
    if !recording() {
        return x.apply_op1(op);
    }
    note(&[x], Op::One(Box::new(op)), saves)
}

pub(crate) fn apply2<O: CustomOp2 + Send + Sync + 'static>(
    [a, b]: [&Tensor; 2],
    op: O,
    saves: Saves,
) -> Result<Tensor> {
    if !recording() {
        return a.apply_op2(b, op);
    }
    note(&[a, b], Op::Two(Box::new(op)), saves)
}

pub(crate) fn apply3<O: CustomOp3 + Send + Sync + 'static>(
    [a, b, c]: [&Tensor; 3],
    op: O,
    saves: Saves,
) -> Result<Tensor> {
    if !recording() {
        return a.apply_op3(b, c, op);
    }
    note(&[a, b, c], Op::Three(Box::new(op)), saves)
}

/// Records an op of candle tensors, on any device.
pub(crate) fn note_portable(inputs: &[&Tensor], op: Box<dyn portable::Op>, saves: Saves) -> Result<Tensor> {
    note(inputs, Op::Portable(op), saves)
}

fn with_storage<R>(t: &Tensor, f: impl FnOnce(&CpuStorage, &Layout) -> Result<R>) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => f(cpu, layout),
        _ => bail!("tape: tensor is on {:?}; only the cpu is supported", t.device().location()),
    }
}

impl Op {
    /// The result, a variable when `tracked`.
    fn forward(&self, inputs: &[&Tensor], tracked: bool) -> Result<Tensor> {
        let (data, shape) = match (self, inputs) {
            (Self::Portable(op), inputs) => {
                let y = op.forward(&portable::detached(inputs)?)?;
                return if tracked { portable::into_variable(y) } else { Ok(y) };
            }
            (Self::One(op), &[x]) => with_storage(x, |s, l| op.cpu_fwd(s, l))?,
            (Self::Two(op), &[a, b]) => with_storage(a, |sa, la| with_storage(b, |sb, lb| op.cpu_fwd(sa, la, sb, lb)))?,
            (Self::Three(op), &[a, b, c]) => with_storage(a, |sa, la| {
                with_storage(b, |sb, lb| with_storage(c, |sc, lc| op.cpu_fwd(sa, la, sb, lb, sc, lc)))
            })?,
            (_, inputs) => bail!("tape: an op has {} inputs", inputs.len()),
        };
        let CpuStorage::F32(data) = data else { bail!("tape: an op returned something else than f32") };
        if tracked { Ok(Var::from_vec(data, shape, &Device::Cpu)?.into_inner()) } else { buffer::tensor(data, shape) }
    }

    fn backward(
        &self,
        inputs: &[Tensor],
        wanted: &[Option<TensorId>],
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(match (self, inputs) {
            (Self::Portable(op), inputs) => {
                let wanted: Vec<bool> = wanted.iter().map(Option::is_some).collect();
                let inputs = portable::detached(&inputs.iter().collect::<Vec<_>>())?;
                portable::backward(op.as_ref(), &inputs, &wanted, output, grad)?
            }
            (Self::One(op), [x]) => vec![op.bwd(x, output, grad)?],
            (Self::Two(op), [a, b]) => {
                let (a, b) = op.bwd(a, b, output, grad)?;
                vec![a, b]
            }
            (Self::Three(op), [a, b, c]) => {
                let (a, b, c) = op.bwd(a, b, c, output, grad)?;
                vec![a, b, c]
            }
            (_, inputs) => bail!("tape: an op has {} inputs", inputs.len()),
        })
    }
}

/// Runs an op, and records it when a gradient must flow through it.
fn note(inputs: &[&Tensor], op: Op, saves: Saves) -> Result<Tensor> {
    let tracked = inputs.iter().any(|t| t.track_op());
    let output = op.forward(inputs, tracked)?;
    if !tracked {
        return Ok(output);
    }
    ACTIVE.with_borrow_mut(|tape| {
        let Some(tape) = tape else { bail!("tape: the recording ended inside an op") };
        for input in inputs {
            tape.note_graph(input);
        }
        let keep = |t: &&Tensor| match tape.cheap.get(&t.id()) {
            _ if !saves.inputs => Kept::Nothing,
            // A cheap op keeps its own inputs, so that making its output again takes one step.
            Some(entry) if !saves.cheap => Kept::MadeBy(*entry),
            _ => Kept::Tensor((*t).clone()),
        };
        let inputs_kept = inputs.iter().map(keep).collect();
        if saves.cheap {
            tape.cheap.insert(output.id(), tape.entries.len());
        }
        tape.entries.push(Entry::Op(Recorded {
            inputs: inputs_kept,
            wanted: inputs.iter().map(|t| t.track_op().then(|| t.id())).collect(),
            id: output.id(),
            output: saves.output.then(|| output.clone()),
            op,
        }));
        Ok(output)
    })
}

/// A gradient on its way.
struct Sum {
    grad: Tensor,
    /// Nobody else holds it, so it may be added to in place.
    own: bool,
}

#[derive(Default)]
struct Sums(HashMap<TensorId, Sum>);

impl Sums {
    fn add(&mut self, id: TensorId, new: Sum) -> Result<()> {
        let sum = match self.0.remove(&id) {
            None => new,
            Some(old) => {
                let (into, from) = if old.own { (old, new) } else { (new, old) };
                let grad = if into.own
                    && into.grad.is_contiguous()
                    && into.grad.device().is_cpu()
                    && is_f32(&into.grad, &from.grad)
                {
                    into.grad.inplace_op2(&from.grad.contiguous()?, &Accumulate)?;
                    into.grad
                } else {
                    into.grad.add(&from.grad)?
                };
                Sum { grad, own: true }
            }
        };
        self.0.insert(id, sum);
        Ok(())
    }
}

fn is_f32(a: &Tensor, b: &Tensor) -> bool {
    a.dtype() == DType::F32 && b.dtype() == DType::F32
}

impl Tape {
    /// Notes a tensor that candle's graph made.
    fn note_graph(&mut self, t: &Tensor) {
        if t.track_op() && !t.is_variable() && self.graphs.insert(t.id()) {
            self.entries.push(Entry::Graph(t.clone()));
        }
    }

    /// The output of the cheap entry at `at`, tracked like the one it was.
    fn make_again(&self, at: usize, tracked: bool) -> Result<Tensor> {
        let Some(Entry::Op(entry)) = self.entries.get(at) else { bail!("tape: entry {at} made nothing") };
        let mut inputs = Vec::new();
        for kept in &entry.inputs {
            let Kept::Tensor(t) = kept else { bail!("tape: entry {at} did not keep its inputs") };
            inputs.push(t);
        }
        entry.op.forward(&inputs, tracked)
    }

    /// Gradients of all variables, given that of `output`: what `output.backward()` gives without a tape
    /// when `grad` is 1.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn backward(mut self, output: &Tensor, grad: Tensor) -> Result<GradStore> {
        self.note_graph(output);
        let mut sums = Sums::default();
        sums.add(output.id(), Sum { grad, own: false })?;
        let empty = buffer::tensor(Vec::new(), 0)?;
        // Outputs of cheap entries, from their last use, which comes first here, to the entry itself.
        let mut made: HashMap<usize, Tensor> = HashMap::new();
        while let Some(entry) = self.entries.pop() {
            match entry {
                Entry::Op(entry) => {
                    made.remove(&self.entries.len());
                    let Some(Sum { grad, .. }) = sums.0.remove(&entry.id) else { continue };
                    let mut inputs = Vec::with_capacity(entry.inputs.len());
                    for (kept, wanted) in entry.inputs.iter().zip(&entry.wanted) {
                        inputs.push(match kept {
                            Kept::Nothing => empty.clone(),
                            Kept::Tensor(t) => t.clone(),
                            Kept::MadeBy(at) => match made.get(at) {
                                Some(t) => t.clone(),
                                None => {
                                    let t = self.make_again(*at, wanted.is_some())?;
                                    made.insert(*at, t.clone());
                                    t
                                }
                            },
                        });
                    }
                    let output = entry.output.as_ref().unwrap_or(&empty);
                    for (id, found) in
                        entry.wanted.iter().copied().zip(entry.op.backward(&inputs, &entry.wanted, output, &grad)?)
                    {
                        if let (Some(id), Some(found)) = (id, found) {
                            let own = found.id() != grad.id();
                            sums.add(id, Sum { grad: found, own })?;
                        }
                    }
                }
                Entry::Graph(t) => {
                    let Some(Sum { grad, .. }) = sums.0.remove(&t.id()) else { continue };
                    let seed = match t.device() {
                        Device::Cpu => t.apply_op1(Seed { grad })?,
                        _ => (&t * grad)?.sum_all()?,
                    };
                    let store = seed.backward()?;
                    let ids: Vec<TensorId> = store.get_ids().copied().collect();
                    for id in ids {
                        let Some(grad) = store.get_id(id).cloned() else { continue };
                        sums.add(id, Sum { grad, own: false })?;
                    }
                }
            }
        }
        let mut store = GradStore::default();
        for (id, sum) in sums.0 {
            store.insert_id(id, sum.grad);
        }
        Ok(store)
    }
}

/// A scalar whose gradient with respect to its input is `grad`: starts candle's backward pass in the middle.
struct Seed {
    grad: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed-gradient"
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, _grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.grad.clone()))
    }
}

/// `a ← a + b`.
struct Accumulate;

impl InplaceOp2 for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<()> {
        let b = buffer::input(self.name(), b, bl)?;
        let (CpuStorage::F32(a), Some((start, end))) = (a, al.contiguous_offsets()) else {
            bail!("accumulate: expected contiguous f32")
        };
        match a.get_mut(start..end) {
            Some(a) if a.len() == b.len() => {
                a.par_chunks_mut(buffer::PIECE).zip(b.par_chunks(buffer::PIECE)).for_each(|(a, b)| simd::add(a, b));
                Ok(())
            }
            _ => bail!("accumulate: shapes {:?} and {:?} differ", al.shape(), bl.shape()),
        }
    }
}

/// `a + b` of one shape: a residual connection.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() || a.elem_count() == 0 {
        bail!("add: shapes {:?} and {:?}; expected the same, not empty", a.dims(), b.dims());
    }
    if portable::is_portable(a) {
        return portable::elementwise::add(a, b);
    }
    apply2([&buffer::prepare("add", "a", a)?, &buffer::prepare("add", "b", b)?], Add, Saves::NOTHING)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (buffer::input(self.name(), a, al)?, buffer::input(self.name(), b, bl)?);
        Ok((CpuStorage::F32(buffer::sum(a, b)), al.shape().clone()))
    }

    fn bwd(&self, _a: &Tensor, _b: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(g.clone()), Some(g.clone())))
    }
}
