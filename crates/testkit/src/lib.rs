//! Support for tests. Everything here is real: real processes, a real Postgres, and a proxy that really breaks
//! what passes it.

pub mod fault;
pub mod limits;
mod postgres;
mod process;

pub use postgres::Postgres;
pub use process::Process;
