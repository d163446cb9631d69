//! What is there at the moment of a scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::context::ContextStore;
use crate::engine::{AnswerCache, Engine, Slot};
use crate::registry::Reloader;
use crate::transport::ConnectionCounts;

/// The parts that are asked.
pub(crate) struct State {
    pub(crate) engine: Arc<Engine>,
    pub(crate) slot: Arc<Slot>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) contexts: Arc<RwLock<ContextStore>>,
    /// Answers that are kept, if any are.
    pub(crate) cache: Option<Arc<AnswerCache>>,
    /// Connections of the ports by their names.
    pub(crate) ports: Vec<(&'static str, Arc<ConnectionCounts>)>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

/// Writes one metric after the other.
struct Told<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Told<'_, '_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl Into<f64>) -> fmt::Result {
        let gauge = ConstGauge::<f64>::new(value.into());
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::<u64>::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauges(&mut self, name: &str, help: &str, values: &[([(&str, &str); 1], f64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, ConstGauge::<f64>::new(0.0).metric_type())?;
        for (labels, value) in values {
            ConstGauge::<f64>::new(*value).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let told = &mut Told(&mut encoder);
        let counts = self.engine.counts();
        told.gauge("queue_rows", "Series that wait to be computed", self.engine.waiting_rows() as f64)?;
        told.counter("queue_refused", "Requests refused since too much waits", counts.refused())?;
        told.counter("queue_expired", "Requests that expired or were given up before compute", counts.expired())?;
        told.counter("queue_computed", "Requests that were computed", counts.computed())?;
        let open: Vec<_> = self.ports.iter().map(|(port, c)| ([("port", *port)], c.open() as f64)).collect();
        told.gauges("connections", "Connections that are open", &open)?;
        let refused = self.ports.iter().map(|(_, c)| c.refused()).sum();
        told.counter("connections_refused", "Connections closed at once since there were too many", refused)?;
        self.contexts(told)?;
        let (hits, misses) = self.cache.as_ref().map_or((0, 0), |cache| cache.counts());
        told.counter("cache_hits", "Series that were answered from kept answers", hits)?;
        told.counter("cache_misses", "Series that were looked for among kept answers and not found", misses)?;
        let bytes = self.cache.as_ref().map_or(0, |cache| cache.bytes());
        told.gauge("cache_bytes", "Bytes of kept answers", bytes as f64)?;
        told.counter("reloads", "Versions that were put in the place of others", self.reloader.exchanged())?;
        told.counter(
            "reloads_refused",
            "Looks at the labels that found a version that may not serve",
            self.reloader.refusals(),
        )?;
        self.version(&mut encoder)
    }
}

impl State {
    fn contexts(&self, told: &mut Told<'_, '_>) -> fmt::Result {
        let store = self.contexts.read().unwrap_or_else(PoisonError::into_inner);
        let (shards, newest) = (store.shards(), store.newest());
        drop(store);
        told.gauge("context_shards", "Shards of which anything is known", shards as f64)?;
        let newest = newest.map_or(f64::NAN, |newest| newest.as_ms() as f64 / 1e3);
        told.gauge("newest_observation_timestamp_seconds", "Time of the newest observation, model time", newest)
    }

    fn version(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(id) = self.slot.id() else { return Ok(()) };
        let number = id.number.to_string();
        let one = ConstGauge::<f64>::new(1.0);
        let help = "The version that answers, as labels";
        let mut family = encoder.encode_descriptor("model_info", help, None, one.metric_type())?;
        one.encode(family.encode_family(&[("model", id.model.as_str()), ("version", number.as_str())])?)
    }
}
