//! The loss of an example and its gradient.

use foreshard_model::{DropoutMasks, Goals, NetworkError, WeightTensors, Weights, pinball_loss};

use super::sampling::Example;

impl Example {
    /// What its rows should come to, as a part of a batch of `rows` (origin, step) pairs.
    fn goals(&self, rows: usize) -> Goals<'_> {
        Goals { targets: &self.targets, weights: &self.weights, rows }
    }
}

/// Loss and gradient of one chunk; the gradient lies in the order of the weights. The mean runs over `rows` (origin, step)
/// pairs: chunks of one batch add up.
pub(crate) fn loss_and_gradient(
    weights: &Weights,
    example: &Example,
    masks: &DropoutMasks,
    rows: usize,
) -> Result<(f64, Vec<f32>), NetworkError> {
    let tensors = WeightTensors::trainable(weights)?;
    let loss = pinball_loss(&tensors, &example.batch, Some(masks), example.goals(rows))?;
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
    Ok(f64::from(pinball_loss(&tensors, &example.batch, None, example.goals(rows))?.to_scalar::<f32>()?))
}
