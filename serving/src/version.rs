//! What serving needs of a model version, and the versions of the registry as such.
//!
//! A trait and not the type itself, so that other kinds of versions can be served and that the rules of serving (reload,
//! refusal, overload) are testable without training anything.

use foreshard_domain::{
    Metric, ModelVersion, Product, QuantileForecast, RiskCalibration, ScenarioError, ScenarioSet, SeriesForecast,
    ShardId, Timestamp,
};
use foreshard_model::{Context, ForecastSpec, Manifest, Version, any_step_corrected, scenarios_from};
use std::path::Path;
use std::sync::Arc;

/// Why a version cannot be loaded.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// A loaded version that answers.
pub trait ServedVersion: Send + Sync {
    /// Which it is.
    fn id(&self) -> ModelVersion;

    /// What it forecasts under a product; `None` if it was not trained for it.
    fn spec(&self, product: Product) -> Option<&ForecastSpec>;

    /// One forecast for each context, in their order. Never fails: where a context does not carry the model, a simpler
    /// forecast answers and says so.
    fn forecast(&self, product: Product, contexts: &[Context<'_>]) -> Vec<SeriesForecast>;

    /// Probability that a load exceeds `limit` at any step of `forecast`, which this or a simpler model made for `product` (or of
    /// its beginning), corrected by what was said in the past and what came.
    fn p_any(&self, product: Product, series: (&ShardId, Metric), forecast: &QuantileForecast, limit: f64) -> f64;

    /// Correction of the probability that a sum of several loads exceeds a limit.
    fn group_risk(&self, product: Product) -> RiskCalibration;

    /// Joint paths of the loads among `forecasts`, which this or a simpler model made for `product`.
    ///
    /// # Errors
    /// [`ScenarioError`] if there is no load among them or `scenarios` is 0.
    fn scenarios(
        &self,
        product: Product,
        forecasts: &[SeriesForecast],
        scenarios: usize,
        seed: u64,
    ) -> Result<ScenarioSet, ScenarioError>;
}

/// Loads versions from their folders.
pub trait VersionLoader: Send + Sync {
    /// Loads and verifies a version.
    ///
    /// # Errors
    /// Whatever is wrong with it: a missing file, a wrong checksum, an unknown schema.
    fn load(&self, dir: &Path) -> Result<Arc<dyn ServedVersion>, LoadError>;

    /// The end of the data that a version learned from, without loading its weights.
    ///
    /// # Errors
    /// If its description cannot be read.
    fn trained_until(&self, dir: &Path) -> Result<Timestamp, LoadError>;
}

/// The versions that training writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegistryVersions;

impl VersionLoader for RegistryVersions {
    fn load(&self, dir: &Path) -> Result<Arc<dyn ServedVersion>, LoadError> {
        Ok(Arc::new(Version::load(dir)?))
    }

    fn trained_until(&self, dir: &Path) -> Result<Timestamp, LoadError> {
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(dir.join("manifest.json"))?)?;
        Ok(manifest.trained_until)
    }
}

impl ServedVersion for Version {
    fn id(&self) -> ModelVersion {
        Version::id(self)
    }

    fn spec(&self, product: Product) -> Option<&ForecastSpec> {
        Version::spec(self, product)
    }

    fn forecast(&self, product: Product, contexts: &[Context<'_>]) -> Vec<SeriesForecast> {
        Version::forecast(self, product, contexts)
    }

    fn p_any(&self, product: Product, series: (&ShardId, Metric), forecast: &QuantileForecast, limit: f64) -> f64 {
        let (risk, templates) = (self.risk(product.name()), self.templates(product.name()));
        any_step_corrected(&risk.series, templates, series, forecast, limit)
    }

    fn group_risk(&self, product: Product) -> RiskCalibration {
        self.risk(product.name()).groups
    }

    fn scenarios(
        &self,
        product: Product,
        forecasts: &[SeriesForecast],
        scenarios: usize,
        seed: u64,
    ) -> Result<ScenarioSet, ScenarioError> {
        scenarios_from(self.templates(product.name()), forecasts, scenarios, seed)
    }
}
