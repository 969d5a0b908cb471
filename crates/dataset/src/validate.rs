//! Validation reports and previews.

use crate::{
    detect::{SAMPLE, archive, detect},
    encode::{Encoder, LossOn},
    parse::parse_row,
    records::{Record, Records},
    row::Row,
    statistics::Statistics,
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashSet},
    io::{self, BufReader, Cursor, Read},
    ops::Range,
};
use wire::dataset::{DatasetFormat, DatasetPreview, LocatedError, MAX_ERRORS, TokenStats, ValidationReport};

/// Rows whose hashes are remembered; rows after that are compared with these only.
const MAX_HASHES: usize = 1 << 20;

/// Counts tokens during validation.
#[derive(Debug, Clone, Copy)]
pub struct TokenCounter<'a> {
    /// `name@revision` of the model.
    pub name: &'a str,
    pub encoder: &'a Encoder,
}

/// Reads the whole file and reports what is in it and what is wrong with it.
///
/// Only failures of the reader itself are errors. Rows that the tokenizer's chat template refuses count as
/// errors when `tokens` is given. `duplicates` is a lower bound beyond 2²⁰ distinct rows.
pub fn validate(
    reader: impl Read,
    format: Option<DatasetFormat>,
    tokens: Option<TokenCounter<'_>>,
) -> io::Result<ValidationReport> {
    let (sample, reader) = sampled(reader)?;
    let format = format.unwrap_or_else(|| detect(&sample));
    let mut records = Records::new(BufReader::with_capacity(1 << 16, reader), format);
    let mut findings = Findings::new(tokens);
    if let Some(kind) = archive(&sample) {
        let reason = format!("the file is a {kind} archive; archives are not unpacked: upload the file that is in it");
        findings.error(LocatedError { line: 1, column: None, reason });
        return Ok(findings.into_report(format, u64::try_from(sample.len()).unwrap_or(u64::MAX)));
    }
    while let Some(record) = records.advance()? {
        match record {
            Record::Bad(e) => findings.error(e),
            Record::Good { line } => match parse_row(records.text(), format, line) {
                Ok(row) => findings.row(records.text(), &row, line),
                Err(e) => findings.error(e),
            },
        }
    }
    Ok(findings.into_report(format, records.bytes_read()))
}

/// The good rows with these numbers, which count from 0: the JSON of the file, or strings for plain text.
pub fn preview(reader: impl Read, format: Option<DatasetFormat>, wanted: Range<usize>) -> io::Result<DatasetPreview> {
    let (sample, reader) = sampled(reader)?;
    let format = format.unwrap_or_else(|| detect(&sample));
    let mut records = Records::new(BufReader::with_capacity(1 << 16, reader), format);
    let mut rows = Vec::new();
    let mut number = 0;
    while number < wanted.end
        && let Some(record) = records.advance()?
    {
        let Record::Good { line } = record else { continue };
        let text = records.text();
        if parse_row(text, format, line).is_ok() {
            number += 1;
            if number <= wanted.start {
                continue;
            }
            let value = match format {
                DatasetFormat::Text => Ok(serde_json::Value::String(text.to_owned())),
                _ => serde_json::from_str(text),
            };
            rows.extend(value);
        }
    }
    Ok(DatasetPreview { format, rows })
}

/// The first bytes of a file, and all of it.
fn sampled(mut reader: impl Read) -> io::Result<(Vec<u8>, impl Read)> {
    let mut sample = Vec::new();
    reader.by_ref().take(u64::try_from(SAMPLE).unwrap_or(u64::MAX)).read_to_end(&mut sample)?;
    Ok((sample.clone(), Cursor::new(sample).chain(reader)))
}

struct Findings<'a> {
    counter: Option<TokenCounter<'a>>,
    rows: u64,
    duplicates: u64,
    error_count: u64,
    errors: Vec<LocatedError>,
    seen: HashSet<u64>,
    /// Rows by their number of tokens; at most one entry per possible length of a row.
    lengths: BTreeMap<u64, u64>,
    trained: u64,
    statistics: Statistics,
}

impl<'a> Findings<'a> {
    fn new(counter: Option<TokenCounter<'a>>) -> Self {
        Self {
            counter,
            rows: 0,
            duplicates: 0,
            error_count: 0,
            errors: Vec::new(),
            seen: HashSet::new(),
            lengths: BTreeMap::new(),
            trained: 0,
            statistics: Statistics::default(),
        }
    }

    fn error(&mut self, error: LocatedError) {
        self.error_count = self.error_count.saturating_add(1);
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    fn row(&mut self, text: &str, row: &Row, line: u64) {
        if let Some(counter) = self.counter {
            match counter.encoder.encode_row(row, LossOn::Assistant) {
                Ok(sequences) => {
                    let tokens: usize = sequences.iter().map(|s| s.full_length()).sum();
                    let trained: usize = sequences.iter().map(|s| s.trained_count()).sum();
                    let entry = self.lengths.entry(u64::try_from(tokens).unwrap_or(u64::MAX)).or_default();
                    *entry = entry.saturating_add(1);
                    self.trained = self.trained.saturating_add(u64::try_from(trained).unwrap_or(u64::MAX));
                }
                Err(e) => return self.error(LocatedError { line, column: None, reason: e.to_string() }),
            }
        }
        self.rows = self.rows.saturating_add(1);
        self.statistics.row(row);
        let hash = row_hash(text);
        if self.seen.contains(&hash) {
            self.duplicates = self.duplicates.saturating_add(1);
        } else if self.seen.len() < MAX_HASHES {
            self.seen.insert(hash);
        }
    }

    fn into_report(mut self, format: DatasetFormat, bytes: u64) -> ValidationReport {
        if self.rows == 0 && self.error_count == 0 {
            let reason = if bytes == 0 { "the file is empty" } else { "the file has no rows, only blank lines" };
            self.error(LocatedError { line: 1, column: None, reason: reason.into() });
        }
        let tokens = self.counter.map(|c| self.token_stats(c.name));
        ValidationReport {
            format,
            bytes,
            rows: self.rows,
            duplicates: self.duplicates,
            error_count: self.error_count,
            errors: self.errors,
            tokens,
            statistics: (self.rows > 0).then(|| self.statistics.into_report()),
        }
    }

    fn token_stats(&self, tokenizer: &str) -> TokenStats {
        let total = self.lengths.iter().fold(0_u64, |sum, (length, n)| sum.saturating_add(length.saturating_mul(*n)));
        // Nearest rank: the smallest length that at least 95 % of the rows do not exceed.
        let rank = self.rows.saturating_mul(95).div_ceil(100);
        let mut below = 0_u64;
        let p95 = self.lengths.iter().find_map(|(length, n)| {
            below = below.saturating_add(*n);
            (below >= rank).then_some(*length)
        });
        TokenStats {
            tokenizer: tokenizer.to_owned(),
            total,
            trained: self.trained,
            min: self.lengths.keys().next().copied().unwrap_or_default(),
            mean: mean(total, self.rows),
            p95: p95.unwrap_or_default(),
            max: self.lengths.keys().next_back().copied().unwrap_or_default(),
        }
    }
}

#[expect(clippy::as_conversions, reason = "an average needs no more than 53 bits")]
pub(crate) fn mean(total: u64, rows: u64) -> f64 {
    if rows == 0 { 0.0 } else { total as f64 / rows as f64 }
}

fn row_hash(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).fold(0, |hash, byte| (hash << 8) | u64::from(*byte))
}
