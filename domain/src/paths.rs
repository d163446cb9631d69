//! Sample paths of one load and what can be read off them.

/// Paths of one load over the horizon: `values[step * scenarios + scenario]`.
///
/// Step-major, so that adding a shard to a node or taking it away is one pass over contiguous memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadPaths {
    scenarios: usize,
    values: Vec<f32>,
}

/// What the paths of a load say about a limit over a window.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Risk {
    /// Share of scenarios in which the limit is exceeded at any step of the window.
    pub probability: f64,
    /// First step (counted from 0) by which at least half of the crossing scenarios have crossed; `None` if none does.
    pub first_crossing: Option<usize>,
    /// Mean over scenarios of the excess over the limit summed over the steps, in load x steps.
    pub expected_excess: f64,
}

impl Risk {
    /// No risk at all.
    pub const NONE: Risk = Risk { probability: 0.0, first_crossing: None, expected_excess: 0.0 };
}

impl LoadPaths {
    /// Paths that are zero throughout.
    pub fn zero(steps: usize, scenarios: usize) -> Self {
        Self { scenarios, values: vec![0.0; steps.saturating_mul(scenarios)] }
    }

    /// Paths from values, step-major; `None` unless they fill whole steps.
    pub fn from_values(scenarios: usize, values: Vec<f32>) -> Option<Self> {
        (scenarios > 0 && values.len().is_multiple_of(scenarios)).then_some(Self { scenarios, values })
    }

    /// How many scenarios.
    pub fn scenarios(&self) -> usize {
        self.scenarios
    }

    /// How many steps.
    pub fn steps(&self) -> usize {
        self.values.len().checked_div(self.scenarios).unwrap_or(0)
    }

    /// All values, step-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values of one step over the scenarios; empty past the horizon.
    pub fn step(&self, step: usize) -> &[f32] {
        self.values.chunks_exact(self.scenarios.max(1)).nth(step).unwrap_or(&[])
    }

    /// Adds another load, `sign` times (1 to add a shard, -1 to take it away), over `steps`.
    ///
    /// Values beyond the shorter of the two are left alone.
    pub fn add_scaled(&mut self, other: &[f32], sign: f32, steps: std::ops::Range<usize>) {
        let range = steps.start.saturating_mul(self.scenarios)
            ..steps.end.saturating_mul(self.scenarios).min(self.values.len()).min(other.len());
        if let (Some(mine), Some(theirs)) = (self.values.get_mut(range.clone()), other.get(range)) {
            for (a, b) in mine.iter_mut().zip(theirs) {
                *a += sign * b;
            }
        }
    }

    /// Adds the same amount in every scenario over `steps`.
    pub fn add_constant(&mut self, amount: f32, steps: std::ops::Range<usize>) {
        let range =
            steps.start.saturating_mul(self.scenarios)..steps.end.saturating_mul(self.scenarios).min(self.values.len());
        if let Some(mine) = self.values.get_mut(range) {
            for a in mine {
                *a += amount;
            }
        }
    }

    /// Reads the risk of exceeding `limit` at any step of `window`.
    ///
    /// Joint over steps: a scenario counts once however often it crosses, so persistent and fleeting overloads with the
    /// same marginals get the probability that they have.
    pub fn risk(&self, limit: f32, window: std::ops::Range<usize>) -> Risk {
        if self.scenarios == 0 {
            return Risk::NONE;
        }
        let mut first = vec![usize::MAX; self.scenarios];
        let mut excess = 0.0f64;
        let steps = window.start..window.end.min(self.steps());
        for step in steps.clone() {
            for (load, first) in self.step(step).iter().zip(&mut first) {
                if *load > limit {
                    excess += f64::from(load - limit);
                    *first = (*first).min(step);
                }
            }
        }
        let crossed = first.iter().filter(|f| **f != usize::MAX).count();
        let mut seen = 0;
        let first_crossing = steps.into_iter().find(|step| {
            seen += first.iter().filter(|f| *f == step).count();
            crossed > 0 && seen * 2 >= crossed
        });
        let n = self.scenarios as f64;
        Risk { probability: crossed as f64 / n, first_crossing, expected_excess: excess / n }
    }

    /// Mean over scenarios of the excess over `limit`, summed over `window`: the inner loop of a planner.
    pub fn expected_excess(&self, limit: f32, window: std::ops::Range<usize>) -> f64 {
        let range = window.start.saturating_mul(self.scenarios)
            ..window.end.saturating_mul(self.scenarios).min(self.values.len());
        let values = self.values.get(range).unwrap_or(&[]);
        let mut total = 0.0f64;
        // Row by row in f32, summed in f64: vectorises, and long horizons lose no digits.
        for row in values.chunks(self.scenarios.max(1)) {
            total += f64::from(row.iter().map(|load| (load - limit).max(0.0)).sum::<f32>());
        }
        total / self.scenarios.max(1) as f64
    }

    /// The `level` quantile over scenarios at one step (nearest rank); `None` past the horizon.
    pub fn quantile(&self, step: usize, level: f64) -> Option<f32> {
        let mut row = self.step(step).to_vec();
        row.sort_by(f32::total_cmp);
        let last = row.len().checked_sub(1)?;
        let rank = (level.clamp(0.0, 1.0) * row.len() as f64).ceil() as usize;
        row.get(rank.saturating_sub(1).min(last)).copied()
    }

    /// The highest `level` quantile over the steps of `window`; 0 for an empty window.
    pub fn peak_quantile(&self, level: f64, window: std::ops::Range<usize>) -> f32 {
        let steps = window.start..window.end.min(self.steps());
        steps.filter_map(|step| self.quantile(step, level)).fold(0.0, f32::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_step_risk_is_joint() {
        // Two scenarios, two steps. Persistent: one scenario is hot at both steps; fleeting: each is hot once.
        let persistent = LoadPaths::from_values(2, vec![9.0, 1.0, 9.0, 1.0]).unwrap();
        let fleeting = LoadPaths::from_values(2, vec![9.0, 1.0, 1.0, 9.0]).unwrap();
        assert_eq!(persistent.risk(5.0, 0..2).probability, 0.5);
        assert_eq!(fleeting.risk(5.0, 0..2).probability, 1.0);
        assert_eq!(persistent.risk(5.0, 0..2).expected_excess, 4.0);
        assert_eq!(fleeting.expected_excess(5.0, 0..2), 4.0);
        assert_eq!(fleeting.risk(5.0, 1..2).first_crossing, Some(1));
        assert_eq!(fleeting.risk(20.0, 0..2), Risk::NONE);
        assert_eq!(LoadPaths::zero(0, 0).risk(1.0, 0..5), Risk::NONE);
    }

    #[test]
    fn what_if_moves_add_and_take_away() {
        let mut node = LoadPaths::zero(3, 2);
        let shard = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        node.add_scaled(&shard, 1.0, 0..3);
        node.add_scaled(&shard, -1.0, 1..9);
        node.add_constant(0.5, 2..3);
        assert_eq!(node.values(), [1.0, 2.0, 0.0, 0.0, 0.5, 0.5]);
    }

    #[test]
    fn quantiles_are_nearest_rank() {
        let paths = LoadPaths::from_values(4, vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(paths.quantile(0, 0.5), Some(2.0));
        assert_eq!(paths.quantile(0, 0.9), Some(4.0));
        assert_eq!(paths.quantile(1, 0.5), None);
    }
}
