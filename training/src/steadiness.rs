//! How much a forecaster changes its mind, and how long it takes to make it up.

use std::time::Duration;

use foreshard_datasets::{EvalSeries, HistoryError};
use foreshard_domain::Clock;
use foreshard_model::{Answer, Context, Forecaster};

use crate::each::each;
use crate::evaluate::context;
use crate::gate::NEGLIGIBLE;

/// Most series of a metric that are asked once more, evenly many passed over, and windows of each.
const SERIES: usize = 100;
const WINDOWS: usize = 4;
/// How often one series is asked for alone.
const ASKED: usize = 15;
/// Quantiles that a mean is read from.
const SHARES: u32 = 20;

/// What came of looking at a forecaster once more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steadiness {
    /// How much the means of the same steps change while half a window passes, over the error of the older ones; `None` where
    /// they were hardly ever wrong.
    pub revision: Option<f64>,
    /// How long the forecast of one series alone takes, the fastest of some.
    pub latency: Duration,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    changed: f64,
    error: f64,
    size: f64,
}

/// Lets a forecaster answer half a window earlier than each of the last windows. `None` where there is no series.
///
/// What one does not know and then learns moves a forecast by no more than it was wrong by: an honest mean is what is expected of the
/// value by then, so its distance from the older one is at most that of the value itself on average (Jensen). One that moves further
/// follows noise, and moves shards to and fro.
pub(crate) fn steadiness(
    forecaster: &dyn Forecaster,
    (count, read): (usize, &(dyn Fn(usize) -> Result<EvalSeries, HistoryError> + Sync)),
    clock: &dyn Clock,
) -> Result<Option<Steadiness>, HistoryError> {
    let taken: Vec<usize> = (0..count).step_by(count.div_ceil(SERIES).max(1)).collect();
    let sums = each(taken.len(), |k| -> Result<Sums, HistoryError> {
        let Some(i) = taken.get(k) else { return Ok(Sums::default()) };
        Ok(revisions(forecaster, &read(*i)?))
    })?;
    let total = sums.iter().fold(Sums::default(), |a, b| Sums {
        changed: a.changed + b.changed,
        error: a.error + b.error,
        size: a.size + b.size,
    });
    let Some(first) = taken.first() else { return Ok(None) };
    // Errors of less than a thousandth of the demand are rounding, and so is what they change by.
    let revision = (total.error > NEGLIGIBLE * total.size).then(|| total.changed / total.error);
    Ok(Some(Steadiness { revision, latency: latency(forecaster, &read(*first)?, clock) }))
}

fn revisions<'a>(forecaster: &dyn Forecaster, series: &'a EvalSeries) -> Sums {
    let half = series.horizon / 2;
    let room = |w: &usize| series.known(*w).len() >= half;
    let windows: Vec<usize> = (0..series.windows).rev().take(WINDOWS).filter(room).collect();
    let newer: Vec<Context<'_>> = windows.iter().map(|w| context(series, *w)).collect();
    let earlier = |c: &Context<'a>| Context { values: c.values.get(..c.values.len() - half).unwrap_or(&[]), ..*c };
    let older: Vec<Context<'_>> = newer.iter().map(earlier).collect();
    let (newer, older) = (forecaster.forecast(&newer), forecaster.forecast(&older));
    let mut sums = Sums::default();
    for ((w, newer), older) in windows.iter().zip(&newer).zip(&older) {
        for (step, y) in series.actual(*w).iter().take(series.horizon - half).enumerate() {
            let (Some(now), Some(before)) = (mean(newer, step), mean(older, step + half)) else { continue };
            if y.is_finite() {
                sums.changed += (now - before).abs();
                sums.error += (f64::from(*y) - before).abs();
                sums.size += f64::from(*y).abs();
            }
        }
    }
    sums
}

/// The mean of a step, from quantiles that stand for a share each.
fn mean(answer: &Answer, step: usize) -> Option<f64> {
    let at = |k: u32| f64::from(answer.forecast.sample(step, (f64::from(k) + 0.5) / f64::from(SHARES)));
    (step < answer.forecast.horizon()).then(|| (0..SHARES).map(at).sum::<f64>() / f64::from(SHARES))
}

fn latency(forecaster: &dyn Forecaster, series: &EvalSeries, clock: &dyn Clock) -> Duration {
    let asked = [context(series, 0)];
    let took = (0..ASKED).map(|_| {
        let began = clock.monotonic();
        std::hint::black_box(forecaster.forecast(&asked));
        clock.monotonic().saturating_sub(began)
    });
    // Whatever else the machine does makes it slower, never faster.
    took.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use foreshard_datasets::{Bounds, History, evaluation_series};
    use foreshard_domain::{Metric, Observation, QuantileForecast, QuantileLevels, RealTime, ShardId, Step, Timestamp};
    use foreshard_model::ForecastSpec;

    use crate::backtest::protocol;

    /// Says of all steps so many times the distance of the last value from 10.
    struct FromLast(ForecastSpec, f32);

    impl Forecaster for FromLast {
        fn name(&self) -> &str {
            "from_last"
        }

        fn spec(&self) -> &ForecastSpec {
            &self.0
        }

        fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
            let one = |c: &Context<'_>| {
                let said = 10.0 + self.1 * (c.values.last().copied().unwrap_or(0.0) - 10.0);
                let values = vec![said; self.0.horizon * self.0.levels.len()];
                let forecast = QuantileForecast::new(self.0.levels.clone(), values).unwrap();
                Answer { forecast, last_observed: None, missing_share: 0.0, fallback: None }
            };
            contexts.iter().map(one).collect()
        }
    }

    /// A clock by which every look takes a millisecond.
    #[derive(Debug, Default)]
    struct Slow(AtomicU64);

    impl Clock for Slow {
        fn model(&self) -> Timestamp {
            Timestamp::from_ms(0)
        }

        fn real(&self) -> RealTime {
            RealTime::from_ms(0)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.fetch_add(1, Ordering::Relaxed))
        }

        fn real_duration(&self, _: i64) -> Duration {
            Duration::ZERO
        }
    }

    fn of(times: f32, load: impl Fn(i64) -> f64) -> Option<Steadiness> {
        let step = Step::from_ms(3_600_000).unwrap();
        let (levels, zone) = (QuantileLevels::standard(), "UTC".to_owned());
        let spec = ForecastSpec { step, horizon: 6, season_steps: 24, levels, bounds: Bounds::Load, zone };
        let row = |i: i64| {
            let mut row = Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(i * 3_600_000));
            row.cpu_util = Some(load(i));
            row
        };
        let history = History::from_observations((0..24 * 40).map(row)).unwrap();
        let (series, _) = evaluation_series(&history, &protocol("hours", &spec, Metric::CpuUtil, 12));
        steadiness(&FromLast(spec, times), (series.len(), &|i| Ok(series[i].clone())), &Slow::default()).unwrap()
    }

    #[test]
    fn who_follows_noise_changes_its_mind_more_than_it_was_wrong() {
        let noise = |i: i64| 10.0 + ((i * 7919 + i * i * 31) % 101) as f64 / 50.5 - 1.0;
        let revision = |times| of(times, noise).unwrap().revision.unwrap();
        assert_eq!(revision(0.0), 0.0, "always the mean");
        assert_eq!(of(0.0, noise).unwrap().latency, Duration::from_millis(1));
        assert!(revision(0.3) < 0.8, "{}", revision(0.3));
        assert!(revision(3.0) > 1.1, "{}", revision(3.0));
    }

    #[test]
    fn what_never_changes_says_nothing() {
        let revision = |load: &dyn Fn(i64) -> f64, times| of(times, load).unwrap().revision;
        assert_eq!(revision(&|_| 10.0, 1.0), None);
        // Digits that come and go, which are followed three times too far.
        let digits = |i: i64| 10.0 + ((i * 7919 + i * i * 31) % 101) as f64 * 1e-5;
        assert_eq!(revision(&digits, 3.0), None);
    }
}
