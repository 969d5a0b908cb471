//! What rows look like on the whole, in constant memory.

use crate::row::{PreferenceRow, Row};
use std::collections::BTreeMap;
use wire::dataset::{Bin, LengthStats, RowStatistics};

/// Lengths up to here are counted exactly, longer ones rounded up to the next multiple of [`COARSE`].
const EXACT: u64 = 1 << 16;
const COARSE: u64 = 1 << 10;
/// Classes that are counted one by one.
const MAX_LABELS: usize = 1000;

#[derive(Debug, Default)]
pub struct Statistics {
    rows: u64,
    characters: u64,
    /// Rows by their length; at most one entry per length that is told apart.
    lengths: BTreeMap<u64, u64>,
    roles: BTreeMap<&'static str, u64>,
    labels: BTreeMap<String, u64>,
}

impl Statistics {
    pub fn row(&mut self, row: &Row) {
        let mut characters = 0_u64;
        let mut say = |role: &'static str, text: &str, roles: &mut BTreeMap<&'static str, u64>| {
            *roles.entry(role).or_default() += 1;
            characters = characters.saturating_add(count(text));
        };
        match row {
            Row::Chat(chat) => {
                chat.messages.iter().for_each(|m| say(m.role.template_name(), &m.content, &mut self.roles));
            }
            Row::Instruction(row) => {
                let chat = row.to_chat();
                chat.messages.iter().for_each(|m| say(m.role.template_name(), &m.content, &mut self.roles));
            }
            Row::Preference(PreferenceRow::Text { prompt, chosen, rejected }) => {
                for (role, text) in [("prompt", prompt), ("chosen", chosen), ("rejected", rejected)] {
                    say(role, text, &mut self.roles);
                }
            }
            Row::Preference(PreferenceRow::Chat { prompt, chosen, rejected }) => {
                let parts = [("prompt", &prompt.messages), ("chosen", chosen), ("rejected", rejected)];
                for (role, messages) in parts {
                    messages.iter().for_each(|m| say(role, &m.content, &mut self.roles));
                }
            }
            Row::Labelled(row) => {
                characters = count(&row.text);
                let label = serde_json::to_value(&row.label).map_or_else(
                    |_| String::new(),
                    |label| match label {
                        serde_json::Value::String(name) => name,
                        other => other.to_string(),
                    },
                );
                if self.labels.len() < MAX_LABELS || self.labels.contains_key(&label) {
                    *self.labels.entry(label).or_default() += 1;
                }
            }
            Row::Text(text) => characters = count(text),
        }
        self.rows = self.rows.saturating_add(1);
        self.characters = self.characters.saturating_add(characters);
        let told = if characters <= EXACT { characters } else { characters.next_multiple_of(COARSE) };
        *self.lengths.entry(told).or_default() += 1;
    }

    pub fn into_report(self) -> RowStatistics {
        let rank = |percent: u64| {
            // Nearest rank: the smallest length that at least so many of the rows do not exceed.
            let rank = self.rows.saturating_mul(percent).div_ceil(100).max(1);
            let mut below = 0_u64;
            let found = self.lengths.iter().find_map(|(length, rows)| {
                below = below.saturating_add(*rows);
                (below >= rank).then_some(*length)
            });
            found.unwrap_or_default()
        };
        let mut bins: BTreeMap<u64, u64> = BTreeMap::new();
        for (length, rows) in &self.lengths {
            // Powers of two; what is larger than all of them shares the last one.
            let up_to = length.checked_next_power_of_two().unwrap_or(u64::MAX);
            *bins.entry(up_to).or_default() += rows;
        }
        RowStatistics {
            characters: LengthStats {
                total: self.characters,
                min: self.lengths.keys().next().copied().unwrap_or_default(),
                mean: crate::validate::mean(self.characters, self.rows),
                p50: rank(50),
                p90: rank(90),
                p95: rank(95),
                p99: rank(99),
                max: self.lengths.keys().next_back().copied().unwrap_or_default(),
                histogram: bins.into_iter().map(|(up_to, rows)| Bin { up_to, rows }).collect(),
            },
            roles: self.roles.into_iter().map(|(role, n)| (role.to_owned(), n)).collect(),
            labels: self.labels,
        }
    }
}

fn count(text: &str) -> u64 {
    u64::try_from(text.chars().count()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Label, LabelledRow};

    #[test]
    fn lengths_are_ranked_and_binned() {
        let mut statistics = Statistics::default();
        for n in 1..=100_usize {
            statistics.row(&Row::Text("ü".repeat(n)));
        }
        let LengthStats { total, min, mean, p50, p90, p95, p99, max, histogram } = statistics.into_report().characters;
        assert_eq!((total, min, p50, p90, p95, p99, max), (5050, 1, 50, 90, 95, 99, 100));
        assert!((mean - 50.5).abs() < 1e-9);
        let bins: Vec<(u64, u64)> = histogram.iter().map(|b| (b.up_to, b.rows)).collect();
        assert_eq!(bins, [(1, 1), (2, 1), (4, 2), (8, 4), (16, 8), (32, 16), (64, 32), (128, 36)]);
    }

    #[test]
    fn labels_and_memory_are_bounded() {
        let mut statistics = Statistics::default();
        for n in 0..3000_u32 {
            let text = "x".repeat(usize::try_from(n).unwrap() * 100);
            statistics.row(&Row::Labelled(LabelledRow { text, label: Label::Class(n) }));
        }
        assert!(statistics.lengths.len() < 1000, "{}", statistics.lengths.len());
        assert_eq!(statistics.into_report().labels.len(), MAX_LABELS);
    }
}
