//! End to end: the real programs, a real Postgres, the embedded S3, a real trainer on a tiny model.
//!
//! The programs are taken from the directory of the `hone` under test; `make test` builds them first.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod budget;
mod continuation;
mod costs;
mod faults;
mod flow;
mod harness;
mod hub;
mod input;
mod isolation;
mod keys;
mod material;
mod news;
mod packages;
mod start;
