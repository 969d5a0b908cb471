//! Backend: API, job state, launchers, reconcilers, live updates.

pub mod db;
pub mod error;
pub mod jobs;
pub mod schema;

pub use error::{Error, Result};
