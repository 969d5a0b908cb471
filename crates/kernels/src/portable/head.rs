//! The output head with its losses, a chunk of rows at a time; see `cross_entropy` and `log_probs` for the maths.

use super::{Backward, Op, apply, prepare, wide};
use crate::cross_entropy::Plan;
use crate::launch;
use crate::tape::Saves;
use candle_core::{DType, Result, Tensor, bail};
use std::sync::OnceLock;

/// Bytes of f32 logits alive at once. A GPU needs many rows to be busy and has the memory for them.
const CHUNK_BYTES: usize = 512 << 20;
const CHUNK_BYTES_ON_CPU: usize = 16 << 20;

/// What a pass over all chunks is to make.
struct Wanted<'a> {
    dx: bool,
    dw: bool,
    /// Factor of each row's loss, `(rows with a target, 1)` or `(1, 1)`, in f32.
    factor: Option<&'a Tensor>,
}

struct Outcome {
    /// Of the rows with a target; f32. `None` where there are none.
    losses: Option<Tensor>,
    dx: Option<Tensor>,
    dw: Option<Tensor>,
}

impl Plan {
    fn indices(&self, of: impl Fn(&(usize, usize)) -> usize, like: &Tensor) -> Result<Tensor> {
        let ids = self.rows.iter().map(|row| u32::try_from(of(row)).map_err(candle_core::Error::wrap));
        Tensor::from_vec(ids.collect::<Result<Vec<u32>>>()?, self.rows.len(), like.device())
    }

    /// `(rows with a target, …)` → `(N, …)`, zero elsewhere.
    fn spread(&self, compact: &Tensor) -> Result<Tensor> {
        let mut places = vec![self.rows.len(); self.n];
        for (place, (row, _)) in self.rows.iter().enumerate() {
            if let Some(slot) = places.get_mut(*row) {
                *slot = place;
            }
        }
        let places = places.into_iter().map(|p| u32::try_from(p).map_err(candle_core::Error::wrap));
        let places = Tensor::from_vec(places.collect::<Result<Vec<u32>>>()?, self.n, compact.device())?;
        let zero = compact.narrow(0, 0, 1)?.zeros_like()?;
        Tensor::cat(&[compact, &zero], 0)?.index_select(&places, 0)
    }

    fn pass(&self, x: &Tensor, w: &Tensor, wanted: &Wanted<'_>) -> Result<Outcome> {
        let of = x.dtype();
        let weight = w.to_dtype(of)?;
        let zeros = |wanted: bool, like: &Tensor| if wanted { like.zeros_like().map(Some) } else { Ok(None) };
        if self.rows.is_empty() {
            return Ok(Outcome { losses: None, dx: zeros(wanted.dx, x)?, dw: zeros(wanted.dw, w)? });
        }
        let (rows, targets) = (self.indices(|r| r.0, x)?, self.indices(|r| r.1, x)?);
        let bytes = if x.device().is_cpu() { CHUNK_BYTES_ON_CPU } else { CHUNK_BYTES };
        let most = (bytes / (4 * self.vocabulary)).clamp(16, 4096);
        let (mut losses, mut dxs, mut dw) = (Vec::new(), Vec::new(), None::<Tensor>);
        for from in (0..self.rows.len()).step_by(most) {
            let count = most.min(self.rows.len() - from);
            let xs = x.index_select(&rows.narrow(0, from, count)?, 0)?; // (N, C) -> (count, C)
            let factor = match wanted.factor {
                Some(f) if f.dim(0)? > 1 => Some(f.narrow(0, from, count)?),
                other => other.cloned(),
            };
            let logits = xs.matmul(&weight.t()?)?; // (count, V)
            let (loss, dlogits) = self.rows(logits, &targets.narrow(0, from, count)?, factor.as_ref())?;
            losses.push(loss);
            let Some(dlogits) = dlogits else { continue };
            if wanted.dx {
                dxs.push(dlogits.matmul(&weight)?);
            }
            if wanted.dw {
                let share = wide(&dlogits.t()?.matmul(&xs)?)?; // (V, C)
                dw = Some(match dw {
                    Some(sum) => (sum + share)?,
                    None => share,
                });
            }
        }
        let dx = if wanted.dx { Some(self.spread(&Tensor::cat(&dxs, 0)?)?) } else { None };
        Ok(Outcome { losses: Some(Tensor::cat(&losses, 0)?), dx, dw: dw.map(|dw| dw.to_dtype(w.dtype())).transpose()? })
    }

    /// Losses `(rows)` of `logits (rows, V)`, and with a factor `(1 or rows, 1)` their gradient times it, in the type
    /// of the logits.
    fn rows(&self, logits: Tensor, targets: &Tensor, factor: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        if let Some(done) = launch::softmax_loss(&logits, targets, factor, self.soft_cap)? {
            return Ok(done);
        }
        let of = logits.dtype();
        let logits = wide(&logits)?;
        let logits = match self.soft_cap.map(f64::from) {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        };
        let targets = targets.unsqueeze(1)?; // (rows, 1)
        let max = logits.max_keepdim(1)?;
        let sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?;
        let lse = (max + sum.log()?)?; // (rows, 1)
        let loss = (&lse - logits.gather(&targets, 1)?)?.squeeze(1)?;
        let Some(factor) = factor else { return Ok((loss, None)) };
        let minus_one = (lse.ones_like()? * -1.0)?;
        let softmax = logits.broadcast_sub(&lse)?.exp()?;
        #[expect(clippy::disallowed_methods, reason = "no gradient flows through it")]
        let slope = softmax.scatter_add(&targets, &minus_one, 1)?.broadcast_mul(factor)?;
        let slope = match self.soft_cap.map(f64::from) {
            Some(cap) => (slope * (1.0 - (logits / cap)?.sqr()?)?)?,
            None => slope,
        };
        Ok((loss, Some(slope.to_dtype(of)?)))
    }
}

/// The mean loss of `plan`'s rows, the gradient flowing to `x` only.
pub(crate) fn loss(x: &Tensor, w: &Tensor, plan: Plan) -> Result<Tensor> {
    prepare("linear_cross_entropy", "x", x)?;
    prepare("linear_cross_entropy", "w", w)?;
    let op = Loss { plan, w: Some(w.detach()), dx: x.track_op(), dw: false, gradients: OnceLock::new() };
    apply(&[x], op, Saves::NOTHING)
}

/// [`loss`] with a gradient for `w` too.
pub(crate) fn loss_trainable(x: &Tensor, w: &Tensor, plan: Plan) -> Result<Tensor> {
    prepare("linear_cross_entropy_trainable", "x", x)?;
    prepare("linear_cross_entropy_trainable", "w", w)?;
    let op = Loss { plan, w: None, dx: x.track_op(), dw: w.track_op(), gradients: OnceLock::new() };
    apply(&[x, w], op, Saves::NOTHING)
}

struct Loss {
    plan: Plan,
    w: Option<Tensor>,
    dx: bool,
    dw: bool,
    /// For a loss gradient of 1.
    gradients: OnceLock<[Option<Tensor>; 2]>,
}

impl Op for Loss {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (Some(x), Some(w)) = (inputs.first(), self.w.as_ref().or(inputs.get(1))) else {
            bail!("linear_cross_entropy: {} inputs", inputs.len())
        };
        let factor = if self.dx || self.dw {
            Some(Tensor::full(1.0 / self.plan.denominator, (1, 1), x.device())?.to_dtype(DType::F32)?)
        } else {
            None
        };
        let Outcome { losses, dx, dw } =
            self.plan.pass(x, w, &Wanted { dx: self.dx, dw: self.dw, factor: factor.as_ref() })?;
        if self.gradients.set([dx, dw]).is_err() {
            bail!("linear_cross_entropy: the same op ran forward twice");
        }
        match losses {
            // Summed in f64, on the device.
            Some(losses) => (losses.to_dtype(DType::F64)?.sum_all()? / self.plan.denominator)?.to_dtype(DType::F32),
            None => Tensor::zeros((), DType::F32, x.device()),
        }
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Some(gradients) = self.gradients.get() else { bail!("linear_cross_entropy: backward ran before forward") };
        let scaled = |t: &Option<Tensor>| match t {
            Some(t) => t.broadcast_mul(&saved.grad.to_dtype(t.dtype())?).map(Some),
            None => Ok(None),
        };
        gradients.iter().map(scaled).collect()
    }
}

/// Log-probability of each target, `(N)` in f32, 0 where there is none.
pub(crate) fn log_probs(x: &Tensor, w: &Tensor, plan: Plan) -> Result<Tensor> {
    prepare("linear_log_probs", "x", x)?;
    prepare("linear_log_probs", "w", w)?;
    apply(&[x], LogProbs { plan, w: w.detach() }, Saves::INPUTS)
}

struct LogProbs {
    plan: Plan,
    w: Tensor,
}

impl Op for LogProbs {
    fn name(&self) -> &'static str {
        "linear_log_probs"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [x] = inputs else { bail!("linear_log_probs: {} inputs", inputs.len()) };
        match self.plan.pass(x, &self.w, &Wanted { dx: false, dw: false, factor: None })?.losses {
            Some(losses) => self.plan.spread(&losses.neg()?),
            None => Tensor::zeros(self.plan.n, DType::F32, x.device()),
        }
    }

    fn backward(&self, saved: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let x = saved.input(0)?;
        if self.plan.rows.is_empty() {
            return Ok(vec![Some(x.zeros_like()?)]);
        }
        // The op's value is minus the loss.
        let factor = wide(saved.grad)?.neg()?.index_select(&self.plan.indices(|r| r.0, x)?, 0)?.unsqueeze(1)?;
        Ok(vec![self.plan.pass(x, &self.w, &Wanted { dx: true, dw: false, factor: Some(&factor) })?.dx])
    }
}

/// Loss of every target, 0 where there is none.
pub(crate) fn token_losses(x: &Tensor, w: &Tensor, plan: &Plan) -> Result<Vec<f32>> {
    prepare("token_losses", "x", x)?;
    prepare("token_losses", "w", w)?;
    let (x, w) = (x.detach().contiguous()?, w.detach());
    match plan.pass(&x, &w, &Wanted { dx: false, dw: false, factor: None })?.losses {
        Some(losses) => plan.spread(&losses)?.to_vec1(),
        None => Ok(vec![0.0; plan.n]),
    }
}
