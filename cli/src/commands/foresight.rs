//! Scenarios for a simulated policy: a forecaster that was fitted on what lay before the replay.

use foreshard_datasets::GridSeries;
use foreshard_domain::{Product, Provenance, ScenarioSet, SeriesForecast};
use foreshard_model::{Context, ForecastSpec, scenarios_from};
use foreshard_policy::simulate::{Cell, ScenarioSource, Seen, SourceError};
use foreshard_training::{FitControl, FitProgress, FittedModel, ProductSpec, TrainParams, TrainSeries, fit};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::commands::progress::Progress;
use crate::output::Failure;

/// Scenarios of each plan: enough for risks in steps of 2 %.
const SCENARIOS: usize = 50;
/// Days of context: four weeks of the same weekday and a day.
const CONTEXT_DAYS: usize = 29;
/// Forecasts that are remembered, in values; settings are tried on the same stretch again and again.
const REMEMBERED: usize = 128 << 20;

/// A fitted forecaster of loads, and what it said already.
pub struct Learned {
    fitted: FittedModel,
    seed: u64,
    said: RefCell<BTreeMap<usize, Vec<SeriesForecast>>>,
}

impl Learned {
    /// Fits on the loads of a cell before a step.
    pub fn from(
        cell: &Cell,
        before: usize,
        seed: u64,
        steps: usize,
        threads: usize,
        progress: &mut Progress,
    ) -> Result<Rc<Self>, Failure> {
        let product = Product::NextHours;
        let forecast = ForecastSpec::of_product(product);
        let products = vec![ProductSpec { name: product.name().to_owned(), forecast }];
        let spec = TrainParams { products, seed, steps, threads, ..TrainParams::default() }.check()?;
        let loads = cell.loads();
        let mut series = Vec::new();
        for (r, resource) in loads.resources().iter().enumerate() {
            for (s, shard) in loads.shards().iter().enumerate() {
                let values = loads.lane(r, s).get(..before).unwrap_or(&[]).to_vec();
                let series_of = GridSeries { start: loads.start(), step: loads.step(), values };
                series.push(TrainSeries {
                    shard: shard.clone(),
                    metric: resource.metric(),
                    series: series_of,
                    usable: before,
                    events: Default::default(),
                });
            }
        }
        let mut on_step = |p: FitProgress| {
            let (done, all) = p.step;
            progress.set(
                &format!("training on what lies before {}", loads.time(before)),
                done as f64 / all.max(1) as f64,
                "",
            );
        };
        let mut control = FitControl { progress: &mut on_step, checkpoint: None, stop: &|| false };
        let fitted = fit(&BTreeMap::from([(product.name().to_owned(), series)]), &spec, &mut control)?;
        Ok(Rc::new(Self { fitted, seed, said: RefCell::default() }))
    }

    fn forecasts(&self, seen: &Seen<'_>) -> Result<Vec<SeriesForecast>, SourceError> {
        if let Some(said) = self.said.borrow().get(&seen.steps()) {
            return Ok(said.clone());
        }
        let product = Product::NextHours;
        let forecaster = self.fitted.forecaster(product.name()).ok_or("the fit left next_hours out")?;
        let per_day = forecaster.spec().season_steps;
        let mut contexts = Vec::new();
        for (r, resource) in seen.resources().iter().enumerate() {
            for (s, shard) in seen.shards().iter().enumerate() {
                let lane = seen.lane(r, s);
                let from = lane.len().saturating_sub(CONTEXT_DAYS * per_day);
                let start = seen.start().plus_steps(i64::try_from(from)?, seen.step());
                let values = lane.get(from..).unwrap_or(&[]);
                contexts.push(Context {
                    shard,
                    metric: resource.metric(),
                    start,
                    step: seen.step(),
                    values,
                    events: None,
                });
            }
        }
        let answers = forecaster.forecast(&contexts);
        let forecasts: Vec<SeriesForecast> = contexts
            .iter()
            .zip(answers)
            .map(|(context, answer)| SeriesForecast {
                shard: context.shard.clone(),
                metric: context.metric,
                issued_at: context.issued_at(),
                step: context.step,
                forecast: answer.forecast,
                provenance: Provenance {
                    missing_share: answer.missing_share,
                    fallback: answer.fallback,
                    ..Provenance::default()
                },
            })
            .collect();
        let mut said = self.said.borrow_mut();
        let values: usize = forecasts.iter().map(|f| f.forecast.values().len()).sum();
        if (said.len() + 1) * values <= REMEMBERED {
            said.insert(seen.steps(), forecasts.clone());
        }
        Ok(forecasts)
    }
}

/// Scenarios of a fitted forecaster.
pub struct Foresight(Rc<Learned>);

impl Foresight {
    /// From what was learned.
    pub fn of(learned: &Rc<Learned>) -> Self {
        Self(Rc::clone(learned))
    }
}

impl ScenarioSource for Foresight {
    fn scenarios(&mut self, seen: &Seen<'_>) -> Result<ScenarioSet, SourceError> {
        let forecasts = self.0.forecasts(seen)?;
        let templates = self.0.fitted.templates(Product::NextHours.name());
        // The step is part of the seed: the same templates at every step would be one lucky draw for the whole replay.
        let seed = self.0.seed.wrapping_add(u64::try_from(seen.steps())?);
        Ok(scenarios_from(templates, &forecasts, SCENARIOS, seed)?)
    }
}
