//! Lines of bounded length.

use std::io::{self, BufRead, Read};

/// Longest line (and longest document of a text file) in bytes; longer ones are errors (or are cut).
pub const MAX_LINE: usize = 4 << 20;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// What [`Lines::advance`] found; the bytes are in [`Lines::bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// From 1.
    pub number: u64,
    /// The line is longer than [`MAX_LINE`]; its bytes were skipped.
    pub too_long: Option<u64>,
}

/// Splits a reader at `\n`, dropping a `\r` before it and a byte order mark at the start.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
    bytes_read: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), number: 0, bytes_read: 0 }
    }

    /// Bytes consumed from the reader so far.
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The current line without its end; empty when it was too long.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads the next line; `None` at the end of the input.
    pub fn advance(&mut self) -> io::Result<Option<Line>> {
        self.buffer.clear();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        // Room for the longest line with `\r\n`.
        let read = (&mut self.reader).take(limit.saturating_add(2)).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        self.number = self.number.saturating_add(1);
        let mut total = u64::try_from(read).unwrap_or(u64::MAX);
        let ended = self.buffer.pop_if(|b| *b == b'\n').is_some();
        if ended {
            self.buffer.pop_if(|b| *b == b'\r');
        }
        if self.buffer.len() > MAX_LINE {
            if !ended {
                total = total.saturating_add(skip_line(&mut self.reader)?);
            }
            self.buffer = Vec::new();
            self.bytes_read = self.bytes_read.saturating_add(total);
            return Ok(Some(Line { number: self.number, too_long: Some(total) }));
        }
        self.bytes_read = self.bytes_read.saturating_add(total);
        if self.number == 1 && self.buffer.starts_with(BOM) {
            self.buffer.drain(..BOM.len());
        }
        Ok(Some(Line { number: self.number, too_long: None }))
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<u64> {
    reader.skip_until(b'\n').map(|n| u64::try_from(n).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8]) -> Vec<(u64, Option<u64>, Vec<u8>)> {
        let mut lines = Lines::new(input);
        let mut out = Vec::new();
        while let Some(line) = lines.advance().unwrap() {
            out.push((line.number, line.too_long, lines.bytes().to_vec()));
        }
        assert_eq!(lines.bytes_read(), u64::try_from(input.len()).unwrap());
        out
    }

    #[test]
    fn line_ends_and_byte_order_mark_are_dropped() {
        let lines = all(b"\xEF\xBB\xBFone\r\ntwo\n\nlast");
        let texts: Vec<&[u8]> = lines.iter().map(|l| l.2.as_slice()).collect();
        assert_eq!(texts, [b"one".as_slice(), b"two", b"", b"last"]);
        assert_eq!(lines[3].0, 4);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_kept_and_one_byte_more_is_skipped() {
        let mut input = vec![b'a'; MAX_LINE];
        input.extend_from_slice(b"\r\n");
        input.extend(vec![b'b'; MAX_LINE + 1]);
        input.extend_from_slice(b"\r\n");
        input.extend(vec![b'c'; 3 * MAX_LINE]);
        input.extend_from_slice(b"\nafter");
        let lines = all(&input);
        let limit = u64::try_from(MAX_LINE).unwrap();
        assert_eq!(lines.len(), 4);
        assert_eq!((lines[0].1, lines[0].2.len()), (None, MAX_LINE));
        assert_eq!(lines[1].1, Some(limit + 3));
        assert_eq!(lines[2].1, Some(3 * limit + 1));
        assert_eq!(lines[3], (4, None, b"after".to_vec()));
    }
}
