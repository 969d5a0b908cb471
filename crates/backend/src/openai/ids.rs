//! Ids as OpenAI writes them: a prefix and hexadecimal digits.

use super::error::{Error, Result};
use uuid::Uuid;

pub const FILE: &str = "file";
pub const JOB: &str = "ftjob";
pub const UPLOAD: &str = "upload";
pub const PART: &str = "part";
pub const EVENT: &str = "ftevent";
pub const CHECKPOINT: &str = "ftckpt";
pub const ORGANIZATION: &str = "org";

/// `file-3b1f…`
#[must_use]
pub fn show(prefix: &str, id: Uuid) -> String {
    format!("{prefix}-{}", id.simple())
}

/// The id of a text that [`show`] made.
#[must_use]
pub fn parse(prefix: &str, text: &str) -> Option<Uuid> {
    let digits = text.strip_prefix(prefix)?.strip_prefix('-')?;
    let id = digits.parse::<Uuid>().ok()?;
    (show(prefix, id) == text).then_some(id)
}

/// `ftevent-000000000000002a`: a position in a job's log.
#[must_use]
pub fn show_position(prefix: &str, position: i64) -> String {
    format!("{prefix}-{position:016x}")
}

#[must_use]
pub fn parse_position(prefix: &str, text: &str) -> Option<i64> {
    i64::from_str_radix(text.strip_prefix(prefix)?.strip_prefix('-')?, 16).ok()
}

pub fn file(text: &str) -> Result<Uuid> {
    parse(FILE, text).ok_or_else(|| no_file(text))
}

pub fn job(text: &str) -> Result<Uuid> {
    parse(JOB, text).ok_or_else(|| no_job(text))
}

#[must_use]
pub fn no_file(text: &str) -> Error {
    Error::not_found(None, format!("No such File object: {text}")).about("id")
}

#[must_use]
pub fn no_job(text: &str) -> Error {
    Error::not_found("fine_tune_not_found", format!("Could not find fine tune: {text}")).about("fine_tune_id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_only_in_its_own_spelling() {
        let id = Uuid::from_u128(0xabc);
        assert_eq!(show(FILE, id), "file-00000000000000000000000000000abc");
        assert_eq!(parse(FILE, &show(FILE, id)), Some(id));
        for text in ["", "file-", "file-abc", "ftjob-00000000000000000000000000000abc", &format!("file-{id}")] {
            assert_eq!(parse(FILE, text), None, "{text}");
        }
        assert_eq!(parse_position(EVENT, &show_position(EVENT, 42)), Some(42));
    }
}
