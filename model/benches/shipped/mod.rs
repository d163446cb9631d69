//! The shipped network: its members as they are trained and served, on made-up features.

use std::sync::Arc;

use candle_core::Result;
use foreshard_domain::Product;
use foreshard_model::{
    Architecture, Batch, DropoutMasks, Features, ForecastSpec, Goals, Lanes, PATCHES, WeightTensors, Weights, forward,
    pinball_loss,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::network::numbers;

/// Steps that a training step looks at: a quarter of the next day's.
const TRAINED_STEPS: usize = 24;
/// Networks whose quantiles are averaged, as `TrainParams` has them.
const MEMBERS: u64 = 3;
/// Steps of the next day.
const STEPS: usize = 96;
/// Parts of a batch whose gradients are computed apart, as in training.
const PARTS: usize = 4;
/// Origins that go through the network together, as in serving.
const PIECE: usize = 16;

fn architecture() -> Architecture {
    Architecture::new(&Features::new(&ForecastSpec::of_product(Product::NextDay)))
}

fn batch(origins: usize, steps: usize, seed: u32) -> Batch {
    let sizes = architecture();
    let rows = origins * steps;
    // Sizes of the features, by the network's own parameters.
    let rows_of = |name: &str| sizes.parameters().iter().find(|p| p.name == name).expect("a parameter").shape;
    let spreads = rows_of("head.spreads.weight").1;
    Batch {
        origins,
        steps,
        patch_inputs: sizes.patch_inputs,
        step_inputs: numbers(rows * rows_of("decoder.step.weight").0, seed),
        origin_inputs: numbers(origins * rows_of("decoder.origin.weight").0, seed + 1),
        anchors: numbers(rows * rows_of("head.anchors.weight").1, seed + 2),
        spreads: numbers(rows * spreads, seed + 3).into_iter().map(f32::abs).collect(),
        patches: Arc::new(numbers(PATCHES * origins * sizes.patch_inputs, seed + 4)),
    }
}

struct Part {
    batch: Batch,
    masks: DropoutMasks,
    targets: Vec<f32>,
    weights: Vec<f32>,
}

/// The member with the LSTM in training, with one batch.
pub struct ShippedTraining {
    parts: Vec<Part>,
    lanes: Lanes,
    weights: Weights,
    moments: Vec<(f32, f32)>,
    rows: usize,
    step: i32,
}

impl ShippedTraining {
    /// Everything that a step needs.
    pub fn new(origins: usize, threads: usize) -> Self {
        let sizes = architecture();
        let weights = sizes.initial(&mut ChaCha8Rng::seed_from_u64(1));
        let part = |seed: u32| {
            let origins = origins.div_ceil(PARTS);
            let rows = origins * TRAINED_STEPS;
            let mask =
                |n: usize| numbers(n, seed).into_iter().map(|v| if v < -0.4 { 0.0 } else { 1.0 / 0.7 }).collect();
            Part {
                batch: batch(origins, TRAINED_STEPS, seed),
                masks: DropoutMasks {
                    patches: mask(PATCHES * origins * sizes.encoder),
                    decoder: mask(rows * sizes.decoder),
                },
                targets: numbers(rows, seed + 5),
                weights: vec![1.0; rows],
            }
        };
        Self {
            parts: (0..PARTS as u32).map(|i| part(10 * i)).collect(),
            lanes: Lanes::new(threads).expect("threads"),
            moments: vec![(0.0, 0.0); weights.values.len()],
            weights,
            rows: origins * TRAINED_STEPS,
            step: 0,
        }
    }

    /// Forward, loss, backward, AdamW; gives the loss.
    pub fn step(&mut self) -> Result<f32> {
        let (weights, rows) = (&self.weights, self.rows);
        let done = self.lanes.map(&self.parts, |_, part| {
            let tensors = WeightTensors::trainable(weights).expect("weights");
            let goals = Goals { targets: &part.targets, weights: &part.weights, rows };
            let loss = pinball_loss(&tensors, &part.batch, Some(&part.masks), goals).expect("a loss");
            let gradients = loss.backward()?;
            let mut flat = Vec::with_capacity(weights.values.len());
            for tensor in tensors.tensors() {
                flat.extend(gradients.get(tensor).expect("a gradient").flatten_all()?.to_vec1::<f32>()?);
            }
            Result::Ok((loss.to_scalar::<f32>()?, flat))
        });
        let mut loss = 0.0;
        let mut gradient = vec![0.0f32; self.weights.values.len()];
        for part in done {
            let (own, flat): (f32, Vec<f32>) = part?;
            loss += own;
            gradient.iter_mut().zip(flat).for_each(|(sum, g)| *sum += g);
        }
        self.step += 1;
        let (scale_1, scale_2) = (1.0 / (1.0 - 0.9f32.powi(self.step)), 1.0 / (1.0 - 0.999f32.powi(self.step)));
        for ((value, g), (m, v)) in self.weights.values.iter_mut().zip(gradient).zip(&mut self.moments) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *value = *value * (1.0 - 1e-5) - 1e-3 * (*m * scale_1) / ((*v * scale_2).sqrt() + 1e-8);
        }
        Ok(loss)
    }
}

/// All members, ready to answer.
pub struct ShippedInference {
    members: Vec<WeightTensors>,
    pieces: Vec<Batch>,
    lanes: Lanes,
}

impl ShippedInference {
    /// Everything that a call needs.
    pub fn new(origins: usize, threads: usize) -> Self {
        let member = |seed: u64| {
            let weights = architecture().initial(&mut ChaCha8Rng::seed_from_u64(seed));
            WeightTensors::frozen(&weights).expect("weights")
        };
        let piece = |first: usize| batch((origins - first).min(PIECE), STEPS, first as u32);
        Self {
            members: (1..=MEMBERS).map(member).collect(),
            pieces: (0..origins).step_by(PIECE).map(piece).collect(),
            lanes: Lanes::new(threads).expect("threads"),
        }
    }

    /// One call; gives a number of the result.
    pub fn call(&mut self) -> f32 {
        let done = self.lanes.map(&self.pieces, |_, piece| {
            let mut sums: Vec<f32> = Vec::new();
            for member in &self.members {
                let own = forward(member, piece, None).expect("a fitting batch").quantiles;
                let own = own.flatten_all().and_then(|q| q.to_vec1::<f32>()).expect("numbers");
                sums.resize(own.len(), 0.0);
                sums.iter_mut().zip(own).for_each(|(sum, q)| *sum += q / MEMBERS as f32);
            }
            sums
        });
        done.first().and_then(|piece| piece.first()).copied().unwrap_or_default()
    }
}
