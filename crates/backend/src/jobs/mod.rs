//! The job machinery: state transitions, callbacks, launchers, reconcilers, live streams.

pub mod control;
pub mod decide;
pub mod effect;
pub mod ingest;
pub mod launcher;
pub mod policy;
pub mod progress;
pub mod rows;
pub mod state;
pub mod supervisor;
pub mod transition;
pub mod verdict;
