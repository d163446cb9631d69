//! The decoder and the loss, and the choice of what computes them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};

use super::encoder::Kernel;
use super::forward::{forward, whole};
use super::operations::values;
use super::{Architecture, Batch, DropoutMasks, NetworkError, TENSOR_LEVELS, WeightTensors, Weights};
use crate::features::STEP_INPUTS;
use crate::fused::{
    DecoderGoals, DecoderInference, DecoderRows, DecoderShape, DecoderTraining, DecoderWorkspace, FusedError,
};

const LEVELS: usize = TENSOR_LEVELS.len();
/// Weight of the four outer levels: tails must not drag the centre.
const OUTER_WEIGHT: f32 = 0.5;

/// The decoder of one network, ready to compute.
#[derive(Debug, Clone)]
pub(super) enum Decoder {
    Plain,
    Training(DecoderTraining),
    Inference(Arc<Answering>),
}

/// Packed weights with the workspaces of the threads that use them.
#[derive(Debug)]
pub(super) struct Answering {
    decoder: DecoderInference,
    spare: Mutex<Vec<DecoderWorkspace>>,
}

/// Names of the decoder's parameters in the order of the fused kernel's flat list.
const DECODER: [&str; 11] = [
    "decoder.step.weight",
    "decoder.hidden.weight",
    "decoder.hidden.bias",
    "head.anchors.weight",
    "head.anchors.bias",
    "head.spreads.weight",
    "head.spreads.bias",
    "head.offset.weight",
    "head.offset.bias",
    "head.increments.weight",
    "head.increments.bias",
];

fn shape(sizes: Architecture) -> DecoderShape {
    DecoderShape { inputs: STEP_INPUTS, units: sizes.decoder }
}

impl Decoder {
    /// For weights that learn.
    pub(super) fn training(sizes: Architecture, kernel: Kernel) -> Result<Self, FusedError> {
        let Kernel::Fused(instructions) = kernel else { return Ok(Self::Plain) };
        Ok(Self::Training(DecoderTraining::new(shape(sizes), instructions)?))
    }

    /// For weights that only compute.
    pub(super) fn inference(weights: &Weights, kernel: Kernel) -> Result<Self, FusedError> {
        let Kernel::Fused(instructions) = kernel else { return Ok(Self::Plain) };
        let flat = weights.flat(&DECODER);
        let decoder = DecoderInference::new(shape(weights.architecture), &flat, instructions)?;
        Ok(Self::Inference(Arc::new(Answering { decoder, spare: Mutex::default() })))
    }
}

impl Answering {
    pub(super) fn quantiles(&self, whole: &[f32], batch: &Batch) -> Result<Vec<f32>, NetworkError> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = spare().pop();
        let mut workspace = kept.unwrap_or_else(|| self.decoder.workspace());
        let out = self.decoder.quantiles(whole, rows(batch, None), &mut workspace)?;
        spare().push(workspace);
        Ok(out)
    }
}

fn rows<'a>(batch: &'a Batch, masks: Option<&'a DropoutMasks>) -> DecoderRows<'a> {
    DecoderRows {
        steps: batch.steps,
        inputs: &batch.step_inputs,
        anchors: &batch.anchors,
        spreads: &batch.spreads,
        masks: masks.map(|masks| masks.decoder.as_slice()),
    }
}

/// What a batch should come to; plain numbers in the order (origin, step).
#[derive(Debug, Clone, Copy)]
pub struct Goals<'a> {
    /// Truth in z; where it is unknown a finite number, such as 0, with a weight of 0.
    pub targets: &'a [f32],
    /// How much each counts.
    pub weights: &'a [f32],
    /// The loss is a mean over so many (origin, step) pairs: losses of the parts of a batch add up.
    pub rows: usize,
}

impl Goals<'_> {
    /// Levels, and what they count in the mean.
    fn levels(&self) -> [(f32, f32); LEVELS] {
        let share = 1.0 / (self.rows.max(1) * LEVELS) as f32;
        TENSOR_LEVELS.map(|level| {
            let counts = if (0.09..0.91).contains(&level) { 1.0 } else { OUTER_WEIGHT };
            (level as f32, counts * share)
        })
    }

    fn check(&self, batch: &Batch) -> Result<(), NetworkError> {
        let want = batch.origins * batch.steps;
        let wrong = [("targets", self.targets), ("weights of targets", self.weights)].into_iter();
        let wrong = wrong.map(|(what, list)| (what, list.len())).find(|(_, got)| *got != want);
        wrong.map_or(Ok(()), |(what, got)| Err(NetworkError::Shape { what, want, got }))
    }
}

/// Weighted mean pinball loss of a batch in z; with `masks`, as during training.
///
/// # Errors
/// [`NetworkError`] if the inputs do not fit the network or the goals do not fit the inputs.
pub fn pinball_loss(
    weights: &WeightTensors,
    batch: &Batch,
    masks: Option<&DropoutMasks>,
    goals: Goals<'_>,
) -> Result<Tensor, NetworkError> {
    goals.check(batch)?;
    let Decoder::Training(decoder) = &weights.decoder else { return plain_loss(weights, batch, masks, goals) };
    batch.check()?;
    let whole = whole(weights, batch, masks)?;
    let parts =
        DECODER.iter().map(|name| Ok(weights.get(name)?.flatten_all()?)).collect::<Result<Vec<_>, NetworkError>>()?;
    let levels = goals.levels();
    let goals = DecoderGoals { targets: goals.targets, weights: goals.weights, levels: &levels };
    Ok(decoder.loss(&whole, &Tensor::cat(&parts, 0)?, rows(batch, masks), goals)?)
}

/// The same by operations of the tensor library: the reference.
fn plain_loss(
    weights: &WeightTensors,
    batch: &Batch,
    masks: Option<&DropoutMasks>,
    goals: Goals<'_>,
) -> Result<Tensor, NetworkError> {
    let n = goals.targets.len();
    let quantiles = forward(weights, batch, masks)?.quantiles;
    let targets = Tensor::from_slice(goals.targets, (n, 1), &Device::Cpu)?;
    let error = targets.broadcast_sub(&quantiles)?;
    // max(a e, (a - 1) e) = a e + max(-e, 0), times the weights of level and row.
    let levels = goals.levels();
    let grid = |f: &dyn Fn(f32, f32) -> f32| -> Result<Tensor, NetworkError> {
        let rows =
            goals.weights.iter().flat_map(|row| levels.iter().map(move |(level, counts)| row * f(*level, *counts)));
        Ok(Tensor::from_vec(rows.collect(), (n, LEVELS), &Device::Cpu)?)
    };
    let (plain, sloped) = (grid(&|_, counts| counts)?, grid(&|level, counts| level * counts)?);
    Ok(((&error * sloped)? + (error.neg()?.relu()? * plain)?)?.sum_all()?)
}

/// Quantiles of a batch by packed weights.
pub(super) fn packed_quantiles(answering: &Answering, whole: &Tensor, batch: &Batch) -> Result<Tensor, NetworkError> {
    let out = answering.quantiles(&values(whole)?, batch)?;
    Ok(Tensor::from_vec(out, (batch.origins * batch.steps, LEVELS), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::super::forward::random_batch;
    use super::*;
    use crate::features::PATCHES;
    use crate::fused::Instructions;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn distance(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let size = b.iter().map(|b| b.abs()).fold(1e-3, f32::max);
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |x, y| if y.is_nan() { f32::INFINITY } else { x.max(y) })
            / size
    }

    #[test]
    fn kernels_agree_on_loss_and_gradients() {
        for (sizes, origins, steps) in [
            (Architecture { patch_inputs: 9, encoder: 20, decoder: 64 }, 37, 13),
            (Architecture { patch_inputs: 9, encoder: 0, decoder: 64 }, 4, 24),
            (Architecture { patch_inputs: 9, encoder: 0, decoder: 41 }, 1, 1),
        ] {
            let mut rng = ChaCha8Rng::seed_from_u64(17);
            let weights = sizes.initial(&mut rng);
            let batch = random_batch(&mut rng, origins, steps, 2.0);
            let mut mask = |n: usize| -> Vec<f32> {
                (0..n).map(|_| if rng.random::<f32>() < 0.3 { 0.0 } else { 1.0 / 0.7 }).collect()
            };
            let patches = if sizes.encoder > 0 { mask(PATCHES * origins * sizes.encoder) } else { Vec::new() };
            let masks = DropoutMasks { patches, decoder: mask(origins * steps * sizes.decoder) };
            let targets: Vec<f32> = (0..origins * steps).map(|i| (i % 7) as f32 / 3.0 - 1.0).collect();
            let row_weights: Vec<f32> = (0..origins * steps).map(|i| ((i + 1) % 4) as f32 / 2.0).collect();
            let goals = Goals { targets: &targets, weights: &row_weights, rows: origins * steps };
            let run = |kernel| {
                let tensors = WeightTensors::trainable_on(&weights, kernel).unwrap();
                let loss = pinball_loss(&tensors, &batch, Some(&masks), goals).unwrap();
                let gradients = loss.backward().unwrap();
                let of = |tensor| values(gradients.get(tensor).unwrap()).unwrap();
                (loss.to_scalar::<f32>().unwrap(), tensors.tensors().map(of).collect::<Vec<_>>())
            };
            let (loss, gradients) = run(Kernel::Plain);
            for set in Instructions::available() {
                let (own, by) = run(Kernel::Fused(set));
                assert!((own - loss).abs() < 1e-5 * loss, "{}: {own} {loss}", set.name());
                for (parameter, (own, want)) in sizes.parameters().iter().zip(by.iter().zip(&gradients)) {
                    let far = distance(own, want);
                    assert!(far < 1e-5, "{} {}: {far}", set.name(), parameter.name);
                }
            }
        }
    }

    #[test]
    fn goals_that_do_not_fit_are_refused() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let weights = Architecture { patch_inputs: 9, encoder: 0, decoder: 8 }.initial(&mut rng);
        let batch = random_batch(&mut rng, 2, 2, 1.0);
        let tensors = WeightTensors::trainable(&weights).unwrap();
        let error = pinball_loss(&tensors, &batch, None, Goals { targets: &[0.0; 3], weights: &[1.0; 4], rows: 4 });
        assert_eq!(error.unwrap_err().to_string(), "targets should hold 4 numbers but holds 3");
    }
}
