//! The engine from outside: whole runs, the model's numbers, and the reference runs.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::as_conversions, reason = "tests fail loudly")]
#![expect(clippy::print_stdout, reason = "measured differences are worth seeing with --nocapture")]

mod architectures;
mod base_dtype;
mod equal;
mod estimate;
mod hub_configs;
mod kill;
mod merge;
mod model;
mod portable;
mod ref_dpo;
mod ref_encoders;
mod ref_lora;
mod ref_options;
mod shapes;
mod stopping;
mod support;
mod train;
