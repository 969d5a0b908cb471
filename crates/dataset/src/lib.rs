//! Dataset formats: detect, validate, count, preview, stream and tokenize.
//!
//! The storage gateway validates and previews with this crate, the trainer loads with it, so both see
//! the same rows. What must stay true:
//!
//! - Reading takes constant memory whatever the file holds: a line or document is at most [`MAX_LINE`]
//!   bytes, every table is capped.
//! - No input makes it panic.
//! - Errors in the data are values with a line (and a column where it is known); only the reader's own
//!   failures are [`std::io::Error`]s.
//!
//! ```text
//! bytes ─ lines ─ records ─ Rows ─ Encoder ─ Sequence (tokens and which of them carry loss)
//!                    └ validate, preview, select
//! ```

mod detect;
mod encode;
mod lines;
mod parse;
mod records;
mod row;
mod select;
mod spans;
mod statistics;
mod template;
mod tokenizer;
mod validate;

pub use detect::detect;
pub use encode::{EncodeError, Encoder, LossOn, Sequence};
pub use lines::MAX_LINE;
pub use parse::parse_row;
pub use row::{ChatRow, InstructionRow, Label, LabelledRow, Message, PreferenceRow, Role, Row};
pub use select::select;
pub use template::{ChatTemplate, GenerationPrompt, TemplateError};
pub use tokenizer::{LoadError, StreamDecoder, Tokenizer};
pub use validate::{TokenCounter, preview, validate};

pub use records::{ReadError, Rows};
/// Format names and reports are part of the HTTP contract.
pub use wire::dataset::{DatasetFormat, DatasetPreview, LocatedError, TokenStats, ValidationReport};
