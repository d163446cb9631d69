//! Forecasts without a server: a history from disk, the champion from the registry.

use foreshard_datasets::{EventCalendar, GridSeries, History, ReadFilter, read_history};
use foreshard_domain::{Metric, Product, ScenarioSet, SeriesForecast, ShardId, Timestamp};
use foreshard_model::{Context, ForecastSpec, Version, without_model};
use foreshard_training::Registry;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::output::Failure;

/// A history and the version that forecasts it.
pub struct Local {
    /// What was observed.
    pub history: History,
    events: Arc<EventCalendar>,
    version: Option<Version>,
}

/// One series put on the grid of a product, up to the last step that is complete for all.
struct Known {
    shard: ShardId,
    metric: Metric,
    series: GridSeries,
}

impl Local {
    /// Reads the history, the known events and the champion, if there is one.
    pub fn open(history: &Path, events: &Path, registry: &Path, model: &str) -> Result<Self, Failure> {
        let history = read_history(history, &ReadFilter::default())?;
        let version = if registry.exists() { Registry::open(registry)?.champion(model)? } else { None };
        Ok(Self { history, events: super::events(events)?, version })
    }

    fn known(&self, shards: &[ShardId], metrics: &[Metric], product: Product) -> Result<Vec<Known>, Failure> {
        let have: BTreeSet<&ShardId> = self.history.shards().collect();
        if let Some(unknown) = shards.iter().find(|s| !have.contains(s)) {
            return Err(format!("shard {unknown} is not in the history; it has {} shards", have.len()).into());
        }
        let step = product.step();
        let wanted = have.into_iter().filter(|s| shards.is_empty() || shards.contains(s));
        let mut known = Vec::new();
        for shard in wanted {
            let own = self.history.metrics_of(shard);
            for metric in own.into_iter().filter(|m| metrics.is_empty() || metrics.contains(m)) {
                if let Some(series) = self.history.grid(shard, metric, step) {
                    known.push(Known { shard: shard.clone(), metric, series });
                }
            }
        }
        let end = known.iter().map(|k| k.series.end()).max();
        for series in known.iter_mut().map(|k| &mut k.series) {
            pad(series, end);
        }
        Ok(known)
    }

    /// Forecasts of the wanted series (all where a list is empty).
    pub fn forecast(
        &self,
        shards: &[ShardId],
        metrics: &[Metric],
        product: Product,
    ) -> Result<Vec<SeriesForecast>, Failure> {
        let known = self.known(shards, metrics, product)?;
        let contexts: Vec<Context<'_>> = known.iter().map(|k| k.context(&self.events)).collect();
        Ok(match &self.version {
            Some(version) if version.spec(product).is_some() => version.forecast(product, &contexts),
            _ => without_model(&ForecastSpec::of_product(product), &contexts),
        })
    }

    /// Joint scenarios of all loads.
    pub fn scenarios(&self, product: Product, scenarios: usize, seed: u64) -> Result<ScenarioSet, Failure> {
        let loads: Vec<Metric> = Metric::ALL.into_iter().filter(|m| m.resource().is_some()).collect();
        let known = self.known(&[], &loads, product)?;
        let contexts: Vec<Context<'_>> = known.iter().map(|k| k.context(&self.events)).collect();
        Ok(match &self.version {
            Some(version) if version.spec(product).is_some() => {
                version.scenarios(product, &contexts, scenarios, seed)?
            }
            _ => {
                let forecasts = without_model(&ForecastSpec::of_product(product), &contexts);
                foreshard_model::scenarios_from(None, &forecasts, scenarios, seed)?
            }
        })
    }

    /// The loaded version.
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }
}

impl Known {
    fn context<'a>(&'a self, events: &'a EventCalendar) -> Context<'a> {
        let GridSeries { start, step, values } = &self.series;
        let events = Some(events);
        Context { shard: &self.shard, metric: self.metric, start: *start, step: *step, values, events }
    }
}

/// All series are forecast from one origin: what a series does not reach up to it is missing.
fn pad(series: &mut GridSeries, end: Option<Timestamp>) {
    while end.is_some_and(|end| series.end() < end) {
        series.values.push(f32::NAN);
    }
}
