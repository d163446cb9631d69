//! Whether the process lives, and whether it takes requests: two questions with two answers.
//!
//! A process that has too much to do is not ready, and whoever balances load sends requests elsewhere. It is alive all the
//! same, and killing it would make things worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::Engine;

/// Why no requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReady {
    /// It stops.
    #[error("the server is stopping")]
    Stopping,
    /// A request would be refused.
    #[error("more waits to be computed than can be worked off in time")]
    Busy,
    /// Nothing is left that computes.
    #[error("no compute thread is left")]
    Dead,
}

/// Answers both.
pub(crate) struct Readiness {
    engine: Arc<Engine>,
    stopping: AtomicBool,
}

impl Readiness {
    /// Of a server that computes with `engine`.
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, stopping: AtomicBool::new(false) }
    }

    /// From now on no requests are taken.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether requests are taken.
    pub(crate) fn look(&self) -> Result<(), NotReady> {
        if self.stopping.load(Ordering::SeqCst) {
            Err(NotReady::Stopping)
        } else if !self.engine.computes() {
            Err(NotReady::Dead)
        } else if !self.engine.takes_more() {
            Err(NotReady::Busy)
        } else {
            Ok(())
        }
    }

    /// Whether the process can do its work at all. One that stops has no threads left in the end and is as it should be.
    pub(crate) fn alive(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.engine.computes()
    }
}
