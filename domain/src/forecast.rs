//! Quantile forecasts that cannot lie: levels increase, quantiles never cross, values are finite (F1).

use serde::{Deserialize, Serialize};
use std::fmt;

use crate::{Metric, QuantileLevels, ShardId, Step, Timestamp};

/// Why something is no forecast, or a forecast cannot answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ForecastError {
    /// The levels are not one or more strictly increasing numbers inside (0, 1).
    #[error("quantile levels must be one or more, strictly increasing, inside (0, 1); got {levels:?}")]
    Levels {
        /// What was given.
        levels: Vec<f64>,
    },
    /// The matrix does not have `horizon x levels` values.
    #[error("{got} values do not fill whole rows of {levels} levels")]
    Shape {
        /// How many values were given.
        got: usize,
        /// How many levels a row has.
        levels: usize,
    },
    /// A value is not a finite number.
    #[error("quantile at step {step} is not a finite number")]
    NotFinite {
        /// The row.
        step: usize,
    },
    /// Quantiles of a step are not in rising order.
    #[error("quantiles cross at step {step}")]
    Crossing {
        /// The row.
        step: usize,
    },
    /// A level outside the trained ones was asked for.
    #[error("level {level} lies outside the trained levels {lowest} to {highest}")]
    LevelOutside {
        /// What was asked for.
        level: f64,
        /// Lowest trained level.
        lowest: f64,
        /// Highest trained level.
        highest: f64,
    },
    /// A step past the horizon was asked for.
    #[error("step {step} lies past the horizon of {horizon} steps")]
    StepOutside {
        /// What was asked for (counted from 0).
        step: usize,
        /// How many steps there are.
        horizon: usize,
    },
}

/// Quantiles of one series over a horizon.
///
/// Invariants: levels strictly increase inside (0, 1); every row of `values` (row-major, horizon x levels) is finite and
/// non-decreasing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct QuantileForecast {
    levels: QuantileLevels,
    values: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    levels: QuantileLevels,
    values: Vec<f32>,
}

impl TryFrom<Unchecked> for QuantileForecast {
    type Error = ForecastError;
    fn try_from(raw: Unchecked) -> Result<Self, ForecastError> {
        Self::new(raw.levels, raw.values)
    }
}

impl QuantileForecast {
    /// Checks and takes quantiles, row-major: `values[step * levels + level]`.
    ///
    /// # Errors
    /// [`ForecastError::Shape`], [`ForecastError::NotFinite`] or [`ForecastError::Crossing`].
    pub fn new(levels: QuantileLevels, values: Vec<f32>) -> Result<Self, ForecastError> {
        let n = levels.len();
        if values.is_empty() || !values.len().is_multiple_of(n) {
            return Err(ForecastError::Shape { got: values.len(), levels: n });
        }
        for (step, row) in values.chunks_exact(n).enumerate() {
            if row.iter().any(|v| !v.is_finite()) {
                return Err(ForecastError::NotFinite { step });
            }
            if row.windows(2).any(|pair| pair[0] > pair[1]) {
                return Err(ForecastError::Crossing { step });
            }
        }
        Ok(Self { levels, values })
    }

    /// The same value at every level of every step, at least one step; what is not finite becomes 0.
    pub fn flat(levels: QuantileLevels, horizon: usize, value: f32) -> Self {
        let value = if value.is_finite() { value } else { 0.0 };
        let values = vec![value; horizon.max(1).saturating_mul(levels.len())];
        Self { levels, values }
    }

    /// The levels of every row.
    pub fn levels(&self) -> &QuantileLevels {
        &self.levels
    }

    /// How many steps it covers.
    pub fn horizon(&self) -> usize {
        self.values.len() / self.levels.len()
    }

    /// All values, row-major: horizon x levels.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The quantiles of one step, rising; `None` past the horizon.
    pub fn row(&self, step: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.levels.len()).nth(step)
    }

    /// The quantile of any level between the lowest and highest trained one; linear in between.
    ///
    /// # Errors
    /// [`ForecastError::StepOutside`] or [`ForecastError::LevelOutside`].
    pub fn quantile(&self, step: usize, level: f64) -> Result<f32, ForecastError> {
        let row = self.row(step).ok_or(ForecastError::StepOutside { step, horizon: self.horizon() })?;
        let (lowest, highest) = (self.levels.lowest(), self.levels.highest());
        let level = if (level - lowest).abs() < 1e-9 {
            lowest
        } else if (level - highest).abs() < 1e-9 {
            highest
        } else {
            level
        };
        if !(lowest..=highest).contains(&level) {
            return Err(ForecastError::LevelOutside { level, lowest, highest });
        }
        Ok(inverse(self.levels.as_slice(), row, level))
    }

    /// The value at probability `u` in (0, 1): linear between levels, exponential beyond the outermost ones with the slope
    /// of the two outermost. One level alone has no slope: its quantile is the value everywhere. Past the horizon it is `NaN`.
    pub fn sample(&self, step: usize, u: f64) -> f32 {
        self.row(step).map_or(f32::NAN, |row| inverse(self.levels.as_slice(), row, u))
    }

    /// P(value > limit) at one step, by the same tails as [`Self::sample`]; 0 past the horizon.
    pub fn exceedance(&self, step: usize, limit: f64) -> f64 {
        self.row(step).map_or(0.0, |row| exceedance(self.levels.as_slice(), row, limit))
    }
}

/// Slope of the exponential tail through the two outermost quantiles, in value per unit of log probability.
fn tail_slope(outer: f64, inner: f64, outer_p: f64, inner_p: f64) -> f64 {
    (outer - inner).abs() / (inner_p / outer_p).ln()
}

fn inverse(levels: &[f64], row: &[f32], u: f64) -> f32 {
    let n = levels.len();
    if n == 1 {
        return row[0];
    }
    let u = u.clamp(1e-6, 1.0 - 1e-6);
    let value = |i: usize| f64::from(row[i]);
    if u < levels[0] {
        let slope = tail_slope(value(0), value(1), levels[0], levels[1]);
        return (value(0) + slope * (u / levels[0]).ln()) as f32;
    }
    if u > levels[n - 1] {
        let slope = tail_slope(value(n - 1), value(n - 2), 1.0 - levels[n - 1], 1.0 - levels[n - 2]);
        return (value(n - 1) - slope * ((1.0 - u) / (1.0 - levels[n - 1])).ln()) as f32;
    }
    let hi = levels.partition_point(|l| *l < u).clamp(1, n - 1);
    let share = (u - levels[hi - 1]) / (levels[hi] - levels[hi - 1]);
    (value(hi - 1) + share * (value(hi) - value(hi - 1))) as f32
}

/// Slack for comparing a limit with a quantile that equals it.
const EQUAL: f64 = 1e-9;

fn exceedance(levels: &[f64], row: &[f32], limit: f64) -> f64 {
    let n = levels.len();
    let value = |i: usize| f64::from(row[i]);
    if n == 1 {
        return if value(0) > limit + EQUAL { 1.0 } else { 0.0 };
    }
    let below = (0..n).take_while(|i| value(*i) <= limit + EQUAL).count();
    let p = if below == n {
        let slope = tail_slope(value(n - 1), value(n - 2), 1.0 - levels[n - 1], 1.0 - levels[n - 2]);
        if slope > 0.0 { (1.0 - levels[n - 1]) * (-(limit - value(n - 1)).max(0.0) / slope).exp() } else { 0.0 }
    } else if below == 0 {
        let slope = tail_slope(value(0), value(1), levels[0], levels[1]);
        if slope > 0.0 { 1.0 - levels[0] * ((limit - value(0)).min(0.0) / slope).exp() } else { 1.0 }
    } else {
        let (a, b) = (value(below - 1), value(below));
        let share = if b > a { (limit - a) / (b - a) } else { 1.0 };
        1.0 - (levels[below - 1] + (levels[below] - levels[below - 1]) * share)
    };
    p.clamp(0.0, 1.0)
}

/// A shipped product: how far a forecast looks, in which steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Product {
    /// 48 steps of 5 minutes; its first 12 are the next hour.
    NextHours,
    /// 96 steps of 15 minutes.
    NextDay,
}

impl Product {
    /// Both products.
    pub const ALL: [Product; 2] = [Product::NextHours, Product::NextDay];

    /// Length of a step.
    pub const fn step(self) -> Step {
        match self {
            Product::NextHours => Step::FIVE_MINUTES,
            Product::NextDay => Step::QUARTER_HOUR,
        }
    }

    /// Number of steps.
    pub const fn horizon(self) -> usize {
        match self {
            Product::NextHours => 48,
            Product::NextDay => 96,
        }
    }

    /// Its name in files and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Product::NextHours => "next_hours",
            Product::NextDay => "next_day",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which model, which number of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelVersion {
    /// Name of the model's folder in the registry.
    pub model: String,
    /// Number of the version folder.
    pub number: u64,
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.model, self.number))
    }
}

/// Why a forecast did not come from the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// No version is loaded.
    NoModel,
    /// The shard has less history than the model needs.
    ShortHistory,
    /// The newest observation is too old.
    Stale,
    /// Too much of the context is missing.
    MissingContext,
    /// Nothing was ever observed of this series: a flat prior.
    UnknownSeries,
}

impl Fallback {
    /// Its code in files and answers.
    pub const fn code(self) -> &'static str {
        match self {
            Fallback::NoModel => "no_model",
            Fallback::ShortHistory => "short_history",
            Fallback::Stale => "stale",
            Fallback::MissingContext => "missing_context",
            Fallback::UnknownSeries => "unknown_series",
        }
    }
}

/// What was done to the widths of the quantiles after the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    /// Nothing.
    #[default]
    None,
    /// Widths corrected by factors from a validation cut.
    SplitConformal,
}

/// Where a forecast comes from; every answer carries it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// The version that made it; `None` where a fallback without a model answered.
    pub version: Option<ModelVersion>,
    /// Time of the newest observation that went in.
    pub last_observed: Option<Timestamp>,
    /// Share of the context that was missing, 0 to 1.
    pub missing_share: f32,
    /// What was done to the widths.
    pub calibration: Calibration,
    /// Set if something else than the model answered, and why.
    pub fallback: Option<Fallback>,
}

/// The forecast of one metric of one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeriesForecast {
    /// Whose.
    pub shard: ShardId,
    /// Of what.
    pub metric: Metric,
    /// Grid time of the last complete step before the window; step `i` lies at `issued_at + (i + 1) * step`.
    pub issued_at: Timestamp,
    /// Length of a step.
    pub step: Step,
    /// The quantiles.
    pub forecast: QuantileForecast,
    /// Where it comes from.
    pub provenance: Provenance,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn forecast(rows: &[[f32; 3]]) -> QuantileForecast {
        let levels = QuantileLevels::new(vec![0.1, 0.5, 0.9]).unwrap();
        QuantileForecast::new(levels, rows.concat()).unwrap()
    }

    #[test]
    fn f1_crossing_and_outside_levels_are_refused() {
        let levels = QuantileLevels::new(vec![0.1, 0.9]).unwrap();
        assert_eq!(
            QuantileForecast::new(levels.clone(), vec![1.0, 2.0, 2.0, 1.0]),
            Err(ForecastError::Crossing { step: 1 })
        );
        assert_eq!(
            QuantileForecast::new(levels.clone(), vec![1.0, f32::NAN]),
            Err(ForecastError::NotFinite { step: 0 })
        );
        assert_eq!(QuantileForecast::new(levels, vec![1.0]), Err(ForecastError::Shape { got: 1, levels: 2 }));
        assert!(QuantileLevels::new(vec![0.5, 0.5]).is_err());
        assert!(QuantileLevels::new(vec![0.0, 0.5]).is_err());
        let f = forecast(&[[1.0, 2.0, 4.0]]);
        assert_eq!(f.quantile(0, 0.7).unwrap(), 3.0);
        assert_eq!(f.quantile(0, 0.1 + 1e-12).unwrap(), 1.0);
        assert!(matches!(f.quantile(0, 0.95), Err(ForecastError::LevelOutside { .. })));
        assert!(matches!(f.quantile(1, 0.5), Err(ForecastError::StepOutside { .. })));
        assert!(matches!(f.quantile(0, f64::NAN), Err(ForecastError::LevelOutside { .. })));
    }

    #[test]
    fn flat_is_a_forecast() {
        let flat = QuantileForecast::flat(QuantileLevels::standard(), 3, 2.0);
        assert_eq!(flat, QuantileForecast::new(QuantileLevels::standard(), vec![2.0; 39]).unwrap());
        assert_eq!(QuantileForecast::flat(QuantileLevels::standard(), 0, f32::NAN).values(), [0.0; 13]);
    }

    #[test]
    fn f1_one_level_alone_is_a_forecast_without_tails() {
        let f = QuantileForecast::new(QuantileLevels::new(vec![0.9]).unwrap(), vec![1.0, 3.0]).unwrap();
        assert_eq!((f.horizon(), f.quantile(1, 0.9).unwrap()), (2, 3.0));
        assert!(matches!(f.quantile(0, 0.5), Err(ForecastError::LevelOutside { .. })));
        assert_eq!([0.01, 0.9, 0.99].map(|u| f.sample(0, u)), [1.0; 3]);
        assert_eq!([0.9, 1.0, 1.1].map(|limit| f.exceedance(0, limit)), [1.0, 0.0, 0.0]);
        assert!(QuantileLevels::new(vec![]).is_err() && QuantileLevels::new(vec![1.0]).is_err());
    }

    #[test]
    fn exceedance_has_tails() {
        let f = forecast(&[[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]]);
        assert!((f.exceedance(0, 3.0) - 0.3).abs() < 1e-9);
        assert!(f.exceedance(0, 6.0) < 0.1 && f.exceedance(0, 6.0) > 0.0);
        assert!(f.exceedance(0, 0.5) > 0.9 && f.exceedance(0, 0.5) < 1.0);
        assert_eq!(f.exceedance(1, 3.0), 0.0);
        assert_eq!(f.exceedance(1, 2.9), 1.0);
    }

    #[test]
    fn serde_checks_again() {
        let text = r#"{"levels":[0.1,0.9],"values":[2.0,1.0]}"#;
        assert!(serde_json::from_str::<QuantileForecast>(text).is_err());
    }

    proptest! {
        #[test]
        fn f1_sampling_is_monotone_and_inverts_exceedance(
            start in -50f32..50.0, steps in proptest::collection::vec(0.01f32..5.0, 12), u in 0.002f64..0.998, v in 0.002f64..0.998
        ) {
            let mut row = vec![start];
            for d in steps { row.push(row.last().unwrap() + d); }
            let f = QuantileForecast::new(QuantileLevels::standard(), row).unwrap();
            let (a, b) = (u.min(v), u.max(v));
            prop_assert!(f.sample(0, a) <= f.sample(0, b));
            let p = f.exceedance(0, f64::from(f.sample(0, u)));
            prop_assert!((p - (1.0 - u)).abs() < 1e-3, "u {u} p {p}");
        }
    }
}
