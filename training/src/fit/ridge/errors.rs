//! What linear maps leave over: how large it is likely to be, and how it is spread around that.

use foreshard_model::{Lanes, Ridge, SPREADS, TENSOR_LEVELS, WIDTH_BLOCKS, width_block};
use linfa::Dataset;
use linfa::traits::Fit;
use linfa_linear::{LinearError, LinearRegression};
use ndarray::{Array1, Array2};

use super::each_row;
use crate::fit::sampling::Samples;
use crate::statistics::sorted_quantile;

/// An error counts as no more than this, in z: the size of errors must not follow single bursts.
const MOST: f32 = 10.0;
/// A spread whose mean square is less says nothing: loads that repeat themselves exactly have none.
const LEAST_SQUARE: f64 = 1e-6;
/// How strongly the part that each spread has in the size of errors is held.
const PENALTY: f64 = 1e-3;

/// By eighth of the horizon, as [`Ridge`] holds them.
pub(super) struct Errors {
    pub spreads: Vec<f32>,
    pub quantiles: Vec<f32>,
}

/// One error and the spreads at its origin and step.
struct Left {
    error: f32,
    weight: f32,
    spreads: [f32; SPREADS],
}

impl Errors {
    /// Of maps on the rows that they were fitted on: with thousands of rows a coefficient they are little smaller than those
    /// on others, and what is missing is made up for by the correction of widths.
    pub(super) fn of(samples: &Samples<'_>, coefficients: &[f32], lanes: &Lanes) -> Result<Self, LinearError<f64>> {
        let horizon = samples.features().horizon;
        let plain = Ridge { coefficients: coefficients.to_vec(), spreads: Vec::new(), quantiles: Vec::new() };
        let blocks: Vec<Vec<usize>> =
            (0..WIDTH_BLOCKS).map(|b| (0..horizon).filter(|step| width_block(*step, horizon) == b).collect()).collect();
        let done = lanes.map(&blocks, |_, steps| {
            let mut left = Vec::new();
            each_row(&samples.train, steps, |row| left.push(of_row(&plain, row)));
            let spreads = sizes(&left)?;
            Ok((spreads, shares(&left, &spreads)))
        });
        let done = done.into_iter().collect::<Result<Vec<_>, LinearError<f64>>>()?;
        let (spreads, quantiles): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        Ok(Self { spreads: spreads.concat(), quantiles: quantiles.concat() })
    }
}

fn of_row(plain: &Ridge, row: &super::Row<'_>) -> Left {
    let mut spreads = [0.0; SPREADS];
    spreads.iter_mut().zip(Ridge::spreads_of(row.inputs)).for_each(|(to, from)| *to = *from);
    Left { error: row.target - plain.centre(row.step, row.inputs), weight: row.weight, spreads }
}

/// What part each spread has in the mean size of the errors. None is below 0, so that a size cannot be.
fn sizes(left: &[Left]) -> Result<[f32; SPREADS], LinearError<f64>> {
    let mut parts = [0.0f32; SPREADS];
    let square = |i: &usize| {
        let own = left.iter().filter_map(|one| one.spreads.get(*i));
        own.map(|spread| f64::from(*spread).powi(2)).sum::<f64>() / left.len().max(1) as f64
    };
    let mut taking: Vec<usize> = (0..SPREADS).filter(|i| square(i) >= LEAST_SQUARE).collect();
    while !left.is_empty() && !taking.is_empty() {
        let found = regression(left, &taking)?;
        if found.iter().all(|part| *part >= 0.0) {
            taking.iter().zip(found).for_each(|(i, part)| parts[*i] = part as f32);
            break;
        }
        // Those that would shrink the size are left out, and the others take their part.
        let kept = taking.iter().zip(&found).filter(|(_, part)| **part >= 0.0);
        taking = kept.map(|(i, _)| *i).collect();
    }
    Ok(parts)
}

/// Least squares of the sizes on some of the spreads.
fn regression(left: &[Left], taking: &[usize]) -> Result<Vec<f64>, LinearError<f64>> {
    let n = taking.len();
    let mut rows = Array2::<f64>::zeros((left.len() + n, n));
    let mut sizes = Array1::<f64>::zeros(left.len() + n);
    for ((one, mut row), size) in left.iter().zip(rows.rows_mut()).zip(sizes.iter_mut()) {
        let root = f64::from(one.weight).sqrt();
        row.iter_mut().zip(taking).for_each(|(to, i)| *to = root * f64::from(one.spreads[*i]));
        *size = root * f64::from(one.error.abs().min(MOST));
    }
    for (k, column) in (0..n).map(|k| (k, rows.column(k).iter().map(|v| v * v).sum::<f64>())).collect::<Vec<_>>() {
        if let Some(held) = rows.get_mut((left.len() + k, k)) {
            *held = (PENALTY * column + f64::MIN_POSITIVE).sqrt();
        }
    }
    let model = LinearRegression::new().with_intercept(false).fit(&Dataset::new(rows, sizes))?;
    Ok(model.params().to_vec())
}

/// Quantiles of the errors in units of their likely size.
fn shares(left: &[Left], parts: &[f32; SPREADS]) -> [f32; TENSOR_LEVELS.len()] {
    let share = |one: &Left| one.error / Ridge::size(parts, &one.spreads);
    let mut sorted: Vec<f32> = left.iter().map(share).filter(|share| share.is_finite()).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    TENSOR_LEVELS.map(|level| sorted_quantile(&sorted, level))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors that are as large as the second spread says, and a first spread that says nothing.
    fn left() -> Vec<Left> {
        let mut noise = 3u32;
        let mut random = move || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 8) as f32 / (1u32 << 24) as f32
        };
        let one = move |_| {
            let mut spreads = [0.0; SPREADS];
            (spreads[0], spreads[1]) = (random(), 0.1 + random());
            Left { error: spreads[1] * (2.0 * random() - 1.0), weight: 1.0, spreads }
        };
        (0..20_000).map(one).collect()
    }

    #[test]
    fn sizes_follow_the_spread_that_tells_them() {
        let left = left();
        let parts = sizes(&left).unwrap();
        assert!((parts[1] - 0.5).abs() < 0.02 && parts[0].abs() < 0.02, "{parts:?}");
        assert!(parts.iter().all(|part| *part >= 0.0));
        let quantiles = shares(&left, &parts);
        // The error is uniform within the spread, which is twice its mean size.
        for (q, level) in quantiles.iter().zip(TENSOR_LEVELS) {
            assert!((f64::from(*q) - (4.0 * level - 2.0)).abs() < 0.1, "{level}: {quantiles:?}");
        }
        assert!(quantiles.is_sorted());
        // A spread that is always next to nothing takes no part, whatever the errors are.
        let mut repeating = left;
        repeating.iter_mut().for_each(|one| one.spreads = [1e-9; SPREADS]);
        assert_eq!(sizes(&repeating).unwrap(), [0.0; SPREADS]);
        repeating.iter_mut().for_each(|one| one.spreads[1] = 1.0);
        let parts = sizes(&repeating).unwrap();
        assert!(parts[0] == 0.0 && (0.1..1.0).contains(&parts[1]), "{parts:?}");
        assert_eq!(sizes(&[]).unwrap(), [0.0; SPREADS]);
        assert_eq!(shares(&[], &[0.0; SPREADS]), [0.0; TENSOR_LEVELS.len()]);
    }
}
