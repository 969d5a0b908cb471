//! AdamW as `torch.optim.AdamW`, with what candle's own lacks: moments in f32, keyed by name, saveable;
//! a hard error when a parameter has no gradient. Parameters are updated in place.

use super::{
    TrainError,
    params::{Gradients, Params},
};
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Elements per parallel piece; fixed, so that the result does not depend on the thread count.
const PIECE: usize = 1 << 14;

/// Running averages of one parameter's gradient and squared gradient.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    pub exp_avg: Vec<f32>,
    pub exp_avg_sq: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
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
    pub moments: BTreeMap<String, Moments>,
}

impl AdamW {
    #[must_use]
    pub const fn new(config: AdamWConfig) -> Self {
        Self { config, step: 0, moments: BTreeMap::new() }
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
            let n = var.elem_count();
            let moments = self.moments.entry(name.to_owned()).or_default();
            moments.exp_avg.resize(n, 0.0);
            moments.exp_avg_sq.resize(n, 0.0);
            // `transformers.Trainer` exempts norm weights and biases from decay: all vectors but DoRA's.
            let decayed = var.rank() > 1 || name.ends_with("lora_magnitude_vector");
            let decay = if decayed { c.weight_decay } else { 0.0 };
            let update = Update {
                moments: Mutex::new(moments),
                clip: narrow(clip),
                shrink: narrow(1.0 - rate * decay),
                beta1: narrow(c.beta1),
                beta2: narrow(c.beta2),
                epsilon: narrow(c.epsilon),
                step_size: narrow(rate / correction1),
                root2: narrow(correction2.sqrt()),
            };
            var.as_tensor().inplace_op2(&grad.contiguous()?, &update)?;
        }
        self.step = count;
        Ok(())
    }
}

#[expect(clippy::as_conversions, reason = "the update runs in f32")]
const fn narrow(x: f64) -> f32 {
    x as f32
}

struct Update<'a> {
    moments: Mutex<&'a mut Moments>,
    clip: f32,
    shrink: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    step_size: f32,
    root2: f32,
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
        let Moments { exp_avg: m, exp_avg_sq: v } = &mut **moments;
        if p.len() != g.len() || p.len() != m.len() {
            candle_core::bail!("adamw: {} parameters, {} gradients, {} moments", p.len(), g.len(), m.len());
        }
        let pieces =
            p.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)));
        pieces.for_each(|((p, g), (m, v))| {
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * self.clip;
                *m += (1.0 - self.beta1) * (g - *m);
                *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
                *p = *p * self.shrink - self.step_size * *m / (v.sqrt() / self.root2 + self.epsilon);
            }
        });
        Ok(())
    }
}

/// L2 norm over all gradients, summed in f64 in a fixed order.
///
/// # Errors
/// Tensor errors only.
pub fn global_norm(grads: &Gradients) -> Result<f64, TrainError> {
    let mut total = 0.0_f64;
    for (_, grad) in grads.iter() {
        total += sum_of_squares(grad)?;
    }
    Ok(total.sqrt())
}

fn sum_of_squares(grad: &Tensor) -> Result<f64, TrainError> {
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
