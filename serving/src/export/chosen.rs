//! What is exported, and what fits into the budget.

use foreshard_domain::{Metric, PerResource, Product, QuantileLevels, Resource, ShardId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::gauges::Exported;
use crate::context::SeriesKey;

/// What of the forecasts `/metrics` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportConfig {
    /// Most series that are shown at once, forecasts and risks together.
    pub most_series: usize,
    /// Shards; all that are known if empty.
    pub shards: Vec<ShardId>,
    /// Metrics whose forecasts are shown.
    pub metrics: Vec<Metric>,
    /// Steps in which is forecast.
    pub product: Product,
    /// How far ahead the shown steps lie; risks are those of any step up to there.
    #[serde(with = "horizons")]
    pub horizons: Vec<Duration>,
    /// Levels of the shown quantiles.
    pub levels: Vec<f64>,
    /// Limits of loads whose risks are shown; none for a resource without.
    pub limits: PerResource<Option<f64>>,
}

/// Spans as text, such as `1h`.
mod horizons {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::Duration;

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Span(#[serde(with = "humantime_serde")] Duration);

    pub(super) fn serialize<S: Serializer>(spans: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(spans.iter().map(|span| Span(*span)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
        Ok(Vec::<Span>::deserialize(from)?.into_iter().map(|Span(span)| span).collect())
    }
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            most_series: 1000,
            shards: Vec::new(),
            metrics: vec![Metric::CpuUtil],
            product: Product::NextHours,
            horizons: vec![Duration::from_secs(3600), Duration::from_secs(4 * 3600)],
            levels: vec![0.5, 0.9],
            limits: PerResource::default(),
        }
    }
}

impl ExportConfig {
    /// Everything that is wrong with it.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |good: bool, what: String| problems.extend((!good).then_some(what));
        let limited = Resource::ALL.into_iter().any(|resource| self.limits[resource].is_some());
        let shows = !self.metrics.is_empty() || limited;
        check(shows, "shows nothing: name metrics whose forecasts are shown, or limits for risks".to_owned());
        check(!self.metrics.contains(&Metric::Value), "value is no metric of a shard".to_owned());
        check(!self.horizons.is_empty(), "needs horizons: how far ahead".to_owned());
        for horizon in &self.horizons {
            let step = Duration::from_millis(u64::try_from(self.product.step().as_ms()).unwrap_or(u64::MAX));
            let longest = step.saturating_mul(u32::try_from(self.product.horizon()).unwrap_or(u32::MAX));
            let (told, step, longest) = (span(*horizon), span(step), span(longest));
            let what = format!("has the horizon {told}; {} has multiples of {step} up to {longest}", self.product);
            check(self.steps(*horizon).is_some(), what);
        }
        let levels = QuantileLevels::new(self.levels.clone()).map(drop).map_err(|error| error.to_string());
        check(levels.is_ok(), format!("has levels that are none: {}", levels.err().unwrap_or_default()));
        let sound =
            Resource::ALL.into_iter().all(|r| self.limits[r].is_none_or(|limit| limit.is_finite() && limit >= 0.0));
        check(sound, "has a limit that is no load".to_owned());
        problems
    }

    /// Number of steps up to a horizon; `None` if it lies between steps or beyond the last one.
    pub(super) fn steps(&self, horizon: Duration) -> Option<usize> {
        let step = u128::try_from(self.product.step().as_ms()).ok()?;
        let (steps, rest) = (horizon.as_millis() / step, horizon.as_millis() % step);
        let steps = usize::try_from(steps).ok().filter(|steps| (1..=self.product.horizon()).contains(steps));
        steps.filter(|_| rest == 0)
    }

    /// Metrics that must be forecast: the shown ones, and those that have a limit.
    pub(super) fn asked_metrics(&self) -> Vec<Metric> {
        let limited = Resource::ALL.into_iter().filter(|resource| self.limits[*resource].is_some());
        let mut metrics: Vec<Metric> = self.metrics.iter().copied().chain(limited.map(Resource::metric)).collect();
        metrics.sort_unstable();
        metrics.dedup();
        metrics
    }

    /// The limit of a metric's load, if it has one.
    pub(super) fn limit(&self, metric: Metric) -> Option<(Resource, f64)> {
        let resource = metric.resource()?;
        Some((resource, self.limits[resource]?))
    }

    /// Series that one forecast makes.
    fn series_of(&self, metric: Metric) -> usize {
        let shown = if self.metrics.contains(&metric) { self.levels.len() } else { 0 };
        let risks = usize::from(self.limit(metric).is_some());
        self.horizons.len().saturating_mul(shown.saturating_add(risks))
    }
}

/// A span as a label: `4h`.
pub(super) fn span(span: Duration) -> String {
    let minutes = span.as_secs() / 60;
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{minutes}m"),
        (hours, 0) => format!("{hours}h"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    }
}

/// What is to be forecast, and the answer as far as it is known before.
pub(super) struct Chosen {
    pub(super) keys: Vec<SeriesKey>,
    pub(super) exported: Exported,
}

/// Takes shards, ordered by name, as long as all series of a shard fit into the budget. Those of later ones are left out, so
/// that which ones are shown does not change with the loads.
pub(super) fn choose(config: &ExportConfig, keys: Vec<SeriesKey>) -> Chosen {
    let mut chosen = Chosen { keys: Vec::new(), exported: Exported::default() };
    let mut used = 0usize;
    for of_shard in keys.chunk_by(|a, b| a.0 == b.0) {
        let series: usize = of_shard.iter().map(|(_, metric)| config.series_of(*metric)).sum();
        let exported = &mut chosen.exported;
        if exported.left_out == 0 && used.saturating_add(series) <= config.most_series {
            used = used.saturating_add(series);
            chosen.keys.extend(of_shard.iter().cloned());
        } else if series > 0 {
            exported.left_out = exported.left_out.saturating_add(series);
            exported.shards_left_out += 1;
            exported
                .first_left_out
                .get_or_insert_with(|| of_shard.first().map_or(String::new(), |(s, _)| s.to_string()));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(shard: &str, metric: Metric) -> SeriesKey {
        (ShardId::new(shard).unwrap(), metric)
    }

    fn with_cpu_limit() -> ExportConfig {
        let mut config = ExportConfig::default();
        config.limits[Resource::Cpu] = Some(50.0);
        config
    }

    #[test]
    fn whole_shards_fit_or_are_left_out_by_name() {
        // Two horizons of two levels and a risk: six series a shard.
        let keys: Vec<SeriesKey> = ["a", "b", "c", "d"].map(|shard| key(shard, Metric::CpuUtil)).to_vec();
        for (budget, fit) in [(0, 0), (5, 0), (6, 1), (13, 2), (24, 4), (1000, 4)] {
            let config = ExportConfig { most_series: budget, ..with_cpu_limit() };
            let chosen = choose(&config, keys.clone());
            assert_eq!(chosen.keys, keys[..fit], "{budget}");
            assert_eq!((chosen.exported.left_out, chosen.exported.shards_left_out), ((4 - fit) * 6, 4 - fit));
            assert_eq!(chosen.exported.first_left_out.as_deref(), ["a", "b", "c", "d"].get(fit).copied());
        }
    }

    #[test]
    fn metrics_with_a_limit_are_asked_for_too() {
        let mut config = with_cpu_limit();
        config.limits[Resource::Io] = Some(1.0);
        assert_eq!(config.asked_metrics(), [Metric::CpuUtil, Metric::IoOps]);
        assert_eq!((config.series_of(Metric::CpuUtil), config.series_of(Metric::IoOps)), (6, 2));
    }

    #[test]
    fn all_problems_are_found() {
        assert_eq!(with_cpu_limit().problems(), [""; 0]);
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let wrong = ExportConfig {
            metrics: vec![],
            horizons: vec![minutes(60), minutes(7), minutes(300)],
            levels: vec![0.9, 0.5],
            ..ExportConfig::default()
        };
        let problems = wrong.problems();
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[1].contains("7m; next_hours has multiples of 5m up to 4h"), "{problems:?}");
    }

    #[test]
    fn spans_are_short() {
        let told = [5, 60, 90, 1440].map(|minutes| span(Duration::from_secs(60 * minutes)));
        assert_eq!(told, ["5m", "1h", "1h30m", "24h"]);
    }
}
