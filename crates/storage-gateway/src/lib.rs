//! The storage gateway: the only process that holds S3 credentials.
//!
//! Everybody else has tokens. Small files pass through it, large ones go straight to S3 by presigned URLs;
//! either way nothing appears under its key before it is complete and verified. What must stay true:
//!
//! - Memory does not depend on the size of objects: one part per upload, one chunk per download.
//! - Keys are checked once, in [`keys`]; rusoto stays in [`s3`].
//! - The gateway keeps no state: sessions are signed tokens, so any replica can serve any request.

pub mod auth;
pub mod digest;
pub mod embedded;
pub mod gateway;
pub mod intake;
pub mod keys;
pub mod model;
pub mod objects;
mod routes;
pub mod rows;
pub mod s3;
pub mod safetensors;
pub mod session;
pub mod settings;
pub mod store;
pub mod sweep;
pub mod turns;
pub mod uploads;

use actix_web::web;
use futures::FutureExt;
use gateway::Gateway;
use metrics_exporter_prometheus::PrometheusHandle;
use service::{Env, server, telemetry};
use settings::Settings;
use std::{net::TcpListener, sync::Arc};

/// Runs the gateway until it is told to stop.
pub async fn run(env: Env) -> anyhow::Result<()> {
    let settings = Settings::from_env(&env)?;
    let telemetry = telemetry::init("hone-gateway", &env)?;
    // Before anything is opened: a taken port is the most likely mistake.
    let listener = server::bind(&settings.server)?;
    serve(settings, listener, telemetry.metrics.clone()).await
}

/// Serves on `listener`; `metrics` is what `/metrics` shows.
pub async fn serve(settings: Settings, listener: TcpListener, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let gateway = Gateway::open(&settings).await?;
    let sweeper = tokio::spawn(sweep::run(Arc::clone(&gateway)));
    let data = web::Data::new(Arc::clone(&gateway));
    let readiness: server::Readiness = Arc::new(move || ready(Arc::clone(&gateway)).boxed());
    let configure = move |config: &mut web::ServiceConfig| {
        config.app_data(data.clone()).configure(routes::configure);
    };
    let served = server::serve(settings.server, listener, metrics, readiness, configure).await;
    sweeper.abort();
    Ok(served?)
}

async fn ready(gateway: Arc<Gateway>) -> Result<(), String> {
    for bucket in gateway.buckets.distinct() {
        gateway.store.check_bucket(bucket).await.map_err(|e| format!("storage does not answer: {e}"))?;
    }
    Ok(())
}
