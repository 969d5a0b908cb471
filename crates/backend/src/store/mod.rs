//! Rows and queries. Queries are functions that take a connection, so that they compose in transactions;
//! what they see is decided by the transaction's tenant, never by a WHERE clause alone.

pub mod artifact;
pub mod columns;
pub mod cost;
pub mod dataset;
pub mod idempotency;
pub mod job;
pub mod key;
pub mod metric;
pub mod model;
pub mod notification;
pub mod package;
pub mod page;
pub mod usage;
pub mod user;
pub mod version;
pub mod webhook;

pub use artifact::Artifact;
pub use columns::{Json, Name};
pub use dataset::Dataset;
pub use job::Job;
pub use key::Key;
pub use model::Model;
pub use package::Package;
pub use user::User;
pub use version::Version;

/// Sizes and counts are never negative, but SQL has only signed integers.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
