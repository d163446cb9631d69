//! Forecasts and risks as gauges of `/metrics`, for dashboards and alerts that live in Prometheus.
//!
//! A gauge is what is expected at a distance from now, which its label `horizon` says: Prometheus keeps what was said when, so
//! that forecasts can be laid over what came. Each series costs memory there for as long as it is kept, so there is a budget;
//! what does not fit is left out shard by shard, in the order of their names, and is told.

mod chosen;
mod gauges;

pub use chosen::ExportConfig;
pub(crate) use gauges::{Exported, Gauges};

use foreshard_domain::{Product, SeriesForecast, Timestamp};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot::Receiver;
use tokio_util::sync::CancellationToken;

use crate::context::{SeriesKey, Wanted};
use crate::engine::{Bench, QueueFull};
use crate::ingest::reason;
use crate::service::ForecastApi;
use chosen::Chosen;
use gauges::Values;

/// Series of one part: a batch that does not hold up others for long.
const PART: usize = 512;

/// Pause before a part that was refused is tried again: requests of callers go first.
const PART_AGAIN: Duration = Duration::from_millis(100);

/// How old gauges become before they are made again from the same step.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How often is looked for a new step.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps the gauges up to date.
pub(crate) struct Exporter {
    parts: ForecastApi,
    config: Arc<ExportConfig>,
    stop: CancellationToken,
}

impl Exporter {
    /// One that exports as `config` says.
    pub(crate) fn new(parts: ForecastApi, config: ExportConfig) -> Self {
        let stop = parts.stop.clone();
        Self { parts, config: Arc::new(config), stop }
    }

    /// Makes the gauges anew whenever a new step is complete, another version answers or a shard is new, and from
    /// time to time for what comes late, until the server stops.
    pub(crate) async fn keep_exporting(self) {
        let mut arrived = self.parts.arrived.subscribe();
        let mut made = None;
        let mut made_at = Duration::ZERO;
        let mut left_out = 0;
        loop {
            let (origin, shards) = self.seen();
            let now = (origin, shards, self.parts.reloader.version());
            // Rows of some shards come later than those that complete the step.
            let is_old = self.parts.clock.monotonic().saturating_sub(made_at) >= AGAIN_AFTER;
            if let Some(origin) = origin.filter(|_| is_old || made.as_ref() != Some(&now)) {
                let exported = tokio::select! {
                    exported = self.export(origin) => exported,
                    () = self.stop.cancelled() => return,
                };
                if exported.left_out != left_out && exported.left_out > 0 {
                    let (series, budget) = (exported.left_out, self.config.most_series);
                    tracing::warn!(
                        series,
                        shards = exported.shards_left_out,
                        first = exported.first_left_out.as_deref(),
                        budget,
                        "the export has more series than its budget: these are left out; raise serve.export.most_series or \
                         name fewer shards, metrics, horizons or levels"
                    );
                }
                left_out = exported.left_out;
                self.parts.metrics.exports.show(exported);
                made = Some(now);
                made_at = self.parts.clock.monotonic();
            }
            tokio::select! {
                // Fails only when the server is gone.
                changed = arrived.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.stop.cancelled() => return,
            }
            // Rows come in bursts at the end of a step.
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// The last complete step, and how many shards are known.
    fn seen(&self) -> (Option<Timestamp>, usize) {
        let store = self.parts.contexts.read().unwrap_or_else(PoisonError::into_inner);
        (store.issued_at(self.config.product.step(), self.parts.clock.model()), store.shards())
    }

    /// Makes all gauges from one origin.
    async fn export(&self, origin: Timestamp) -> Exported {
        let wanted = Wanted::named(&self.config.asked_metrics());
        let keys = {
            let store = self.parts.contexts.read().unwrap_or_else(PoisonError::into_inner);
            // Shards that are named but were never observed say nothing, and nothing is observed at first.
            let named: Vec<_> = self.config.shards.iter().filter(|shard| store.knows(shard)).cloned().collect();
            let nobody = named.is_empty() && !self.config.shards.is_empty();
            if nobody { Vec::new() } else { store.select(&named, &wanted).unwrap_or_default() }
        };
        let Chosen { keys, mut exported } = chosen::choose(&self.config, keys);
        exported.origin = Some(origin);
        for part in keys.chunks(PART) {
            match self.part(origin, part).await {
                Ok(values) => exported.add(values),
                Err(why) => {
                    exported.failed += part.len() as u64;
                    tracing::warn!(why, series = part.len(), "forecasts could not be exported");
                }
            }
        }
        exported
    }

    async fn part(&self, origin: Timestamp, keys: &[SeriesKey]) -> Result<Values, String> {
        loop {
            match self.submit(origin, keys) {
                Ok(receiver) => {
                    let made = receiver.await.map_err(|_| "computing them failed".to_owned())?;
                    return made.map_err(|error| reason(&error));
                }
                Err(QueueFull::Closed) => return Err("the server is stopping".to_owned()),
                Err(QueueFull::Full { .. } | QueueFull::Slow { .. }) => tokio::time::sleep(PART_AGAIN).await,
            }
        }
    }

    fn submit(
        &self,
        origin: Timestamp,
        keys: &[SeriesKey],
    ) -> Result<Receiver<Result<Values, foreshard_domain::ForecastError>>, QueueFull> {
        let config = Arc::clone(&self.config);
        let make =
            move |bench: &Bench, _: Product, forecasts: Vec<SeriesForecast>| gauges::values(bench, &config, &forecasts);
        self.parts.engine.submit((self.config.product, Some(origin)), keys.to_vec(), None, make)
    }
}
