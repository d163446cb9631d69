//! A serving process: starts the parts in their order, keeps them going, stops them without losing anything.

use foreshard_api::v1::forecast_service_server::{ForecastServiceServer, SERVICE_NAME};
use foreshard_api::{FILE_DESCRIPTOR_SET, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES};
use foreshard_domain::{Clock, ModelVersion};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::model_ms;
use crate::engine::{Bench, Engine, EngineLimits, Slot};
use crate::events::EventWatch;
use crate::ingest::{Ingestor, reason};
use crate::registry::Reloader;
use crate::service::{ForecastApi, ScenarioBudget};
use crate::{EngineCounts, IngestError, RegistryVersions, ReloadError, ServingConfig, ServingError, VersionLoader};

/// A connection whose other end went away is noticed by pings in this interval.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Time for the last answers to leave once requests in flight are cut off.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(1);

/// A server that answers until it is shut down. Dropping it stops it too, without waiting and without the last flush;
/// nothing is lost then either, since the log has every acknowledged row.
pub struct RunningServer {
    addr: SocketAddr,
    stop: CancellationToken,
    _stops_when_dropped: DropGuard,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    background: Vec<JoinHandle<()>>,
    health: HealthReporter,
    parts: ForecastApi,
    slot: Arc<Slot>,
    drain_for: Duration,
}

/// Starts serving the versions of a registry.
///
/// # Errors
/// [`ServingError`] if settings are wrong, what was ingested before cannot be read, or the address is taken. A champion
/// that cannot be loaded is no error: fallbacks answer until it can.
pub async fn start(config: ServingConfig, clock: Arc<dyn Clock>) -> Result<RunningServer, ServingError> {
    start_with(config, clock, Arc::new(RegistryVersions)).await
}

/// The same with versions of another kind.
///
/// # Errors
/// As [`start`].
pub async fn start_with(
    config: ServingConfig,
    clock: Arc<dyn Clock>,
    loader: Arc<dyn VersionLoader>,
) -> Result<RunningServer, ServingError> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(ServingError::Config(problems));
    }
    // First the address: a second server must not touch the log of the first.
    let failed = |source| ServingError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;

    let (history, log, days) = (config.history.clone(), config.log_dir(), config.context_days);
    let ingestor = Arc::new(spawn_blocking(move || Ingestor::open(&history, &log, days)).await??);
    let events = Arc::new(EventWatch::new(config.events.clone(), ingestor.contexts()));
    let first = Arc::clone(&events);
    spawn_blocking(move || first.check()).await??;
    let slot = Arc::new(Slot::default());
    let reloader = Arc::new(Reloader::new(&config.registry, &config.model, loader, Arc::clone(&slot)));
    reload(&reloader).await;
    let parts = parts(&config, clock, ingestor, reloader, &slot)?;

    let stop = CancellationToken::new();
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(ServingError::Reflection)?;
    let forecasts = ForecastServiceServer::new(parts.clone())
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(forecasts);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    let background = vec![
        tokio::spawn(keep_flushing(parts.clone(), config.flush_every, stop.clone())),
        tokio::spawn(keep_reloading((Arc::clone(&parts.reloader), events), config.reload_every, stop.clone())),
    ];
    set_health(&health, ServingStatus::Serving).await;
    tracing::info!(%addr, model = config.model, version = ?slot.id(), "serving");
    let drain_for = config.drain_for;
    let _stops_when_dropped = stop.clone().drop_guard();
    Ok(RunningServer { addr, stop, _stops_when_dropped, serving, background, health, parts, slot, drain_for })
}

fn parts(
    config: &ServingConfig,
    clock: Arc<dyn Clock>,
    ingestor: Arc<Ingestor>,
    reloader: Arc<Reloader>,
    slot: &Arc<Slot>,
) -> Result<ForecastApi, ServingError> {
    let bench = Arc::new(Bench {
        contexts: ingestor.contexts(),
        slot: Arc::clone(slot),
        clock: Arc::clone(&clock),
        stale_after_ms: model_ms(config.stale_after),
    });
    let limits =
        EngineLimits { queue_rows: config.queue_rows, batch_rows: config.batch_rows, threads: config.compute_threads };
    Ok(ForecastApi {
        engine: Arc::new(Engine::start(&bench, limits).map_err(ServingError::Thread)?),
        contexts: ingestor.contexts(),
        ingestor,
        reloader,
        clock,
        flush_now: Arc::new(Notify::new()),
        ahead_at_most_ms: model_ms(config.ahead_at_most),
        scenario_budget: ScenarioBudget::new(config.scenario_mib),
        cut: CancellationToken::new(),
    })
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    // The empty name is the server as a whole.
    for service in ["", SERVICE_NAME] {
        health.set_service_status(service, status).await;
    }
}

impl RunningServer {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its address as a client wants it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The version that answers now.
    pub fn version(&self) -> Option<ModelVersion> {
        self.slot.id()
    }

    /// How many requests went which way.
    pub fn counts(&self) -> &EngineCounts {
        self.parts.engine.counts()
    }

    /// Rows that wait to be computed now.
    pub fn waiting_rows(&self) -> usize {
        self.parts.engine.waiting_rows()
    }

    /// Looks at the labels now and exchanges the version if they moved; returns the new one.
    ///
    /// # Errors
    /// [`ReloadError`] if the champion may not serve; the version before goes on.
    pub async fn reload(&self) -> Result<Option<ModelVersion>, ReloadError> {
        let reloader = Arc::clone(&self.parts.reloader);
        spawn_blocking(move || reloader.check()).await.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at the labels panicked");
            Ok(None)
        })
    }

    /// Puts every acknowledged row into the history now; returns how many waited.
    ///
    /// # Errors
    /// [`ServingError::Ingest`]; the rows wait on.
    pub async fn flush(&self) -> Result<usize, ServingError> {
        Ok(flush(&self.parts.ingestor).await??)
    }

    /// Stops: takes no new calls, lets those in flight finish within the time that the settings allow, cuts off the rest,
    /// and puts every acknowledged row into the history.
    ///
    /// # Errors
    /// [`ServingError`] if a part failed; acknowledged rows are in the log even then.
    pub async fn shutdown(self) -> Result<(), ServingError> {
        let Self { stop, mut serving, background, health, parts, drain_for, _stops_when_dropped, .. } = self;
        set_health(&health, ServingStatus::NotServing).await;
        stop.cancel();
        let mut ended = tokio::time::timeout(drain_for, &mut serving).await;
        if ended.is_err() {
            tracing::warn!(after = ?drain_for, "requests in flight are cut off");
            // Connections are tasks of their own that outlive the server's: their calls have to end by themselves.
            parts.cut.cancel();
            ended = tokio::time::timeout(CUT_OFF_WITHIN, &mut serving).await;
            serving.abort();
        }
        for task in background {
            task.await?;
        }
        let engine = Arc::clone(&parts.engine);
        let stopping = spawn_blocking(move || engine.stop());
        if tokio::time::timeout(drain_for, stopping).await.is_err() {
            tracing::warn!(after = ?drain_for, "a computation goes on; nobody waits for it");
        }
        flush(&parts.ingestor).await??;
        match ended {
            Ok(served) => Ok(served??),
            Err(_) => Ok(()),
        }
    }
}

async fn flush(ingestor: &Arc<Ingestor>) -> Result<Result<usize, IngestError>, tokio::task::JoinError> {
    let ingestor = Arc::clone(ingestor);
    spawn_blocking(move || ingestor.flush()).await
}

async fn keep_flushing(parts: ForecastApi, every: Duration, stop: CancellationToken) {
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

async fn keep_reloading(
    (reloader, events): (Arc<Reloader>, Arc<EventWatch>),
    every: Duration,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        reload(&reloader).await;
        let events = Arc::clone(&events);
        if let Err(error) = spawn_blocking(move || events.look()).await {
            tracing::error!(%error, "looking at the events panicked");
        }
    }
}

/// Looks at the labels; a refusal is told by the reloader, and fallbacks or the version before answer meanwhile.
async fn reload(reloader: &Arc<Reloader>) {
    let checking = Arc::clone(reloader);
    match spawn_blocking(move || checking.check()).await {
        Ok(Ok(_))
        | Ok(Err(ReloadError::Load { .. } | ReloadError::Rehearsal { .. } | ReloadError::Mistaken { .. })) => {}
        Ok(Err(error)) => tracing::warn!(error = %reason(&error), "the registry cannot be read"),
        Err(error) => tracing::error!(%error, "looking at the labels panicked"),
    }
}
