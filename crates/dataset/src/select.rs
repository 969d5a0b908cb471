//! A part of a file's rows, chosen by a seed.

use crate::records::{Record, Records};
use std::io::{self, BufReader, Read, Write};
use wire::{
    dataset::DatasetFormat,
    storage::{RowPart, RowSample},
};

/// Writes the rows of one part of `sample` to `out`, in their order and with their bytes; how many there were.
///
/// The same sample of the same rows is the same, and its two parts together are all rows. Lines end with `\n`, documents
/// of a text with a blank line. Fails with [`io::ErrorKind::InvalidData`] when the file does not have `sample.rows` good
/// rows of this format.
pub fn select(reader: impl Read, format: DatasetFormat, sample: RowSample, out: &mut impl Write) -> io::Result<u64> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut records = Records::new(BufReader::with_capacity(1 << 16, reader), format);
    let mut draw = Draw { rows: sample.rows, chosen: sample.chosen, state: sample.seed };
    let end: &[u8] = if format == DatasetFormat::Text { b"\n\n" } else { b"\n" };
    let mut written = 0_u64;
    while let Some(record) = records.advance()? {
        if let Record::Bad(e) = record {
            return Err(wrong(format!("line {}: {}", e.line, e.reason)));
        }
        let chosen = draw.next().ok_or_else(|| wrong(format!("there are more than {} rows", sample.rows)))?;
        if chosen == (sample.part == RowPart::Chosen) {
            out.write_all(records.text().as_bytes())?;
            out.write_all(end)?;
            written = written.saturating_add(1);
        }
    }
    if draw.rows > 0 {
        return Err(wrong(format!("there are {} rows fewer than the {} there should be", draw.rows, sample.rows)));
    }
    out.flush()?;
    Ok(written)
}

/// Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S): exactly `chosen` of `rows`, every
/// such choice equally likely, in one pass.
struct Draw {
    /// Rows that are still to come.
    rows: u64,
    /// How many of those are still to be chosen.
    chosen: u64,
    state: u64,
}

impl Draw {
    /// Whether the next row is chosen; `None` behind the last one.
    fn next(&mut self) -> Option<bool> {
        let left = self.rows;
        self.rows = left.checked_sub(1)?;
        // A number below `left`: the high half of a product needs no division and hardly prefers any.
        let below = u128::from(self.random()).wrapping_mul(u128::from(left)) >> 64;
        let chosen = below < u128::from(self.chosen);
        if chosen {
            self.chosen = self.chosen.saturating_sub(1);
        }
        Some(chosen)
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    const fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str, format: DatasetFormat, sample: RowSample) -> io::Result<String> {
        let mut out = Vec::new();
        let rows = select(text.as_bytes(), format, sample, &mut out)?;
        let wanted = if sample.part == RowPart::Chosen { sample.chosen } else { sample.rows - sample.chosen };
        assert_eq!(rows, wanted);
        Ok(String::from_utf8(out).unwrap())
    }

    const SAMPLE: RowSample = RowSample { rows: 1000, chosen: 700, seed: 42, part: RowPart::Chosen };

    #[test]
    fn the_parts_are_disjoint_complete_in_order_and_fair() {
        let text: String = (0..1000).map(|i| format!("{{\"text\":  \"{i}\", \"label\": \"é\"}}\r\n")).collect();
        let format = DatasetFormat::LabelledJsonl;
        let chosen = part(&text, format, SAMPLE).unwrap();
        let rest = part(&text, format, RowSample { part: RowPart::Rest, ..SAMPLE }).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (mut a, mut b) = (chosen.lines().peekable(), rest.lines().peekable());
        let mut in_the_first_half = 0;
        for (i, line) in lines.iter().enumerate() {
            if a.peek() == Some(line) {
                a.next();
                in_the_first_half += usize::from(i < 500);
            } else {
                assert_eq!(b.next(), Some(*line), "rows keep their bytes and their order");
            }
        }
        assert!(a.next().is_none() && b.next().is_none());
        assert!((310..390).contains(&in_the_first_half), "{in_the_first_half} of 700 are from the first half");
        assert_eq!(part(&text, format, SAMPLE).unwrap(), chosen);
        assert_ne!(part(&text, format, RowSample { seed: 43, ..SAMPLE }).unwrap(), chosen);
    }

    #[test]
    fn documents_stay_whole() {
        let text = "one\nmore\n\n\ntwo\n\nthree";
        let sample = RowSample { rows: 3, chosen: 3, seed: 0, part: RowPart::Chosen };
        assert_eq!(part(text, DatasetFormat::Text, sample).unwrap(), "one\nmore\n\ntwo\n\nthree\n\n");
    }

    #[test]
    fn a_file_with_other_rows_than_told_is_refused() {
        let format = DatasetFormat::InstructionJsonl;
        for (rows, told) in [(2, "there are 1 rows fewer"), (0, "there are more than 0 rows")] {
            let error = part("{}\n", format, RowSample { rows, chosen: 0, ..SAMPLE }).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().starts_with(told), "{error}");
        }
        let error = part("{}\n\n{}\n", format, RowSample { rows: 2, chosen: 1, ..SAMPLE }).unwrap_err();
        assert!(error.to_string().contains("line 2: empty row"), "{error}");
    }
}
