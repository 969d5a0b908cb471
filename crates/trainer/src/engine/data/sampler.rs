//! Which rows make up which step, as a function of seed and step alone.

use super::Corpus;
use crate::engine::rng::Key;

/// How rows become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerOptions {
    /// Rows (packed: sequences) per micro-batch.
    pub batch: usize,
    /// Micro-batches per step.
    pub accumulation: usize,
    pub shuffle: bool,
    /// Pack rows into sequences of at most this many tokens.
    pub pack_into: Option<usize>,
    /// Put rows of about the same length into a step, as `transformers` does.
    pub group_by_length: bool,
    pub seed: u64,
}

/// Cuts an epoch into steps as `transformers.Trainer` does: micro-batches never cross epochs, and the last
/// step of an epoch may have fewer of them.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Rows that belong together: one, or those packed into one sequence.
    units: Vec<Vec<usize>>,
    /// Tokens of each unit.
    lengths: Vec<usize>,
    options: SamplerOptions,
    order: Option<(u64, Vec<usize>)>,
}

impl Sampler {
    /// A sampler over `rows` of `corpus`.
    #[must_use]
    pub fn new(corpus: &Corpus, rows: &[usize], options: SamplerOptions) -> Self {
        let units = match options.pack_into {
            None => rows.iter().map(|r| vec![*r]).collect(),
            Some(limit) => {
                let order = Key::new(options.seed, "packing").permutation(rows.len());
                let mixed: Vec<usize> = if options.shuffle {
                    order.iter().filter_map(|i| rows.get(*i).copied()).collect()
                } else {
                    rows.to_vec()
                };
                pack(&mixed, |row| corpus.row(row).len(), limit)
            }
        };
        let length = |unit: &Vec<usize>| unit.iter().map(|row| corpus.row(*row).len()).sum();
        let lengths = units.iter().map(length).collect();
        Self { units, lengths, options, order: None }
    }

    /// Optimizer steps in one epoch, at least 1.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        let micro = self.units.len().div_ceil(self.options.batch.max(1));
        u64::try_from(micro.div_ceil(self.options.accumulation.max(1))).unwrap_or(u64::MAX).max(1)
    }

    /// Rows of every micro-batch of the optimizer step with 0-based index `step`.
    pub fn step(&mut self, step: u64) -> Vec<Vec<usize>> {
        let per_epoch = self.steps_per_epoch();
        let (epoch, index) = (step / per_epoch, usize::try_from(step % per_epoch).unwrap_or(usize::MAX));
        if self.order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let n = self.units.len();
            let order = if self.options.shuffle {
                Key::new(self.options.seed, "shuffle").at(epoch).permutation(n)
            } else {
                (0..n).collect()
            };
            let order = if self.options.group_by_length { self.group(order) } else { order };
            self.order = Some((epoch, order));
        }
        let order = self.order.as_ref().map(|(_, o)| o.as_slice()).unwrap_or_default();
        let accumulation = self.options.accumulation.max(1);
        order
            .chunks(self.options.batch.max(1))
            .skip(index.saturating_mul(accumulation))
            .take(accumulation)
            .map(|units| units.iter().filter_map(|u| self.units.get(*u)).flatten().copied().collect())
            .collect()
    }
}

impl Sampler {
    /// Sorts stretches of a mixed order by length, the longest first, and begins with the longest of all, so that
    /// memory runs out at once or not at all (`transformers.trainer_pt_utils.get_length_grouped_indices`).
    fn group(&self, mut order: Vec<usize>) -> Vec<usize> {
        const STRETCH: usize = 50;
        let per_step = self.options.batch.max(1).saturating_mul(self.options.accumulation.max(1));
        let stretch = (order.len() / per_step.saturating_mul(4)).clamp(1, STRETCH).saturating_mul(per_step);
        let length = |unit: usize| self.lengths.get(unit).copied().unwrap_or_default();
        for part in order.chunks_mut(stretch) {
            part.sort_by_key(|unit| std::cmp::Reverse(length(*unit)));
        }
        let longest = (0..order.len()).step_by(stretch);
        let longest = longest.rev().max_by_key(|at| order.get(*at).map_or(0, |unit| length(*unit)));
        if let Some(at) = longest {
            order.swap(0, at);
        }
        order
    }
}

/// First fit over a bounded number of open sequences: near-optimal for many short rows, and linear.
fn pack(rows: &[usize], length: impl Fn(usize) -> usize, limit: usize) -> Vec<Vec<usize>> {
    const OPEN: usize = 64;
    let mut open: Vec<(usize, Vec<usize>)> = Vec::new();
    let mut done = Vec::new();
    for row in rows {
        let n = length(*row);
        if let Some((used, bin)) = open.iter_mut().find(|(used, _)| used.saturating_add(n) <= limit) {
            *used = used.saturating_add(n);
            bin.push(*row);
            continue;
        }
        if open.len() >= OPEN {
            let fullest = open.iter().enumerate().max_by_key(|(_, (used, _))| *used).map_or(0, |(i, _)| i);
            done.push(open.remove(fullest).1);
        }
        open.push((n, vec![*row]));
    }
    done.extend(open.into_iter().map(|(_, bin)| bin));
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::data::tests::corpus;

    const OPTIONS: SamplerOptions =
        SamplerOptions { batch: 2, accumulation: 2, shuffle: true, pack_into: None, group_by_length: false, seed: 1 };

    #[test]
    fn an_epoch_sees_every_row_once_and_epochs_differ() {
        let corpus = corpus(&[3; 11]);
        let rows: Vec<usize> = (0..11).collect();
        let mut sampler = Sampler::new(&corpus, &rows, OPTIONS);
        assert_eq!(sampler.steps_per_epoch(), 3);
        let mut epoch =
            |first: u64| -> Vec<usize> { (first..first + 3).flat_map(|s| sampler.step(s)).flatten().collect() };
        let (a, b) = (epoch(0), epoch(3));
        assert_ne!(a, b);
        for mut order in [a, b] {
            order.sort_unstable();
            assert_eq!(order, rows);
        }
        assert_eq!(sampler.step(2), Sampler::new(&corpus, &rows, OPTIONS).step(2), "a step is a function of its index");
    }

    #[test]
    fn packing_fills_sequences_without_splitting_rows() {
        let lengths = [7, 3, 5, 5, 2, 8, 1];
        let corpus = corpus(&lengths);
        let rows: Vec<usize> = (0..lengths.len()).collect();
        let sampler = Sampler::new(&corpus, &rows, SamplerOptions { pack_into: Some(10), shuffle: false, ..OPTIONS });
        assert_eq!(sampler.units, [vec![0, 1], vec![2, 3], vec![4, 5], vec![6]]);
    }

    #[test]
    fn steps_of_rows_grouped_by_length_hold_rows_of_about_the_same_length() {
        let lengths: Vec<usize> = (0..64).map(|i| 2 + i * 37 % 64).collect();
        let corpus = corpus(&lengths);
        let rows: Vec<usize> = (0..64).collect();
        let options = SamplerOptions { batch: 4, accumulation: 1, group_by_length: true, ..OPTIONS };
        let mut sampler = Sampler::new(&corpus, &rows, options);
        let mut plain = Sampler::new(&corpus, &rows, SamplerOptions { group_by_length: false, ..options });
        let spread = |sampler: &mut Sampler, first: u64| -> usize {
            let steps = (first..first + 16).map(|step| sampler.step(step).concat());
            let of = |rows: Vec<usize>| {
                let n = rows.iter().map(|row| lengths.get(*row).unwrap());
                n.clone().max().unwrap() - n.min().unwrap()
            };
            steps.map(of).sum()
        };
        assert!(spread(&mut sampler, 0) * 2 < spread(&mut plain, 0));
        let mut seen: Vec<usize> = (16..32).flat_map(|step| sampler.step(step).concat()).collect();
        assert_ne!(seen, (0..16).flat_map(|step| sampler.step(step).concat()).collect::<Vec<_>>());
        assert_eq!(lengths.get(*seen.first().unwrap()), lengths.iter().max(), "the longest row comes first");
        seen.sort_unstable();
        assert_eq!(seen, rows, "an epoch sees every row once");
        let fresh = Sampler::new(&corpus, &rows, options).step(21);
        assert_eq!(sampler.step(21), fresh, "a step is a function of its index");
    }
}
