//! Support for tests. Everything here is real: real processes, a real Postgres.

mod postgres;

pub use postgres::Postgres;
