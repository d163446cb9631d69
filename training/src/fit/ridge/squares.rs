//! Least squares with a penalty, step by step.

use foreshard_model::{Lanes, RIDGE_INPUTS};
use linfa::Dataset;
use linfa::traits::Fit;
use linfa_linalg::cholesky::Cholesky;
use linfa_linear::{LinearError, LinearRegression};
use ndarray::{Array1, Array2};

use super::{each_row, pieces};
use crate::fit::sampling::Samples;

/// Inputs and the target beside them.
const SIDE: usize = RIDGE_INPUTS + 1;
/// Added to the diagonal, as a share of it and of the weight of all rows: inputs that say the same make the sums singular.
const JITTER: f64 = 1e-9;
/// Least variance of an input: one that never changes keeps a coefficient of 0.
const LEAST_VARIANCE: f64 = 1e-6;

/// Weighted sums of squares and products of each step; all that a regression needs of its rows.
pub(super) struct Squares {
    steps: Vec<Sums>,
}

/// Sums of one step; row-major, only the upper half is filled. The last row and column are those of the target.
struct Sums(Vec<f64>);

/// What is left of the rows of one step: as many as there are inputs, with the same sums of squares, and the penalties.
struct Reduced {
    rows: Array2<f64>,
    targets: Array1<f64>,
    /// Weighted sum of squares of each input around its mean; 0 for the constant, which is not held.
    held: Vec<f64>,
}

impl Squares {
    pub(super) fn of(samples: &Samples<'_>, lanes: &Lanes) -> Self {
        let done = lanes.map(&pieces(samples), |_, steps| {
            let mut sums: Vec<Sums> = steps.iter().map(|_| Sums(vec![0.0; SIDE * SIDE])).collect();
            let first = steps.first().copied().unwrap_or(0);
            each_row(&samples.train, steps, |row| {
                if let Some(sums) = sums.get_mut(row.step - first) {
                    sums.add(row.inputs, row.target, row.weight);
                }
            });
            sums
        });
        Self { steps: done.into_iter().flatten().collect() }
    }

    /// Coefficients of all steps, one after the other.
    pub(super) fn solve(&self, penalty: f64, lanes: &Lanes) -> Result<Vec<f32>, LinearError<f64>> {
        let done = lanes.map(&self.steps, |_, sums| sums.reduced()?.solve(penalty));
        let done = done.into_iter().collect::<Result<Vec<Vec<f32>>, _>>()?;
        Ok(done.into_iter().flatten().collect())
    }
}

impl Sums {
    fn add(&mut self, inputs: &[f32; RIDGE_INPUTS], target: f32, weight: f32) {
        let mut row = [0.0f64; SIDE];
        row.iter_mut().zip(inputs.iter().chain([&target])).for_each(|(to, from)| *to = f64::from(*from));
        for (i, sums) in self.0.chunks_exact_mut(SIDE).enumerate() {
            let factor = row[i] * f64::from(weight);
            let others = row.iter().skip(i);
            sums.iter_mut().skip(i).zip(others).for_each(|(sum, value)| *sum += factor * value);
        }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.0.get(i.min(j) * SIDE + i.max(j)).copied().unwrap_or(0.0)
    }

    /// Cholesky's factor of the sums is a set of rows with just these sums.
    fn reduced(&self) -> Result<Reduced, LinearError<f64>> {
        // A step whose value was never known has sums of 0, and coefficients of 0.
        let all = if self.at(0, 0) > 0.0 { self.at(0, 0) } else { 1.0 };
        let square = Array2::from_shape_fn((SIDE, SIDE), |(i, j)| {
            let jitter = if i == j { JITTER * (self.at(i, i) + all) } else { 0.0 };
            self.at(i, j) + jitter
        });
        let factor = square.cholesky()?;
        let entry = |i: usize, j: usize| factor.get((i, j)).copied().unwrap_or(0.0);
        let around = |i: usize| self.at(i, i) - self.at(0, i).powi(2) / all;
        Ok(Reduced {
            rows: Array2::from_shape_fn((RIDGE_INPUTS, RIDGE_INPUTS), |(i, j)| entry(j, i)),
            targets: (0..RIDGE_INPUTS).map(|i| entry(RIDGE_INPUTS, i)).collect(),
            held: (0..RIDGE_INPUTS).map(|i| if i == 0 { 0.0 } else { around(i).max(LEAST_VARIANCE * all) }).collect(),
        })
    }
}

impl Reduced {
    /// Ridge regression is plain least squares on the rows and, for each input, one more that asks its coefficient to be 0
    /// with the weight of the penalty.
    fn solve(&self, penalty: f64) -> Result<Vec<f32>, LinearError<f64>> {
        let n = RIDGE_INPUTS;
        let of = |values: Option<&f64>| values.copied().unwrap_or(0.0);
        let x = Array2::from_shape_fn((2 * n, n), |(i, j)| match i.checked_sub(n) {
            None => of(self.rows.get((i, j))),
            Some(k) if k == j => (penalty * of(self.held.get(j))).sqrt(),
            Some(_) => 0.0,
        });
        let y: Array1<f64> = (0..2 * n).map(|i| of(self.targets.get(i))).collect();
        let model = LinearRegression::new().with_intercept(false).fit(&Dataset::new(x, y))?;
        Ok(model.params().iter().map(|c| *c as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose first inputs decide; all others are noise or constant.
    fn sums() -> Sums {
        let mut sums = Sums(vec![0.0; SIDE * SIDE]);
        let mut noise = 7u32;
        for _ in 0..2000 {
            let mut inputs = [0.0f32; RIDGE_INPUTS];
            inputs.iter_mut().skip(1).take(20).for_each(|v| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *v = (noise >> 8) as f32 / (1u32 << 24) as f32 - 0.5;
            });
            inputs[0] = 1.0;
            // Two inputs that say the same, one that is constant, and one that never occurs.
            (inputs[21], inputs[22]) = (inputs[1], 3.0);
            let target = 2.0 + 4.0 * inputs[1] - 1.5 * inputs[2];
            sums.add(&inputs, target, 0.5 + inputs[3].abs());
        }
        sums
    }

    #[test]
    fn nothing_known_is_no_coefficient() {
        let coefficients = Sums(vec![0.0; SIDE * SIDE]).reduced().unwrap().solve(0.1).unwrap();
        assert!(coefficients.iter().all(|c| *c == 0.0), "{coefficients:?}");
    }

    #[test]
    fn finds_the_map_and_shrinks_it_with_the_penalty() {
        let reduced = sums().reduced().unwrap();
        let free = reduced.solve(1e-8).unwrap();
        let twins = free[1] + free[21];
        assert!((twins - 4.0).abs() < 1e-2 && (free[1] - free[21]).abs() < 1e-2, "{free:?}");
        assert!((free[2] + 1.5).abs() < 1e-2 && free[5].abs() < 1e-2, "{free:?}");
        assert!((free[0] + 3.0 * free[22] - 2.0).abs() < 1e-2, "{free:?}");
        assert_eq!(free[40], 0.0);
        let held = reduced.solve(1.0).unwrap();
        assert!((held[2] + 0.75).abs() < 0.05, "a penalty of 1 halves what stands alone: {held:?}");
        assert!((held[0] + 3.0 * held[22] - 2.0).abs() < 0.1, "the constant is not held: {held:?}");
    }
}
