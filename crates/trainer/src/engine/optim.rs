//! AdamW as `torch.optim.AdamW`, with what candle's own lacks: moments keyed by name, saveable, in f32 or eight
//! bits; a hard error when a parameter has no gradient. Parameters are updated in place.

use super::{
    TrainError,
    params::{Gradients, Params},
    quantised::{BLOCK, Map, Quantised, read_block, write_block},
};
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, Var};
use kernels::AdamWRule as Rule;
use rayon::prelude::*;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};
use wire::config::Optim;

/// Elements per parallel piece, whole blocks; fixed, so that the result does not depend on the thread count.
const PIECE: usize = 64 * BLOCK;
/// Parameters with fewer elements keep their moments in f32, as in bitsandbytes.
const WORTH_EIGHT_BITS: usize = 4096;

/// Running averages of one parameter's gradient and squared gradient.
#[derive(Debug, Clone, PartialEq)]
pub enum Moments {
    Full {
        exp_avg: Vec<f32>,
        exp_avg_sq: Vec<f32>,
    },
    /// The second moment is kept as its root: eight bits then span twice as many decades, and the root is what the
    /// update divides by.
    Eight {
        exp_avg: Quantised,
        root: Quantised,
    },
}

impl Moments {
    /// Whether `n` elements of a parameter have quantised moments.
    #[must_use]
    pub fn are_quantised(optim: Optim, n: usize) -> bool {
        optim == Optim::Adamw8bit && n >= WORTH_EIGHT_BITS
    }

    /// Bytes of the moments of `n` elements.
    #[must_use]
    pub fn bytes(optim: Optim, n: usize) -> usize {
        if Self::are_quantised(optim, n) {
            n.saturating_add(n.div_ceil(BLOCK).saturating_mul(4)).saturating_mul(2)
        } else {
            n.saturating_mul(8)
        }
    }

    fn zeros(optim: Optim, n: usize) -> Self {
        if Self::are_quantised(optim, n) {
            Self::Eight { exp_avg: Quantised::zeros(n, Map::signed()), root: Quantised::zeros(n, Map::unsigned()) }
        } else {
            Self::Full { exp_avg: vec![0.0; n], exp_avg_sq: vec![0.0; n] }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    pub optim: Optim,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

/// The optimizer's state. `step` counts from 0; [`AdamW::step`] makes it 1.
#[derive(Debug)]
pub struct AdamW {
    pub config: AdamWConfig,
    pub step: u64,
    moments: BTreeMap<String, Moments>,
    /// Full moments of parameters that are on a device, where they are updated.
    on_device: BTreeMap<String, (Tensor, Tensor)>,
}

impl AdamW {
    #[must_use]
    pub const fn new(config: AdamWConfig) -> Self {
        Self { config, step: 0, moments: BTreeMap::new(), on_device: BTreeMap::new() }
    }

    /// One update of every parameter; gradients are multiplied by `clip` first.
    ///
    /// # Errors
    /// Internal: a parameter without a gradient, which would silently stay untrained.
    pub fn step(&mut self, params: &Params, grads: &Gradients, clip: f64, rate: f64) -> Result<(), TrainError> {
        let c = self.config;
        let count = self.step.saturating_add(1);
        let exponent = i32::try_from(count).unwrap_or(i32::MAX);
        let correction1 = 1.0 - c.beta1.powi(exponent);
        let correction2 = 1.0 - c.beta2.powi(exponent);
        for (name, var) in params.iter() {
            let grad = grads
                .get(name)
                .ok_or_else(|| TrainError::internal(format!("`{name}` is trainable but received no gradient")))?;
            // `transformers.Trainer` exempts norm weights and biases from decay: all vectors but DoRA's.
            let decayed = var.rank() > 1 || name.ends_with("lora_magnitude_vector");
            let decay = if decayed { c.weight_decay } else { 0.0 };
            let rule = Rule {
                clip: narrow(clip),
                shrink: narrow(1.0 - rate * decay),
                beta1: narrow(c.beta1),
                beta2: narrow(c.beta2),
                epsilon: narrow(c.epsilon),
                step_size: narrow(rate / correction1),
                root2: narrow(correction2.sqrt()),
            };
            self.update(name, var, grad, rule)?;
        }
        self.step = count;
        Ok(())
    }

    fn update(&mut self, name: &str, var: &Var, grad: &Tensor, rule: Rule) -> Result<(), TrainError> {
        let (optim, n) = (self.config.optim, var.elem_count());
        let zeros = || Moments::zeros(optim, n);
        let quantised = Moments::are_quantised(optim, n);
        if !var.device().is_cpu() && !quantised {
            if !self.on_device.contains_key(name) {
                let moments = self.moments.remove(name).unwrap_or_else(zeros);
                self.on_device.insert(name.to_owned(), upload(moments, var)?);
            }
            if let Some((m, v)) = self.on_device.get(name) {
                kernels::adamw(var, grad, m, v, rule)?;
            }
            return Ok(());
        }
        let moments = self.moments.entry(name.to_owned()).or_insert_with(zeros);
        // Moments of eight bits stay on the CPU, where their blocks are coded.
        let update = Update { moments: Mutex::new(moments), rule };
        if var.device().is_cpu() {
            return Ok(var.as_tensor().inplace_op2(&grad.contiguous()?, &update)?);
        }
        let here = var.as_detached_tensor().to_device(&Device::Cpu)?;
        here.inplace_op2(&grad.to_device(&Device::Cpu)?.contiguous()?, &update)?;
        Ok(var.set(&here.to_device(var.device())?)?)
    }

    /// Every parameter's moments, for a checkpoint.
    ///
    /// # Errors
    /// Tensor errors only.
    pub fn moments(&self) -> Result<Cow<'_, BTreeMap<String, Moments>>, TrainError> {
        if self.on_device.is_empty() {
            return Ok(Cow::Borrowed(&self.moments));
        }
        let mut all = self.moments.clone();
        for (name, (m, v)) in &self.on_device {
            let values = |t: &Tensor| t.flatten_all()?.to_vec1();
            all.insert(name.clone(), Moments::Full { exp_avg: values(m)?, exp_avg_sq: values(v)? });
        }
        Ok(Cow::Owned(all))
    }

    /// Puts in the moments of one parameter that a checkpoint held.
    pub fn restore(&mut self, name: &str, moments: Moments) {
        self.on_device.remove(name);
        self.moments.insert(name.to_owned(), moments);
    }
}

/// Full moments as tensors beside `var`.
fn upload(moments: Moments, var: &Var) -> Result<(Tensor, Tensor), TrainError> {
    let Moments::Full { exp_avg, exp_avg_sq } = moments else {
        return Err(TrainError::internal("moments of eight bits cannot be updated on a device"));
    };
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, var.shape(), var.device());
    Ok((tensor(exp_avg)?, tensor(exp_avg_sq)?))
}

#[expect(clippy::as_conversions, reason = "the update runs in f32")]
const fn narrow(x: f64) -> f32 {
    x as f32
}

fn apply(rule: Rule, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * rule.clip;
        *m += (1.0 - rule.beta1) * (g - *m);
        *v = rule.beta2 * *v + (1.0 - rule.beta2) * g * g;
        *p = *p * rule.shrink - rule.step_size * *m / (v.sqrt() / rule.root2 + rule.epsilon);
    }
}

struct Update<'a> {
    moments: Mutex<&'a mut Moments>,
    rule: Rule,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, pl: &Layout, g: &CpuStorage, gl: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(p) = p else { candle_core::bail!("adamw: parameters must be f32") };
        let g = g.as_slice::<f32>()?;
        let (Some((ps, pe)), Some((gs, ge))) = (pl.contiguous_offsets(), gl.contiguous_offsets()) else {
            candle_core::bail!("adamw: parameter and gradient must be contiguous");
        };
        let (Some(p), Some(g)) = (p.get_mut(ps..pe), g.get(gs..ge)) else {
            candle_core::bail!("adamw: layout outside its storage");
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match &**moments {
            Moments::Full { exp_avg, .. } => exp_avg.len(),
            Moments::Eight { exp_avg, .. } => exp_avg.codes.len(),
        };
        if p.len() != g.len() || p.len() != count {
            candle_core::bail!("adamw: {} parameters, {} gradients, {count} moments", p.len(), g.len());
        }
        let rule = self.rule;
        let pieces = p.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE));
        match &mut **moments {
            Moments::Full { exp_avg: m, exp_avg_sq: v } => pieces
                .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
                .for_each(|((p, g), (m, v))| apply(rule, p, g, m, v)),
            Moments::Eight { exp_avg, root } => pieces
                .zip(blocks(exp_avg).zip(blocks(root)))
                .for_each(|((p, g), (m, v))| update_quantised(rule, p, g, m, v)),
        }
        Ok(())
    }
}

type Codes<'a> = (&'a mut [u8], &'a mut [f32]);

/// Codes and scales of each piece.
fn blocks(values: &mut Quantised) -> impl IndexedParallelIterator<Item = Codes<'_>> {
    values.codes.par_chunks_mut(PIECE).zip(values.scales.par_chunks_mut(PIECE / BLOCK))
}

/// Widens a block's moments, updates, and rounds them again.
fn update_quantised(rule: Rule, p: &mut [f32], g: &[f32], (m, m_scales): Codes<'_>, (v, v_scales): Codes<'_>) {
    let (signed, unsigned) = (Map::signed(), Map::unsigned());
    let parameters = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
    let first = m.chunks_mut(BLOCK).zip(m_scales);
    let second = v.chunks_mut(BLOCK).zip(v_scales);
    for (((p, g), (m, m_scale)), (v, v_scale)) in parameters.zip(first).zip(second) {
        let (mut exp_avg, mut exp_avg_sq) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
        let n = p.len().min(BLOCK);
        let (exp_avg, exp_avg_sq) = (exp_avg.split_at_mut(n).0, exp_avg_sq.split_at_mut(n).0);
        read_block(signed, m, *m_scale, exp_avg);
        read_block(unsigned, v, *v_scale, exp_avg_sq);
        exp_avg_sq.iter_mut().for_each(|root| *root *= *root);
        apply(rule, p, g, exp_avg, exp_avg_sq);
        exp_avg_sq.iter_mut().for_each(|square| *square = square.sqrt());
        *m_scale = write_block(signed, exp_avg, m);
        *v_scale = write_block(unsigned, exp_avg_sq, v);
        // A root rounded to zero would be divided by.
        for (code, root) in v.iter_mut().zip(exp_avg_sq) {
            *code = (*code).max(u8::from(*root > 0.0));
        }
    }
}

/// L2 norm over all gradients, summed in f64 in a fixed order.
///
/// # Errors
/// Tensor errors only.
pub fn global_norm(grads: &Gradients) -> Result<f64, TrainError> {
    let mut total = 0.0_f64;
    // Read in one go: each reading waits for the device.
    let mut on_device = Vec::new();
    for (_, grad) in grads.iter() {
        if grad.device().is_cpu() {
            total += sum_of_squares(grad)?;
        } else {
            on_device.push(squares(grad)?);
        }
    }
    if !on_device.is_empty() {
        total += Tensor::cat(&on_device, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok(total.sqrt())
}

/// [`sum_of_squares`] as a tensor `(1)`.
fn squares(grad: &Tensor) -> candle_core::Result<Tensor> {
    grad.flatten_all()?.to_dtype(DType::F32)?.sqr()?.sum_keepdim(0)
}

pub(super) fn sum_of_squares(grad: &Tensor) -> Result<f64, TrainError> {
    if !grad.device().is_cpu() {
        return Ok(squares(grad)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum());
    }
    let grad = grad.contiguous()?;
    let (storage, layout) = grad.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        return Err(TrainError::internal("gradient norm: expected a CPU tensor"));
    };
    let values = storage.as_slice::<f32>()?;
    let values = layout.contiguous_offsets().and_then(|(s, e)| values.get(s..e)).unwrap_or_default();
    let pieces: Vec<f64> = values
        .par_chunks(PIECE)
        .map(|piece| piece.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>())
        .collect();
    Ok(pieces.iter().sum())
}

/// Factor that brings a gradient of norm `norm` below `max_norm`, as `torch.nn.utils.clip_grad_norm_`;
/// `max_norm` 0 means no clipping.
#[must_use]
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
