//! Rows to batches: tokenized once, then cut into the micro-batches of every optimizer step by a pure
//! function of (seed, step), so that a resumed run sees exactly what it would have seen.

mod sampler;

pub use sampler::{Sampler, SamplerOptions};

use super::{TrainError, classify::Classes, model::Pass, rng::Key};
use dataset::{DatasetFormat, Encoder, LossOn, ReadError, Row, Rows, Sequence};
use kernels::{IGNORE, Segments};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{fs::File, ops::Range, path::Path};
use wire::config::Method;

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
    /// Preference pairs: where in `tokens` each row's second answer begins; else empty.
    seconds: Vec<usize>,
    /// Labelled texts: each row's class; else empty.
    labels: Vec<u32>,
    classes: Classes,
    /// Rows that were cut to the maximum length.
    pub truncated: u64,
    /// Rows left out because nothing in them carries loss (after cutting).
    pub without_loss: u64,
}

impl Corpus {
    /// A corpus of texts labelled with `classes`.
    #[must_use]
    pub fn of_classes(classes: Classes) -> Self {
        Self { classes, ..Self::default() }
    }

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
            for ((number, row), sequences) in (first..).zip(&chunk).zip(encoded) {
                let sequences = sequences.map_err(|e| {
                    TrainError::data(format!("{name}: row {number} cannot be tokenized: {e}")).caused_by(e)
                })?;
                match (row, sequences.as_slice()) {
                    (Row::Preference(_), [chosen, rejected]) => self.push_pair(chosen, rejected, vocab)?,
                    (Row::Labelled(row), [sequence]) => match self.classes.index(&row.label) {
                        Some(class) => self.push_labelled(sequence, class, vocab)?,
                        None => {
                            return Err(TrainError::data(format!("{name}: row {number} has an unknown label")).into());
                        }
                    },
                    (_, sequences) => sequences.iter().try_for_each(|s| self.push(s, vocab))?,
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
        check_vocabulary(sequence, vocab)?;
        self.truncated = self.truncated.saturating_add(u64::from(sequence.cut > 0));
        if sequence.trained_count() == 0 {
            self.without_loss = self.without_loss.saturating_add(1);
            return Ok(());
        }
        let start = self.tokens.len();
        self.append(sequence);
        self.rows.push(start..self.tokens.len());
        Ok(())
    }

    /// Adds a preference pair as one row. A pair with an answer of which nothing is left after cutting is left out.
    ///
    /// # Errors
    /// `ModelCorrupt` for a token outside the model's vocabulary.
    pub fn push_pair(&mut self, chosen: &Sequence, rejected: &Sequence, vocab: usize) -> Result<(), TrainError> {
        check_vocabulary(chosen, vocab)?;
        check_vocabulary(rejected, vocab)?;
        self.truncated = self.truncated.saturating_add(u64::from(chosen.cut > 0 || rejected.cut > 0));
        if chosen.trained_count() == 0 || rejected.trained_count() == 0 {
            self.without_loss = self.without_loss.saturating_add(1);
            return Ok(());
        }
        let start = self.tokens.len();
        self.append(chosen);
        self.seconds.push(self.tokens.len());
        self.append(rejected);
        self.rows.push(start..self.tokens.len());
        Ok(())
    }

    /// Adds a text of class `class`.
    ///
    /// # Errors
    /// `ModelCorrupt` for a token outside the model's vocabulary.
    pub fn push_labelled(&mut self, sequence: &Sequence, class: u32, vocab: usize) -> Result<(), TrainError> {
        check_vocabulary(sequence, vocab)?;
        self.truncated = self.truncated.saturating_add(u64::from(sequence.cut > 0));
        let start = self.tokens.len();
        self.append(sequence);
        self.rows.push(start..self.tokens.len());
        self.labels.push(class);
        Ok(())
    }

    fn append(&mut self, sequence: &Sequence) {
        let marked =
            sequence.tokens.iter().zip(&sequence.trained).map(|(t, trained)| if *trained { t | TRAINED } else { *t });
        self.tokens.extend(marked);
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

    /// The sequences of a row: both answers of a pair, preferred first; else one.
    fn sequences(&self, index: usize) -> impl Iterator<Item = &[u32]> {
        let row = self.row(index);
        let start = self.rows.get(index).map_or(0, |r| r.start);
        let first = self.seconds.get(index).map_or(row.len(), |second| second.saturating_sub(start));
        let (first, second) = row.split_at(first.min(row.len()));
        [first, second].into_iter().filter(|s| !s.is_empty())
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
        for second in &self.seconds {
            hash.update(second.to_le_bytes());
        }
        for label in &self.labels {
            hash.update(label.to_le_bytes());
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
        for (row, marked) in rows.iter().flat_map(|row| self.sequences(*row).map(move |s| (row, s))) {
            lengths.push(marked.len());
            tokens.extend(marked.iter().map(|t| t & !TRAINED));
            // The target at a position is the next token, if that one carries loss.
            let next = marked.iter().skip(1).map(|t| if t & TRAINED == 0 { IGNORE } else { t & !TRAINED });
            match self.labels.get(*row) {
                // The target at the first token is the class.
                Some(class) => targets.extend([*class].into_iter().chain(marked.iter().skip(1).map(|_| IGNORE))),
                None => targets.extend(next.chain([IGNORE])),
            }
        }
        let segments = Segments::from_lengths(&lengths)?;
        Ok(Batch { tokens, targets, positions: segments.positions(), segments })
    }
}

fn check_vocabulary(sequence: &Sequence, vocab: usize) -> Result<(), TrainError> {
    match sequence.tokens.iter().find(|t| usize::try_from(**t).is_ok_and(|t| t >= vocab)) {
        None => Ok(()),
        Some(token) => Err(TrainError::model(format!(
            "the tokenizer gives token {token}, but the model's vocabulary has {vocab} entries: they do not belong together"
        ))),
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

    /// The sequences at `ranges`, which lie end to end. `None` when they are not sequences of this batch.
    pub(super) fn part(&self, ranges: &[Range<usize>]) -> Option<Self> {
        let rows = ranges.first()?.start..ranges.last()?.end;
        let lengths: Vec<usize> = ranges.iter().map(ExactSizeIterator::len).collect();
        Some(Self {
            tokens: self.tokens.get(rows.clone())?.to_vec(),
            targets: self.targets.get(rows.clone())?.to_vec(),
            positions: self.positions.get(rows)?.to_vec(),
            segments: Segments::from_lengths(&lengths).ok()?,
        })
    }

    /// Number of tokens that carry loss.
    #[must_use]
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|t| **t != IGNORE).count()
    }

    /// What the loss is a mean over: pairs of answers, classified texts, else tokens that carry loss.
    #[must_use]
    pub fn loss_units(&self, method: Method) -> usize {
        match method {
            Method::Dpo => self.segments.count() / 2,
            Method::Sft | Method::Full | Method::Pretrain | Method::Classification => self.target_count(),
        }
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

    pub(in crate::engine::data) fn corpus(lengths: &[usize]) -> Corpus {
        let mut corpus = Corpus::default();
        for n in lengths {
            let tokens: Vec<u32> = (0..u32::try_from(*n).unwrap()).collect();
            corpus.push(&Sequence { trained: vec![true; *n], tokens, cut: 0 }, 1000).unwrap();
        }
        corpus
    }

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
    fn a_pair_is_one_row_of_two_sequences() {
        let sequence = |tokens: &[u32], prompt: usize| Sequence {
            tokens: tokens.to_vec(),
            trained: (0..tokens.len()).map(|i| i >= prompt).collect(),
            cut: 0,
        };
        let mut corpus = Corpus::default();
        corpus.push_pair(&sequence(&[1, 2, 3], 2), &sequence(&[1, 2, 4, 5], 2), 10).unwrap();
        corpus.push_pair(&sequence(&[1, 2], 2), &sequence(&[1, 2, 4], 2), 10).unwrap();
        corpus.push_pair(&sequence(&[6, 7], 1), &sequence(&[6, 8], 1), 10).unwrap();
        assert_eq!((corpus.len(), corpus.without_loss, corpus.tokens_in(&[0, 1])), (2, 1, 11));
        let batch = corpus.batch(&[1, 0]).unwrap();
        assert_eq!(batch.tokens, [6, 7, 6, 8, 1, 2, 3, 1, 2, 4, 5]);
        assert_eq!(batch.targets, [7, IGNORE, 8, IGNORE, IGNORE, 3, IGNORE, IGNORE, 4, 5, IGNORE]);
        assert_eq!(batch.segments.ranges().map(|r| r.len()).collect::<Vec<_>>(), [2, 2, 3, 4]);
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
