//! Rows to batches: tokenized once, then cut into the micro-batches of every optimizer step by a pure
//! function of (seed, step), so that a resumed run sees exactly what it would have seen.

use super::{TrainError, model::Pass, rng::Key};
use dataset::{DatasetFormat, Encoder, LossOn, ReadError, Row, Rows, Sequence};
use kernels::{IGNORE, Segments};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{fs::File, ops::Range, path::Path};

/// Rows tokenized at a time.
const CHUNK: usize = 1024;
/// Marks a token that carries loss; vocabularies are far smaller.
const TRAINED: u32 = 1 << 31;

/// Tokenized sequences, four bytes per token.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// Top bit: whether predicting this token carries loss.
    tokens: Vec<u32>,
    rows: Vec<Range<usize>>,
    /// Rows that were cut to the maximum length.
    pub truncated: u64,
    /// Rows left out because nothing in them carries loss (after cutting).
    pub without_loss: u64,
}

impl Corpus {
    /// Reads and tokenizes a dataset file. `vocab` is the model's; `proceed` is asked now and then whether
    /// to go on.
    ///
    /// # Errors
    /// `DatasetInvalid` naming the line; `ModelCorrupt` when tokenizer and model do not fit together; what
    /// `proceed` fails with.
    pub fn read<E: From<TrainError>>(
        &mut self,
        path: &Path,
        format: DatasetFormat,
        encoder: &Encoder,
        loss: LossOn,
        vocab: usize,
        proceed: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(path).map_err(|e| TrainError::io("open the dataset", path, e))?;
        let mut rows = Rows::new(file, format);
        let mut first: u64 = 1;
        loop {
            proceed()?;
            let chunk: Vec<Row> = rows.by_ref().take(CHUNK).collect::<Result<_, _>>().map_err(|e| match e {
                ReadError::Io(e) => TrainError::io("read the dataset", path, e),
                e @ ReadError::Row(_) => TrainError::data(format!("{name}: {e}")).caused_by(e),
            })?;
            if chunk.is_empty() {
                return Ok(());
            }
            let encoded: Vec<_> = chunk.par_iter().map(|row| encoder.encode_row(row, loss)).collect();
            for (number, sequences) in (first..).zip(encoded) {
                let sequences = sequences.map_err(|e| {
                    TrainError::data(format!("{name}: row {number} cannot be tokenized: {e}")).caused_by(e)
                })?;
                for sequence in sequences {
                    self.push(&sequence, vocab)?;
                }
            }
            first = first.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        }
    }

    /// Adds one sequence.
    ///
    /// # Errors
    /// `ModelCorrupt` for a token outside the model's vocabulary.
    pub fn push(&mut self, sequence: &Sequence, vocab: usize) -> Result<(), TrainError> {
        if let Some(token) = sequence.tokens.iter().find(|t| usize::try_from(**t).is_ok_and(|t| t >= vocab)) {
            return Err(TrainError::model(format!(
                "the tokenizer gives token {token}, but the model's vocabulary has {vocab} entries: they do not belong together"
            )));
        }
        self.truncated = self.truncated.saturating_add(u64::from(sequence.cut > 0));
        if sequence.trained_count() == 0 {
            self.without_loss = self.without_loss.saturating_add(1);
            return Ok(());
        }
        let start = self.tokens.len();
        let marked =
            sequence.tokens.iter().zip(&sequence.trained).map(|(t, trained)| if *trained { t | TRAINED } else { *t });
        self.tokens.extend(marked);
        self.rows.push(start..self.tokens.len());
        Ok(())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn row(&self, index: usize) -> &[u32] {
        self.rows.get(index).and_then(|r| self.tokens.get(r.clone())).unwrap_or_default()
    }

    /// Tokens of the given rows.
    #[must_use]
    pub fn tokens_in(&self, rows: &[usize]) -> u64 {
        rows.iter().map(|r| u64::try_from(self.row(*r).len()).unwrap_or(u64::MAX)).sum()
    }

    /// SHA-256 over all tokens and row lengths, hex.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for row in &self.rows {
            hash.update(row.len().to_le_bytes());
            for token in self.tokens.get(row.clone()).unwrap_or_default() {
                hash.update(token.to_le_bytes());
            }
        }
        hex::encode(hash.finalize())
    }

    /// Lays the given rows end to end.
    ///
    /// # Errors
    /// Internal: no rows.
    pub fn batch(&self, rows: &[usize]) -> Result<Batch, TrainError> {
        let mut tokens = Vec::new();
        let mut targets = Vec::new();
        let mut lengths = Vec::with_capacity(rows.len());
        for row in rows {
            let marked = self.row(*row);
            lengths.push(marked.len());
            tokens.extend(marked.iter().map(|t| t & !TRAINED));
            // The target at a position is the next token, if that one carries loss.
            let next = marked.iter().skip(1).map(|t| if t & TRAINED == 0 { IGNORE } else { t & !TRAINED });
            targets.extend(next.chain([IGNORE]));
        }
        let segments = Segments::from_lengths(&lengths)?;
        Ok(Batch { tokens, targets, positions: segments.positions(), segments })
    }
}

/// One micro-batch: sequences laid end to end, `N` tokens.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(N)`
    pub tokens: Vec<u32>,
    /// `(N)`: the token to predict at each position, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// `(N)`: position in the sequence.
    pub positions: Vec<u32>,
    pub segments: Segments,
}

impl Batch {
    /// One sequence without targets.
    ///
    /// # Errors
    /// Internal: no tokens.
    pub fn of(tokens: Vec<u32>) -> Result<Self, TrainError> {
        let segments = Segments::from_lengths(&[tokens.len()])?;
        Ok(Self { targets: vec![IGNORE; tokens.len()], positions: segments.positions(), segments, tokens })
    }

    /// Number of tokens that carry loss.
    #[must_use]
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|t| **t != IGNORE).count()
    }

    /// A pass over this batch without gradients and dropout.
    #[must_use]
    pub fn pass(&self) -> Pass {
        Pass {
            segments: self.segments.clone(),
            positions: self.positions.clone(),
            grad: false,
            adapter: true,
            dropout: None,
        }
    }
}

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
    pub seed: u64,
}

/// Cuts an epoch into steps as `transformers.Trainer` does: micro-batches never cross epochs, and the last
/// step of an epoch may have fewer of them.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Rows that belong together: one, or those packed into one sequence.
    units: Vec<Vec<usize>>,
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
        Self { units, options, order: None }
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

/// Splits row numbers into training and held-out ones: `share` of them, at least one if there are two.
#[must_use]
pub fn split(rows: usize, share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    #[expect(clippy::as_conversions, reason = "a share of a row count, never negative")]
    let wanted = (rows as f64 * share).round() as usize;
    let held_out = if share > 0.0 && rows > 1 { wanted.clamp(1, rows.saturating_sub(1)) } else { 0 };
    let order = Key::new(seed, "validation split").permutation(rows);
    let (held, train) = order.split_at(held_out.min(order.len()));
    let sorted = |part: &[usize]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part
    };
    (sorted(train), sorted(held))
}

/// Cuts rows into batches of at most `limit` tokens (at least one row each), in order.
#[must_use]
pub fn by_tokens(corpus: &Corpus, rows: &[usize], limit: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut used = usize::MAX;
    for row in rows {
        let n = corpus.row(*row).len();
        used = used.saturating_add(n);
        match batches.last_mut() {
            Some(batch) if used <= limit => batch.push(*row),
            _ => {
                batches.push(vec![*row]);
                used = n;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(lengths: &[usize]) -> Corpus {
        let mut corpus = Corpus::default();
        for n in lengths {
            let tokens: Vec<u32> = (0..u32::try_from(*n).unwrap()).collect();
            corpus.push(&Sequence { trained: vec![true; *n], tokens, cut: 0 }, 1000).unwrap();
        }
        corpus
    }

    const OPTIONS: SamplerOptions =
        SamplerOptions { batch: 2, accumulation: 2, shuffle: true, pack_into: None, seed: 1 };

    #[test]
    fn targets_are_the_next_tokens_within_a_row() {
        let mut corpus = Corpus::default();
        let row = Sequence { tokens: vec![5, 6, 7], trained: vec![false, false, true], cut: 0 };
        corpus.push(&row, 10).unwrap();
        corpus.push(&Sequence { tokens: vec![1, 2], trained: vec![false, true], cut: 1 }, 10).unwrap();
        let batch = corpus.batch(&[0, 1]).unwrap();
        assert_eq!(batch.tokens, [5, 6, 7, 1, 2]);
        assert_eq!(batch.targets, [IGNORE, 7, IGNORE, 2, IGNORE]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!((batch.target_count(), corpus.truncated), (2, 1));
    }

    #[test]
    fn rows_without_loss_are_left_out_and_foreign_tokens_refused() {
        let mut corpus = Corpus::default();
        corpus.push(&Sequence { tokens: vec![1, 2], trained: vec![false, false], cut: 0 }, 10).unwrap();
        assert_eq!((corpus.len(), corpus.without_loss), (0, 1));
        let error = corpus.push(&Sequence { tokens: vec![10], trained: vec![true], cut: 0 }, 10).unwrap_err();
        assert!(error.message.contains("token 10, but the model's vocabulary has 10 entries"));
    }

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
    fn the_split_holds_out_the_share_and_keeps_rows_apart() {
        let (train, held) = split(100, 0.05, 3);
        assert_eq!((train.len(), held.len()), (95, 5));
        assert!(held.iter().all(|r| !train.contains(r)));
        assert_eq!(split(1, 0.5, 3).1.len(), 0);
        assert_eq!(split(3, 0.01, 3).1.len(), 1);
        assert_eq!(split(3, 0.0, 3).1.len(), 0);
    }

    #[test]
    fn evaluation_batches_stay_below_the_token_limit() {
        assert_eq!(by_tokens(&corpus(&[4, 4, 4, 9, 1]), &[0, 1, 2, 3, 4], 8), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }
}
