//! Named points between two durable steps, where a test lets a process die as `kill -9` would.
//!
//! `HONE_FAIL_POINT=name` arms one point, `name:3` its third passing. Only builds with debug assertions know the
//! variable; in a release build a point is nothing at all.

/// Ends the process here if this point is armed. The name says where: `dispatch.after_commit`.
#[macro_export]
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::reached($name);
    };
}

#[cfg(debug_assertions)]
pub use armed::reached;

#[cfg(debug_assertions)]
mod armed {
    use std::{
        io::Write,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    /// The environment variable.
    const VARIABLE: &str = "HONE_FAIL_POINT";

    struct Armed {
        name: String,
        passings_left: AtomicU32,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let setting = std::env::var(VARIABLE).ok()?;
        let (name, passing) = setting.split_once(':').unwrap_or((&setting, "1"));
        Some(Armed { name: name.to_owned(), passings_left: AtomicU32::new(passing.parse().unwrap_or(1)) })
    });

    /// What [`crate::fail_point!`] calls.
    pub fn reached(name: &str) {
        let Some(armed) = ARMED.as_ref().filter(|armed| armed.name == name) else { return };
        if armed.passings_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = writeln!(std::io::stderr(), "dying at {name}, as {VARIABLE} asks");
            // No destructors, no flushing, no goodbye to peers.
            std::process::abort();
        }
    }
}
