//! What every forecaster takes and gives.

use foreshard_datasets::{Bounds, Calendar, EventCalendar};
use foreshard_domain::{Fallback, Metric, Product, QuantileForecast, QuantileLevels, ShardId, Step, Timestamp};
use serde::{Deserialize, Serialize};

/// One series as known at its origin.
///
/// The last value belongs to [`Context::issued_at`]; values after the origin are not even passed, so no forecaster can
/// see the future (D1).
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Whose.
    pub shard: &'a ShardId,
    /// Of what.
    pub metric: Metric,
    /// Grid time of the first value.
    pub start: Timestamp,
    /// Length of a step.
    pub step: Step,
    /// Values in units of the metric, one a step; `NaN` where nothing was observed.
    pub values: &'a [f32],
    /// Events that are known at the origin, past and announced ones, where there is a list of them.
    pub events: Option<&'a EventCalendar>,
}

impl Context<'_> {
    /// Grid time of the last value: the last complete step before the window.
    pub fn issued_at(&self) -> Timestamp {
        self.start.plus_steps(as_steps(self.values.len()) - 1, self.step)
    }

    /// Grid time of the newest value that was observed.
    pub fn last_observed(&self) -> Option<Timestamp> {
        let newest = self.values.iter().rposition(|v| v.is_finite())?;
        Some(self.start.plus_steps(as_steps(newest), self.step))
    }
}

/// A count of steps as the signed number that time arithmetic wants.
pub(crate) fn as_steps(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// How [`Bounds`] are spelt in files.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Bounds", rename_all = "snake_case")]
enum BoundsName {
    Load,
    None,
}

/// What a forecaster forecasts: steps, horizon, season and levels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastSpec {
    /// Length of a step.
    pub step: Step,
    /// Number of steps.
    pub horizon: usize,
    /// Steps in a season (a day).
    pub season_steps: usize,
    /// Levels of the answers.
    pub levels: QuantileLevels,
    /// What values are physically possible.
    #[serde(with = "BoundsName")]
    pub bounds: Bounds,
    /// The IANA time zone whose wall clock the season follows.
    #[serde(default = "utc")]
    pub zone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// One thing wrong with a [`ForecastSpec`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// No step to forecast, or more than a week and a day's worth of features can carry.
    #[error("horizon must be 1 to {most} steps (seven seasons), not {horizon}")]
    Horizon {
        /// What was given.
        horizon: usize,
        /// The most.
        most: usize,
    },
    /// A season of no or too many steps.
    #[error("season must be 4 to 1440 steps, not {season_steps}")]
    Season {
        /// What was given.
        season_steps: usize,
    },
    /// A level that the network does not learn.
    #[error("level {level} lies outside the learned levels {lowest} to {highest}")]
    Level {
        /// What was given.
        level: f64,
        /// The lowest learned.
        lowest: f64,
        /// The highest learned.
        highest: f64,
    },
    /// A time zone that nobody knows.
    #[error("unknown time zone {zone:?}; use an IANA name such as Europe/Berlin or UTC")]
    Zone {
        /// What was given.
        zone: String,
    },
}

impl ForecastSpec {
    /// The spec of a shipped product: loads, the standard levels, a season of one day.
    pub fn of_product(product: Product) -> Self {
        let season = Step::DAY.as_ms() / product.step().as_ms();
        Self {
            step: product.step(),
            horizon: product.horizon(),
            season_steps: usize::try_from(season).unwrap_or(1),
            levels: QuantileLevels::standard(),
            bounds: Bounds::Load,
            zone: utc(),
        }
    }

    /// Everything that is wrong with it for a network; empty if it can be trained.
    pub fn problems(&self) -> Vec<SpecError> {
        let mut problems = Vec::new();
        if !(4..=1440).contains(&self.season_steps) {
            problems.push(SpecError::Season { season_steps: self.season_steps });
        }
        let most = self.season_steps.saturating_mul(7);
        if self.horizon == 0 || self.horizon > most {
            problems.push(SpecError::Horizon { horizon: self.horizon, most });
        }
        let learned = QuantileLevels::standard();
        let (lowest, highest) = (learned.lowest(), learned.highest());
        let outside = |l: &&f64| **l < lowest - 1e-9 || **l > highest + 1e-9;
        let levels = self.levels.as_slice().iter().filter(outside);
        problems.extend(levels.map(|level| SpecError::Level { level: *level, lowest, highest }));
        if Calendar::new(&self.zone, Vec::new()).is_err() {
            problems.push(SpecError::Zone { zone: self.zone.clone() });
        }
        problems
    }

    /// A value put inside the physical bounds.
    pub fn bounded(&self, value: f32) -> f32 {
        match self.bounds {
            Bounds::Load => value.max(0.0),
            Bounds::None => value,
        }
    }
}

/// What a forecaster says about one context.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Quantiles at the levels of the spec, inside the bounds.
    pub forecast: QuantileForecast,
    /// Time of the newest observation that went in.
    pub last_observed: Option<Timestamp>,
    /// Share of the last seven seasons that was missing, 0 to 1.
    pub missing_share: f32,
    /// Set if something simpler answered, and why.
    pub fallback: Option<Fallback>,
}

/// Anything that turns contexts into quantiles.
pub trait Forecaster: Send + Sync {
    /// Its name in tables.
    fn name(&self) -> &str;

    /// What it forecasts.
    fn spec(&self) -> &ForecastSpec;

    /// One answer for each context, in their order. Never fails and never panics: where a history does not carry the
    /// method, the answer comes from a simpler one and says so.
    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_knows_its_times() {
        let shard = ShardId::new("s").unwrap();
        let values = [1.0, 2.0, f32::NAN];
        let start = Timestamp::from_ms(600_000);
        let context = Context {
            shard: &shard,
            metric: Metric::CpuUtil,
            start,
            step: Step::FIVE_MINUTES,
            values: &values,
            events: None,
        };
        assert_eq!(context.issued_at(), Timestamp::from_ms(1_200_000));
        assert_eq!(context.last_observed(), Some(Timestamp::from_ms(900_000)));
        let empty = Context { values: &[], ..context };
        assert_eq!(empty.issued_at(), Timestamp::from_ms(300_000));
        assert_eq!(empty.last_observed(), None);
    }

    #[test]
    fn problems_are_found_all_at_once() {
        let mut spec = ForecastSpec::of_product(Product::NextHours);
        assert!(spec.problems().is_empty());
        assert_eq!(spec.season_steps, 288);
        spec.horizon = 9999;
        spec.levels = QuantileLevels::new(vec![0.001, 0.5, 0.999]).unwrap();
        spec.zone = "Mars/Base".to_owned();
        assert_eq!(spec.problems().len(), 4);
    }
}
