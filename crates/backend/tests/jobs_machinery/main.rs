//! The job machinery, driven from outside: the real backend binary, a real Postgres, and real trainer
//! processes that follow a script (`examples/script_trainer.rs`).

mod callbacks;
mod gateway;
mod restart;
mod service;
mod streams;
mod supervisor;
mod trainers;
mod world;
