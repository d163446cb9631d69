//! Prophet, fitted once for each series by the Stan model that comes as WebAssembly inside its crate.
//!
//! What Stan finds is kept as plain numbers ([`SeriesFit`]), which `foreshard-model` evaluates by itself: a version that
//! holds them is served and forecasts in every build. Series are fitted on means of an hour or more, which is as fine as
//! the waves of its seasons are.

use std::sync::{Mutex, PoisonError};

use augurs_prophet::optimizer::{Data, Error, InitialParams, OptimizeOpts, OptimizedParams};
use augurs_prophet::wasmstan::WasmstanOptimizer;
use augurs_prophet::{Optimizer, Prophet as Fitter, ProphetOptions, SeasonalityOption, TrainingData};
use foreshard_datasets::HistoryError;
use foreshard_domain::Timestamp;
use foreshard_model::{Features, Lanes, Prophet, ProphetSeries, ProphetShape, SeriesFit, TENSOR_LEVELS, prophet_waves};

use crate::fit::sampling::{Ready, Samples, Values};
use crate::statistics::sorted_quantile;

/// Moments at which the rate of a trend may change: Prophet's default.
const CHANGEPOINTS: usize = 25;
/// Waves of the day and of the week: Prophet's defaults.
const DAILY: usize = 4;
const WEEKLY: usize = 3;
/// Seasons of the week are learned from so many days on: Prophet's rule.
const DAYS_FOR_WEEKS: i64 = 14;
const DAY_S: i64 = 86_400;
/// Means of a season that a series is fitted on, at most.
const BINS: usize = 24;
/// Seasons at the end of a series from which the quantiles of its errors are read.
const SEASONS: usize = 28;

/// Fits every series on what lies before its cut. A series that Stan cannot fit is left out, and falls back when it is asked
/// for; `None` if that is so for all.
///
/// # Errors
/// [`HistoryError`] if a series cannot be read.
pub(crate) fn fit(samples: &Samples<'_>, seed: u64, lanes: &Lanes) -> Result<Option<Prophet>, HistoryError> {
    let stan = WasmstanOptimizer::new();
    let features = samples.features();
    // Stan takes 32 bits of it; its optimiser begins where Prophet says and draws nothing.
    let seed = (seed & u64::from(u32::MAX)).try_into().unwrap_or(0);
    let fits = lanes.map(samples.series(), |_, series| -> Result<_, HistoryError> {
        Ok(fit_series((series, &samples.values(series)?), features, &stan, seed))
    });
    let fits: Vec<Option<(ProphetSeries, SeriesFit)>> = fits.into_iter().collect::<Result<_, _>>()?;
    let fits: Vec<(ProphetSeries, SeriesFit)> = fits.into_iter().flatten().collect();
    Ok((!fits.is_empty()).then(|| Prophet::new((CHANGEPOINTS, DAILY, WEEKLY), fits)))
}

fn fit_series(
    (series, known): (&Ready, &Values),
    features: &Features,
    stan: &WasmstanOptimizer,
    seed: u32,
) -> Option<(ProphetSeries, SeriesFit)> {
    let (times, values) = means((series, known), features);
    match parameters(&times, &values, stan, seed) {
        Ok(mut fit) => {
            let start = Timestamp::from_ms(times.first()?.saturating_mul(1000));
            let named = ProphetSeries { shard: series.shard.clone(), metric: series.metric, start };
            fit.errors = errors((series, known), features, &fit, start);
            Some((named, fit))
        }
        Err(problem) => {
            tracing::warn!(shard = %series.shard, metric = %series.metric, problem, "Prophet cannot be fitted");
            None
        }
    }
}

/// Means of about an hour before the cut, where anything was observed, and the middles of those hours in seconds.
fn means((series, values): (&Ready, &Values), features: &Features) -> (Vec<i64>, Vec<f64>) {
    let width = features.season.div_ceil(BINS).max(1);
    let known = values.raw.get(..series.cut).unwrap_or(&[]);
    let step_ms = features.step.as_ms();
    let bin = |(i, bin): (usize, &[f32])| {
        let seen: Vec<f64> = bin.iter().filter(|v| v.is_finite()).map(|v| f64::from(*v)).collect();
        let middle = series.wall(i * width, features).as_ms() + step_ms * i64::try_from(bin.len()).unwrap_or(0) / 2;
        (!seen.is_empty()).then(|| (middle / 1000, seen.iter().sum::<f64>() / seen.len() as f64))
    };
    known.chunks(width).enumerate().filter_map(bin).unzip()
}

/// What Prophet finds for one series; times in seconds.
fn parameters(times: &[i64], values: &[f64], stan: &WasmstanOptimizer, seed: u32) -> Result<SeriesFit, String> {
    let (Some(first), Some(last)) = (times.first(), times.last()) else { return Err("it has no value".to_owned()) };
    let weekly = if last - first >= DAYS_FOR_WEEKS * DAY_S { WEEKLY } else { 0 };
    let found = Found { stan, waves: waves(times, weekly), kept: Mutex::default() };
    let mut prophet = Fitter::new(options(weekly), &found);
    let data = TrainingData::new(times.to_vec(), values.to_vec()).map_err(|e| e.to_string())?;
    let opts = OptimizeOpts { seed: Some(seed), ..OptimizeOpts::default() };
    prophet.fit(data, opts).map_err(|e| e.to_string())?;
    let kept = found.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (changes, found) = kept.ok_or("Stan was not asked")?;
    let unit = values.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    let rounded = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let fit = SeriesFit {
        span_s: (last - first) as f32,
        unit: if unit > 0.0 { unit as f32 } else { 1.0 },
        rate: found.k as f32,
        offset: found.m as f32,
        changes: rounded(&changes),
        deltas: rounded(&found.delta),
        waves: rounded(&found.beta),
        errors: [0.0; TENSOR_LEVELS.len()],
    };
    let numbers = [fit.rate, fit.offset, fit.unit].into_iter().chain(fit.deltas.iter().chain(&fit.waves).copied());
    if numbers.into_iter().all(f32::is_finite) { Ok(fit) } else { Err("Stan found no finite numbers".to_owned()) }
}

fn options(weekly: usize) -> ProphetOptions {
    let waves = |order: usize| {
        let order = u32::try_from(order).ok().and_then(std::num::NonZeroU32::new);
        order.map_or(SeasonalityOption::Manual(false), SeasonalityOption::Fourier)
    };
    ProphetOptions {
        yearly_seasonality: SeasonalityOption::Manual(false),
        weekly_seasonality: waves(weekly),
        daily_seasonality: waves(DAILY),
        uncertainty_samples: 0,
        ..ProphetOptions::default()
    }
}

/// The columns of the seasons at all times: waves of the day, then those of the week.
fn waves(times: &[i64], weekly: usize) -> Vec<Vec<f64>> {
    let mut columns = vec![Vec::with_capacity(times.len()); 2 * (DAILY + weekly)];
    for time in times {
        let at = Timestamp::from_ms(time.saturating_mul(1000));
        columns.iter_mut().zip(prophet_waves(at, DAILY, weekly)).for_each(|(column, wave)| column.push(wave));
    }
    columns
}

/// Hands Prophet's problem to Stan with its columns in one fixed order, and keeps what Stan found.
///
/// Prophet holds seasons in a hash map, so that its columns come in another order from one run to the next, and with them
/// the last digits of a fit (F2).
struct Found<'a> {
    stan: &'a WasmstanOptimizer,
    waves: Vec<Vec<f64>>,
    /// When the rate may change, and the parameters.
    kept: Mutex<Option<(Vec<f64>, OptimizedParams)>>,
}

impl std::fmt::Debug for Found<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Found").field("waves", &self.waves.len()).finish_non_exhaustive()
    }
}

impl Optimizer for &Found<'_> {
    fn optimize(&self, init: &InitialParams, data: &Data, opts: &OptimizeOpts) -> Result<OptimizedParams, Error> {
        let places = self.places(data).ok_or_else(|| Error::static_str("Prophet's seasons are not those asked for"))?;
        let columns = places.len();
        let of = |place: &usize, row: usize| data.X.get(row * columns + place).copied().unwrap_or(0.0);
        let rows = data.X.len() / columns.max(1);
        let mut ordered = data.clone();
        ordered.X = (0..rows).flat_map(|row| places.iter().map(move |place| of(place, row))).collect();
        ordered.sigmas = picked(&data.sigmas, &places);
        ordered.s_a = picked(&data.s_a, &places);
        ordered.s_m = picked(&data.s_m, &places);
        let init = InitialParams { beta: picked(&init.beta, &places), ..init.clone() };
        let found = self.stan.optimize(&init, &ordered, opts)?;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((data.t_change.clone(), found.clone()));
        // Prophet gets them in the order that it asked in.
        let mut beta = vec![0.0; columns];
        for (place, value) in places.iter().zip(&found.beta) {
            if let Some(own) = beta.get_mut(*place) {
                *own = *value;
            }
        }
        Ok(OptimizedParams { beta, ..found })
    }
}

impl Found<'_> {
    /// Where each of our columns stands in Prophet's.
    fn places(&self, data: &Data) -> Option<Vec<usize>> {
        let columns = self.waves.len();
        if usize::try_from(data.K).ok()? != columns {
            return None;
        }
        let same = |wave: &Vec<f64>, place: usize| {
            wave.iter().zip(data.X.iter().skip(place).step_by(columns)).all(|(a, b)| (a - b).abs() < 1e-6)
        };
        self.waves.iter().map(|wave| (0..columns).find(|place| same(wave, *place))).collect()
    }
}

fn picked<T: Copy>(values: &[T], places: &[usize]) -> Vec<T> {
    places.iter().filter_map(|place| values.get(*place).copied()).collect()
}

/// Quantiles of the errors on the last four weeks before the cut, at every step.
fn errors(
    (series, values): (&Ready, &Values),
    features: &Features,
    fit: &SeriesFit,
    start: Timestamp,
) -> [f32; TENSOR_LEVELS.len()] {
    let shape = ProphetShape { changepoints: CHANGEPOINTS, daily: DAILY, weekly: WEEKLY, series: Vec::new() };
    let known = values.raw.get(..series.cut).unwrap_or(&[]).iter().enumerate();
    let recent = known.skip(series.cut.saturating_sub(features.season * SEASONS));
    let error = |(i, value): (usize, &f32)| value - fit.centre(&shape, start, series.wall(i, features));
    let mut sorted: Vec<f32> = recent.map(error).filter(|error| error.is_finite()).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    TENSOR_LEVELS.map(|level| sorted_quantile(&sorted, level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use augurs_prophet::PredictionData;

    fn hours(n: i64) -> (Vec<i64>, Vec<f64>) {
        let times: Vec<i64> = (0..n).map(|i| 1_700_000_000 + i * 3600).collect();
        let value = |t: &i64| {
            let days = *t as f64 / 86_400.0;
            let noise = ((t / 3600 * 7919) % 1009) as f64 / 1009.0;
            60.0 + 0.02 * (days - 19_675.0).powi(2) + 10.0 * (days * std::f64::consts::TAU).sin() + 4.0 * noise
        };
        let values = times.iter().map(value).collect();
        (times, values)
    }

    #[test]
    fn f2_our_numbers_are_prophets_and_the_same_every_time() {
        let stan = WasmstanOptimizer::new();
        let (times, values) = hours(24 * 30);
        let fit = parameters(&times, &values, &stan, 1).unwrap();
        for _ in 0..3 {
            assert_eq!(parameters(&times, &values, &stan, 1).unwrap(), fit);
        }
        let mut prophet = Fitter::new(options(WEEKLY), stan);
        prophet.fit(TrainingData::new(times.clone(), values.clone()).unwrap(), OptimizeOpts::default()).unwrap();
        let later: Vec<i64> = (0..100).map(|i| times[times.len() - 1] + i * 3600).collect();
        let said = prophet.predict(PredictionData::new(later.clone())).unwrap().yhat.point;
        let shape = ProphetShape { changepoints: CHANGEPOINTS, daily: DAILY, weekly: WEEKLY, series: Vec::new() };
        let start = Timestamp::from_ms(times[0] * 1000);
        for (time, said) in later.iter().zip(said) {
            let ours = f64::from(fit.centre(&shape, start, Timestamp::from_ms(time * 1000)));
            // Two fits whose columns stood in another order end within Stan's tolerance of one another.
            assert!((ours - said).abs() < 0.2, "{time}: {ours} {said}");
        }
    }

    #[test]
    fn two_weeks_make_no_week() {
        let stan = WasmstanOptimizer::new();
        let (times, values) = hours(24 * 10);
        let fit = parameters(&times, &values, &stan, 1).unwrap();
        assert_eq!(fit.waves.len(), 2 * DAILY);
        assert!(parameters(&[], &[], &stan, 1).is_err());
    }
}
