//! Recipes, model architectures, LoRA, checkpoints and progress reports.

pub mod engine;
