//! What was pulled and what became of it.

use foreshard_datasets::prometheus::PulledCounts;
use foreshard_domain::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

/// Counters of pulls and values.
#[derive(Debug, Default)]
pub(crate) struct PullCounts {
    pulls: Family<Result, Counter>,
    values: Family<Result, Counter>,
    until: Gauge<f64, AtomicU64>,
}

impl PullCounts {
    /// Has them told with the other metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("pulls", "Pulls from Prometheus, by how they ended", self.pulls.clone());
        let help = "Values that Prometheus told, by what became of them";
        registry.register("pulled_values", help, self.values.clone());
        let help = "Up to when every query was pulled, model time; 0 before the first pull";
        registry.register("pulled_until_timestamp_seconds", help, self.until.clone());
    }

    pub(super) fn pulled(&self, result: &'static str) {
        self.pulls.get_or_create(&Result { result }).inc();
    }

    pub(super) fn reached(&self, until: Timestamp) {
        self.until.set(until.as_ms() as f64 / 1e3);
    }

    pub(super) fn values(&self, counts: PulledCounts) {
        let PulledCounts { taken, missing, refused, doubled } = counts;
        let results = [("taken", taken), ("missing", missing), ("refused", refused), ("doubled", doubled)];
        for (result, number) in results.into_iter().filter(|(_, number)| *number > 0) {
            self.values.get_or_create(&Result { result }).inc_by(number);
        }
    }
}
