//! Tests of the dataset crate from outside, in one binary because they share a tokenizer.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a failing test is what these are for"
)]

mod chat_templates;
mod common;
mod encoding;
mod pairs;
mod properties;
mod real_templates;
mod validation;
