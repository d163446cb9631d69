//! Fitting linear maps: one ridge regression for each step of the horizon, and quantiles of what it leaves over.
//!
//! How strongly coefficients are held is chosen on the stretch behind the cut, for all steps together. Sums run over
//! origins in a fixed order, step by step, so that the number of threads never shows in the result.

mod errors;
mod squares;

use foreshard_model::{Lanes, RIDGE_INPUTS, Ridge, TENSOR_LEVELS};
use linfa_linear::LinearError;

use super::sampling::{Samples, Table};
use errors::Errors;
use squares::Squares;

/// How strongly coefficients are held, in deviations of their inputs: what is tried.
const PENALTIES: [f64; 6] = [1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0];
/// Used where nothing is held back to choose by.
const PENALTY: f64 = 1e-2;
/// Origins whose rows are looked at together.
const ORIGINS: usize = 128;
/// Steps that one piece of work covers.
const STEPS: usize = 6;

/// Linear maps as fitted.
pub(super) struct Fitted {
    pub ridge: Ridge,
    pub penalty: f64,
    /// Mean pinball loss in z on the held-back stretch.
    pub validation: f64,
}

/// One (origin, step) whose value is known.
pub(super) struct Row<'a> {
    pub step: usize,
    pub inputs: &'a [f32; RIDGE_INPUTS],
    pub target: f32,
    pub weight: f32,
}

/// Shows all rows of some steps whose value is known, origins in their order.
fn each_row(table: &Table, steps: &[usize], mut see: impl FnMut(&Row<'_>)) {
    let origins: Vec<usize> = (0..table.len()).collect();
    let mut inputs = [0.0; RIDGE_INPUTS];
    for chunk in origins.chunks(ORIGINS) {
        let example = table.example(chunk, steps, |_| false);
        let places =
            (0..chunk.len()).flat_map(|origin| steps.iter().enumerate().map(move |(k, step)| (origin, k, *step)));
        for ((origin, k, step), (target, weight)) in places.zip(example.targets.iter().zip(&example.weights)) {
            if *weight > 0.0 {
                Ridge::inputs(&example.batch, origin, k, &mut inputs);
                see(&Row { step, inputs: &inputs, target: *target, weight: *weight });
            }
        }
    }
}

/// Fits with the penalty that serves best behind the cut.
pub(super) fn before_cut(samples: &Samples<'_>, lanes: &Lanes) -> Result<Fitted, LinearError<f64>> {
    let squares = Squares::of(samples, lanes);
    let mut best: Option<(f64, f64, Vec<f32>)> = None;
    for penalty in PENALTIES {
        let coefficients = squares.solve(penalty, lanes)?;
        let error = mean_error(samples, &coefficients, lanes);
        if error.is_some_and(|error| best.as_ref().is_none_or(|(least, _, _)| error < *least)) {
            best = error.map(|error| (error, penalty, coefficients));
        }
    }
    let (penalty, coefficients) = match best {
        Some((_, penalty, coefficients)) => (penalty, coefficients),
        None => (PENALTY, squares.solve(PENALTY, lanes)?),
    };
    let ridge = with_errors(samples, coefficients, lanes)?;
    let validation = pinball(samples, &ridge, lanes);
    Ok(Fitted { ridge, penalty, validation })
}

/// Fits with a penalty that was chosen before.
pub(super) fn whole(samples: &Samples<'_>, penalty: f64, lanes: &Lanes) -> Result<Ridge, LinearError<f64>> {
    let coefficients = Squares::of(samples, lanes).solve(penalty, lanes)?;
    with_errors(samples, coefficients, lanes)
}

fn with_errors(samples: &Samples<'_>, coefficients: Vec<f32>, lanes: &Lanes) -> Result<Ridge, LinearError<f64>> {
    let Errors { spreads, quantiles } = Errors::of(samples, &coefficients, lanes)?;
    Ok(Ridge { coefficients, spreads, quantiles })
}

/// Pieces of work: neighbouring steps of the horizon.
fn pieces(samples: &Samples<'_>) -> Vec<Vec<usize>> {
    let steps: Vec<usize> = (0..samples.features().horizon).collect();
    steps.chunks(STEPS).map(<[usize]>::to_vec).collect()
}

/// Weighted mean of something over all rows of the held-back stretch; `None` if there is none.
fn held_back(samples: &Samples<'_>, lanes: &Lanes, of: impl Fn(&Row<'_>) -> f64 + Sync) -> Option<f64> {
    let sums = lanes.map(&pieces(samples), |_, steps| {
        let mut sum = (0.0, 0.0);
        each_row(&samples.validation, steps, |row| {
            let weight = f64::from(row.weight);
            sum = (sum.0 + weight * of(row), sum.1 + weight);
        });
        sum
    });
    let (sum, weight) = sums.into_iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    (weight > 0.0).then(|| sum / weight)
}

fn mean_error(samples: &Samples<'_>, coefficients: &[f32], lanes: &Lanes) -> Option<f64> {
    let ridge = Ridge { coefficients: coefficients.to_vec(), spreads: Vec::new(), quantiles: Vec::new() };
    held_back(samples, lanes, |row| f64::from((row.target - ridge.centre(row.step, row.inputs)).abs()))
}

/// Mean pinball loss over the learned levels in z.
fn pinball(samples: &Samples<'_>, ridge: &Ridge, lanes: &Lanes) -> f64 {
    let horizon = samples.features().horizon;
    let loss = |row: &Row<'_>| {
        let quantiles = ridge.quantiles_of(row.step, horizon, row.inputs);
        let of_level = |(q, level): (f32, f64)| {
            let over = f64::from(row.target - q);
            (level * over).max((level - 1.0) * over)
        };
        quantiles.into_iter().zip(TENSOR_LEVELS).map(of_level).sum::<f64>() / TENSOR_LEVELS.len() as f64
    };
    held_back(samples, lanes, loss).unwrap_or(f64::NAN)
}
