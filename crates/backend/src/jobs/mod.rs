//! The job machinery: state transitions, callbacks, launchers, reconcilers, live streams.

pub mod decide;
pub mod launcher;
pub mod policy;
pub mod state;
pub mod supervisor;
pub mod verdict;
