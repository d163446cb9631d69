//! Loading a version folder and asking it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use foreshard_domain::{
    ModelVersion, Product, Provenance, QuantileForecast, RiskCalibrations, ScenarioError, ScenarioSet, SeriesForecast,
};
use serde::Deserialize;

use super::write::{checksum, io};
use super::{CALIBRATION, CARD, MANIFEST, REPORT_HTML, REPORT_JSON, TEMPLATES, WEIGHTS};
use super::{Calibrations, Manifest, SCHEMA, VersionError};
use crate::learned::read_learned;
use crate::templates_file::read_templates;
use crate::{
    Answer, Context, ForecastSpec, Forecaster, Lanes, RankTemplates, Trained, TrainedParts, any_step_corrected,
    scenarios_from,
};

/// A version folder in memory: every checksum verified, what was learned ready to answer.
#[derive(Debug)]
pub struct Version {
    manifest: Manifest,
    products: BTreeMap<String, Loaded>,
}

#[derive(Debug)]
struct Loaded {
    trained: Trained,
    templates: Option<RankTemplates>,
}

/// The one field that is read before all others.
#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

impl Version {
    /// Loads a version folder with as many threads as the machine has cores.
    ///
    /// # Errors
    /// [`VersionError`] if a file is missing or damaged, the schema is newer, or parts do not fit together.
    pub fn load(dir: &Path) -> Result<Self, VersionError> {
        Self::load_with(dir, Arc::new(Lanes::new(0)?))
    }

    /// Loads a version folder that computes on the given threads.
    ///
    /// # Errors
    /// [`VersionError`], as [`Self::load`].
    pub fn load_with(dir: &Path, lanes: Arc<Lanes>) -> Result<Self, VersionError> {
        let manifest = read_manifest(dir)?;
        let mut files = read_files(dir, &manifest)?;
        let mut take = |name: &'static str| {
            let unchecked = || VersionError::Unchecked { path: dir.join(MANIFEST), file: name };
            files.remove(name).ok_or_else(unchecked)
        };
        for text in [REPORT_JSON, REPORT_HTML, CARD] {
            take(text)?;
        }
        let calibration = dir.join(CALIBRATION);
        let calibrations: Calibrations = serde_json::from_slice(&take(CALIBRATION)?)
            .map_err(|source| VersionError::Manifest { path: calibration, source })?;
        let mut learned = read_learned(&take(WEIGHTS)?, manifest.kind, &manifest.products)?;
        let horizons = manifest.products.iter().map(|p| (p.name.clone(), p.spec.horizon)).collect();
        let mut templates = read_templates(take(TEMPLATES)?, &horizons)?;
        let mut products = BTreeMap::new();
        for product in &manifest.products {
            let problem = |problem: String| VersionError::Product { product: product.name.clone(), problem };
            if let Some(wrong) = product.spec.problems().first() {
                return Err(problem(wrong.to_string()));
            }
            let widths = calibrations.widths.get(&product.name).cloned();
            if widths.as_ref().is_some_and(|w| !w.is_sound()) {
                return Err(problem("its width factors are out of bounds".to_owned()));
            }
            let events = calibrations.events.get(&product.name).cloned().unwrap_or_default();
            if !events.is_sound() {
                return Err(problem("its effects of events are out of bounds".to_owned()));
            }
            let risk = calibrations.risk.get(&product.name).copied().unwrap_or_default();
            if !(risk.series.is_sound() && risk.groups.is_sound()) {
                return Err(problem("its corrections of risk are out of bounds".to_owned()));
            }
            let learned = learned.remove(&product.name).ok_or_else(|| problem("it occurs twice".to_owned()))?;
            let (name, spec) = (product.name.clone(), product.spec.clone());
            let parts = TrainedParts { name, spec, learned, widths, events, risk };
            let loaded =
                Loaded { trained: Trained::new(parts, lanes.clone())?, templates: templates.remove(&product.name) };
            products.insert(product.name.clone(), loaded);
        }
        Ok(Self { manifest, products })
    }

    /// What the version says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Model and number.
    pub fn id(&self) -> ModelVersion {
        self.manifest.id()
    }

    /// What a shipped product forecasts; `None` if this version was not trained for it.
    pub fn spec(&self, product: Product) -> Option<&ForecastSpec> {
        Some(self.forecaster(product.name())?.spec())
    }

    /// The forecaster of a product or protocol by name.
    pub fn forecaster(&self, name: &str) -> Option<&Trained> {
        Some(&self.products.get(name)?.trained)
    }

    /// The templates of a product or protocol by name.
    pub fn templates(&self, name: &str) -> Option<&RankTemplates> {
        self.products.get(name)?.templates.as_ref()
    }

    /// Corrections of the probabilities of a product or protocol.
    pub fn risk(&self, name: &str) -> RiskCalibrations {
        self.forecaster(name).map_or_else(RiskCalibrations::default, |trained| trained.parts().risk)
    }

    /// One forecast for each context, in their order: calibrated, bounded, with provenance. A series that the network
    /// cannot answer falls back by itself and says why; a product that the version lacks falls back for all.
    pub fn forecast(&self, product: Product, contexts: &[Context<'_>]) -> Vec<SeriesForecast> {
        let Some(trained) = self.forecaster(product.name()) else {
            return without_model(&ForecastSpec::of_product(product), contexts);
        };
        let answers = trained.forecast(contexts);
        let calibration = trained.calibration();
        contexts
            .iter()
            .zip(answers)
            .map(|(context, answer)| {
                let by_model = answer.fallback.is_none();
                let calibration = if by_model { calibration } else { Default::default() };
                series_forecast(context, answer, by_model.then(|| self.id()), calibration)
            })
            .collect()
    }

    /// Joint paths of the contexts' loads, one series each.
    ///
    /// # Errors
    /// [`ScenarioError`] if there is no load among them, `scenarios` is 0, or a series occurs twice.
    pub fn scenarios(
        &self,
        product: Product,
        contexts: &[Context<'_>],
        scenarios: usize,
        seed: u64,
    ) -> Result<ScenarioSet, ScenarioError> {
        let loads: Vec<Context<'_>> = contexts.iter().filter(|c| c.metric.resource().is_some()).copied().collect();
        scenarios_from(self.templates(product.name()), &self.forecast(product, &loads), scenarios, seed)
    }

    /// Probability that the load exceeds `limit` at any step of the forecast.
    pub fn p_any(&self, product: Product, context: &Context<'_>, forecast: &QuantileForecast, limit: f64) -> f64 {
        let (risk, templates) = (self.risk(product.name()), self.templates(product.name()));
        any_step_corrected(&risk.series, templates, (context.shard, context.metric), forecast, limit)
    }
}

/// What is answered where no version is loaded: the fallback of each context, marked so.
pub fn without_model(spec: &ForecastSpec, contexts: &[Context<'_>]) -> Vec<SeriesForecast> {
    let answer = |context: &Context<'_>| crate::fall_back(spec, context, foreshard_domain::Fallback::NoModel);
    contexts.iter().map(|c| series_forecast(c, answer(c), None, Default::default())).collect()
}

fn series_forecast(
    context: &Context<'_>,
    answer: Answer,
    version: Option<ModelVersion>,
    calibration: foreshard_domain::Calibration,
) -> SeriesForecast {
    SeriesForecast {
        shard: context.shard.clone(),
        metric: context.metric,
        issued_at: context.issued_at(),
        step: context.step,
        forecast: answer.forecast,
        provenance: Provenance {
            version,
            last_observed: answer.last_observed,
            missing_share: answer.missing_share,
            calibration,
            fallback: answer.fallback,
        },
    }
}

fn read_manifest(dir: &Path) -> Result<Manifest, VersionError> {
    let path = dir.join(MANIFEST);
    let bytes = read_file(&path)?;
    let damaged = |source| VersionError::Manifest { path: path.clone(), source };
    let SchemaOnly { schema } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if schema > SCHEMA {
        return Err(VersionError::NewerSchema { path: dir.to_owned(), found: schema, known: SCHEMA });
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

fn read_file(path: &Path) -> Result<Vec<u8>, VersionError> {
    fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => VersionError::MissingFile { path: path.to_owned() },
        _ => io("read", path)(source),
    })
}

fn read_files(dir: &Path, manifest: &Manifest) -> Result<BTreeMap<String, Vec<u8>>, VersionError> {
    let mut files = BTreeMap::new();
    for (name, want) in &manifest.checksums {
        let path = dir.join(name);
        let bytes = read_file(&path)?;
        let found = checksum(&bytes);
        if found != *want {
            return Err(VersionError::Checksum { path, found, want: want.clone() });
        }
        files.insert(name.clone(), bytes);
    }
    Ok(files)
}
