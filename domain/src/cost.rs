//! What a move costs: a log-linear model whose coefficients are learned elsewhere and evaluated here.

use serde::{Deserialize, Serialize};

use crate::PerResource;

/// Kind of engine that carries out a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// Nodes in this process, on disk.
    Embedded,
    /// PostgreSQL databases behind PgBouncer.
    Postgres,
    /// Redis Cluster slots.
    Redis,
}

impl BackendKind {
    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            BackendKind::Embedded => "embedded",
            BackendKind::Postgres => "postgres",
            BackendKind::Redis => "redis",
        }
    }
}

/// What clients may observe during a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Writes wait in the fence; linearisable per key.
    #[default]
    Strict,
    /// Reads may be served from the old copy for up to `t`.
    Bounded,
    /// No fence; a named conflict rule decides.
    Eventual,
}

impl Consistency {
    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Consistency::Strict => "strict",
            Consistency::Bounded => "bounded",
            Consistency::Eventual => "eventual",
        }
    }
}

/// What is known of a move before it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveFeatures {
    /// Bytes to copy.
    pub data_bytes: f64,
    /// Bytes that clients write per second meanwhile.
    pub write_bytes_per_s: f64,
    /// Source's load over its capacity, CPU, at the planned start; 0 to 1 and above.
    pub source_cpu: f64,
    /// Target's load over its capacity, CPU, at the planned start.
    pub target_cpu: f64,
}

/// What a move is expected to cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MovePrediction {
    /// Start to end, in model milliseconds.
    pub duration_ms: i64,
    /// The same at the 90 % level, for windows that must not be overrun.
    pub duration_p90_ms: i64,
    /// How long writes are refused, in real milliseconds.
    pub fence_ms: f64,
    /// Extra load on source and target while it runs, as share of their capacity.
    pub extra_share: PerResource<f64>,
}

/// Coefficients of one log-linear term: `ln y = intercept + sum(coefficient x feature)`, with the residual deviation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostTerms {
    /// Constant.
    pub intercept: f64,
    /// Factor of ln(1 + MiB to copy).
    pub ln_mib: f64,
    /// Factor of ln(1 + KiB written per second).
    pub ln_write_kib: f64,
    /// Factor of the source's CPU share.
    pub source_cpu: f64,
    /// Factor of the target's CPU share.
    pub target_cpu: f64,
    /// Standard deviation of ln y around the fit.
    pub sigma: f64,
}

impl CostTerms {
    /// The features in the order of the coefficients: ln(1+MiB), ln(1+KiB/s), source CPU, target CPU.
    pub fn features(f: &MoveFeatures) -> [f64; 4] {
        [
            (f.data_bytes.max(0.0) / 1_048_576.0).ln_1p(),
            (f.write_bytes_per_s.max(0.0) / 1024.0).ln_1p(),
            f.source_cpu.max(0.0),
            f.target_cpu.max(0.0),
        ]
    }

    /// ln y for a move.
    pub fn ln_mean(&self, f: &MoveFeatures) -> f64 {
        let x = Self::features(f);
        self.intercept + self.ln_mib * x[0] + self.ln_write_kib * x[1] + self.source_cpu * x[2] + self.target_cpu * x[3]
    }
}

/// A cost model of one backend; `number` 0 is the prior that no outcome has touched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Number in the registry.
    pub number: u64,
    /// How many outcomes it was fitted on.
    pub outcomes: u64,
    /// Duration in model seconds.
    pub duration_s: CostTerms,
    /// Fence in real milliseconds.
    pub fence_ms: CostTerms,
    /// Extra load while copying, as share of a node's capacity.
    pub extra_share: PerResource<f64>,
}

/// Quantile .9 of the standard normal distribution.
const Z90: f64 = 1.2816;

impl CostModel {
    /// The prior for the first moves: `rate` bytes copied per model second, a fence of 50 ms, and during the copy 8 % of a
    /// node's CPU and 15 % of its I/O.
    pub fn prior(rate_bytes_per_s: f64) -> Self {
        let mib_per_s = (rate_bytes_per_s / 1_048_576.0).max(1e-9);
        let duration_s = CostTerms {
            intercept: -mib_per_s.ln(),
            ln_mib: 1.0,
            ln_write_kib: 0.0,
            source_cpu: 0.0,
            target_cpu: 0.0,
            sigma: 0.3,
        };
        let fence_ms = CostTerms { intercept: 50f64.ln(), ln_mib: 0.0, sigma: 0.7, ..duration_s.clone() };
        let extra_share = PerResource { cpu: 0.08, memory: 0.0, io: 0.15 };
        Self { number: 0, outcomes: 0, duration_s, fence_ms, extra_share }
    }

    /// What a move is expected to cost; durations are at least one millisecond and at most a year.
    pub fn predict(&self, f: &MoveFeatures) -> MovePrediction {
        let ln = self.duration_s.ln_mean(f);
        Self::prediction(ln, self.duration_s.sigma, self.fence_ms.ln_mean(f), self.extra_share)
    }

    fn prediction(ln_s: f64, sigma: f64, ln_fence: f64, extra_share: PerResource<f64>) -> MovePrediction {
        // Saturating by the rules of `as` for floats, and clamped: NaN becomes the least duration.
        let ms = |ln_s: f64| ((ln_s.exp() * 1000.0).clamp(1.0, 3.15e10)) as i64;
        MovePrediction {
            duration_ms: ms(ln_s).max(1),
            duration_p90_ms: ms(ln_s + Z90 * sigma).max(1),
            fence_ms: ln_fence.exp().clamp(0.0, 3.6e6),
            extra_share,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(data_bytes: f64) -> MoveFeatures {
        MoveFeatures { data_bytes, write_bytes_per_s: 0.0, source_cpu: 0.5, target_cpu: 0.5 }
    }

    #[test]
    fn prior_is_bytes_over_rate() {
        let model = CostModel::prior(60.0 * 1_048_576.0);
        let p = model.predict(&features(20.0 * 1024.0 * 1_048_576.0));
        assert!((p.duration_ms as f64 / 1000.0 - 341.35).abs() < 0.5, "{p:?}");
        assert!(p.duration_p90_ms > p.duration_ms);
        assert!((p.fence_ms - 50.0).abs() < 1e-6);
    }

    #[test]
    fn nonsense_stays_in_bounds() {
        let mut model = CostModel::prior(1.0);
        model.duration_s.intercept = f64::NAN;
        assert_eq!(model.predict(&features(1.0)).duration_ms, 1);
        model.duration_s.intercept = 1e9;
        assert_eq!(model.predict(&features(1.0)).duration_ms, 31_500_000_000);
    }
}
