//! Sizes of the network and the order of its parameters.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{TENSOR_LEVELS, Weights};
use crate::features::{ANCHORS, CALENDAR, Features, ORIGIN_INPUTS, ORIGIN_QUANTILES, SPREADS, STEP_INPUTS};

/// Sizes of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Values of one patch of the encoder.
    pub patch_inputs: usize,
    /// Width of a projected patch and of the LSTM; 0 leaves the encoder out.
    pub encoder: usize,
    /// Width of the decoder.
    pub decoder: usize,
}

/// One parameter tensor: its name and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Name within the network.
    pub name: &'static str,
    /// Rows (inputs) and columns (outputs); a bias has one row.
    pub shape: (usize, usize),
    start: Start,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Uniform within 1 / sqrt(inputs).
    Uniform(usize),
    /// Normal with deviation .02: the head begins near a plain mean of its anchors.
    Small,
    Constant(Bias),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bias {
    Zero,
    /// Forget gates begin open.
    Forget,
    /// Increments begin narrow.
    Increment,
}

const INCREMENT_BIAS: f32 = -1.2;

impl Parameter {
    /// How many numbers it holds.
    pub fn len(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Never true; here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Architecture {
    /// The network for features of this shape: encoder of 32 units, decoder of 64.
    pub fn new(features: &Features) -> Self {
        Self { patch_inputs: features.patch_inputs(), encoder: 32, decoder: 64 }
    }

    /// The same without the encoder.
    #[must_use]
    pub fn without_encoder(self) -> Self {
        Self { encoder: 0, ..self }
    }

    /// Everything that is wrong with the sizes; empty if they can be used.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=1024).contains(&self.decoder) {
            problems.push(format!("decoder must be 1 to 1024 units, not {}", self.decoder));
        }
        if self.encoder > 1024 {
            problems.push(format!("encoder must be 0 to 1024 units, not {}", self.encoder));
        }
        problems
    }

    /// The parameters in their fixed order.
    pub fn parameters(&self) -> Vec<Parameter> {
        let (e, d) = (self.encoder, self.decoder);
        let linear =
            |name, inputs, outputs| Parameter { name, shape: (inputs, outputs), start: Start::Uniform(inputs) };
        let bias = |name, n, start| Parameter { name, shape: (1, n), start: Start::Constant(start) };
        let head = |name, n| Parameter { name, shape: (d, n), start: Start::Small };
        let increments = TENSOR_LEVELS.len() - 1;
        let mut all = Vec::new();
        if e > 0 {
            all.push(linear("encoder.patch.weight", self.patch_inputs, e));
            all.push(bias("encoder.patch.bias", e, Bias::Zero));
            all.push(linear("encoder.lstm.input", e, 4 * e));
            all.push(linear("encoder.lstm.state", e, 4 * e));
            all.push(bias("encoder.lstm.bias", 4 * e, Bias::Forget));
            all.push(linear("encoder.out.weight", 2 * e, d));
        }
        all.push(linear("decoder.step.weight", STEP_INPUTS, d));
        all.push(linear("decoder.origin.weight", ORIGIN_INPUTS, d));
        all.push(bias("decoder.bias", d, Bias::Zero));
        all.push(linear("decoder.hidden.weight", d, d));
        all.push(bias("decoder.hidden.bias", d, Bias::Zero));
        all.push(head("head.anchors.weight", ANCHORS));
        all.push(bias("head.anchors.bias", ANCHORS, Bias::Zero));
        all.push(head("head.spreads.weight", SPREADS));
        all.push(bias("head.spreads.bias", SPREADS, Bias::Zero));
        all.push(head("head.offset.weight", 1));
        all.push(bias("head.offset.bias", 1, Bias::Zero));
        all.push(head("head.increments.weight", increments));
        all.push(bias("head.increments.bias", increments, Bias::Increment));
        all
    }

    /// How many numbers all parameters hold.
    pub fn size(&self) -> usize {
        self.parameters().iter().map(Parameter::len).sum()
    }

    /// Makes weights blind to the quantiles of the last day and week: a network that never sees them in training must not
    /// hear them later through weights that were never fitted. Training with hidden quantiles keeps it so.
    pub fn blind_to_quantiles(&self, weights: &mut Weights) {
        let mut from = 0;
        for parameter in self.parameters() {
            if parameter.name == "decoder.origin.weight" {
                let blind = ORIGIN_QUANTILES * parameter.shape.1;
                let rows = weights.values.get_mut(from + parameter.len() - blind..from + parameter.len());
                rows.into_iter().flatten().for_each(|w| *w = 0.0);
            }
            from += parameter.len();
        }
    }

    /// Makes weights blind to the time of the day and the week; training with hidden calendar keeps it so.
    pub fn blind_to_calendar(&self, weights: &mut Weights) {
        let mut from = 0;
        for parameter in self.parameters() {
            if parameter.name == "decoder.step.weight" {
                let columns = parameter.shape.1;
                let rows = weights.values.get_mut(from + CALENDAR.start * columns..from + CALENDAR.end * columns);
                rows.into_iter().flatten().for_each(|w| *w = 0.0);
            }
            from += parameter.len();
        }
    }

    /// Initial weights, drawn from the given generator and nothing else.
    pub fn initial(&self, rng: &mut ChaCha8Rng) -> Weights {
        let mut values = Vec::with_capacity(self.size());
        for parameter in self.parameters() {
            match parameter.start {
                Start::Uniform(inputs) => {
                    let bound = 1.0 / (inputs.max(1) as f32).sqrt();
                    values.extend((0..parameter.len()).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound));
                }
                Start::Small => values.extend((0..parameter.len()).map(|_| normal(rng) * 0.02)),
                Start::Constant(bias) => {
                    values.extend((0..parameter.len()).map(|i| constant(bias, i, parameter.len())))
                }
            }
        }
        Weights { architecture: *self, values }
    }
}

fn constant(bias: Bias, i: usize, n: usize) -> f32 {
    match bias {
        Bias::Zero => 0.0,
        // Gates lie in the order input, forget, cell, output.
        Bias::Forget => f32::from(u8::from((n / 4..n / 2).contains(&i))),
        Bias::Increment => INCREMENT_BIAS,
    }
}

/// A standard normal number by Box and Muller's way.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn same_seed_same_weights() {
        let full = Architecture { patch_inputs: 99, encoder: 32, decoder: 64 };
        let made = |seed| full.initial(&mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        assert_eq!(made(1).values.len(), full.size());
        assert!(made(1).values.iter().all(|v| v.is_finite()));
        assert!(full.without_encoder().size() < full.size());
        let mut blind = made(1);
        full.blind_to_quantiles(&mut blind);
        let zeroed = blind.values.iter().zip(&made(1).values).filter(|(a, b)| a != b).count();
        assert_eq!(zeroed, ORIGIN_QUANTILES * 64);
        assert_eq!(Architecture { decoder: 0, ..full }.problems().len(), 1);
    }
}
