//! Support for tests. What is here is real, but for [`hub`] and [`kube`]: real processes, a real Postgres, and a proxy that really breaks
//! what passes it.

pub mod fault;
pub mod hub;
pub mod kube;
pub mod limits;
mod postgres;
mod process;

pub use postgres::Postgres;
pub use process::Process;
