//! What goes on beside the requests.

use foreshard_api::inference::SERVICE_NAME as INFERENCE;
use foreshard_api::v1::forecast_service_server::SERVICE_NAME;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Guard;
use crate::events::EventWatch;
use crate::ingest::{Ingestor, reason};
use crate::readiness::Readiness;
use crate::registry::Reloader;
use crate::service::ForecastApi;
use crate::watched::SETTLES_IN;
use crate::{IngestError, ReloadError};

/// How often readiness is looked at for those who watch the health service.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Puts every acknowledged row into the history.
pub(super) async fn flush(ingestor: &Arc<Ingestor>) -> Result<Result<usize, IngestError>, JoinError> {
    let ingestor = Arc::clone(ingestor);
    spawn_blocking(move || ingestor.flush()).await
}

/// The same from time to time, and whenever many rows wait.
pub(super) async fn keep_flushing(parts: ForecastApi, every: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = parts.flush_now.notified() => {}
            () = tokio::time::sleep(every) => {}
        }
        match flush(&parts.ingestor).await {
            Ok(Ok(0)) => {}
            Ok(Ok(rows)) => tracing::debug!(rows, "rows put into the history"),
            Ok(Err(error)) => tracing::error!(error = %reason(&error), "flush failed; the rows wait in the log"),
            Err(error) => tracing::error!(%error, "flush panicked; the rows wait in the log"),
        }
    }
}

/// Looks at the labels from time to time.
pub(super) async fn keep_reloading(reloader: Arc<Reloader>, every: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        reload(&reloader).await;
    }
}

/// Looks at events, tokens and certificates from time to time: apart from the labels, since loading a version takes its time
/// and a token that was taken back must not be good for so long.
pub(super) async fn keep_looking(events: Arc<EventWatch>, guard: Guard, every: Duration, stop: CancellationToken) {
    let mut next = every;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(next) => {}
        }
        let (events, guard) = (Arc::clone(&events), guard.clone());
        // Each looks, whatever the one before found.
        let settling = spawn_blocking(move || [events.look(), guard.look()].contains(&true)).await;
        next = match settling {
            Ok(true) => every.min(SETTLES_IN),
            Ok(false) => every,
            Err(error) => {
                tracing::error!(%error, "looking at events, tokens and certificates panicked");
                every
            }
        };
    }
}

/// Looks at the labels; a refusal is told by the reloader, and fallbacks or the version before answer meanwhile.
pub(super) async fn reload(reloader: &Arc<Reloader>) {
    let checking = Arc::clone(reloader);
    match spawn_blocking(move || checking.check()).await {
        Ok(Ok(_))
        | Ok(Err(ReloadError::Load { .. } | ReloadError::Rehearsal { .. } | ReloadError::Mistaken { .. })) => {}
        Ok(Err(error)) => tracing::warn!(error = %reason(&error), "the registry cannot be read"),
        Err(error) => tracing::error!(%error, "looking at the labels panicked"),
    }
}

/// Tells those who watch `grpc.health.v1` how things are.
pub(super) async fn tell(health: &HealthReporter, readiness: &Readiness) {
    let status = if readiness.look().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
    // The empty name is the server as a whole.
    for service in ["", SERVICE_NAME, INFERENCE] {
        health.set_service_status(service, status).await;
    }
}

/// The same whenever it changes.
pub(super) async fn keep_telling(health: HealthReporter, readiness: Arc<Readiness>, stop: CancellationToken) {
    let mut told = None;
    loop {
        let now = readiness.look();
        if told != Some(now) {
            if let (Some(_), Err(why)) = (told, now) {
                tracing::warn!(%why, "not ready");
            }
            tell(&health, &readiness).await;
            told = Some(now);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TELL_EVERY) => {}
        }
    }
}
