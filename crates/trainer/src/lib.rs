//! The trainer: recipes, model architectures, LoRA, checkpoints ([`engine`]), and the runtime around them that
//! stages inputs, reports progress and uploads results.
//!
//! Invariants: the trainer never opens a database connection and never holds storage credentials; everything it
//! reads was verified against a digest; reporting never blocks or fails training.

pub mod cache;
pub mod cli;
pub mod control;
pub mod engine;
pub mod estimate;
pub mod gateway;
pub mod generate;
pub mod local;
pub mod logfile;
pub mod progress;
pub mod report;
pub mod run;
pub mod serve;
pub mod spool;
pub mod stage;
pub mod upload;
