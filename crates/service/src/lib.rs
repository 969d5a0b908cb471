//! Plumbing every Hone service shares. It knows nothing of jobs, datasets or models.

pub mod breaker;
pub mod client;
pub mod env;
pub mod error;
pub mod failpoint;
mod lines;
pub mod memory;
pub mod outgoing;
pub mod retry;
pub mod server;
pub mod telemetry;
pub mod token;

pub use client::{Client, ClientConfig, ClientError};
pub use env::{Env, EnvError};
pub use error::{ApiError, ApiResult};
pub use secrecy::{ExposeSecret, SecretString};
