//! The gauges themselves.

use foreshard_domain::{Fallback, ForecastError, Metric, Resource, SeriesForecast, ShardId, Timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use super::ExportConfig;
use super::chosen::span;
use crate::engine::{Bench, probability};

/// One forecast at one horizon and level, or one risk.
type Forecast = (ShardId, Metric, String, String, f64);
type RiskUpTo = (ShardId, Resource, String, f64);

/// Values of some series.
#[derive(Debug, Default)]
pub(super) struct Values {
    forecasts: Vec<Forecast>,
    risks: Vec<RiskUpTo>,
    fallbacks: u64,
}

/// What is shown, and what is not.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    pub(super) origin: Option<Timestamp>,
    values: Values,
    /// Series that the budget has no room for.
    pub(super) left_out: usize,
    pub(super) shards_left_out: usize,
    pub(super) first_left_out: Option<String>,
    /// Forecasts that could not be made.
    pub(super) failed: u64,
}

impl Exported {
    pub(super) fn add(&mut self, more: Values) {
        self.values.forecasts.extend(more.forecasts);
        self.values.risks.extend(more.risks);
        self.values.fallbacks += more.fallbacks;
    }

    fn series(&self) -> usize {
        self.values.forecasts.len() + self.values.risks.len()
    }
}

/// The values that forecasts make. Runs on a compute thread.
pub(super) fn values(
    bench: &Bench,
    config: &ExportConfig,
    forecasts: &[SeriesForecast],
) -> Result<Values, ForecastError> {
    let mut values = Values::default();
    for series in forecasts {
        // Where nothing is known there is nothing to show.
        if series.provenance.fallback == Some(Fallback::UnknownSeries) {
            continue;
        }
        values.fallbacks += u64::from(series.provenance.fallback.is_some());
        for horizon in &config.horizons {
            let Some(steps) = config.steps(*horizon) else { continue };
            if config.metrics.contains(&series.metric) {
                for level in &config.levels {
                    let value = series.forecast.quantile(steps.saturating_sub(1), *level)?;
                    let labels = (series.shard.clone(), series.metric, span(*horizon), level.to_string());
                    values.forecasts.push((labels.0, labels.1, labels.2, labels.3, f64::from(value)));
                }
            }
            if let Some((resource, limit)) = config.limit(series.metric) {
                let risk = probability(bench.slot.current().as_deref(), config.product, series, limit, steps)?;
                values.risks.push((series.shard.clone(), resource, span(*horizon), risk));
            }
        }
    }
    Ok(values)
}

/// The gauges that are shown now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauges {
    shown: Arc<RwLock<Option<Exported>>>,
    left_out: Counter,
    failed: Counter,
}

impl Gauges {
    /// Shows these from now on.
    pub(super) fn show(&self, exported: Exported) {
        self.left_out.inc_by(exported.left_out as u64);
        self.failed.inc_by(exported.failed);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Some(exported);
    }
}

fn gauge_type() -> MetricType {
    ConstGauge::<f64>::new(0.0).metric_type()
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        let Some(exported) = shown.as_ref() else { return Ok(()) };
        let help = "What is forecast at a horizon from the last complete step on, in the unit of the metric";
        let mut family = encoder.encode_descriptor("forecast", help, None, gauge_type())?;
        for (shard, metric, horizon, level, value) in &exported.values.forecasts {
            let labels = [
                ("shard", shard.as_str()),
                ("metric", metric.name()),
                ("horizon", horizon.as_str()),
                ("quantile", level.as_str()),
            ];
            ConstGauge::<f64>::new(*value).encode(family.encode_family(&labels)?)?;
        }
        let help = "Probability that a load is over its limit at any step up to a horizon";
        let mut family = encoder.encode_descriptor("forecast_risk", help, None, gauge_type())?;
        for (shard, resource, horizon, risk) in &exported.values.risks {
            let labels = [("shard", shard.as_str()), ("resource", resource.name()), ("horizon", horizon.as_str())];
            ConstGauge::<f64>::new(*risk).encode(family.encode_family(&labels)?)?;
        }
        let origin = exported.origin.map_or(f64::NAN, |origin| origin.as_ms() as f64 / 1e3);
        for (name, help, value) in [
            ("export_series", "Series of forecasts and risks that are shown", exported.series() as f64),
            (
                "export_series_left_out",
                "Series that the budget of the export has no room for",
                exported.left_out as f64,
            ),
            ("export_fallbacks", "Shown forecasts that a fallback made", exported.values.fallbacks as f64),
            ("export_origin_timestamp_seconds", "The last complete step, from which horizons count", origin),
        ] {
            let gauge = ConstGauge::<f64>::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, counter) in [
            ("export_left_out", "Series left out for the budget, each time the gauges were made", &self.left_out),
            ("export_failed", "Forecasts that could not be made for the gauges", &self.failed),
        ] {
            let counter = ConstCounter::<u64>::new(counter.get());
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
