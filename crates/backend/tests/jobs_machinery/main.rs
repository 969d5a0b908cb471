//! The job machinery, driven from outside: the real backend binary, a real Postgres, and real trainer
//! processes that follow a script (`examples/script_trainer.rs`).

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod callbacks;
mod costs;
mod dead_letters;
mod external;
mod gateway;
mod kubernetes;
mod restart;
mod service;
mod streams;
mod supervisor;
#[path = "../support/jobs.rs"]
mod support;
mod trainers;
mod webhooks;
mod world;
