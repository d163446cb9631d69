//! How good the forecasts were that serving issued during the day, beside a seasonal naive forecast of the same targets;
//! pure.
//!
//! Scores are those of the evaluation protocol: the weighted quantile loss pooled over series, origins and steps at the
//! levels .1 to .9, and the share of observations inside the .1 and .9 quantiles.

use foreshard_domain::{QuantileForecast, SeriesForecast, ShardId, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;

/// What really happened: the observed value by shard and grid time.
pub type Observed = BTreeMap<ShardId, BTreeMap<Timestamp, f64>>;

/// The scored levels.
pub const LEVELS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Scores of the day.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ForecastScore {
    /// Weighted quantile loss of what serving answered.
    pub wql: f64,
    /// The same of the seasonal naive forecast on the same targets.
    pub wql_naive: f64,
    /// Share of observations between the .1 and the .9 quantile.
    pub coverage_80: f64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    loss: f64,
    weight: f64,
    inside: u64,
    targets: u64,
}

/// Scores forecasts and their naive rivals, pair by pair, against what was observed; `None` if no target was observed or all
/// observations are zero. Both of a pair must have been made at the same origin; targets never observed count for neither.
pub fn score(pairs: &[(SeriesForecast, QuantileForecast)], observed: &Observed) -> Option<ForecastScore> {
    let (mut model, mut naive) = (Sums::default(), Sums::default());
    for (issued, rival) in pairs {
        let Some(truth) = observed.get(&issued.shard) else { continue };
        let horizon = issued.forecast.horizon().min(rival.horizon());
        for step in 0..horizon {
            let target = issued.issued_at.plus_steps(step as i64 + 1, issued.step);
            if let Some(y) = truth.get(&target) {
                add(&mut model, &issued.forecast, step, *y);
                add(&mut naive, rival, step, *y);
            }
        }
    }
    let scored = model.targets > 0 && model.weight > 0.0;
    scored.then(|| ForecastScore {
        wql: model.loss / model.weight,
        wql_naive: naive.loss / naive.weight,
        coverage_80: model.inside as f64 / model.targets as f64,
    })
}

fn add(sums: &mut Sums, forecast: &QuantileForecast, step: usize, y: f64) {
    let q = |level: f64| f64::from(forecast.sample(step, level));
    let loss: f64 = LEVELS.iter().map(|level| 2.0 * pinball(*level, y, q(*level))).sum();
    sums.loss += loss / LEVELS.len() as f64;
    sums.weight += y.abs();
    sums.inside += u64::from(q(0.1) <= y && y <= q(0.9));
    sums.targets += 1;
}

fn pinball(level: f64, y: f64, q: f64) -> f64 {
    (level * (y - q)).max((level - 1.0) * (y - q))
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, Provenance, QuantileLevels, Step};

    fn quantiles(rows: &[f32]) -> QuantileForecast {
        let levels = QuantileLevels::new(LEVELS.to_vec()).unwrap();
        let values = rows.iter().flat_map(|v| [*v; 9]).collect();
        QuantileForecast::new(levels, values).unwrap()
    }

    fn issued(rows: &[f32]) -> SeriesForecast {
        SeriesForecast {
            shard: ShardId::new("a").unwrap(),
            metric: Metric::CpuUtil,
            issued_at: Timestamp::from_ms(0),
            step: Step::FIVE_MINUTES,
            forecast: quantiles(rows),
            provenance: Provenance::default(),
        }
    }

    fn observed(values: &[(i64, f64)]) -> Observed {
        let series = values.iter().map(|(minute, y)| (Timestamp::from_ms(minute * 60_000), *y)).collect();
        BTreeMap::from([(ShardId::new("a").unwrap(), series)])
    }

    #[test]
    fn a_point_forecast_scores_its_absolute_error() {
        // All quantiles equal: the mean over symmetric levels of 2 x pinball is |error|.
        let pairs = [(issued(&[8.0, 8.0, 8.0]), quantiles(&[6.0, 6.0, 6.0]))];
        let score = score(&pairs, &observed(&[(5, 10.0), (10, 8.0)])).unwrap();
        assert!((score.wql - 2.0 / 18.0).abs() < 1e-6, "{score:?}");
        assert!((score.wql_naive - 6.0 / 18.0).abs() < 1e-6, "{score:?}");
        assert_eq!(score.coverage_80, 0.5);
    }

    #[test]
    fn nothing_observed_is_no_score() {
        assert_eq!(score(&[(issued(&[1.0]), quantiles(&[1.0]))], &observed(&[(60, 1.0)])), None);
        assert_eq!(score(&[], &Observed::new()), None);
    }
}
