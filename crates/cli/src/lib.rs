//! The `hone` command: starts everything on one machine, and talks to a running Hone.

pub mod postgres;
pub mod proc;
