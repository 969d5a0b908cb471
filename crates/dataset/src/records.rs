//! Records: lines of a JSONL file, documents of a text file; and the rows parsed from them.

use crate::{
    lines::{Line, Lines, MAX_LINE},
    parse::parse_row,
    row::Row,
};
use std::io::{self, BufRead, BufReader, Read};
use wire::dataset::{DatasetFormat, LocatedError};

/// Why a row could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the dataset cannot be read")]
    Io(#[from] io::Error),
    #[error("line {}: {}", .0.line, .0.reason)]
    Row(LocatedError),
}

/// What [`Records::advance`] found.
#[derive(Debug)]
pub(crate) enum Record {
    /// The text is in [`Records::text`].
    Good {
        line: u64,
    },
    Bad(LocatedError),
}

/// Splits a file into the texts of its rows. Memory: two buffers of at most [`MAX_LINE`] bytes.
#[derive(Debug)]
pub(crate) struct Records<R> {
    lines: Lines<R>,
    format: DatasetFormat,
    /// Text of the current record.
    text: String,
    /// Text format: the document being collected and its first line.
    document: String,
    document_line: u64,
    /// JSONL: blank lines that are errors if another row follows.
    blanks: std::ops::Range<u64>,
    /// JSONL: the line after the blanks, still in the line buffer.
    held: Option<Line>,
}

impl<R: BufRead> Records<R> {
    pub fn new(reader: R, format: DatasetFormat) -> Self {
        Self {
            lines: Lines::new(reader),
            format,
            text: String::new(),
            document: String::new(),
            document_line: 0,
            blanks: 0..0,
            held: None,
        }
    }

    pub const fn bytes_read(&self) -> u64 {
        self.lines.bytes_read()
    }

    /// Text of the record [`Self::advance`] found last.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn advance(&mut self) -> io::Result<Option<Record>> {
        match self.format {
            DatasetFormat::Text => self.advance_document(),
            _ => self.advance_line(),
        }
    }

    fn advance_line(&mut self) -> io::Result<Option<Record>> {
        loop {
            if self.held.is_some()
                && let Some(line) = self.blanks.next()
            {
                let reason = "empty row: remove the blank line".to_owned();
                return Ok(Some(Record::Bad(LocatedError { line, column: None, reason })));
            }
            let line = match self.held.take() {
                Some(line) => line,
                None => match self.lines.advance()? {
                    Some(line) => line,
                    // Blank lines at the end of the file are nobody's mistake.
                    None => return Ok(None),
                },
            };
            if line.too_long.is_none() && self.lines.bytes().iter().all(u8::is_ascii_whitespace) {
                if self.blanks.is_empty() {
                    self.blanks = line.number..line.number;
                }
                self.blanks.end = line.number.saturating_add(1);
                continue;
            }
            if !self.blanks.is_empty() {
                self.held = Some(line);
                continue;
            }
            return Ok(Some(match check(line, self.lines.bytes()) {
                Ok(text) => {
                    self.text.clear();
                    self.text.push_str(text);
                    Record::Good { line: line.number }
                }
                Err(e) => Record::Bad(e),
            }));
        }
    }

    fn advance_document(&mut self) -> io::Result<Option<Record>> {
        loop {
            let Some(line) = self.lines.advance()? else {
                return Ok(self.take_document());
            };
            if line.too_long.is_none() && self.lines.bytes().iter().all(u8::is_ascii_whitespace) {
                match self.take_document() {
                    Some(record) => return Ok(Some(record)),
                    None => continue,
                }
            }
            let text = match check(line, self.lines.bytes()) {
                Ok(text) => text,
                Err(e) => return Ok(Some(Record::Bad(e))),
            };
            // A document that outgrows the limit goes on as another one.
            let full = self.document.len().saturating_add(text.len()) >= MAX_LINE && !self.document.is_empty();
            if full {
                self.text.clear();
                std::mem::swap(&mut self.text, &mut self.document);
                self.document.push_str(text);
                let started = std::mem::replace(&mut self.document_line, line.number);
                return Ok(Some(Record::Good { line: started }));
            }
            if self.document.is_empty() {
                self.document_line = line.number;
            } else {
                self.document.push('\n');
            }
            self.document.push_str(text);
        }
    }

    fn take_document(&mut self) -> Option<Record> {
        if self.document.is_empty() {
            return None;
        }
        self.text.clear();
        std::mem::swap(&mut self.text, &mut self.document);
        Some(Record::Good { line: self.document_line })
    }
}

/// The line as text, or what is wrong with its bytes.
fn check(line: Line, bytes: &[u8]) -> Result<&str, LocatedError> {
    let error = |at: Option<usize>, reason: String| LocatedError {
        line: line.number,
        column: at.and_then(|at| u64::try_from(at).ok()).map(|at| at.saturating_add(1)),
        reason,
    };
    if let Some(length) = line.too_long {
        return Err(error(None, format!("line too long: {length} bytes, at most {MAX_LINE} are allowed")));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        let byte = bytes.get(at).copied().unwrap_or_default();
        error(Some(at), format!("bad UTF-8: byte 0x{byte:02x} is not part of a character; save the file as UTF-8"))
    })?;
    match bytes.iter().position(|b| *b == 0) {
        Some(at) => {
            Err(error(Some(at), "NUL byte: the file is not plain text (or is UTF-16); save it as UTF-8".into()))
        }
        None => Ok(text),
    }
}

/// Streams the rows of a file.
///
/// Ends after the first [`ReadError::Io`]; goes on after a [`ReadError::Row`].
#[derive(Debug)]
pub struct Rows<R> {
    records: Records<BufReader<R>>,
    format: DatasetFormat,
    failed: bool,
}

impl<R: Read> Rows<R> {
    pub fn new(reader: R, format: DatasetFormat) -> Self {
        Self { records: Records::new(BufReader::with_capacity(1 << 16, reader), format), format, failed: false }
    }
}

impl<R: Read> Iterator for Rows<R> {
    type Item = Result<Row, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match self.records.advance() {
            Ok(None) => None,
            Ok(Some(Record::Good { line })) => {
                Some(parse_row(self.records.text(), self.format, line).map_err(ReadError::Row))
            }
            Ok(Some(Record::Bad(e))) => Some(Err(ReadError::Row(e))),
            Err(e) => {
                self.failed = true;
                Some(Err(ReadError::Io(e)))
            }
        }
    }
}
