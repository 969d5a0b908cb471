//! The job machinery: state transitions, callbacks, launchers, reconcilers, live streams.
//!
//! A job moves in one way only: [`decide`] says what to do, [`reconciler`] does it, [`transition`] writes it
//! down guarded by the table in [`state`]. Trainers report through [`ingest`], users ask through [`control`],
//! and everybody watches through [`stream`].

pub mod control;
pub mod dead_letters;
pub mod decide;
pub mod effect;
pub mod external;
pub mod ingest;
pub mod kubeflow;
pub mod launcher;
pub mod leftovers;
mod news;
pub mod policy;
pub mod progress;
pub mod reconciler;
pub mod routes;
pub mod rows;
pub mod state;
pub mod stream;
pub mod supervisor;
pub mod transition;
pub mod verdict;

use crate::{
    AppState,
    config::{Config, TrainingMode},
};
use actix_web::web;
use anyhow::Context;
use ingest::commit::{self, Committer};
use launcher::{
    Launcher,
    http::Http,
    kubernetes::Kubernetes,
    subprocess::{Subprocess, SubprocessConfig},
};
use policy::Policy;
use reconciler::{Hints, Reconciler};
use std::{sync::Arc, time::Duration};
use stream::hub::{self, Hub};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What starts trainers in this tier. Needs the runtime it will work on.
pub async fn launcher(config: &Config) -> anyhow::Result<Arc<dyn Launcher>> {
    Ok(match &config.training {
        TrainingMode::Subprocess { trainer, run_dir, inherited, memory } => {
            Arc::new(Subprocess::new(SubprocessConfig {
                trainer: trainer.clone(),
                arguments: vec!["run".into()],
                supervisor: supervisor::own_program(),
                run_dir: run_dir.clone(),
                inherited: inherited.clone(),
                memory: *memory,
            })?)
        }
        TrainingMode::Http { url, token } => {
            Arc::new(Http::new(url, token.as_ref()).context("cannot use TRAINER_SERVICE_URL")?)
        }
        TrainingMode::Kubernetes(kubernetes) => {
            Arc::new(Kubernetes::new(kubernetes.as_ref().clone(), config.catalog.placements.clone()).await?)
        }
    })
}

/// The running machinery.
#[derive(Debug)]
pub struct Jobs {
    policy: Policy,
    hub: Arc<Hub>,
    committer: Committer,
    tasks: JoinSet<()>,
}

impl Jobs {
    /// Starts the reconciler and the listener on the current runtime; they end with `stop`.
    pub fn start(state: &AppState, stop: &CancellationToken) -> anyhow::Result<Self> {
        let (policy, launcher) = (state.config.policy, Arc::clone(&state.launcher));
        let (hub, hints) = (Arc::new(Hub::new(policy.slow_client)), Arc::new(Hints::default()));
        let (committer, submissions) = Committer::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(commit::run(state.db.clone(), policy, submissions, stop.clone()));
        tasks.spawn(hub::listen(state.db.clone(), Arc::clone(&hub), Arc::clone(&hints), stop.clone()));
        tasks.spawn(Reconciler::new(state.clone(), policy, launcher, hints).run(stop.clone()));
        Ok(Self { policy, hub, committer, tasks })
    }

    /// The routes of the machinery, for every HTTP worker.
    pub fn routes(&self) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
        let (policy, hub) = (web::Data::new(self.policy), web::Data::from(Arc::clone(&self.hub)));
        let committer = web::Data::new(self.committer.clone());
        move |config| {
            config.app_data(policy.clone()).app_data(hub.clone()).app_data(committer.clone());
            config.configure(routes::configure);
        }
    }

    /// Waits for the tasks after `stop`. Trainers go on without a backend.
    pub async fn finish(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), all).await.is_err() {
            tracing::warn!("the reconciler did not stop in time");
        }
    }
}
