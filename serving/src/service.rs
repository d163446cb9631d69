//! `ForecastService` over gRPC: takes requests apart, hands them to the engine or the ingestor, puts answers together.
//!
//! Which shards are answered: an empty list means all that are known. As long as any named shard is known, every named
//! one is answered, and those never observed by a flat prior marked `unknown_series`: one new shard must not cost a
//! planner all its forecasts. If none of the named shards was ever observed the call is `NOT_FOUND` with the names in
//! its details: a misspelt name must not look like a shard without load.

mod forecasts;
mod inference;
mod levels;
mod nodes;
mod scenarios;
mod status;
mod timeout;

use foreshard_api::v1::forecast_service_server::ForecastService;
use foreshard_api::{NodeQuery, RiskQuery, ScenarioQuery, SeriesProvenance, scenario_parts, v1};
use foreshard_domain::{Clock, Product, RealTime, Resource, ScenarioSet, SeriesForecast, ShardId};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::context::{ContextStore, SeriesKey, Wanted};
use crate::engine::{Bench, Engine, deadline, risks, scenarios};
use crate::ingest::{Arrival, Ingestor, checked};
use crate::metrics::Metrics;
use crate::registry::Reloader;
use forecasts::Asked;
pub(crate) use scenarios::ScenarioBudget;
use scenarios::SetSize;
use timeout::timeout;

/// Refused rows that are named in an answer; more are only counted.
const MOST_REFUSALS: usize = 1000;

/// Names of shards that were never observed and are answered in one piece.
const MOST_UNKNOWN: usize = 10_000;

/// Chunks of scenarios that wait for a slow reader; with 1 MiB each, a stalled stream holds little.
const CHUNKS_AHEAD: usize = 4;

/// A reader of scenarios that takes nothing for so long, real time, is cut off: it holds a share of the memory of all.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// What the service works with.
#[derive(Clone)]
pub(crate) struct ForecastApi {
    pub(crate) engine: Arc<Engine>,
    pub(crate) contexts: Arc<RwLock<ContextStore>>,
    pub(crate) ingestor: Arc<Ingestor>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) flush_now: Arc<Notify>,
    pub(crate) ahead_at_most_ms: i64,
    pub(crate) scenario_budget: ScenarioBudget,
    pub(crate) metrics: Arc<Metrics>,
    /// Told whenever rows were taken in.
    pub(crate) arrived: watch::Sender<()>,
    /// One for each caller that watches.
    pub(crate) watchers: Arc<Semaphore>,
    /// Cancelled when the time for finishing is over: calls that still wait end then.
    pub(crate) cut: CancellationToken,
    /// Cancelled when the server begins to stop: what never ends by itself ends then.
    pub(crate) stop: CancellationToken,
}

impl ForecastApi {
    fn select(&self, shards: &[ShardId], wanted: &Wanted) -> Result<Vec<SeriesKey>, Status> {
        let store = self.contexts.read().unwrap_or_else(PoisonError::into_inner);
        store.select(shards, wanted).map_err(status::nothing)
    }

    /// The same for what is answered in one piece: what is made up for names that nobody knows must not fill the memory.
    fn select_at_once(&self, shards: &[ShardId], wanted: &Wanted) -> Result<Vec<SeriesKey>, Status> {
        let keys = self.select(shards, wanted)?;
        let unknown = self.contexts.read().unwrap_or_else(PoisonError::into_inner).unknown(shards);
        if unknown > MOST_UNKNOWN {
            let why =
                format!("{unknown} of the named shards were never observed, and at most {MOST_UNKNOWN} such names");
            return Err(status::invalid(
                "shard_ids",
                format!("{why} are answered at once; ForecastStream takes any number"),
            ));
        }
        Ok(keys)
    }

    /// Has the forecasts of `keys` made and turned into an answer; refuses at once if the queue is full.
    async fn compute<T: Send + 'static>(
        &self,
        product: Product,
        keys: Vec<SeriesKey>,
        expires: Option<RealTime>,
        make: impl FnOnce(&Bench, Product, Vec<SeriesForecast>) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let receiver = self.engine.submit((product, None), keys, expires, make).map_err(status::busy)?;
        self.answer(receiver, expires).await
    }

    async fn answer<T>(&self, receiver: oneshot::Receiver<T>, expires: Option<RealTime>) -> Result<T, Status> {
        let made = tokio::select! {
            made = receiver => made,
            () = self.cut.cancelled() => return Err(status::stopped()),
        };
        made.map_err(|_| {
            if expires.is_some_and(|expires| self.clock.real() >= expires) {
                Status::deadline_exceeded("the request expired before it was computed")
            } else {
                Status::unavailable("the request was not computed; the server is stopping, or computing it failed")
            }
        })
    }

    fn expires<T>(&self, request: &Request<T>) -> Option<RealTime> {
        deadline(self.clock.as_ref(), timeout(request.metadata()))
    }

    /// Takes one batch of a stream in; what is refused joins the answer.
    async fn take(&self, batch: v1::IngestRequest, answer: &mut v1::IngestResponse) -> Result<(), Status> {
        let arrival = Arrival { now: self.clock.model(), ahead_at_most_ms: self.ahead_at_most_ms };
        let mut rows = Vec::with_capacity(batch.rows.len());
        let refused_before = answer.refused_total;
        for row in batch.rows {
            let shard_id = row.shard_id.clone();
            match checked(row, arrival) {
                Ok(row) => rows.push(row),
                Err(reason) => {
                    answer.refused_total += 1;
                    if answer.refused.len() < MOST_REFUSALS {
                        answer.refused.push(v1::RefusedRow { shard_id, reason });
                    }
                }
            }
        }
        self.metrics.ingested(0, 0, answer.refused_total - refused_before);
        let ingestor = Arc::clone(&self.ingestor);
        let taken = tokio::task::spawn_blocking(move || ingestor.take(rows)).await;
        let taken = taken.map_err(|error| status::internal(&error))?.map_err(|error| status::ingest(&error))?;
        answer.accepted += taken.accepted;
        answer.duplicates += taken.duplicates;
        self.metrics.ingested(taken.accepted, taken.duplicates, 0);
        self.arrived.send_replace(());
        if taken.flush_now {
            self.flush_now.notify_one();
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl ForecastService for ForecastApi {
    async fn forecast(&self, request: Request<v1::ForecastRequest>) -> Result<Response<v1::ForecastResponse>, Status> {
        let expires = self.expires(&request);
        let asked = Asked::from_wire(request.into_inner())?;
        let keys = self.select_at_once(&asked.shards, &asked.wanted)?;
        asked.check_fits(keys.len())?;
        let (product, make) = (asked.product, asked.levels.maker());
        let made = self.compute(product, keys, expires, make).await?;
        let series = made.map_err(|error| status::invalid("levels", error.to_string()))?;
        Ok(Response::new(v1::ForecastResponse { series: series.iter().map(Into::into).collect() }))
    }

    type ForecastStreamStream = ReceiverStream<Result<v1::ForecastResponse, Status>>;

    async fn forecast_stream(
        &self,
        request: Request<v1::ForecastRequest>,
    ) -> Result<Response<Self::ForecastStreamStream>, Status> {
        let expires = self.expires(&request);
        let asked = Asked::from_wire(request.into_inner())?;
        Ok(Response::new(self.stream(asked, expires).await?))
    }

    type WatchStream = ReceiverStream<Result<v1::ForecastResponse, Status>>;

    async fn watch(&self, request: Request<v1::ForecastRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let asked = Asked::from_wire(request.into_inner())?;
        Ok(Response::new(self.keep_streaming(asked)?))
    }

    async fn risk(&self, request: Request<v1::RiskRequest>) -> Result<Response<v1::RiskResponse>, Status> {
        let expires = self.expires(&request);
        let query = RiskQuery::try_from(request.into_inner()).map_err(|error| status::wire(&error))?;
        let horizon = query.product.horizon();
        let window = query.window_steps.unwrap_or(horizon);
        if window > horizon {
            return Err(status::invalid("window_steps", format!("{window} steps; {} has {horizon}", query.product)));
        }
        let limited = Resource::ALL.into_iter().filter(|resource| query.limits[*resource].is_some());
        let keys = self.select_at_once(&query.shards, &Wanted::loads(limited))?;
        let make = move |bench: &Bench, product: Product, forecasts: Vec<SeriesForecast>| {
            risks(bench, product, &forecasts, &query.limits, window)
        };
        let made = self.compute(query.product, keys, expires, make).await?;
        let made = made.map_err(|error| status::internal(&error))?;
        Ok(Response::new(v1::RiskResponse { risks: made.iter().map(Into::into).collect() }))
    }

    async fn node_forecast(
        &self,
        request: Request<v1::NodeForecastRequest>,
    ) -> Result<Response<v1::NodeForecastResponse>, Status> {
        let expires = self.expires(&request);
        let query = NodeQuery::try_from(request.into_inner()).map_err(|error| status::wire(&error))?;
        let loads = self.node_loads(query, expires).await?;
        Ok(Response::new(v1::NodeForecastResponse { loads: loads.iter().map(Into::into).collect() }))
    }

    type ScenariosStream = ReceiverStream<Result<v1::ScenariosResponse, Status>>;

    async fn scenarios(
        &self,
        request: Request<v1::ScenariosRequest>,
    ) -> Result<Response<Self::ScenariosStream>, Status> {
        let expires = self.expires(&request);
        let query = ScenarioQuery::try_from(request.into_inner()).map_err(|error| status::wire(&error))?;
        let keys = self.select_at_once(&query.shards, &Wanted::loads(Resource::ALL))?;
        let share = self.scenario_budget.take(SetSize::new(&keys, query.product.horizon(), query.scenarios))?;
        // The share goes where the set goes, and with it wherever both are dropped: in the queue, or on the way here.
        let make = move |bench: &Bench, product: Product, forecasts: Vec<SeriesForecast>| {
            scenarios(bench, product, &forecasts, query.scenarios, query.seed).map(|made| (made, share))
        };
        let made = self.compute(query.product, keys, expires, make).await?;
        let ((set, provenance), share) = made.map_err(|error| status::internal(&error))?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(send(set, provenance, share, sender, self.cut.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn ingest(
        &self,
        request: Request<Streaming<v1::IngestRequest>>,
    ) -> Result<Response<v1::IngestResponse>, Status> {
        let mut batches = request.into_inner();
        let mut answer = v1::IngestResponse::default();
        loop {
            let batch = tokio::select! {
                batch = batches.message() => batch?,
                () = self.cut.cancelled() => return Err(status::stopped()),
            };
            let Some(batch) = batch else { break };
            self.take(batch, &mut answer).await?;
        }
        if answer.refused_total > 0 {
            let example = answer.refused.first().map(|row| row.reason.as_str()).unwrap_or_default();
            tracing::warn!(refused = answer.refused_total, accepted = answer.accepted, example, "rows refused");
        }
        Ok(Response::new(answer))
    }

    async fn models(&self, _: Request<v1::ModelsRequest>) -> Result<Response<v1::ModelsResponse>, Status> {
        let reloader = Arc::clone(&self.reloader);
        let models = tokio::task::spawn_blocking(move || reloader.models()).await;
        let models = models.map_err(|error| status::internal(&error))?.map_err(|error| status::internal(&error))?;
        Ok(Response::new(v1::ModelsResponse { models: models.iter().map(Into::into).collect() }))
    }
}

/// Sends a scenario set in chunks, and gives its share of the memory back at the end. A reader that left ends it; one that is
/// cut off sees that values are missing.
async fn send(
    set: ScenarioSet,
    provenance: Vec<SeriesProvenance>,
    share: OwnedSemaphorePermit,
    sender: mpsc::Sender<Result<v1::ScenariosResponse, Status>>,
    cut: CancellationToken,
) {
    for part in scenario_parts(&set, &provenance) {
        tokio::select! {
            sent = tokio::time::timeout(STALLED_AFTER, sender.send(Ok(part))) => match sent {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break,
                Err(_) => {
                    tracing::warn!(after = ?STALLED_AFTER, "a reader of scenarios takes nothing and is cut off");
                    break;
                }
            },
            () = cut.cancelled() => break,
        }
    }
    drop(set);
    drop(share);
}
