//! Forecasters without training: what the network has to beat, and what answers where it cannot.

use foreshard_domain::{Fallback, QuantileForecast, QuantileLevels};

use crate::statistics::{sorted_finite, sorted_quantile};
use crate::{Answer, Context, Filled, ForecastSpec, Forecaster};

/// Most earlier origins from which the errors of the last value are collected.
const MOST_ORIGINS: usize = 600;

/// The last value observed, with the quantiles of its own errors at the same distance.
#[derive(Debug, Clone)]
pub struct LastValue {
    spec: ForecastSpec,
}

impl LastValue {
    /// For any step and horizon.
    pub fn new(spec: ForecastSpec) -> Self {
        Self { spec }
    }

    fn quantiles(&self, context: &Context<'_>) -> Vec<f32> {
        let filled = Filled::new(context.values, self.spec.season_steps);
        let last = context.values.iter().rev().copied().find(|v| v.is_finite()).unwrap_or(0.0);
        let raw = context.values;
        let mut rows = Vec::with_capacity(self.spec.horizon * self.spec.levels.len());
        let mut known: Vec<f32> = Vec::new();
        for h in 1..=self.spec.horizon {
            let origins = raw.len().saturating_sub(h);
            let stride = origins.div_ceil(MOST_ORIGINS).max(1);
            // The truth must have been observed; the value it is compared with may be a filled one, as in service.
            let errors = (0..origins).rev().step_by(stride);
            let errors = errors.filter_map(|o| Some(raw.get(o + h)? - filled.values().get(o)?));
            let sorted = sorted_finite(errors);
            // Far steps of a short context have no error of their own: the widest known ones stand in.
            if sorted.len() >= 10 || known.is_empty() {
                known = sorted;
            }
            push_row(&mut rows, &self.spec, last, &known);
        }
        rows
    }
}

impl Forecaster for LastValue {
    fn name(&self) -> &str {
        "last_value"
    }

    fn spec(&self) -> &ForecastSpec {
        &self.spec
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        contexts.iter().map(|c| answer(&self.spec, c, self.quantiles(c))).collect()
    }
}

/// The value one season earlier, with the quantiles of its own errors.
#[derive(Debug, Clone)]
pub struct SeasonalNaive {
    spec: ForecastSpec,
    seasons: usize,
}

impl SeasonalNaive {
    /// The value a day (one season) earlier.
    pub fn new(spec: ForecastSpec) -> Self {
        Self { spec, seasons: 1 }
    }

    /// The value a week (seven seasons) earlier; a context shorter than that uses the day.
    pub fn weekly(spec: ForecastSpec) -> Self {
        Self { spec, seasons: 7 }
    }

    fn quantiles(&self, context: &Context<'_>) -> Vec<f32> {
        let raw = context.values;
        let season = self.spec.season_steps.max(1);
        let long = season.saturating_mul(self.seasons);
        let season = if raw.len() > long { long } else { season };
        if raw.len() < season {
            return LastValue::new(self.spec.clone()).quantiles(context);
        }
        let filled = Filled::new(raw, self.spec.season_steps);
        let mut rows = Vec::with_capacity(self.spec.horizon * self.spec.levels.len());
        let mut errors: (usize, Vec<f32>) = (0, Vec::new());
        for h in 0..self.spec.horizon {
            // Past the first season the newest value of the same slot lies several seasons before the target.
            let lag = (h / season + 1).saturating_mul(season);
            if errors.0 != lag {
                let found = seasonal_errors(raw, filled.values(), lag);
                errors = (lag, if found.len() >= 10 || errors.1.is_empty() { found } else { errors.1 });
            }
            let at = (raw.len() + h).checked_sub(lag);
            let centre = at.and_then(|i| filled.values().get(i)).copied().unwrap_or(0.0);
            push_row(&mut rows, &self.spec, centre, &errors.1);
        }
        rows
    }
}

/// Errors of the value `lag` steps earlier, in rising order; the spread around the mean where no pair exists.
fn seasonal_errors(raw: &[f32], filled: &[f32], lag: usize) -> Vec<f32> {
    let pairs = raw.iter().skip(lag).zip(filled);
    let errors = sorted_finite(pairs.map(|(truth, past)| truth - past));
    if !errors.is_empty() {
        return errors;
    }
    let centre = crate::statistics::mean(filled);
    sorted_finite(filled.iter().map(|v| v - centre))
}

impl Forecaster for SeasonalNaive {
    fn name(&self) -> &str {
        if self.seasons == 1 { "seasonal_naive" } else { "weekly_naive" }
    }

    fn spec(&self) -> &ForecastSpec {
        &self.spec
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        contexts.iter().map(|c| answer(&self.spec, c, self.quantiles(c))).collect()
    }
}

/// The mean of the same slot of the week over the last four weeks, with the quantiles of its own errors.
#[derive(Debug, Clone)]
pub struct SeasonalMean {
    spec: ForecastSpec,
}

/// Seasons in a week, and weeks that are averaged.
const WEEK: usize = 7;
const WEEKS: usize = 4;

impl SeasonalMean {
    /// For any step and horizon; a context of a week or less is answered as by [`SeasonalNaive`].
    pub fn new(spec: ForecastSpec) -> Self {
        Self { spec }
    }

    fn quantiles(&self, context: &Context<'_>) -> Vec<f32> {
        let week = self.spec.season_steps.max(1).saturating_mul(WEEK);
        let raw = context.values;
        if raw.len() <= week {
            return SeasonalNaive::new(self.spec.clone()).quantiles(context);
        }
        let filled = Filled::new(raw, self.spec.season_steps);
        let mut rows = Vec::with_capacity(self.spec.horizon * self.spec.levels.len());
        let mut errors: (usize, Vec<f32>) = (0, Vec::new());
        for h in 0..self.spec.horizon {
            // Past the first week the newest value of the same slot lies several weeks before the target.
            let lag = (h / week + 1).saturating_mul(week);
            if errors.0 != lag {
                let truths = raw.iter().enumerate().skip(lag);
                let all = truths.filter_map(|(i, truth)| Some(truth - weekly_mean(filled.values(), i, lag, week)?));
                let found = sorted_finite(all);
                errors = (lag, if found.len() >= 10 || errors.1.is_empty() { found } else { errors.1 });
            }
            let centre = weekly_mean(filled.values(), raw.len() + h, lag, week).unwrap_or(0.0);
            push_row(&mut rows, &self.spec, centre, &errors.1);
        }
        rows
    }
}

/// Mean of the values `lag` steps before an index and up to three weeks earlier still, as far as there are any.
fn weekly_mean(filled: &[f32], index: usize, lag: usize, week: usize) -> Option<f32> {
    let mut at = index.checked_sub(lag);
    let (mut sum, mut n) = (0.0f64, 0.0f64);
    for _ in 0..WEEKS {
        let Some(value) = at.and_then(|i| filled.get(i)) else { break };
        sum += f64::from(*value);
        n += 1.0;
        at = at.and_then(|i| i.checked_sub(week));
    }
    (n > 0.0).then(|| (sum / n) as f32)
}

impl Forecaster for SeasonalMean {
    fn name(&self) -> &str {
        "seasonal_mean"
    }

    fn spec(&self) -> &ForecastSpec {
        &self.spec
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        contexts.iter().map(|c| answer(&self.spec, c, self.quantiles(c))).collect()
    }
}

/// One row of quantiles: the centre plus the errors' quantiles, inside the bounds.
fn push_row(rows: &mut Vec<f32>, spec: &ForecastSpec, centre: f32, errors: &[f32]) {
    let mut floor = f32::NEG_INFINITY;
    for level in spec.levels.as_slice() {
        let value = spec.bounded(centre + sorted_quantile(errors, *level));
        let value = if value.is_finite() { value.max(floor) } else { spec.bounded(centre).max(floor) };
        floor = value;
        rows.push(value);
    }
}

fn answer(spec: &ForecastSpec, context: &Context<'_>, rows: Vec<f32>) -> Answer {
    let unknown = context.last_observed().is_none();
    Answer {
        forecast: checked(&spec.levels, rows, spec.horizon),
        last_observed: context.last_observed(),
        missing_share: missing_share(context.values, spec.season_steps),
        fallback: unknown.then_some(Fallback::UnknownSeries),
    }
}

/// A forecast from rows that rise by construction; should they not, a flat zero and a line in the log.
pub(crate) fn checked(levels: &QuantileLevels, rows: Vec<f32>, horizon: usize) -> QuantileForecast {
    QuantileForecast::new(levels.clone(), rows).unwrap_or_else(|error| {
        tracing::error!(%error, "a forecast was replaced by zeros");
        QuantileForecast::flat(levels.clone(), horizon, 0.0)
    })
}

/// Share of the last seven seasons (or of what there is) that was not observed; 1 of nothing.
pub(crate) fn missing_share(values: &[f32], season_steps: usize) -> f32 {
    let window = season_steps.saturating_mul(7);
    let recent = values.get(values.len().saturating_sub(window)..).unwrap_or(&[]);
    if recent.is_empty() {
        return 1.0;
    }
    recent.iter().filter(|v| !v.is_finite()).count() as f32 / recent.len() as f32
}

/// The answer of the simplest method that a context carries, with the reason why the network did not answer.
///
/// Two seasons or more: the value a season earlier; less: the last value.
pub fn fall_back(spec: &ForecastSpec, context: &Context<'_>, reason: Fallback) -> Answer {
    let one = std::slice::from_ref(context);
    let answers = if context.values.len() >= spec.season_steps.saturating_mul(2) {
        SeasonalNaive::new(spec.clone()).forecast(one)
    } else {
        LastValue::new(spec.clone()).forecast(one)
    };
    let answer = answers.into_iter().next();
    let answer = answer.unwrap_or_else(|| Answer {
        forecast: QuantileForecast::flat(spec.levels.clone(), spec.horizon, 0.0),
        last_observed: None,
        missing_share: 1.0,
        fallback: None,
    });
    Answer { fallback: Some(answer.fallback.unwrap_or(reason)), ..answer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, Product, ShardId, Timestamp};
    use proptest::prelude::*;

    fn with<T>(values: &[f32], f: impl Fn(&Context<'_>) -> T) -> T {
        let shard = ShardId::new("s").unwrap();
        let spec = ForecastSpec::of_product(Product::NextHours);
        let start = Timestamp::from_ms(0);
        f(&Context { shard: &shard, metric: Metric::CpuUtil, start, step: spec.step, values, events: None })
    }

    fn daily(days: usize) -> Vec<f32> {
        (0..days * 288).map(|i| (i % 288) as f32 / 10.0).collect()
    }

    #[test]
    fn seasonal_naive_repeats_a_perfect_day() {
        let spec = ForecastSpec::of_product(Product::NextHours);
        let answer = with(&daily(3), |c| SeasonalNaive::new(spec.clone()).forecast(&[*c]).remove(0));
        for (h, row) in answer.forecast.values().chunks(13).enumerate() {
            assert!(row.iter().all(|v| (v - h as f32 / 10.0).abs() < 1e-6), "{h} {row:?}");
        }
        assert_eq!((answer.fallback, answer.missing_share), (None, 0.0));
    }

    #[test]
    fn last_value_widens_with_the_distance() {
        let spec = ForecastSpec::of_product(Product::NextHours);
        let answer = with(&daily(3), |c| LastValue::new(spec.clone()).forecast(&[*c]).remove(0));
        let width = |h: usize| {
            let row = answer.forecast.row(h).unwrap();
            row[12] - row[0]
        };
        assert!(width(47) > width(0));
        assert!((answer.forecast.quantile(0, 0.5).unwrap() - 28.8).abs() < 0.2);
    }

    #[test]
    fn seasonal_mean_is_that_of_four_weeks() {
        let spec = ForecastSpec::of_product(Product::NextHours);
        // Week w lies at w: the mean of weeks 2 to 5 is 3.5, and each week lies above the mean of those before it.
        let weeks: Vec<f32> = (0..6 * 2016).map(|i| (i / 2016) as f32).collect();
        let answer = with(&weeks, |c| SeasonalMean::new(spec.clone()).forecast(&[*c]).remove(0));
        let row = answer.forecast.row(7).unwrap();
        // Its errors were 1, 1.5, 2, 2.5 and 2.5.
        assert!((row[0] - 4.5).abs() < 1e-5 && (row[6] - 5.5).abs() < 1e-5 && (row[12] - 6.0).abs() < 1e-5, "{row:?}");
        let short = daily(5);
        let naive = with(&short, |c| SeasonalNaive::new(spec.clone()).forecast(&[*c]).remove(0));
        assert_eq!(with(&short, |c| SeasonalMean::new(spec.clone()).forecast(&[*c]).remove(0)), naive);
    }

    #[test]
    fn any_context_gets_an_answer() {
        let spec = ForecastSpec::of_product(Product::NextDay);
        for n in [0, 1, 2, 95, 96, 97, 700] {
            let mut values = vec![5.0f32; n];
            values.iter_mut().skip(3).step_by(4).for_each(|v| *v = f32::NAN);
            let rivals: [&dyn Forecaster; 3] = [
                &SeasonalNaive::new(spec.clone()),
                &SeasonalNaive::weekly(spec.clone()),
                &SeasonalMean::new(spec.clone()),
            ];
            for f in rivals {
                let answer = with(&values, |c| f.forecast(&[*c]).remove(0));
                assert_eq!(answer.forecast.horizon(), 96);
                assert_eq!(answer.fallback, (n == 0).then_some(Fallback::UnknownSeries));
            }
        }
        let answer = with(&[1.0], |c| fall_back(&spec, c, Fallback::ShortHistory));
        assert_eq!(answer.fallback, Some(Fallback::ShortHistory));
        let answer = with(&[f32::NAN; 300], |c| fall_back(&spec, c, Fallback::ShortHistory));
        assert_eq!((answer.fallback, answer.missing_share), (Some(Fallback::UnknownSeries), 1.0));
    }

    proptest! {
        #[test]
        fn f1_rivals_never_cross_and_stay_in_bounds(values in proptest::collection::vec(
            prop_oneof![4 => -10f32..1e6, 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(0.0)], 0..700)
        ) {
            let spec = ForecastSpec { season_steps: 96, ..ForecastSpec::of_product(Product::NextDay) };
            let rivals: [&dyn Forecaster; 3] = [
                &LastValue::new(spec.clone()),
                &SeasonalNaive::new(spec.clone()),
                &SeasonalMean::new(spec.clone()),
            ];
            for f in rivals {
                let answer = with(&values, |c| f.forecast(&[*c]).remove(0));
                prop_assert_eq!(answer.forecast.horizon(), 96);
                prop_assert!(answer.forecast.values().iter().all(|v| *v >= 0.0));
            }
        }
    }
}
