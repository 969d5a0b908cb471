//! Rows of the fault matrix that are about trainers, storage and uploads, with the real programs: `hone up`, a real
//! trainer on a tiny model, and an S3 of its own behind the fault proxy. Each test checks what the user sees.
//!
//! `FAULT_SEEDS` says how many seeds each row gets (default 1), `FAULT_FIRST_SEED` the first of them.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]
#![expect(dead_code, reason = "the harness is shared with the end-to-end tests")]

#[path = "../e2e/harness.rs"]
mod harness;
#[path = "../e2e/material.rs"]
mod material;

mod input;
mod resources;
mod stops;
mod storage;
mod upload;
mod world;
