//! A linear map of the features for each step of the horizon, with the quantiles of its errors in units of a local spread.

use super::Tensor;
use crate::features::{ANCHORS, HORIZON_TERMS, ORIGIN_INPUTS, SPREADS, STEP_INPUTS};
use crate::network::LEAST_SPREAD;
use crate::widths::{BLOCKS, block};
use crate::{Batch, TENSOR_LEVELS, WeightsError};

const LEVELS: usize = TENSOR_LEVELS.len();
/// Inputs of a step that say how far it is: every step has a map of its own and needs none of them.
const DISTANCE: usize = HORIZON_TERMS.end - HORIZON_TERMS.start;
/// What each map reads: a constant, the inputs of the step, those of the origin, anchors and spreads.
pub const RIDGE_INPUTS: usize = 1 + (STEP_INPUTS - DISTANCE) + ORIGIN_INPUTS + ANCHORS + SPREADS;
/// An anchor or spread lies within so many scales: a burst in the past must not be multiplied into the future.
const MOST: f32 = 50.0;

/// Coefficients of all steps, and what their errors were like; everything in z.
#[derive(Debug, Clone, PartialEq)]
pub struct Ridge {
    /// horizon x [`RIDGE_INPUTS`].
    pub coefficients: Vec<f32>,
    /// By eighth of the horizon: how the mean size of the error follows from the spreads.
    pub spreads: Vec<f32>,
    /// By eighth of the horizon: quantiles of the error in units of that, at the learned levels.
    pub quantiles: Vec<f32>,
}

impl Ridge {
    /// Fills `inputs` with what the maps read of one row of a batch: an origin at a step.
    pub fn inputs(batch: &Batch, origin: usize, step: usize, inputs: &mut [f32; RIDGE_INPUTS]) {
        let row = origin * batch.steps + step;
        let step_inputs = part(&batch.step_inputs, STEP_INPUTS, row);
        let (near, far) = (step_inputs.iter().take(HORIZON_TERMS.start), step_inputs.iter().skip(HORIZON_TERMS.end));
        let origin_inputs = part(&batch.origin_inputs, ORIGIN_INPUTS, origin);
        let (anchors, spreads) = (part(&batch.anchors, ANCHORS, row), part(&batch.spreads, SPREADS, row));
        let clamped = anchors.iter().chain(spreads).map(|v| v.clamp(-MOST, MOST));
        let values = near.chain(far).chain(origin_inputs).copied().chain(clamped);
        let all = std::iter::once(1.0).chain(values);
        inputs.iter_mut().zip(all).for_each(|(input, value)| *input = value);
    }

    /// What a step expects of its inputs.
    pub fn centre(&self, step: usize, inputs: &[f32; RIDGE_INPUTS]) -> f32 {
        dot(self.coefficients.get(step * RIDGE_INPUTS..(step + 1) * RIDGE_INPUTS), inputs)
    }

    /// How large errors are likely to be, given the part that each spread has in it; at least a hundredth of a scale.
    pub fn size(parts: &[f32], spreads: &[f32]) -> f32 {
        dot(Some(parts), spreads).max(LEAST_SPREAD as f32)
    }

    /// Quantiles in z of a step of so many, given its inputs.
    pub fn quantiles_of(
        &self,
        step: usize,
        horizon: usize,
        inputs: &[f32; RIDGE_INPUTS],
    ) -> [f32; TENSOR_LEVELS.len()] {
        let (centre, block) = (self.centre(step, inputs), block(step, horizon));
        let size = Self::size(part(&self.spreads, SPREADS, block), Self::spreads_of(inputs));
        let mut row = [centre; LEVELS];
        row.iter_mut().zip(part(&self.quantiles, LEVELS, block)).for_each(|(q, error)| *q = centre + size * error);
        row
    }

    /// The spreads among the inputs.
    pub fn spreads_of(inputs: &[f32; RIDGE_INPUTS]) -> &[f32] {
        inputs.get(RIDGE_INPUTS - SPREADS..).unwrap_or(&[])
    }

    /// Quantiles in z of all rows of a batch that holds every step of the horizon: (origins x steps).
    pub fn rows(&self, batch: &Batch) -> Vec<[f32; LEVELS]> {
        let mut rows = Vec::with_capacity(batch.origins * batch.steps);
        let mut inputs = [0.0; RIDGE_INPUTS];
        for origin in 0..batch.origins {
            for step in 0..batch.steps {
                Self::inputs(batch, origin, step, &mut inputs);
                rows.push(self.quantiles_of(step, batch.steps, &inputs));
            }
        }
        rows
    }

    /// What keeps it from forecasting so many steps, if anything does.
    pub(super) fn problem(&self, horizon: usize) -> Option<String> {
        let sizes = [self.coefficients.len(), self.spreads.len(), self.quantiles.len()];
        let wanted = [horizon * RIDGE_INPUTS, BLOCKS * SPREADS, BLOCKS * LEVELS];
        if sizes != wanted {
            return Some(format!("its linear maps have {sizes:?} numbers instead of {wanted:?}"));
        }
        let odd = [&self.coefficients, &self.spreads, &self.quantiles].into_iter().flatten().any(|v| !v.is_finite());
        if odd {
            return Some("its linear maps hold numbers that are not finite".to_owned());
        }
        let falls = self.quantiles.as_chunks::<LEVELS>().0.iter().any(|row| !row.is_sorted());
        falls.then(|| "quantiles of its errors fall".to_owned())
    }

    pub(super) fn tensors(&self, product: &str) -> Vec<Tensor<'_>> {
        let tensor = |(name, shape), values| Tensor { name: format!("{product}.{name}"), shape, values };
        let [coefficients, spreads, quantiles] = layout(self.coefficients.len() / RIDGE_INPUTS);
        vec![
            tensor(coefficients, &self.coefficients),
            tensor(spreads, &self.spreads),
            tensor(quantiles, &self.quantiles),
        ]
    }

    pub(super) fn read(
        horizon: usize,
        tensor: impl Fn(&str, (usize, usize)) -> Result<Vec<f32>, WeightsError>,
    ) -> Result<Self, WeightsError> {
        let [coefficients, spreads, quantiles] = layout(horizon).map(|(name, shape)| tensor(name, shape));
        Ok(Self { coefficients: coefficients?, spreads: spreads?, quantiles: quantiles? })
    }
}

/// Names and shapes of the tensors.
fn layout(horizon: usize) -> [(&'static str, (usize, usize)); 3] {
    [
        ("ridge.coefficients", (horizon, RIDGE_INPUTS)),
        ("ridge.spreads", (BLOCKS, SPREADS)),
        ("ridge.quantiles", (BLOCKS, LEVELS)),
    ]
}

/// Row `row` of a matrix of this width.
fn part(values: &[f32], width: usize, row: usize) -> &[f32] {
    values.get(row * width..(row + 1) * width).unwrap_or(&[])
}

fn dot(coefficients: Option<&[f32]>, inputs: &[f32]) -> f32 {
    let products = coefficients.unwrap_or(&[]).iter().zip(inputs).map(|(c, x)| f64::from(*c) * f64::from(*x));
    products.sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn batch(origins: usize, steps: usize) -> Batch {
        let numbers = |n: usize| (0..n).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>();
        Batch {
            origins,
            steps,
            patch_inputs: 1,
            step_inputs: numbers(origins * steps * STEP_INPUTS),
            origin_inputs: numbers(origins * ORIGIN_INPUTS),
            anchors: numbers(origins * steps * ANCHORS),
            spreads: numbers(origins * steps * SPREADS).into_iter().map(f32::abs).collect(),
            patches: Arc::default(),
        }
    }

    fn ridge(steps: usize) -> Ridge {
        let coefficients = (0..steps * RIDGE_INPUTS).map(|i| ((i * 13) % 29) as f32 / 29.0 - 0.5).collect();
        let errors = (0..BLOCKS).flat_map(|_| TENSOR_LEVELS.map(|l| l as f32 - 0.5)).collect();
        Ridge { coefficients, spreads: vec![0.3; BLOCKS * SPREADS], quantiles: errors }
    }

    #[test]
    fn every_input_is_read_once_and_the_distance_never() {
        let (batch, mut inputs) = (batch(3, 4), [f32::NAN; RIDGE_INPUTS]);
        Ridge::inputs(&batch, 2, 1, &mut inputs);
        assert!(inputs.iter().all(|v| v.is_finite()));
        let row = 2 * 4 + 1;
        assert_eq!((inputs[0], inputs[1]), (1.0, batch.step_inputs[row * STEP_INPUTS]));
        let sorted = HORIZON_TERMS.end;
        assert_eq!(inputs[1 + HORIZON_TERMS.start], batch.step_inputs[row * STEP_INPUTS + sorted]);
        assert_eq!(Ridge::spreads_of(&inputs), &batch.spreads[row * SPREADS..(row + 1) * SPREADS]);
        let mut far = batch.clone();
        let terms = far.step_inputs.chunks_exact_mut(STEP_INPUTS);
        terms.for_each(|row| row[HORIZON_TERMS].fill(9.0));
        let mut same = [0.0; RIDGE_INPUTS];
        Ridge::inputs(&far, 2, 1, &mut same);
        assert_eq!(inputs, same);
    }

    #[test]
    fn f1_quantiles_rise_and_bursts_are_held() {
        let mut batch = batch(5, 48);
        batch.anchors[7] = 1e30;
        batch.spreads[3] = 1e30;
        let ridge = ridge(48);
        assert_eq!(ridge.problem(48), None);
        let rows = ridge.rows(&batch);
        assert_eq!(rows.len(), 5 * 48);
        assert!(rows.iter().all(|row| row.is_sorted() && row.iter().all(|q| q.is_finite() && q.abs() < 1e3)));
        assert!(ridge.problem(47).is_some_and(|p| p.contains("instead of")));
        let mut falls = ridge.clone();
        falls.quantiles[4] = 9.0;
        assert!(falls.problem(48).is_some_and(|p| p.contains("fall")));
        let mut endless = ridge.clone();
        endless.spreads[2] = f32::INFINITY;
        assert!(endless.problem(48).is_some_and(|p| p.contains("not finite")));
    }
}
