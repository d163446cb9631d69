//! One pass through the network.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use foreshard_datasets::CalendarError;

use super::decoder::{Decoder, packed_quantiles};
use super::encoder::{Kernel, Lstm, encode};
use super::operations::{gelu, linear, product};
use super::{Architecture, Weights};
use crate::features::{ANCHORS, ORIGIN_INPUTS, PATCHES, SPREADS, STEP_INPUTS};
use crate::fused::FusedError;

/// The levels that every network learns, the median in the middle.
pub const TENSOR_LEVELS: [f64; 13] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];
pub(crate) const MEDIAN: usize = TENSOR_LEVELS.len() / 2;
const INCREMENTS: usize = TENSOR_LEVELS.len() - 1;
/// How sharply the mixtures of anchors and spreads may choose.
pub(crate) const MIXTURE_GAIN: f64 = 3.0;
/// Least spread in z, so that a constant past cannot freeze the quantiles together.
pub(crate) const LEAST_SPREAD: f64 = 0.01;

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The tensor library refused an operation.
    #[error("the network could not be computed")]
    Tensor(#[from] candle_core::Error),
    /// A fused kernel could not be made ready, or its inputs do not fit it.
    #[error("a fused kernel of the network could not be made ready or computed")]
    Fused(#[from] FusedError),
    /// The clock that the season follows is not known.
    #[error("the network has no clock")]
    Clock(#[from] CalendarError),
    /// What was learned cannot forecast.
    #[error("{problem}")]
    Unusable {
        /// Why not.
        problem: String,
    },
    /// The inputs do not fit the sizes of the network.
    #[error("{what} should hold {want} numbers but holds {got}")]
    Shape {
        /// Which inputs.
        what: &'static str,
        /// Numbers wanted.
        want: usize,
        /// Numbers given.
        got: usize,
    },
}

/// Inputs of some origins at some steps, in z; plain numbers, row-major, rows in the order (origin, step).
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Number of origins.
    pub origins: usize,
    /// Number of steps of each origin.
    pub steps: usize,
    /// Values of one patch.
    pub patch_inputs: usize,
    /// origins x steps x step inputs.
    pub step_inputs: Vec<f32>,
    /// origins x origin inputs.
    pub origin_inputs: Vec<f32>,
    /// origins x steps x anchors.
    pub anchors: Vec<f32>,
    /// origins x steps x spreads.
    pub spreads: Vec<f32>,
    /// Days, oldest first, x origins x patch inputs; shared with the way back, which needs them again.
    pub patches: Arc<Vec<f32>>,
}

/// Factors that switch units off during training: 0 or 1 / (share kept).
#[derive(Debug, Clone, PartialEq)]
pub struct DropoutMasks {
    /// Days x origins x encoder units; empty without an encoder.
    pub patches: Vec<f32>,
    /// (origins x steps) x decoder units.
    pub decoder: Vec<f32>,
}

/// The weights as tensors.
#[derive(Debug, Clone)]
pub struct WeightTensors {
    pub(super) architecture: Architecture,
    tensors: Vec<(&'static str, Tensor)>,
    pub(super) kernel: Kernel,
    pub(super) lstm: Lstm,
    pub(super) decoder: Decoder,
}

/// What a pass gives: (origins x steps) x 13 quantiles in z.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// The quantiles; they rise along the levels by construction.
    pub quantiles: Tensor,
}

impl WeightTensors {
    /// Copies weights into tensors that collect gradients, for the kernel of [`Kernel::chosen`].
    ///
    /// # Errors
    /// [`NetworkError`] if the numbers do not fill the parameters, or the kernel that was asked for is not there.
    pub fn trainable(weights: &Weights) -> Result<Self, NetworkError> {
        Self::trainable_on(weights, Kernel::chosen()?)
    }

    /// The same for a given kernel.
    ///
    /// # Errors
    /// [`NetworkError`] if the numbers do not fill the parameters.
    pub fn trainable_on(weights: &Weights, kernel: Kernel) -> Result<Self, NetworkError> {
        let var = |values: &[f32], shape| Ok(Var::from_slice(values, shape, &Device::Cpu)?.into_inner());
        let parts =
            (kernel, Lstm::training(weights.architecture, kernel)?, Decoder::training(weights.architecture, kernel)?);
        Self::new(weights, var, parts)
    }

    /// Copies weights into tensors that only compute, for the kernel of [`Kernel::chosen`].
    ///
    /// # Errors
    /// [`NetworkError`] if the numbers do not fill the parameters, or the kernel that was asked for is not there.
    pub fn frozen(weights: &Weights) -> Result<Self, NetworkError> {
        Self::frozen_on(weights, Kernel::chosen()?)
    }

    /// The same for a given kernel.
    ///
    /// # Errors
    /// [`NetworkError`] if the numbers do not fill the parameters.
    pub fn frozen_on(weights: &Weights, kernel: Kernel) -> Result<Self, NetworkError> {
        let tensor = |values: &[f32], shape| Tensor::from_slice(values, shape, &Device::Cpu);
        weights.check()?;
        let parts = (kernel, Lstm::inference(weights, kernel)?, Decoder::inference(weights, kernel)?);
        Self::new(weights, tensor, parts)
    }

    fn new(
        weights: &Weights,
        tensor: impl Fn(&[f32], (usize, usize)) -> candle_core::Result<Tensor>,
        (kernel, lstm, decoder): (Kernel, Lstm, Decoder),
    ) -> Result<Self, NetworkError> {
        let architecture = weights.architecture;
        weights.check()?;
        let mut rest = weights.values.as_slice();
        let mut tensors = Vec::new();
        for parameter in architecture.parameters() {
            let (values, after) = rest.split_at(parameter.len().min(rest.len()));
            rest = after;
            tensors.push((parameter.name, tensor(values, parameter.shape)?));
        }
        Ok(Self { architecture, tensors, kernel, lstm, decoder })
    }

    /// The parameters' tensors in their fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().map(|(_, tensor)| tensor)
    }

    pub(super) fn get(&self, name: &'static str) -> Result<&Tensor, NetworkError> {
        let found = self.tensors.iter().find(|(n, _)| *n == name);
        let missing = || candle_core::Error::CannotFindTensor { path: name.to_owned() };
        Ok(found.map(|(_, tensor)| tensor).ok_or_else(missing)?)
    }

    /// x W + b.
    pub(super) fn linear(&self, x: &Tensor, weight: &'static str, bias: &'static str) -> Result<Tensor, NetworkError> {
        Ok(linear(x, self.get(weight)?, self.get(bias)?)?)
    }
}

impl Batch {
    pub(super) fn check(&self) -> Result<(), NetworkError> {
        let rows = self.origins * self.steps;
        let parts = [
            ("step inputs", rows * STEP_INPUTS, self.step_inputs.len()),
            ("origin inputs", self.origins * ORIGIN_INPUTS, self.origin_inputs.len()),
            ("anchors", rows * ANCHORS, self.anchors.len()),
            ("spreads", rows * SPREADS, self.spreads.len()),
            ("patches", PATCHES * self.origins * self.patch_inputs, self.patches.len()),
        ];
        let wrong = parts.into_iter().find(|(_, want, got)| want != got);
        wrong.map_or(Ok(()), |(what, want, got)| Err(NetworkError::Shape { what, want, got }))
    }
}

pub(super) fn matrix(values: &[f32], rows: usize, columns: usize) -> Result<Tensor, NetworkError> {
    Ok(Tensor::from_slice(values, (rows, columns), &Device::Cpu)?)
}

/// Quantiles of a batch in z; with `masks`, as during training.
///
/// The median is a mixture of anchors plus an offset in units of a mixture of spreads; the other levels lie outward of it
/// by sums of positive increments, so they cannot cross (F1).
///
/// # Errors
/// [`NetworkError`] if the inputs do not fit the network.
pub fn forward(weights: &WeightTensors, batch: &Batch, masks: Option<&DropoutMasks>) -> Result<Outputs, NetworkError> {
    batch.check()?;
    let whole = whole(weights, batch, masks)?;
    if let (Decoder::Inference(answering), None) = (&weights.decoder, masks) {
        return Ok(Outputs { quantiles: packed_quantiles(answering, &whole, batch)? });
    }
    let (rows, units) = (batch.origins * batch.steps, weights.architecture.decoder);
    let steps = product(&matrix(&batch.step_inputs, rows, STEP_INPUTS)?, weights.get("decoder.step.weight")?)?;
    let steps = steps.reshape((batch.origins, batch.steps, units))?;
    let hidden = steps.broadcast_add(&whole.reshape((batch.origins, 1, units))?)?.reshape((rows, units))?;
    let hidden = gelu(&hidden)?;
    let hidden = match masks {
        Some(masks) => (hidden * matrix(&masks.decoder, rows, units)?)?,
        None => hidden,
    };
    let further = gelu(&weights.linear(&hidden, "decoder.hidden.weight", "decoder.hidden.bias")?)?;
    head(weights, &(hidden + further)?, batch)
}

/// What is the same for all steps of an origin: (origins, decoder units).
pub(super) fn whole(
    weights: &WeightTensors,
    batch: &Batch,
    masks: Option<&DropoutMasks>,
) -> Result<Tensor, NetworkError> {
    let origin_inputs = matrix(&batch.origin_inputs, batch.origins, ORIGIN_INPUTS)?;
    let mut whole = weights.linear(&origin_inputs, "decoder.origin.weight", "decoder.bias")?;
    if weights.architecture.encoder > 0 {
        whole = (whole + encode(weights, batch, masks)?)?;
    }
    Ok(whole)
}

/// Softmax over the columns times `values`, summed: one number a row.
fn mixture(scores: &Tensor, values: &Tensor) -> Result<Tensor, NetworkError> {
    // Shifted by the row's largest score, which is a constant to the gradient: softmax does not depend on it.
    let scores = (scores * MIXTURE_GAIN)?;
    let shifted = scores.broadcast_sub(&scores.max_keepdim(1)?.detach())?.exp()?;
    Ok(((&shifted * values)?.sum_keepdim(1)? / shifted.sum_keepdim(1)?)?)
}

fn head(weights: &WeightTensors, hidden: &Tensor, batch: &Batch) -> Result<Outputs, NetworkError> {
    let rows = batch.origins * batch.steps;
    let anchors = matrix(&batch.anchors, rows, ANCHORS)?;
    let spreads = matrix(&batch.spreads, rows, SPREADS)?;
    let centre = mixture(&weights.linear(hidden, "head.anchors.weight", "head.anchors.bias")?, &anchors)?;
    let spread = mixture(&weights.linear(hidden, "head.spreads.weight", "head.spreads.bias")?, &spreads)?;
    let spread = (spread + LEAST_SPREAD)?;
    let offset = weights.linear(hidden, "head.offset.weight", "head.offset.bias")?;
    let median = (centre + (offset * &spread)?)?;
    let increments = softplus(&weights.linear(hidden, "head.increments.weight", "head.increments.bias")?)?;
    let outward = product(&increments, &outward_sums()?)?;
    let quantiles = outward.broadcast_mul(&spread)?.broadcast_add(&median)?;
    Ok(Outputs { quantiles })
}

/// ln(1 + e^x) without overflow.
fn softplus(x: &Tensor) -> Result<Tensor, NetworkError> {
    let tail = (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok((x.relu()? + tail)?)
}

/// increments x levels: which increments add up, outward from the median, to each level's distance from it.
fn outward_sums() -> Result<Tensor, NetworkError> {
    let mut sums = vec![0.0f32; INCREMENTS * TENSOR_LEVELS.len()];
    for (increment, row) in sums.chunks_exact_mut(TENSOR_LEVELS.len()).enumerate() {
        for (level, sum) in row.iter_mut().enumerate() {
            // Increments 0..6 lead down from the median, 6..12 up.
            if increment < MEDIAN && level < MEDIAN && MEDIAN - level > increment {
                *sum = -1.0;
            } else if increment >= MEDIAN && level > MEDIAN && level - MEDIAN > increment - MEDIAN {
                *sum = 1.0;
            }
        }
    }
    Ok(Tensor::from_vec(sums, (INCREMENTS, TENSOR_LEVELS.len()), &Device::Cpu)?.to_dtype(DType::F32)?)
}

#[cfg(test)]
pub(super) use tests::random_batch;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    pub(in crate::network) fn random_batch(rng: &mut ChaCha8Rng, origins: usize, steps: usize, size: f32) -> Batch {
        let mut fill = |n: usize| (0..n).map(|_| (rng.random::<f32>() - 0.5) * size).collect::<Vec<f32>>();
        let rows = origins * steps;
        Batch {
            origins,
            steps,
            patch_inputs: 9,
            step_inputs: fill(rows * STEP_INPUTS),
            origin_inputs: fill(origins * ORIGIN_INPUTS),
            anchors: fill(rows * ANCHORS),
            spreads: fill(rows * SPREADS).into_iter().map(f32::abs).collect(),
            patches: Arc::new(fill(PATCHES * origins * 9)),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn f1_network_quantiles_cannot_cross(seed in 0u64..1000, size in prop_oneof![Just(1f32), Just(100.0), Just(1e-4)]) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let sizes = Architecture { patch_inputs: 9, encoder: 4, decoder: 8 };
            let mut weights = sizes.initial(&mut rng);
            weights.values.iter_mut().for_each(|w| *w *= 3.0);
            let batch = random_batch(&mut rng, 3, 5, size);
            let out = forward(&WeightTensors::frozen(&weights).unwrap(), &batch, None).unwrap();
            for row in out.quantiles.to_vec2::<f32>().unwrap() {
                prop_assert_eq!(row.len(), 13);
                prop_assert!(row.windows(2).all(|p| p[0] <= p[1]), "{:?}", row);
            }
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let sizes = Architecture { patch_inputs: 9, encoder: 3, decoder: 4 };
        let weights = sizes.initial(&mut rng);
        let batch = random_batch(&mut rng, 2, 3, 2.0);
        let loss = |w: &Weights| {
            let tensors = WeightTensors::trainable(w).unwrap();
            let sum = forward(&tensors, &batch, None).unwrap().quantiles.sqr().unwrap().sum_all().unwrap();
            (sum, tensors)
        };
        let (sum, tensors) = loss(&weights);
        let gradients = sum.backward().unwrap();
        let flat: Vec<f32> = tensors
            .tensors()
            .flat_map(|v| gradients.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .collect();
        for i in (0..flat.len()).step_by(7) {
            let at = |d: f32| {
                let mut w = weights.clone();
                w.values[i] += d;
                loss(&w).0.to_scalar::<f32>().unwrap()
            };
            let difference = (at(0.01) - at(-0.01)) / 0.02;
            assert!((difference - flat[i]).abs() < 0.02 * difference.abs().max(1.0), "{i}: {difference} {}", flat[i]);
        }
    }

    #[test]
    fn misshapen_inputs_are_refused() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let sizes = Architecture { patch_inputs: 9, encoder: 4, decoder: 8 };
        let tensors = WeightTensors::frozen(&sizes.initial(&mut rng)).unwrap();
        let mut batch = random_batch(&mut rng, 2, 2, 1.0);
        batch.anchors.pop();
        let error = forward(&tensors, &batch, None).unwrap_err();
        assert_eq!(error.to_string(), "anchors should hold 64 numbers but holds 63");
    }
}
