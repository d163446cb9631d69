//! From contexts to forecasts, paths and risks: the model where it can, a marked fallback where it cannot.

use foreshard_api::{SeriesProvenance, ShardRisk};
use foreshard_domain::{
    Calibration, Clock, Fallback, ForecastError, LoadPaths, PerResource, Product, Provenance, QuantileForecast,
    Resource, Risk, RiskCalibration, ScenarioError, ScenarioSet, SeriesForecast, ShardId, Timestamp,
};
use foreshard_model::{Context, ForecastSpec, any_step_corrected, fall_back, scenarios_from};
use std::sync::{Arc, PoisonError, RwLock};

use super::Slot;
use super::cache::{AnswerCache, Stamp};
use crate::ServedVersion;
use crate::context::{ContextStore, SeriesContext, SeriesKey};

/// Most values of one scenario set: 256 MiB of floats, such as 1000 shards x 3 resources x 96 steps x 200 scenarios.
pub(crate) const MAX_SCENARIO_VALUES: usize = 64 * 1024 * 1024;

/// Paths from which a risk is read: the standard error of a probability is at most 2.3 %.
const RISK_SCENARIOS: usize = 500;

/// Fixed, so that the same question about the same data has the same answer.
const RISK_SEED: u64 = 0x666f_7265_7368_6172;

/// What compute threads work with.
pub(crate) struct Bench {
    pub(crate) contexts: Arc<RwLock<ContextStore>>,
    pub(crate) slot: Arc<Slot>,
    pub(crate) clock: Arc<dyn Clock>,
    /// How old the newest observation of a series may be in model time.
    pub(crate) stale_after_ms: i64,
    /// Answers that were given already, if any are kept.
    pub(crate) cache: Option<Arc<AnswerCache>>,
}

/// The forecasts of `keys`, in their order, from the last complete step or from the one that is named; empty if nothing was observed yet.
pub(crate) fn forecasts(
    bench: &Bench,
    (product, origin): (Product, Option<Timestamp>),
    keys: &[SeriesKey],
) -> Vec<SeriesForecast> {
    let (number, version) = bench.slot.numbered();
    let now = bench.clock.model();
    let cache = bench.cache.as_deref().filter(|_| version.is_some());
    let (made, contexts, stamps, silent) = {
        let store = bench.contexts.read().unwrap_or_else(PoisonError::into_inner);
        let Some(issued_at) = origin.or_else(|| store.issued_at(product.step(), now)) else { return Vec::new() };
        // If rows have stopped coming at all, every series is stale, however even the grid looks.
        let newest = store.newest_until(now);
        let silent = newest.is_some_and(|newest| now.since_ms(newest) > bench.stale_after_ms);
        let stamp = |(shard, _): &SeriesKey| {
            let (shard, events) = store.changed(shard)?;
            Some(Stamp { version: number, issued_at, shard, events })
        };
        let stamps: Vec<Option<Stamp>> = keys.iter().map(|key| cache.and_then(|_| stamp(key))).collect();
        let made: Vec<Option<Arc<SeriesForecast>>> = keys
            .iter()
            .zip(&stamps)
            .map(|((shard, metric), stamp)| {
                let made = cache?.find(product, (shard, *metric), (*stamp)?)?;
                let last = made.provenance.last_observed?;
                (!silent && issued_at.since_ms(last) <= bench.stale_after_ms).then_some(made)
            })
            .collect();
        let missing = keys.iter().zip(&made).filter(|(_, made)| made.is_none()).map(|(key, _)| key.clone());
        let missing: Vec<SeriesKey> = missing.collect();
        (made, store.contexts_at(product.step(), &missing, issued_at), stamps, silent)
    };
    let fallback = |context: &SeriesContext| {
        let context = context.as_context();
        match context.last_observed() {
            None => Some(Fallback::UnknownSeries),
            Some(last) if silent || is_late(&context, last, bench.stale_after_ms) => Some(Fallback::Stale),
            Some(_) => None,
        }
    };
    let reasons: Vec<Option<Fallback>> = contexts.iter().map(fallback).collect();
    let served = version.as_deref().filter(|version| version.spec(product).is_some());
    let mut new = answers(served, product, &contexts, &reasons).into_iter();
    let one = |(made, stamp): (Option<Arc<SeriesForecast>>, Option<Stamp>)| match made {
        Some(made) => Some(SeriesForecast::clone(&made)),
        None => {
            let made = new.next()?;
            if let (Some(cache), Some(stamp), true) = (cache, stamp, made.provenance.fallback.is_none()) {
                cache.keep(product, stamp, &made);
            }
            Some(made)
        }
    };
    made.into_iter().zip(stamps).filter_map(one).collect()
}

fn is_late(context: &Context<'_>, last: Timestamp, stale_after_ms: i64) -> bool {
    context.issued_at().since_ms(last) > stale_after_ms
}

/// The model answers where there is no reason against it, seasonal naive for the others.
fn answers(
    version: Option<&dyn ServedVersion>,
    product: Product,
    contexts: &[SeriesContext],
    reasons: &[Option<Fallback>],
) -> Vec<SeriesForecast> {
    let by_model: Vec<Context<'_>> = match version {
        Some(_) => {
            let fit = contexts.iter().zip(reasons).filter(|(_, reason)| reason.is_none());
            fit.map(|(context, _)| context.as_context()).collect()
        }
        None => Vec::new(),
    };
    let made = match version {
        Some(version) if !by_model.is_empty() => version.forecast(product, &by_model),
        _ => Vec::new(),
    };
    if made.len() != by_model.len() {
        tracing::error!(wanted = by_model.len(), got = made.len(), "the version left series out; fallback answers");
    }
    let whole = made.len() == by_model.len();
    let mut made = made.into_iter().filter(|_| whole);
    let spec = version.and_then(|version| version.spec(product)).cloned();
    let spec = spec.unwrap_or_else(|| ForecastSpec::of_product(product));
    let mut one = |context: &SeriesContext, reason: Option<Fallback>| {
        let from_model = if reason.is_none() && version.is_some() { made.next() } else { None };
        from_model.unwrap_or_else(|| marked(&spec, &context.as_context(), reason.unwrap_or(Fallback::NoModel)))
    };
    contexts.iter().zip(reasons).map(|(context, reason)| one(context, *reason)).collect()
}

/// What answers in place of the model, marked.
fn marked(spec: &ForecastSpec, context: &Context<'_>, reason: Fallback) -> SeriesForecast {
    let answer = fall_back(spec, context, reason);
    SeriesForecast {
        shard: context.shard.clone(),
        metric: context.metric,
        issued_at: context.issued_at(),
        step: context.step,
        forecast: answer.forecast,
        provenance: Provenance {
            version: None,
            last_observed: answer.last_observed,
            missing_share: answer.missing_share,
            calibration: Calibration::None,
            fallback: answer.fallback,
        },
    }
}

/// Joint paths of all loads among the forecasts, with where those of each come from.
pub(crate) fn scenarios(
    bench: &Bench,
    product: Product,
    forecasts: &[SeriesForecast],
    n: usize,
    seed: u64,
) -> Result<(ScenarioSet, Vec<SeriesProvenance>), ScenarioError> {
    let set = paths(bench.slot.current().as_deref(), product, forecasts, n, seed)?;
    let provenance = forecasts.iter().filter_map(|forecast| {
        let resource = forecast.metric.resource()?;
        let (shard, provenance) = (forecast.shard.clone(), forecast.provenance.clone());
        Some(SeriesProvenance { shard, resource, provenance })
    });
    Ok((set, provenance.collect()))
}

fn paths(
    version: Option<&dyn ServedVersion>,
    product: Product,
    forecasts: &[SeriesForecast],
    n: usize,
    seed: u64,
) -> Result<ScenarioSet, ScenarioError> {
    match version {
        Some(version) => version.scenarios(product, forecasts, n, seed),
        None => scenarios_from(None, forecasts, n, seed),
    }
}

/// Why risks cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RiskError {
    /// No paths can be drawn.
    #[error("no paths can be drawn")]
    Paths(#[from] ScenarioError),
    /// The beginning of a forecast is none.
    #[error("the window of a forecast cannot be taken")]
    Window(#[from] ForecastError),
}

/// The risk of every load among the forecasts that has a limit, within the first `window` steps.
///
/// The probability is the corrected one of the whole stock of templates; the first crossing and the excess are read from paths.
/// Paths are made shard by shard: memory stays small, and the risk of a shard does not depend on which others were asked
/// for.
pub(crate) fn risks(
    bench: &Bench,
    product: Product,
    forecasts: &[SeriesForecast],
    limits: &PerResource<Option<f64>>,
    window: usize,
) -> Result<Vec<ShardRisk>, RiskError> {
    let version = bench.slot.current();
    let mut risks = Vec::new();
    for of_shard in forecasts.chunk_by(|a, b| a.shard == b.shard) {
        let set = paths(version.as_deref(), product, of_shard, RISK_SCENARIOS, RISK_SEED)?;
        for forecast in of_shard {
            let Some((resource, limit)) = forecast.metric.resource().and_then(|r| Some((r, limits[r]?))) else {
                continue;
            };
            risks.push(ShardRisk {
                shard: forecast.shard.clone(),
                resource,
                risk: Risk {
                    probability: probability(version.as_deref(), product, forecast, limit, window)?,
                    ..risk_of(&set, &forecast.shard, resource, limit, window)
                },
                issued_at: set.issued_at(),
                step: set.step(),
                provenance: forecast.provenance.clone(),
            });
        }
    }
    Ok(risks)
}

/// The probability that a load is over `limit` at any of the first `window` steps, corrected by what was said in the past and
/// what came.
pub(crate) fn probability(
    version: Option<&dyn ServedVersion>,
    product: Product,
    forecast: &SeriesForecast,
    limit: f64,
    window: usize,
) -> Result<f64, ForecastError> {
    let whole = &forecast.forecast;
    let levels = whole.levels();
    let values = whole.values().get(..window.saturating_mul(levels.len())).unwrap_or(whole.values());
    let begin = QuantileForecast::new(levels.clone(), values.to_vec())?;
    Ok(match version {
        Some(version) => version.p_any(product, (&forecast.shard, forecast.metric), &begin, limit),
        None => {
            let series = (&forecast.shard, forecast.metric);
            any_step_corrected(&RiskCalibration::default(), None, series, &begin, limit)
        }
    })
}

fn risk_of(set: &ScenarioSet, shard: &ShardId, resource: Resource, limit: f64, window: usize) -> Risk {
    let lane = set.resource_index(resource).zip(set.shard_index(shard)).and_then(|(r, s)| set.lane(r, s));
    let loads = lane.and_then(|lane| LoadPaths::from_values(set.scenarios(), lane.to_vec()));
    loads.map_or(Risk::NONE, |loads| loads.risk(limit as f32, 0..window))
}
