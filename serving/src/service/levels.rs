//! Other quantile levels than the trained ones.

use foreshard_domain::{ForecastError, QuantileForecast, QuantileLevels, SeriesForecast};

/// The forecasts at `levels`, interpolated.
///
/// # Errors
/// [`ForecastError::LevelOutside`] for a level outside the trained ones.
pub(super) fn at_levels(
    forecasts: Vec<SeriesForecast>,
    levels: &QuantileLevels,
) -> Result<Vec<SeriesForecast>, ForecastError> {
    forecasts.into_iter().map(|series| at_levels_of(series, levels)).collect()
}

fn at_levels_of(series: SeriesForecast, levels: &QuantileLevels) -> Result<SeriesForecast, ForecastError> {
    let trained = &series.forecast;
    let mut values = Vec::with_capacity(trained.horizon() * levels.len());
    for step in 0..trained.horizon() {
        for level in levels.as_slice() {
            values.push(trained.quantile(step, *level)?);
        }
    }
    Ok(SeriesForecast { forecast: QuantileForecast::new(levels.clone(), values)?, ..series })
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, Provenance, ShardId, Step, Timestamp};

    #[test]
    fn f1_levels_in_between_are_interpolated_and_outside_refused() {
        let levels = |levels: &[f64]| QuantileLevels::new(levels.to_vec()).unwrap();
        let series = SeriesForecast {
            shard: ShardId::new("s").unwrap(),
            metric: Metric::CpuUtil,
            issued_at: Timestamp::from_ms(0),
            step: Step::FIVE_MINUTES,
            forecast: QuantileForecast::new(levels(&[0.1, 0.5, 0.9]), vec![1.0, 2.0, 4.0, 0.0, 1.0, 5.0]).unwrap(),
            provenance: Provenance::default(),
        };
        let made = at_levels(vec![series.clone()], &levels(&[0.5, 0.7])).unwrap();
        assert_eq!(made[0].forecast.values(), [2.0, 3.0, 1.0, 3.0]);
        let outside = at_levels(vec![series], &levels(&[0.5, 0.95]));
        assert!(matches!(outside, Err(ForecastError::LevelOutside { .. })));
    }
}
