//! The end of a serving process: polite first, and bounded whatever hangs.

use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

use super::{RunningServer, background};
use crate::ServingError;

/// Time for the last answers to leave once requests in flight are cut off, and for each part that ends after them.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(1);

impl RunningServer {
    /// Stops: takes no new calls, lets those in flight finish within the time that the settings allow, cuts off the rest,
    /// and puts every acknowledged row into the history.
    ///
    /// Nothing that hangs holds it up for longer than that time and a few seconds: neither a computation, nor a version that
    /// is being loaded, nor a disk that does not answer. Threads that hang are left behind; end the process, or the runtime
    /// with a bound of its own (`Runtime::shutdown_timeout`).
    ///
    /// # Errors
    /// [`ServingError`] if a part failed; acknowledged rows are in the log even then.
    pub async fn shutdown(self) -> Result<(), ServingError> {
        let Self { stop, stop_http, mut serving, http, background, health, readiness, parts, drain_for, .. } = self;
        let drained = Instant::now() + drain_for;
        // From here on the second port says so, until the very end, and those who watch are told before they are let go.
        readiness.stop();
        background::tell(&health, &readiness).await;
        stop.cancel();
        let mut ended = timeout_at(drained, &mut serving).await;
        if ended.is_err() {
            tracing::warn!(after = ?drain_for, "requests in flight are cut off");
            // Connections are tasks of their own that outlive the server's: their calls have to end by themselves.
            parts.cut.cancel();
            ended = timeout(CUT_OFF_WITHIN, &mut serving).await;
            serving.abort();
        }
        let last = drained.max(Instant::now() + CUT_OFF_WITHIN);
        for task in background {
            let ending = task.abort_handle();
            match timeout_at(last, task).await {
                Ok(ended) => ended?,
                Err(_) => {
                    tracing::warn!("work in the background goes on; nobody waits for it");
                    ending.abort();
                }
            }
        }
        let engine = Arc::clone(&parts.engine);
        if timeout_at(last, spawn_blocking(move || engine.stop())).await.is_err() {
            tracing::warn!(after = ?drain_for, "a computation goes on; nobody waits for it");
        }
        match timeout(drain_for.max(CUT_OFF_WITHIN), background::flush(&parts.ingestor)).await {
            Ok(flushed) => _ = flushed??,
            Err(_) => tracing::error!("the history takes no rows; those that were acknowledged wait in the log"),
        }
        stop_http.cancel();
        if let Some(http) = http
            && timeout(CUT_OFF_WITHIN, http).await.is_err()
        {
            tracing::warn!("a connection of the HTTP port is cut off");
        }
        match ended {
            Ok(served) => Ok(served??),
            Err(_) => Ok(()),
        }
    }
}
