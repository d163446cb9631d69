//! The encoder: days as patches, an LSTM over them, and the choice of what computes it.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::forward::matrix;
use super::operations::{gelu, lstm_cell, product, values};
use super::{Architecture, Batch, DropoutMasks, NetworkError, WeightTensors, Weights};
use crate::features::PATCHES;
use crate::fused::{
    FusedError, Instructions, LstmInference, LstmShape, LstmTraining, LstmWorkspace, SIMD_VARIABLE, dense,
};

/// What computes the network: LSTM, patch layer, decoder and loss. Results of different kernels agree to 1e-5; on one kernel they repeat bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// One step after the other by operations of the tensor library: the reference.
    Plain,
    /// LSTM stack, patch layer and decoder as one operation each.
    Fused(Instructions),
}

impl Kernel {
    /// Fused on the fastest instructions of this machine, unless `FORESHARD_SIMD` names others, or `plain`.
    ///
    /// # Errors
    /// [`FusedError::Instructions`] if it names what this machine does not have.
    pub fn chosen() -> Result<Self, FusedError> {
        match std::env::var(SIMD_VARIABLE) {
            Ok(name) if name == "plain" => Ok(Self::Plain),
            _ => Instructions::chosen().map(Self::Fused),
        }
    }

    /// Its name, for whoever has to repeat a result.
    pub fn name(self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Fused(instructions) => format!("fused {}", instructions.name()),
        }
    }
}

/// The LSTM of one network, ready to compute.
#[derive(Debug, Clone)]
pub(super) enum Lstm {
    Plain,
    Training(LstmTraining),
    Inference(Arc<Answering>),
}

/// Packed weights with the workspaces of the threads that use them.
#[derive(Debug)]
pub(super) struct Answering {
    stack: LstmInference,
    spare: Mutex<Vec<LstmWorkspace>>,
}

/// Names of the LSTM's parameters in the order of the fused kernel's flat list.
const LSTM: [&str; 3] = ["encoder.lstm.input", "encoder.lstm.state", "encoder.lstm.bias"];

fn shape(sizes: Architecture) -> LstmShape {
    LstmShape { inputs: sizes.encoder, units: sizes.encoder, layers: 1 }
}

impl Lstm {
    /// For weights that learn.
    pub(super) fn training(sizes: Architecture, kernel: Kernel) -> Result<Self, FusedError> {
        match kernel {
            Kernel::Fused(instructions) if sizes.encoder > 0 => {
                Ok(Self::Training(LstmTraining::new(shape(sizes), instructions, None)?))
            }
            _ => Ok(Self::Plain),
        }
    }

    /// For weights that only compute.
    pub(super) fn inference(weights: &Weights, kernel: Kernel) -> Result<Self, FusedError> {
        let sizes = weights.architecture;
        let Kernel::Fused(instructions) = kernel else { return Ok(Self::Plain) };
        if sizes.encoder == 0 {
            return Ok(Self::Plain);
        }
        let flat = weights.flat(&LSTM);
        let stack = LstmInference::new(shape(sizes), &flat, instructions)?;
        Ok(Self::Inference(Arc::new(Answering { stack, spare: Mutex::default() })))
    }
}

impl Answering {
    fn last_states(&self, inputs: &[f32], steps: usize, rows: usize) -> Result<Vec<f32>, NetworkError> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = spare().pop();
        let mut workspace = kept.unwrap_or_else(|| self.stack.workspace());
        let mut out = vec![0.0; rows * self.stack.shape().units];
        self.stack.last_states(inputs, steps, &mut out, &mut workspace)?;
        spare().push(workspace);
        Ok(out)
    }
}

/// Reads the days one after the other; the last state and the last patch go to the decoder.
pub(super) fn encode(
    weights: &WeightTensors,
    batch: &Batch,
    masks: Option<&DropoutMasks>,
) -> Result<Tensor, NetworkError> {
    let (units, days) = (weights.architecture.encoder, PATCHES);
    let last_day = days - 1;
    let masks = masks.map(|masks| masks.patches.as_slice());
    let (weight, bias) = ("encoder.patch.weight", "encoder.patch.bias");
    let patches = match weights.kernel {
        Kernel::Fused(instructions) => {
            let (inputs, masks) = (batch.patches.clone(), masks.map(<[f32]>::to_vec));
            dense(instructions, inputs, weights.get(weight)?, weights.get(bias)?, masks)?
        }
        Kernel::Plain => {
            let rows = days * batch.origins;
            let patches = gelu(&weights.linear(&matrix(&batch.patches, rows, batch.patch_inputs)?, weight, bias)?)?;
            match masks {
                Some(masks) => (patches * matrix(masks, rows, units)?)?,
                None => patches,
            }
        }
    };
    let hidden = match &weights.lstm {
        Lstm::Plain => step_by_step(weights, &patches, days, batch.origins)?,
        Lstm::Training(stack) => {
            let parts = LSTM.iter().map(|name| weights.get(name)).collect::<Result<Vec<_>, _>>()?;
            stack.last_states(&patches.reshape((days, batch.origins, units))?, &Tensor::cat(&parts, 0)?, None)?
        }
        Lstm::Inference(answering) => {
            let states = answering.last_states(&values(&patches)?, days, batch.origins)?;
            Tensor::from_vec(states, (batch.origins, units), &Device::Cpu)?
        }
    };
    let last = patches.narrow(0, last_day * batch.origins, batch.origins)?;
    Ok(product(&Tensor::cat(&[&hidden, &last], 1)?, weights.get("encoder.out.weight")?)?)
}

/// The reference: one product and one cell a day.
fn step_by_step(
    weights: &WeightTensors,
    patches: &Tensor,
    days: usize,
    origins: usize,
) -> Result<Tensor, NetworkError> {
    let units = weights.architecture.encoder;
    let zeros = || Tensor::zeros((origins, units), DType::F32, &Device::Cpu);
    let (mut hidden, mut cell) = (zeros()?, zeros()?);
    for day in 0..days {
        let patch = patches.narrow(0, day * origins, origins)?;
        let mut gates = weights.linear(&patch, "encoder.lstm.input", "encoder.lstm.bias")?;
        if day > 0 {
            gates = (gates + product(&hidden, weights.get("encoder.lstm.state")?)?)?;
        }
        let both = lstm_cell(&gates, &cell)?;
        (hidden, cell) = (both.narrow(1, 0, units)?, both.narrow(1, units, units)?);
    }
    Ok(hidden)
}

#[cfg(test)]
mod tests {
    use super::super::forward::{forward, random_batch};
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn close(a: &[f32], b: &[f32]) -> bool {
        let size = b.iter().map(|b| b.abs()).fold(1e-3, f32::max);
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * size)
    }

    #[test]
    fn kernels_agree_in_the_whole_network() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let sizes = Architecture { patch_inputs: 9, encoder: 20, decoder: 8 };
        let weights = sizes.initial(&mut rng);
        let batch = random_batch(&mut rng, 41, 3, 2.0);
        let mask = |n: usize| (0..n).map(|i| if i % 3 == 0 { 0.0 } else { 1.5 }).collect::<Vec<f32>>();
        let masks = DropoutMasks { patches: mask(PATCHES * 41 * 20), decoder: mask(41 * 3 * 8) };
        let run = |kernel| {
            let frozen = WeightTensors::frozen_on(&weights, kernel).unwrap();
            let answers = values(&forward(&frozen, &batch, None).unwrap().quantiles).unwrap();
            let trainable = WeightTensors::trainable_on(&weights, kernel).unwrap();
            let out = forward(&trainable, &batch, Some(&masks)).unwrap().quantiles;
            let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let of = |tensor| values(gradients.get(tensor).unwrap()).unwrap();
            (answers, values(&out).unwrap(), trainable.tensors().map(of).collect::<Vec<_>>())
        };
        let plain = run(Kernel::Plain);
        for set in Instructions::available() {
            let fused = run(Kernel::Fused(set));
            assert!(close(&fused.0, &plain.0) && close(&fused.1, &plain.1), "{}", set.name());
            for (parameter, (own, want)) in sizes.parameters().iter().zip(fused.2.iter().zip(&plain.2)) {
                assert!(close(own, want), "{} {}", set.name(), parameter.name);
            }
        }
    }
}
