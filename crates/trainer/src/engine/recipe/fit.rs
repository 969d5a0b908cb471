//! Whether a run can fit into memory at all, from shapes: cheap, and asked before every training.

use super::{count, float};
use crate::engine::{
    Place, Setup, TrainError,
    data::{Corpus, Sampler},
    memory,
    model::CausalLm,
    optim, step,
    weights::WeightFiles,
};
use wire::{
    config::{BaseDtype, Init, Method},
    job::FailureCode,
};

/// Bytes the parts of a run need at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    /// Weights, data, and everything else there is before the first step.
    loaded: u64,
    gradients_and_moments: u64,
    activations: u64,
    /// Tokens of the largest batch.
    tokens: usize,
}

impl Need {
    fn check(self, available: u64) -> Result<(), TrainError> {
        let Self { loaded, gradients_and_moments, activations, tokens } = self;
        let needed = loaded.saturating_add(gradients_and_moments).saturating_add(activations);
        if needed <= available {
            return Ok(());
        }
        Err(TrainError::new(
            FailureCode::TrainerOom,
            format!(
                "training needs at least {} of memory (model and data {}, gradients and moments {}, activations of {tokens} tokens {}) and {} are available; \
                 lower per_device_train_batch_size or max_seq_length, set gradient_checkpointing, or choose a smaller model",
                human(needed),
                human(loaded),
                human(gradients_and_moments),
                human(activations),
                human(available)
            ),
        ))
    }
}

/// Refuses a model whose weights alone cannot fit, before they are loaded.
pub(super) fn check_weights(setup: &Setup) -> Result<(), TrainError> {
    if setup.config.init == Init::Random {
        return Ok(());
    }
    let weights = WeightFiles::open_dir(&setup.model_dir)?;
    let frozen = setup.config.trains_adapter();
    let keep = if frozen { setup.config.training.base_dtype } else { BaseDtype::F32 };
    let available = match setup.place {
        Place::Cpu => memory::available(),
        place => place.memory().map(|m| m.free),
    };
    match available {
        Some(available) => Need { loaded: weights.kept_bytes(setup.place.kept(keep)), ..NOTHING }.check(available),
        None => Ok(()),
    }
}

const NOTHING: Need = Need { loaded: 0, gradients_and_moments: 0, activations: 0, tokens: 0 };

/// Most tokens of the first epoch's micro-batches that are in memory at once.
pub(super) fn largest_part(setup: &Setup, sampler: &mut Sampler, corpus: &Corpus) -> usize {
    let steps = 0..sampler.steps_per_epoch();
    steps.flat_map(|step| sampler.step(step)).map(|rows| at_once(setup, corpus, &rows)).max().unwrap_or(0)
}

/// Tokens of the micro-batch `rows` that are in memory at once: those of its largest part, or of all pairs.
pub(super) fn at_once(setup: &Setup, corpus: &Corpus, rows: &[usize]) -> usize {
    let lengths = rows.iter().map(|row| usize::try_from(corpus.tokens_in(&[*row])).unwrap_or(usize::MAX));
    match setup.config.method {
        Method::Dpo => lengths.fold(0, usize::saturating_add),
        _ => part(lengths, step::part_tokens(setup.place)),
    }
}

/// Tokens of the largest part that `step` makes of sequences of these lengths, in parts of at most `limit`.
fn part(lengths: impl Iterator<Item = usize>, limit: usize) -> usize {
    let (mut largest, mut open) = (0, 0_usize);
    for length in lengths {
        let joined = open.saturating_add(length);
        open = if joined <= limit { joined } else { length };
        largest = largest.max(open);
    }
    largest
}

/// Refuses a run whose largest batch, of `tokens`, cannot fit. Everything is loaded by now.
pub(super) fn check_batch(setup: &Setup, model: &dyn CausalLm, tokens: usize) -> Result<(), TrainError> {
    let (available, loaded) = match setup.place {
        Place::Cpu => (memory::available(), memory::resident().map(|(now, _)| now)),
        place => place.memory().map(|m| (m.total, m.total.saturating_sub(m.free))).unzip(),
    };
    let (Some(available), Some(loaded)) = (available, loaded) else { return Ok(()) };
    let t = &setup.config.training;
    let elements = model.params().iter().map(|(_, v)| v.elem_count());
    let state = elements.map(|n| 4_usize.saturating_mul(n).saturating_add(optim::Moments::bytes(t.optim, n)));
    // What a projection puts out is kept for the backward pass; so is every block's input. With recomputation only
    // the latter, and one block's share of the former.
    let dims = model.dims();
    let (layers, inputs) = (dims.layers.max(1), dims.layers.saturating_mul(dims.hidden));
    let outputs: usize = model.linears().iter().map(|l| l.shape().0).sum();
    let kept = inputs.saturating_add(if t.gradient_checkpointing { outputs / layers } else { outputs });
    Need {
        loaded,
        gradients_and_moments: count(state.sum()),
        activations: count(
            tokens.saturating_mul(kept).saturating_mul(setup.place.activations(t.base_dtype).size_in_bytes()),
        ),
        tokens,
    }
    .check(available)
}

/// `1.5 GB`
fn human(bytes: u64) -> String {
    format!("{:.1} GB", float(bytes) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_as_large_as_its_largest_part() {
        let of = |lengths: &[usize]| part(lengths.iter().copied(), 1024);
        assert_eq!((of(&[]), of(&[5, 6]), of(&[600, 600, 400])), (0, 11, 1000));
        assert_eq!((of(&[500; 64]), of(&[100, 3000, 100]), of(&[1024, 1])), (1000, 3000, 1024));
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_numbers() {
        let gb = 1_000_000_000;
        let need = Need { loaded: 4 * gb, gradients_and_moments: gb, activations: 6 * gb, tokens: 8192 };
        need.check(11 * gb).unwrap();
        let error = need.check(8 * gb).unwrap_err();
        assert_eq!(error.code, FailureCode::TrainerOom);
        assert!(
            error.message.starts_with(
                "training needs at least 11.0 GB of memory (model and data 4.0 GB, gradients and moments 1.0 GB, activations of 8192 tokens 6.0 GB) and 8.0 GB are available; lower"
            ),
            "{error}"
        );
    }
}
