//! What the server tells of itself, in the text form that Prometheus scrapes.
//!
//! Names begin with `foreshard_`, units are base units, counters end in `_total`. What changes with every call is counted
//! where it happens; what is there anyway (waiting rows, open connections, the version that answers) is read at each
//! scrape ([`state`]).

mod calls;
mod methods;
mod state;

pub(crate) use calls::CallLayer;
pub(crate) use methods::Methods;
pub(crate) use state::State;

use foreshard_domain::{Clock, Fallback, SeriesForecast};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::time::Duration;

use crate::remote_write::RemoteWriteCounts;

/// Times from half a millisecond to 16 s, each bucket twice the one before.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

/// Who answered a series.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    fallback: &'static str,
}

/// What became of something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Became {
    result: &'static str,
}

/// What batches of forecasts took.
#[derive(Debug)]
pub(crate) struct BatchTimes {
    rows: Histogram,
    compute: Histogram,
    waited: Histogram,
    forecasts: Family<By, Counter>,
}

impl Default for BatchTimes {
    fn default() -> Self {
        let rows = Histogram::new(exponential_buckets(1.0, 4.0, 8));
        Self { rows, compute: times(), waited: times(), forecasts: Family::default() }
    }
}

impl BatchTimes {
    /// A batch of `rows` was computed.
    pub(crate) fn batch(&self, rows: usize, took: Duration) {
        self.rows.observe(rows as f64);
        self.compute.observe(took.as_secs_f64());
    }

    /// A request waited so long before it was taken.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited.observe(time.as_secs_f64());
    }

    /// These were made.
    pub(crate) fn made(&self, forecasts: &[SeriesForecast]) {
        // By runs, since almost always one answers for all.
        for run in forecasts.chunk_by(|a, b| a.provenance.fallback == b.provenance.fallback) {
            let fallback = run.first().and_then(|series| series.provenance.fallback);
            let by = By { fallback: fallback.map_or("none", Fallback::code) };
            self.forecasts.get_or_create(&by).inc_by(run.len() as u64);
        }
    }
}

/// All of it.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) calls: CallLayer,
    pub(crate) remote_write: RemoteWriteCounts,
    rows: Family<Became, Counter>,
}

impl Metrics {
    /// Metrics of a server whose parts are `state`.
    pub(crate) fn new(clock: Arc<dyn Clock>, methods: Methods, batches: &BatchTimes, state: State) -> Self {
        let mut registry = Registry::with_prefix("foreshard");
        let calls = CallLayer::new(clock, methods, &mut registry);
        let rows = Family::<Became, Counter>::default();
        registry.register("ingest_rows", "Observations that came, by what became of them", rows.clone());
        let remote_write = RemoteWriteCounts::default();
        remote_write.register(&mut registry);
        let forecasts = batches.forecasts.clone();
        registry.register("forecasts", "Series that were forecast, by what answered in place of the model", forecasts);
        registry.register("batch_rows", "Series that were forecast together", batches.rows.clone());
        let seconds = Unit::Seconds;
        registry.register_with_unit("batch_compute", "Time a batch took", seconds.clone(), batches.compute.clone());
        registry.register_with_unit("queue_wait", "Time requests waited", seconds, batches.waited.clone());
        registry.register_collector(Box::new(state));
        Self { registry, calls, remote_write, rows }
    }

    /// Rows that were taken for good, those among them that replaced others, and rows that were not taken.
    pub(crate) fn ingested(&self, accepted: u64, duplicates: u64, refused: u64) {
        let results = [("accepted", accepted), ("duplicate", duplicates), ("refused", refused)];
        for (result, rows) in results.into_iter().filter(|(_, rows)| *rows > 0) {
            self.rows.get_or_create(&Became { result }).inc_by(rows);
        }
    }

    /// All of it as text, in the OpenMetrics form.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
