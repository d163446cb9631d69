//! Steps of the planning window.

use foreshard_domain::{ScenarioSet, Timestamp};

/// Steps of the scenarios and where now is among them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Beginning of step 0.
    pub begin: Timestamp,
    pub step_ms: i64,
    pub steps: usize,
    pub scenarios: usize,
    /// The step that holds now: the window of planning is `first..steps`.
    pub first: usize,
}

impl Grid {
    pub fn new(set: &ScenarioSet, now: Timestamp) -> Self {
        let begin = set.issued_at().plus_steps(1, set.step());
        let mut grid =
            Self { begin, step_ms: set.step().as_ms(), steps: set.steps(), scenarios: set.scenarios(), first: 0 };
        grid.first = grid.step_of(now);
        grid
    }

    /// Beginning of a step.
    pub fn time(&self, step: usize) -> Timestamp {
        self.begin.plus_ms(i64::try_from(step).unwrap_or(i64::MAX).saturating_mul(self.step_ms))
    }

    /// The step that holds a moment; 0 before the window, `steps` behind it.
    pub fn step_of(&self, ts: Timestamp) -> usize {
        let step = ts.since_ms(self.begin).div_euclid(self.step_ms);
        usize::try_from(step.max(0)).unwrap_or(usize::MAX).min(self.steps)
    }

    /// The first step that begins at or after a moment.
    pub fn step_after(&self, ts: Timestamp) -> usize {
        let step = self.step_of(ts);
        if step < self.steps && self.time(step) < ts { step + 1 } else { step }
    }

    /// Share of a step that lies in `from..to`.
    pub fn coverage(&self, step: usize, from: Timestamp, to: Timestamp) -> f64 {
        let (begin, end) = (self.time(step), self.time(step + 1));
        let covered = to.min(end).since_ms(from.max(begin)).max(0);
        covered as f64 / self.step_ms as f64
    }

    /// Minutes of a step.
    pub fn minutes(&self) -> f64 {
        self.step_ms as f64 / 60_000.0
    }

    /// The steps from now on.
    pub fn window(&self) -> std::ops::Range<usize> {
        self.first..self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_coverage() {
        let begin = Timestamp::from_ms(1_000);
        let grid = Grid { begin, step_ms: 100, steps: 4, scenarios: 1, first: 0 };
        let at = Timestamp::from_ms;
        assert_eq!([at(0), at(1_000), at(1_099), at(1_100), at(9_000)].map(|t| grid.step_of(t)), [0, 0, 0, 1, 4]);
        assert_eq!([at(1_000), at(1_001), at(1_100), at(9_000)].map(|t| grid.step_after(t)), [0, 1, 1, 4]);
        assert_eq!(grid.coverage(1, at(1_050), at(1_150)), 0.5);
        assert_eq!(grid.coverage(0, at(1_050), at(1_150)), 0.5);
        assert_eq!(grid.coverage(2, at(1_050), at(1_150)), 0.0);
    }
}
