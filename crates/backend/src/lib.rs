//! Backend: API, job state, launchers, reconcilers, live updates.

pub mod api;
pub mod audit;
pub mod auth;
pub mod catalog;
pub mod config;
pub mod continuation;
pub mod costs;
pub mod creation;
pub mod datasets;
pub mod db;
pub mod error;
pub mod estimation;
pub mod gateway;
pub mod hub;
pub mod jobs;
pub mod leader;
pub mod limits;
pub mod lineage;
pub mod mlflow;
pub mod notifications;
pub mod oidc;
pub mod openai;
pub mod packages;
pub mod registry;
pub mod schema;
pub mod state;
pub mod store;
pub mod sweep;
pub mod ui;
pub mod webhooks;

pub use error::{Error, Result};
pub use state::AppState;

use actix_web::{middleware::from_fn, web};
use anyhow::Context;
use config::Config;
use db::{Db, Direction};
use futures::FutureExt;
use gateway::Gateway;
use jobs::Jobs;
use leader::Leadership;
use limits::Limits;
use oidc::Oidc;
use service::{Env, server, telemetry};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use wire::account::Role;

/// Runs the backend until SIGTERM or SIGINT. Needs a multi-threaded runtime.
pub async fn run(env: Env) -> anyhow::Result<()> {
    let config = Config::from_env(&env)?;
    let telemetry = telemetry::init("hone-backend", &env)?;
    // The port first: a second backend on the same port must not touch the database.
    let listener = server::bind(&config.server)?;
    let base_url = config.base_url(listener.local_addr()?);
    let migrated = db::migrate(&config.database, Direction::Up).await?;
    if migrated > 0 {
        tracing::info!("applied {migrated} migrations");
    }
    let state = AppState {
        db: Db::new(&config.database)?,
        gateway: Gateway::new(&config.gateway_url, &config.token_key)?,
        hub: hub::HubClient::new(&config.hub)?,
        launcher: jobs::launcher(&config).await?,
        outgoing: webhooks::client(config.outgoing.clone())?,
        base_url,
        limits: Arc::new(Limits::new(&config.limits)),
        oidc: config.oidc.clone().map(Oidc::new).transpose()?.map(Arc::new),
        leader: Leadership::new(config.leader_lease),
        config: Arc::new(config),
    };
    if let Some(key) = state.config.bootstrap_key.clone() {
        let stored = state
            .db
            .system(async move |conn| auth::bootstrap(conn, auth::BOOTSTRAP_USER, Role::Admin, &key).await)
            .await;
        stored.context("cannot store the bootstrap key")?;
    }
    let stop = CancellationToken::new();
    let leading = tokio::spawn(state.leader.clone().run(state.db.clone(), stop.clone()));
    let sweeper = tokio::spawn(sweep::run(state.clone(), stop.clone()));
    let pulls = tokio::spawn(hub::pull::run(state.clone(), stop.clone()));
    let exporter = state.config.mlflow.clone();
    let exporter = exporter.map(|config| tokio::spawn(mlflow::run(state.clone(), config, stop.clone())));
    let sender = tokio::spawn(webhooks::worker::run(state.clone(), stop.clone()));
    let estimator = tokio::spawn(costs::estimate::run(state.clone(), stop.clone()));
    let jobs = Jobs::start(&state, &stop)?;
    let (shared, job_routes) = (state.clone(), jobs.routes());
    let routes = move |config: &mut web::ServiceConfig| {
        let guarded = web::scope("").wrap(from_fn(api::guard::enforce)).configure(api::configure);
        let guarded = guarded.configure(&job_routes).configure(openai::configure);
        config
            .app_data(web::Data::new(shared.clone()))
            .configure(api::docs::configure)
            .configure(ui::configure)
            .service(guarded);
    };
    server::serve(state.config.server.clone(), listener, telemetry.metrics.clone(), readiness(&state), routes).await?;
    stop.cancel();
    sweeper.await?;
    leading.await?;
    pulls.await?;
    if let Some(exporter) = exporter {
        exporter.await?;
    }
    sender.await?;
    estimator.await?;
    jobs.finish().await;
    Ok(())
}

/// Ready means: requests that need the database and the storage gateway will be served.
fn readiness(state: &AppState) -> server::Readiness {
    let state = state.clone();
    Arc::new(move || {
        let state = state.clone();
        async move {
            state.db.ping().await.map_err(|e| service::error::chain(&e))?;
            state.gateway.health().await.map_err(|e| service::error::chain(&e))
        }
        .boxed()
    })
}
