//! The pinball loss of an example and its gradient.

use candle_core::{Device, Tensor};
use foreshard_model::{DropoutMasks, NetworkError, TENSOR_LEVELS, WeightTensors, Weights, forward};

use super::sampling::Example;

const LEVELS: usize = TENSOR_LEVELS.len();
/// Weight of the four outer levels: tails must not drag the centre.
const OUTER_WEIGHT: f32 = 0.5;

fn level_weight(level: f64) -> f32 {
    if (0.09..0.91).contains(&level) { 1.0 } else { OUTER_WEIGHT }
}

/// Weighted mean pinball loss in z, where the mean runs over `rows` (origin, step) pairs: chunks of one batch add up.
fn loss(
    tensors: &WeightTensors,
    example: &Example,
    masks: Option<&DropoutMasks>,
    rows: usize,
) -> Result<Tensor, NetworkError> {
    let n = example.targets.len();
    let device = Device::Cpu;
    let quantiles = forward(tensors, &example.batch, masks)?.quantiles;
    let targets = Tensor::from_slice(&example.targets, (n, 1), &device)?;
    let error = targets.broadcast_sub(&quantiles)?;
    // max(a e, (a - 1) e) = a e + max(-e, 0), times the weights of level and row.
    let share = 1.0 / (rows.max(1) * LEVELS) as f32;
    let weight = |row: f32, level: f64| row * level_weight(level) * share;
    let grid = |f: &dyn Fn(f32, f64) -> f32| -> Vec<f32> {
        example.weights.iter().flat_map(|row| TENSOR_LEVELS.iter().map(move |l| f(*row, *l))).collect()
    };
    let plain = Tensor::from_vec(grid(&|row, level| weight(row, level)), (n, LEVELS), &device)?;
    let sloped = Tensor::from_vec(grid(&|row, level| weight(row, level) * level as f32), (n, LEVELS), &device)?;
    Ok(((&error * sloped)? + (error.neg()?.relu()? * plain)?)?.sum_all()?)
}

/// Loss and gradient of one chunk; the gradient lies in the order of the weights.
pub(crate) fn loss_and_gradient(
    weights: &Weights,
    example: &Example,
    masks: &DropoutMasks,
    rows: usize,
) -> Result<(f64, Vec<f32>), NetworkError> {
    let tensors = WeightTensors::trainable(weights)?;
    let loss = loss(&tensors, example, Some(masks), rows)?;
    let gradients = loss.backward()?;
    let mut flat = Vec::with_capacity(weights.values.len());
    for tensor in tensors.tensors() {
        match gradients.get(tensor) {
            Some(gradient) => flat.extend(gradient.flatten_all()?.to_vec1::<f32>()?),
            None => flat.extend(std::iter::repeat_n(0.0, tensor.elem_count())),
        }
    }
    Ok((f64::from(loss.to_scalar::<f32>()?), flat))
}

/// Loss of one chunk without dropout.
pub(crate) fn plain_loss(weights: &Weights, example: &Example, rows: usize) -> Result<f64, NetworkError> {
    let tensors = WeightTensors::frozen(weights)?;
    Ok(f64::from(loss(&tensors, example, None, rows)?.to_scalar::<f32>()?))
}
