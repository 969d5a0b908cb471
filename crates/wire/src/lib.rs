//! The HTTP contract between Hone's services, its command line and the outside.
//!
//! Everything here is data: no I/O, no clock, no database. Services never link each other; they
//! share this crate. The wire may be coarser than what a service stores.

pub mod account;
pub mod advice;
pub mod artifact;
pub mod catalog;
pub mod config;
pub mod cost;
pub mod dataset;
pub mod dead_letter;
pub mod estimate;
pub mod event;
pub mod hub;
pub mod ids;
pub mod job;
pub mod job_env;
pub mod kubeflow;
pub mod layout;
pub mod memory;
pub mod model;
pub mod notification;
pub mod package;
pub mod problem;
pub mod storage;
pub mod strict;
pub mod support;
pub mod webhook;

pub use config::TrainingConfig;
pub use event::{CallbackBatch, CallbackReply, Directive, Event, EventKind};
pub use ids::{ArtifactId, DatasetId, InstanceId, JobId, KeyId, NotificationId, PackageId, UserId, VersionId};
pub use job::{JobSpec, JobState, JobView};
pub use problem::{Code, FieldError, Problem};

use serde::{Deserialize, Serialize};

/// One page of a list. `next_cursor` is passed back as `?cursor=`; absent on the last page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
