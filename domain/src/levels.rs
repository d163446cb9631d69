//! Quantile levels of a forecast.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::ForecastError;

/// Strictly increasing quantile levels inside (0, 1), at least one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct QuantileLevels(Arc<[f64]>);

impl QuantileLevels {
    /// Checks and takes levels.
    ///
    /// # Errors
    /// [`ForecastError::Levels`] unless there are one or more, all inside (0, 1) and strictly increasing.
    pub fn new(levels: Vec<f64>) -> Result<Self, ForecastError> {
        let inside = levels.iter().all(|l| *l > 0.0 && *l < 1.0);
        let rising = levels.windows(2).all(|pair| pair[0] < pair[1]);
        if levels.is_empty() || !inside || !rising {
            return Err(ForecastError::Levels { levels });
        }
        Ok(Self(levels.into()))
    }

    /// The levels that every shipped model learns: .01 .05 .1 to .9 .95 .99.
    pub fn standard() -> Self {
        Self(Arc::from([0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]))
    }

    /// The levels, in rising order.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true; here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Index of `level`, compared within 1e-9 because callers spell .3 and .1 + .2.
    pub fn position(&self, level: f64) -> Option<usize> {
        self.0.iter().position(|l| (l - level).abs() < 1e-9)
    }

    /// The lowest level.
    pub fn lowest(&self) -> f64 {
        self.0.first().copied().unwrap_or(0.0)
    }

    /// The highest level.
    pub fn highest(&self) -> f64 {
        self.0.last().copied().unwrap_or(1.0)
    }
}

impl TryFrom<Vec<f64>> for QuantileLevels {
    type Error = ForecastError;
    fn try_from(levels: Vec<f64>) -> Result<Self, ForecastError> {
        Self::new(levels)
    }
}

impl From<QuantileLevels> for Vec<f64> {
    fn from(levels: QuantileLevels) -> Vec<f64> {
        levels.0.to_vec()
    }
}
