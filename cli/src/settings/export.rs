//! Forecasts and risks that `/metrics` shows.

use foreshard_domain::{Metric, PerResource, Product, ShardId};
use foreshard_serving::ExportConfig;
use serde::{Deserialize, Serialize};

/// `[serve.export]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportSettings {
    /// Most series that are shown; 0 for none.
    pub most_series: usize,
    /// Shards; all that are known if empty.
    pub shards: Vec<ShardId>,
    /// Metrics whose forecasts are shown.
    pub metrics: Vec<Metric>,
    /// Steps in which is forecast.
    pub product: Product,
    /// How far ahead, such as `1h`.
    pub horizons: Vec<String>,
    /// Levels of the shown quantiles.
    pub levels: Vec<f64>,
    /// Limits of loads whose risks are shown.
    pub limits: PerResource<Option<f64>>,
}

impl Default for ExportSettings {
    fn default() -> Self {
        let ExportConfig { shards, metrics, product, horizons, levels, limits, .. } = ExportConfig::default();
        let horizons = horizons.into_iter().map(|span| humantime::format_duration(span).to_string()).collect();
        Self { most_series: 0, shards, metrics, product, horizons, levels, limits }
    }
}

impl ExportSettings {
    /// What the serving process is to show; nothing where no series are allowed.
    ///
    /// # Errors
    /// If a horizon is no span.
    pub fn config(&self) -> Result<Option<ExportConfig>, String> {
        if self.most_series == 0 {
            return Ok(None);
        }
        let span = |text: &String| {
            let span = humantime::parse_duration(text);
            span.map_err(|error| format!("serve.export.horizons: {text:?} is no span, such as 1h: {error}"))
        };
        Ok(Some(ExportConfig {
            most_series: self.most_series,
            shards: self.shards.clone(),
            metrics: self.metrics.clone(),
            product: self.product,
            horizons: self.horizons.iter().map(span).collect::<Result<_, _>>()?,
            levels: self.levels.clone(),
            limits: self.limits,
        }))
    }
}
