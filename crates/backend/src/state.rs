//! What every handler and background task shares.

use crate::{
    config::Config, db::Db, gateway::Gateway, hub::HubClient, jobs::launcher::Launcher, leader::Leadership,
    limits::Limits, oidc::Oidc,
};
use service::outgoing::Outgoing;
use std::sync::Arc;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState {
    pub config: Arc<Config>,
    pub db: Db,
    pub gateway: Gateway,
    pub hub: HubClient,
    pub launcher: Arc<dyn Launcher>,
    /// For URLs that users choose.
    pub outgoing: Outgoing,
    /// Where trainers reach this backend, without a trailing slash.
    pub base_url: String,
    pub limits: Arc<Limits>,
    /// Whether this backend is the one that sweeps.
    pub leader: Leadership,
    /// The identity provider, when there is one.
    pub oidc: Option<Arc<Oidc>>,
}
