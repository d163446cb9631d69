//! MSTL: seasons of the day and the week taken out by LOESS, what is left continued by exponential smoothing.

use augurs_core::{Fit as _, Predict as _};
use augurs_ets::AutoETS;
use augurs_ets::trend::AutoETSTrendModel;
use augurs_mstl::MSTLModel;
use foreshard_domain::{Fallback, QuantileForecast};
use foreshard_model::{Answer, Context, Filled, ForecastSpec, Forecaster, fall_back};

/// Seasons of context that it is fitted on: three weeks, so that the week returns twice.
const SEASONS: usize = 21;
const WEEK: usize = 7;
/// The interval that is asked for, and its half width in deviations.
const LEVEL: f64 = 0.8;
const HALF_WIDTH: f64 = 1.281_551_565_544_8;

/// Fitted anew in every context.
#[derive(Debug)]
pub(super) struct Mstl {
    spec: ForecastSpec,
}

impl Mstl {
    pub(super) fn new(spec: ForecastSpec) -> Self {
        Self { spec }
    }

    /// Middle and deviation of each step; `None` if the context is too short or does not let itself be fitted.
    fn steps(&self, context: &Context<'_>) -> Option<Vec<(f64, f64)>> {
        let season = self.spec.season_steps;
        let filled = Filled::new(context.values, season);
        let values = filled.values();
        let recent = values.get(values.len().saturating_sub(season * SEASONS)..)?;
        let periods: Vec<usize> =
            [season, season * WEEK].into_iter().filter(|period| recent.len() >= 2 * period).collect();
        if periods.is_empty() {
            return None;
        }
        let values: Vec<f64> = recent.iter().map(|v| f64::from(*v)).collect();
        let fitted = MSTLModel::new(periods, AutoETSTrendModel::from(AutoETS::non_seasonal())).fit(&values).ok()?;
        let forecast = fitted.predict(self.spec.horizon, LEVEL).ok()?;
        let upper = forecast.intervals.map(|intervals| intervals.upper)?;
        let steps = forecast.point.iter().zip(upper).map(|(point, upper)| (*point, (upper - point) / HALF_WIDTH));
        let steps: Vec<(f64, f64)> = steps.collect();
        let sound = |(point, deviation): &(f64, f64)| point.is_finite() && deviation.is_finite() && *deviation >= 0.0;
        (steps.len() == self.spec.horizon && steps.iter().all(sound)).then_some(steps)
    }

    fn answer(&self, context: &Context<'_>) -> Answer {
        let levels = self.spec.levels.as_slice();
        let forecast = self.steps(context).and_then(|steps| {
            let row = |(point, deviation): (f64, f64)| {
                levels.iter().map(move |level| (point + deviation * normal_quantile(*level)) as f32)
            };
            let values = steps.into_iter().flat_map(row).map(|value| self.spec.bounded(value)).collect();
            QuantileForecast::new(self.spec.levels.clone(), values).ok()
        });
        let fallback = fall_back(&self.spec, context, Fallback::ShortHistory);
        match forecast {
            Some(forecast) => Answer { forecast, fallback: None, ..fallback },
            None => fallback,
        }
    }
}

impl Forecaster for Mstl {
    fn name(&self) -> &str {
        "mstl"
    }

    fn spec(&self) -> &ForecastSpec {
        &self.spec
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        contexts.iter().map(|context| self.answer(context)).collect()
    }
}

/// Quantile of the standard normal distribution by bisection of its distribution function, which is a series in the odd
/// powers; good to 1e-9 between the levels .001 and .999.
fn normal_quantile(level: f64) -> f64 {
    let below = |x: f64| {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-15 {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
    };
    let (mut low, mut high) = (-4.0, 4.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if below(middle) < level { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, Product, ShardId, Timestamp};

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        assert!((normal_quantile(0.9) - HALF_WIDTH).abs() < 1e-9);
        assert!((normal_quantile(0.01) + 2.326_347_874).abs() < 1e-8);
        assert!(normal_quantile(0.5).abs() < 1e-9);
    }

    #[test]
    fn a_daily_rhythm_is_continued_and_a_short_history_falls_back() {
        let mut spec = ForecastSpec::of_product(Product::NextDay);
        spec.horizon = 24;
        let rhythm = |i: usize| 40.0 + 10.0 * (i as f32 / 96.0 * std::f32::consts::TAU).sin();
        let noise = |i: usize| ((i * 7919) % 101) as f32 / 101.0;
        let values: Vec<f32> = (0..96 * 15).map(|i| rhythm(i) + noise(i)).collect();
        let shard = ShardId::new("s").unwrap();
        let start = Timestamp::from_ms(0);
        let context = |values| Context {
            shard: &shard,
            metric: Metric::CpuUtil,
            start,
            step: Product::NextDay.step(),
            values,
            events: None,
        };
        let mstl = Mstl::new(spec);
        let answer = mstl.forecast(&[context(&values)]).remove(0);
        assert_eq!(answer.fallback, None);
        for (h, row) in answer.forecast.values().chunks(13).enumerate() {
            assert!(row.is_sorted() && (row[6] - rhythm(h) - 0.5).abs() < 1.5, "{h}: {row:?}");
        }
        let short = mstl.forecast(&[context(&values[..150])]).remove(0);
        assert_eq!(short.fallback, Some(Fallback::ShortHistory));
    }
}
