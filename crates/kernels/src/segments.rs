//! Where the sequences of a batch begin and end.

use candle_core::{Result, bail};
use std::ops::Range;
use std::sync::Arc;

/// Sequences laid end to end: cumulative lengths `[0, n₀, n₀+n₁, …, N]`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    offsets: Arc<[usize]>,
}

impl Segments {
    /// From the length of each sequence, in order. No sequence may be empty.
    pub fn from_lengths(lengths: &[usize]) -> Result<Self> {
        if let Some(at) = lengths.iter().position(|&n| n == 0) {
            bail!("segments: sequence {at} of {} is empty", lengths.len());
        }
        let mut end = 0;
        let offsets = std::iter::once(0).chain(lengths.iter().map(|n| {
            end += n;
            end
        }));
        Ok(Self { offsets: offsets.collect() })
    }

    /// Tokens in all sequences together (`N`).
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// Number of sequences.
    #[must_use]
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of each sequence.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).filter_map(|pair| match pair {
            [start, end] => Some(*start..*end),
            _ => None,
        })
    }

    /// Position of every token in its own sequence: `0, 1, …` restarting at each sequence. `(N)`
    #[must_use]
    pub fn positions(&self) -> Vec<u32> {
        self.ranges().flat_map(|range| (0..u32::try_from(range.len()).unwrap_or(u32::MAX)).take(range.len())).collect()
    }
}
