//! The network that the benchmarks and their rivals compute: LSTM layers, a linear head of 9 quantiles x 48 steps on the
//! last state, pinball loss, AdamW.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use foreshard_model::{Instructions, Lanes, LstmInference, LstmShape, LstmTraining, LstmWorkspace};

/// Steps of a window: a day in 5 minutes.
pub const STEPS: usize = 288;
/// Inputs of a step.
pub const INPUTS: usize = 12;
/// Units of a layer.
pub const UNITS: usize = 64;
const LEVELS: [f32; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
const TARGETS: usize = 48;

/// Numbers between -1 and 1 that need no generator.
pub fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn shape(layers: usize) -> LstmShape {
    LstmShape { inputs: INPUTS, units: UNITS, layers }
}

fn weights(layers: usize) -> Vec<f32> {
    numbers(shape(layers).weights(), 1).into_iter().map(|w| w / (UNITS as f32).sqrt()).collect()
}

/// A network in training with one batch.
pub struct Training {
    stack: LstmTraining,
    inputs: Tensor,
    targets: Tensor,
    levels: Tensor,
    parameters: Vec<Parameter>,
    step: i32,
}

struct Parameter {
    var: Var,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Training {
    /// Everything that a step needs.
    pub fn new(layers: usize, batch: usize, threads: usize) -> Self {
        let cpu = &Device::Cpu;
        let lanes = (threads > 1).then(|| Arc::new(Lanes::new(threads).expect("threads")));
        let stack = LstmTraining::new(shape(layers), Instructions::chosen().expect("instructions"), lanes);
        let tensor = |n: usize, shape: (usize, usize), seed| Tensor::from_vec(numbers(n, seed), shape, cpu);
        let var = |values: Vec<f32>, shape: (usize, usize)| {
            let n = values.len();
            let var = Var::from_vec(values, shape, cpu).expect("a tensor");
            Parameter { var, first: vec![0.0; n], second: vec![0.0; n] }
        };
        let outputs = LEVELS.len() * TARGETS;
        let head = numbers(UNITS * outputs, 2).into_iter().map(|w| w / 8.0).collect();
        let parameters = vec![
            var(weights(layers), (1, shape(layers).weights())),
            var(head, (UNITS, outputs)),
            var(vec![0.0; outputs], (1, outputs)),
        ];
        let inputs = Tensor::from_vec(numbers(STEPS * batch * INPUTS, 3), (STEPS, batch, INPUTS), cpu);
        Self {
            stack: stack.expect("sizes"),
            inputs: inputs.expect("a tensor"),
            targets: tensor(batch * TARGETS, (batch, TARGETS), 4)
                .and_then(|t| t.reshape((batch, 1, TARGETS)))
                .expect("a tensor"),
            levels: Tensor::from_slice(&LEVELS, (1, LEVELS.len(), 1), cpu).expect("a tensor"),
            parameters,
            step: 0,
        }
    }

    /// Forward, loss, backward, AdamW; gives the loss.
    pub fn step(&mut self) -> Result<f32> {
        let [lstm, head, bias] = [0, 1, 2].map(|i| self.parameters[i].var.as_tensor());
        let last = self.stack.last_states(&self.inputs, lstm, None)?;
        let out = last.matmul(head)?.broadcast_add(bias)?;
        let out = out.reshape((last.dim(0)?, LEVELS.len(), TARGETS))?;
        let error = self.targets.broadcast_sub(&out)?;
        let loss = (error.broadcast_mul(&self.levels)? + error.neg()?.relu()?)?.mean_all()?;
        let gradients = loss.backward()?;
        self.step += 1;
        let (scale_1, scale_2) = (1.0 / (1.0 - 0.9f32.powi(self.step)), 1.0 / (1.0 - 0.999f32.powi(self.step)));
        for Parameter { var, first, second } in &mut self.parameters {
            let Some(gradient) = gradients.get(var.as_tensor()) else { continue };
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            let mut values = var.flatten_all()?.to_vec1::<f32>()?;
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((value, g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                *value = *value * (1.0 - 1e-5) - 1e-3 * (*m * scale_1) / ((*v * scale_2).sqrt() + 1e-8);
            }
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
        }
        loss.to_scalar()
    }
}

/// A network that answers, with one batch.
pub struct Inference {
    stack: LstmInference,
    workspaces: Vec<LstmWorkspace>,
    lanes: Lanes,
    inputs: Vec<f32>,
    states: Vec<f32>,
    head: Vec<f32>,
    out: Vec<f32>,
}

impl Inference {
    /// Everything that a call needs.
    pub fn new(layers: usize, batch: usize, threads: usize) -> Self {
        let instructions = Instructions::chosen().expect("instructions");
        let stack = LstmInference::new(shape(layers), &weights(layers), instructions).expect("sizes");
        let outputs = LEVELS.len() * TARGETS;
        Self {
            workspaces: (0..threads).map(|_| stack.workspace()).collect(),
            lanes: Lanes::new(threads).expect("threads"),
            inputs: numbers(STEPS * batch * INPUTS, 3),
            states: vec![0.0; batch * UNITS],
            head: numbers(UNITS * outputs, 2),
            out: vec![0.0; batch * outputs],
            stack,
        }
    }

    /// One call; gives a number of the result.
    pub fn call(&mut self) -> f32 {
        let Self { stack, workspaces, lanes, inputs, states, head, out } = self;
        let done = match workspaces.as_mut_slice() {
            [one] => stack.last_states(inputs, STEPS, states, one),
            many => stack.last_states_on(lanes, inputs, STEPS, states, many),
        };
        done.expect("a fitting call");
        let outputs = LEVELS.len() * TARGETS;
        out.fill(0.0);
        for (out, state) in out.chunks_exact_mut(outputs).zip(states.chunks_exact(UNITS)) {
            for (row, x) in head.chunks_exact(outputs).zip(state) {
                out.iter_mut().zip(row).for_each(|(sum, w)| *sum += w * x);
            }
        }
        out[0]
    }
}
