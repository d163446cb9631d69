//! Forecasts, their provenance, and risks.

use foreshard_domain::{ModelVersion, Provenance, QuantileForecast, QuantileLevels, Risk, SeriesForecast};

use super::names::{calibration_from_wire, fallback_from_wire, metric_from_wire, resource_from_wire, shard_from_wire};
use super::{duration_to_wire, step_from_wire, timestamp_from_wire, timestamp_to_wire};
use crate::{SeriesProvenance, ShardRisk, WireError, v1};

impl From<&ModelVersion> for v1::ModelVersion {
    fn from(version: &ModelVersion) -> Self {
        Self { model: version.model.clone(), number: version.number }
    }
}

impl From<v1::ModelVersion> for ModelVersion {
    fn from(version: v1::ModelVersion) -> Self {
        Self { model: version.model, number: version.number }
    }
}

impl From<&Provenance> for v1::Provenance {
    fn from(provenance: &Provenance) -> Self {
        Self {
            version: provenance.version.as_ref().map(Into::into),
            last_observed: provenance.last_observed.map(timestamp_to_wire),
            missing_share: provenance.missing_share,
            calibration: v1::Calibration::from(provenance.calibration).into(),
            fallback: v1::Fallback::from(provenance.fallback).into(),
        }
    }
}

fn provenance_from_wire(provenance: Option<v1::Provenance>) -> Result<Provenance, WireError> {
    let provenance = provenance.ok_or(WireError::Missing { field: "provenance" })?;
    if !(0.0..=1.0).contains(&provenance.missing_share) {
        let value = provenance.missing_share.to_string();
        return Err(WireError::Range { field: "missing_share", value, expected: "a share from 0 to 1" });
    }
    let last_observed = match provenance.last_observed {
        None => None,
        some => Some(timestamp_from_wire("last_observed", some)?),
    };
    Ok(Provenance {
        version: provenance.version.map(Into::into),
        last_observed,
        missing_share: provenance.missing_share,
        calibration: calibration_from_wire(provenance.calibration)?,
        fallback: fallback_from_wire(provenance.fallback)?,
    })
}

impl From<&SeriesForecast> for v1::SeriesForecast {
    fn from(series: &SeriesForecast) -> Self {
        Self {
            shard_id: series.shard.to_string(),
            metric: v1::Metric::from(series.metric).into(),
            issued_at: Some(timestamp_to_wire(series.issued_at)),
            step: Some(duration_to_wire(series.step)),
            levels: series.forecast.levels().as_slice().to_vec(),
            values: series.forecast.values().to_vec(),
            provenance: Some((&series.provenance).into()),
        }
    }
}

impl TryFrom<v1::SeriesForecast> for SeriesForecast {
    type Error = WireError;
    fn try_from(series: v1::SeriesForecast) -> Result<Self, WireError> {
        let shard = shard_from_wire("shard_id", series.shard_id)?;
        let metric = metric_from_wire("metric", series.metric)?;
        let levels = QuantileLevels::new(series.levels).map_err(WireError::Levels)?;
        let forecast = QuantileForecast::new(levels, series.values).map_err(|source| WireError::Forecast {
            shard: shard.to_string(),
            metric: metric.name(),
            source,
        })?;
        Ok(Self {
            shard,
            metric,
            issued_at: timestamp_from_wire("issued_at", series.issued_at)?,
            step: step_from_wire("step", series.step)?,
            forecast,
            provenance: provenance_from_wire(series.provenance)?,
        })
    }
}

impl From<&ShardRisk> for v1::ShardRisk {
    fn from(risk: &ShardRisk) -> Self {
        Self {
            shard_id: risk.shard.to_string(),
            resource: v1::Resource::from(risk.resource).into(),
            probability: risk.risk.probability,
            first_crossing: risk.risk.first_crossing.map(|step| u32::try_from(step).unwrap_or(u32::MAX)),
            expected_excess: risk.risk.expected_excess,
            issued_at: Some(timestamp_to_wire(risk.issued_at)),
            step: Some(duration_to_wire(risk.step)),
            provenance: Some((&risk.provenance).into()),
        }
    }
}

impl TryFrom<v1::ShardRisk> for ShardRisk {
    type Error = WireError;
    fn try_from(risk: v1::ShardRisk) -> Result<Self, WireError> {
        let (probability, expected_excess) = (risk.probability, risk.expected_excess);
        if !(0.0..=1.0).contains(&probability) {
            let value = probability.to_string();
            return Err(WireError::Range { field: "probability", value, expected: "from 0 to 1" });
        }
        if !(expected_excess.is_finite() && expected_excess >= 0.0) {
            let value = expected_excess.to_string();
            return Err(WireError::Range { field: "expected_excess", value, expected: "finite and not negative" });
        }
        let first_crossing = risk.first_crossing.map(|step| usize::try_from(step).unwrap_or(usize::MAX));
        Ok(Self {
            shard: shard_from_wire("shard_id", risk.shard_id)?,
            resource: resource_from_wire("resource", risk.resource)?,
            risk: Risk { probability, first_crossing, expected_excess },
            issued_at: timestamp_from_wire("issued_at", risk.issued_at)?,
            step: step_from_wire("step", risk.step)?,
            provenance: provenance_from_wire(risk.provenance)?,
        })
    }
}

impl From<&SeriesProvenance> for v1::SeriesProvenance {
    fn from(series: &SeriesProvenance) -> Self {
        Self {
            shard_id: series.shard.to_string(),
            resource: v1::Resource::from(series.resource).into(),
            provenance: Some((&series.provenance).into()),
        }
    }
}

impl TryFrom<v1::SeriesProvenance> for SeriesProvenance {
    type Error = WireError;
    fn try_from(series: v1::SeriesProvenance) -> Result<Self, WireError> {
        Ok(Self {
            shard: shard_from_wire("shard_id", series.shard_id)?,
            resource: resource_from_wire("resource", series.resource)?,
            provenance: provenance_from_wire(series.provenance)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Calibration, Fallback, ForecastError, Metric, Resource, ShardId, Step, Timestamp};

    fn series() -> SeriesForecast {
        let levels = QuantileLevels::new(vec![0.1, 0.5, 0.9]).unwrap();
        SeriesForecast {
            shard: ShardId::new("orders").unwrap(),
            metric: Metric::IoOps,
            issued_at: Timestamp::from_ms(1_700_000_100_000),
            step: Step::FIVE_MINUTES,
            forecast: QuantileForecast::new(levels, vec![1.0, 2.0, 3.0, 1.5, 1.5, 4.0]).unwrap(),
            provenance: Provenance {
                version: Some(ModelVersion { model: "load".into(), number: 7 }),
                last_observed: Some(Timestamp::from_ms(1_700_000_000_123)),
                missing_share: 0.25,
                calibration: Calibration::SplitConformal,
                fallback: Some(Fallback::Stale),
            },
        }
    }

    #[test]
    fn forecasts_and_risks_go_both_ways() {
        let series = series();
        assert_eq!(SeriesForecast::try_from(v1::SeriesForecast::from(&series)), Ok(series.clone()));
        let risk = ShardRisk {
            shard: series.shard.clone(),
            resource: Resource::Io,
            risk: Risk { probability: 0.5, first_crossing: Some(3), expected_excess: 1.25 },
            issued_at: series.issued_at,
            step: series.step,
            provenance: series.provenance,
        };
        assert_eq!(ShardRisk::try_from(v1::ShardRisk::from(&risk)), Ok(risk.clone()));
        let bad = v1::ShardRisk { probability: 1.5, ..(&risk).into() };
        assert!(matches!(ShardRisk::try_from(bad), Err(WireError::Range { field: "probability", .. })));
    }

    #[test]
    fn f1_a_crossing_forecast_from_the_wire_is_an_error() {
        let mut wire = v1::SeriesForecast::from(&series());
        wire.values.swap(3, 5);
        let error = SeriesForecast::try_from(wire).unwrap_err();
        assert!(matches!(error, WireError::Forecast { source: ForecastError::Crossing { step: 1 }, .. }), "{error:?}");
    }

    #[test]
    fn every_missing_or_broken_part_is_an_error() {
        let wire = || v1::SeriesForecast::from(&series());
        let refused = |wire: v1::SeriesForecast| SeriesForecast::try_from(wire).unwrap_err().field();
        assert_eq!(refused(v1::SeriesForecast { shard_id: String::new(), ..wire() }), "shard_id");
        assert_eq!(refused(v1::SeriesForecast { metric: 0, ..wire() }), "metric");
        assert_eq!(refused(v1::SeriesForecast { issued_at: None, ..wire() }), "issued_at");
        assert_eq!(refused(v1::SeriesForecast { step: None, ..wire() }), "step");
        assert_eq!(refused(v1::SeriesForecast { levels: vec![0.9, 0.1], ..wire() }), "levels");
        assert_eq!(refused(v1::SeriesForecast { values: vec![1.0; 4], ..wire() }), "values");
        assert_eq!(refused(v1::SeriesForecast { values: vec![f32::NAN; 3], ..wire() }), "values");
        assert_eq!(refused(v1::SeriesForecast { provenance: None, ..wire() }), "provenance");
        let mut share = wire();
        share.provenance.as_mut().unwrap().missing_share = f32::NAN;
        assert_eq!(refused(share), "missing_share");
    }
}
