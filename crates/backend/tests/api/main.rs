//! The backend as its users see it: real processes, a real Postgres, the real storage gateway.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod access;
mod app;
mod catalogue;
mod costs;
mod database;
mod datasets;
mod datasets_kept;
mod estimates;
mod extras;
mod fit;
mod hub;
mod identity;
mod jobs;
mod models;
mod notifications;
mod oidc;
mod openai;
mod packages;
mod schema;
mod splits;
mod sweep;
mod tenancy;
mod tenants;
mod upgrade;
mod versions;
mod versions_sql;
