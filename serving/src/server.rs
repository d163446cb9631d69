//! A serving process: starts the parts in their order, keeps them going, stops them without losing anything.

mod background;
mod ending;
mod stopping;

use foreshard_api::inference::GrpcInferenceServiceServer;
use foreshard_api::v1::forecast_service_server::ForecastServiceServer;
use foreshard_api::{FILE_DESCRIPTOR_SET, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES};
use foreshard_domain::{Clock, ModelVersion};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};

use crate::access::{Access, AccessLayer};
use crate::config::model_ms;
use crate::engine::{AnswerCache, Bench, Engine, EngineLimits, Slot};
use crate::events::EventWatch;
use crate::export::Exporter;
use crate::http::{self, Pages};
use crate::ingest::Ingestor;
use crate::metrics::{BatchTimes, CallLayer, Methods, Metrics, State};
use crate::pull::Puller;
use crate::readiness::Readiness;
use crate::registry::Reloader;
use crate::remote_write::Receiver;
use crate::service::{ForecastApi, ScenarioBudget};
use crate::transport::{ConnectionCounts, ConnectionLimits, Inside, Tls, accept};
use crate::{EngineCounts, RegistryVersions, ReloadError, ServingConfig, ServingError, VersionLoader};
use ending::Ending;

/// A connection whose other end went away is noticed by pings in this interval.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connection that has not said its opening so long after it was made is closed.
const SPEAK_WITHIN: Duration = Duration::from_secs(20);

/// Calls of one connection at once; more wait at the client.
const CALLS_OF_A_CONNECTION: u32 = 1024;

/// Callers that watch at once; each costs a task and at most a few parts of an answer.
const MOST_WATCHERS: usize = 1024;

/// A server that answers until it is shut down. Dropping it stops it too, without waiting and without the last flush;
/// nothing is lost then either, since the log has every acknowledged row.
pub struct RunningServer {
    addr: SocketAddr,
    http_addr: Option<SocketAddr>,
    encrypted: bool,
    stop: CancellationToken,
    stop_http: CancellationToken,
    _stops_when_dropped: [DropGuard; 2],
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    http: Option<JoinHandle<()>>,
    background: Vec<JoinHandle<()>>,
    health: HealthReporter,
    readiness: Arc<Readiness>,
    parts: ForecastApi,
    slot: Arc<Slot>,
    drain_for: Duration,
}

/// Around all services, from the outside: calls are counted, then checked.
type Layers = Stack<AccessLayer, Stack<CallLayer, Identity>>;

type Ports = Vec<(&'static str, Arc<ConnectionCounts>)>;

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
    // First the addresses: a second server must not touch the log of the first.
    let (listener, addr) = listen(config.listen).await?;
    let http = match config.http {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let guard = Guard::open(&config)?;
    let (history, log, days) = (config.history.clone(), config.log_dir(), config.context_days);
    let ingestor = Arc::new(spawn_blocking(move || Ingestor::open(&history, &log, days)).await??);
    let events = Arc::new(EventWatch::new(config.events.clone(), ingestor.contexts()));
    let first = Arc::clone(&events);
    spawn_blocking(move || first.read()).await??;
    let slot = Arc::new(Slot::default());
    let reloader = Arc::new(Reloader::new(&config.registry, &config.model, loader, Arc::clone(&slot)));
    background::reload(&reloader).await;

    let (stop, stop_http) = (CancellationToken::new(), CancellationToken::new());
    let limits = connection_limits(&config);
    let (incoming, connections) = accept(listener, limits, (Inside::Grpc, guard.tls.clone()), stop.clone());
    let mut ports = vec![("grpc", connections)];
    let http = http.map(|(listener, addr)| {
        let (incoming, connections) = accept(listener, limits, (Inside::Http, guard.tls.clone()), stop_http.clone());
        ports.push(("http", connections));
        (incoming, addr)
    });
    let parts = parts(&config, clock, ingestor, reloader, (&slot, ports, stop.clone()))?;
    let readiness = Arc::new(Readiness::new(Arc::clone(&parts.engine)));
    let (health, router) = router(&config, &parts, &guard.access)?;
    background::tell(&health, &readiness).await;
    let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    let http_addr = http.as_ref().map(|(_, addr)| *addr);
    let (for_receiver, mappings) = (parts.clone(), config.received.clone());
    let receiver = spawn_blocking(move || Receiver::new(for_receiver, mappings)).await??;
    let pages = Pages {
        readiness: Arc::clone(&readiness),
        metrics: Arc::clone(&parts.metrics),
        access: Arc::clone(&guard.access),
        receiver: Arc::new(receiver),
    };
    let http = http.map(|(incoming, _)| tokio::spawn(http::serve(incoming, pages, stop_http.clone())));
    let puller = puller(&config, &parts).await?;
    let mut background = vec![
        tokio::spawn(background::keep_flushing(parts.clone(), config.flush_every, stop.clone())),
        tokio::spawn(background::keep_reloading(Arc::clone(&parts.reloader), config.reload_every, stop.clone())),
        tokio::spawn(background::keep_looking(events, guard.clone(), config.reload_every, stop.clone())),
        tokio::spawn(background::keep_telling(health.clone(), Arc::clone(&readiness), stop.clone())),
    ];
    let exporter = config.exported.clone().map(|exported| Exporter::new(parts.clone(), exported));
    background.extend(exporter.map(|exporter| tokio::spawn(exporter.keep_exporting())));
    background.extend(puller.map(|puller| tokio::spawn(puller.keep_pulling())));
    tracing::info!(%addr, http = ?http_addr, model = config.model, version = ?slot.id(), "serving");
    Ok(RunningServer {
        addr,
        http_addr,
        encrypted: guard.tls.is_some(),
        _stops_when_dropped: [stop.clone().drop_guard(), stop_http.clone().drop_guard()],
        stop,
        stop_http,
        serving,
        http,
        background,
        health,
        readiness,
        parts,
        slot,
        drain_for: config.drain_for,
    })
}

/// What is to be pulled, if something is.
async fn puller(config: &ServingConfig, parts: &ForecastApi) -> Result<Option<Puller>, ServingError> {
    let Some(pulled) = config.pulled.clone() else { return Ok(None) };
    let (parts, file) = (parts.clone(), config.log_dir().join("pulled.json"));
    Ok(Some(spawn_blocking(move || Puller::new(parts, pulled, file)).await??))
}

/// What keeps out who does not belong.
#[derive(Clone)]
struct Guard {
    tls: Option<Arc<Tls>>,
    access: Arc<Access>,
}

impl Guard {
    fn open(config: &ServingConfig) -> Result<Self, ServingError> {
        let tls = config.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
        let access = Arc::new(Access::open(config.tokens.clone(), config.token_text.clone())?);
        let beyond = [Some(config.listen), config.http].into_iter().flatten().any(|addr| !addr.ip().is_loopback());
        if beyond && tls.is_none() && access.is_guarded() {
            tracing::warn!("tokens go over the network in plain unless something else encrypts them");
        }
        let clients_known = config.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
        if beyond && !access.is_guarded() && !clients_known {
            tracing::warn!("whoever reaches this port may read and ingest: there are neither tokens nor a client_ca");
        }
        Ok(Self { tls, access })
    }

    /// Reads certificates and tokens again if they have changed; true if one of them is being written. Blocks on the disk.
    fn look(&self) -> bool {
        [self.access.look(), self.tls.as_ref().is_some_and(|tls| tls.look())].contains(&true)
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServingError> {
    let failed = |source| ServingError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}

fn connection_limits(config: &ServingConfig) -> ConnectionLimits {
    let hard_age = config.connection_age.saturating_add(config.connection_grace);
    ConnectionLimits { most: config.connections, speak_within: SPEAK_WITHIN, hard_age }
}

/// All services of the gRPC port.
fn router(
    config: &ServingConfig,
    parts: &ForecastApi,
    access: &Arc<Access>,
) -> Result<(HealthReporter, Router<Layers>), ServingError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection = described().build_v1().map_err(ServingError::Reflection)?;
    // Python's own client knows nothing newer.
    let older_reflection = described().build_v1alpha().map_err(ServingError::Reflection)?;
    let forecasts = ForecastServiceServer::new(parts.clone())
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES);
    let inference = GrpcInferenceServiceServer::new(parts.clone())
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES);
    // The grace after that age is kept by the connections themselves: with a grace of its own, tonic cuts without a word.
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(Some(CALLS_OF_A_CONNECTION))
        .max_connection_age(config.connection_age)
        .layer(parts.metrics.calls.clone())
        .layer(AccessLayer(Arc::clone(access)))
        .add_service(Ending::new(health_service, parts.stop.clone()))
        .add_service(Ending::new(reflection, parts.stop.clone()))
        .add_service(Ending::new(older_reflection, parts.stop.clone()))
        .add_service(forecasts)
        .add_service(inference);
    Ok((health, router))
}

fn parts(
    config: &ServingConfig,
    clock: Arc<dyn Clock>,
    ingestor: Arc<Ingestor>,
    reloader: Arc<Reloader>,
    (slot, ports, stop): (&Arc<Slot>, Ports, CancellationToken),
) -> Result<ForecastApi, ServingError> {
    let cache = AnswerCache::new(config.cache_mib).map(Arc::new);
    let bench = Arc::new(Bench {
        cache: cache.clone(),
        contexts: ingestor.contexts(),
        slot: Arc::clone(slot),
        clock: Arc::clone(&clock),
        stale_after_ms: model_ms(config.stale_after),
    });
    let limits = EngineLimits {
        queue_rows: config.queue_rows,
        queue_wait: config.queue_wait,
        batch_rows: config.batch_rows,
        threads: config.compute_threads,
    };
    let batches = Arc::new(BatchTimes::default());
    let engine = Arc::new(Engine::start(&bench, limits, &batches).map_err(ServingError::Thread)?);
    let state = State {
        engine: Arc::clone(&engine),
        slot: Arc::clone(slot),
        reloader: Arc::clone(&reloader),
        contexts: ingestor.contexts(),
        cache,
        ports,
    };
    let methods = Methods::served().map_err(ServingError::Descriptors)?;
    Ok(ForecastApi {
        engine,
        contexts: ingestor.contexts(),
        ingestor,
        reloader,
        metrics: Arc::new(Metrics::new(Arc::clone(&clock), methods, &batches, state)),
        clock,
        flush_now: Arc::new(Notify::new()),
        arrived: watch::Sender::new(()),
        watchers: Arc::new(Semaphore::new(MOST_WATCHERS)),
        ahead_at_most_ms: model_ms(config.ahead_at_most),
        scenario_budget: ScenarioBudget::new(config.scenario_mib),
        cut: CancellationToken::new(),
        stop,
    })
}

impl RunningServer {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it answers over HTTP, if it does.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// Its address as a client wants it.
    pub fn endpoint(&self) -> String {
        self.url(self.addr)
    }

    /// The address of its HTTP port, if it has one.
    pub fn http_endpoint(&self) -> Option<String> {
        self.http_addr.map(|addr| self.url(addr))
    }

    fn url(&self, addr: SocketAddr) -> String {
        format!("{}://{addr}", if self.encrypted { "https" } else { "http" })
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
        Ok(background::flush(&self.parts.ingestor).await??)
    }
}
