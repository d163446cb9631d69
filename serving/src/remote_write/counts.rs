//! What came and what became of it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::gather::Samples;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

/// Counters of requests and samples.
#[derive(Debug, Default)]
pub(crate) struct RemoteWriteCounts {
    requests: Family<Result, Counter>,
    samples: Family<Result, Counter>,
}

impl RemoteWriteCounts {
    /// Has them told with the other metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Remote write requests that came, by what became of them";
        registry.register("remote_write_requests", help, self.requests.clone());
        let help = "Samples of remote write requests that were understood, by what became of them";
        registry.register("remote_write_samples", help, self.samples.clone());
    }

    pub(super) fn request(&self, result: &'static str) {
        self.requests.get_or_create(&Result { result }).inc();
    }

    pub(super) fn samples(&self, samples: &Samples) {
        let Samples { taken, unmapped, stale, missing, refused } = samples;
        let results =
            [("taken", taken), ("unmapped", unmapped), ("stale", stale), ("missing", missing), ("refused", refused)];
        for (result, number) in results.into_iter().filter(|(_, number)| **number > 0) {
            self.samples.get_or_create(&Result { result }).inc_by(*number);
        }
    }
}
