//! The job machinery: state transitions, callbacks, launchers, reconcilers, live streams.
