//! The kernel against differences, against the tensor library, and against itself.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::backward::Backward;
use super::forward::{Chunk, Forward, Sequences, Tape};
use super::pack::{flatten, pack, pack_back};
use super::simd::{Double, Work};
use super::*;
use crate::Lanes;

const LONG: LstmShape = LstmShape { inputs: 12, units: 64, layers: 1 };
const SHIPPED: LstmShape = LstmShape { inputs: 32, units: 32, layers: 1 };
/// Neither units nor inputs fill their blocks.
const ODD: LstmShape = LstmShape { inputs: 5, units: 23, layers: 3 };

/// What goes into a pass, and the factors of the results in a loss.
struct Case {
    shape: LstmShape,
    steps: usize,
    rows: usize,
    inputs: Vec<f32>,
    weights: Vec<f32>,
    masks: Option<Vec<f32>>,
    factors: Vec<f32>,
}

impl Case {
    fn new(shape: LstmShape, steps: usize, rows: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut fill = |n: usize, size: f32| (0..n).map(|_| (rng.random::<f32>() - 0.5) * size).collect::<Vec<f32>>();
        let inputs = fill(steps * rows * shape.inputs, 2.0);
        let weights = fill(shape.weights(), 4.0 / (shape.units as f32).sqrt());
        let masks = fill((shape.layers - 1) * steps * rows * shape.units, 1.0);
        let masks = masks.into_iter().map(|m| if m < -0.2 { 0.0 } else { 1.0 / 0.7 }).collect();
        let factors = fill(rows * shape.units, 2.0);
        Self { shape, steps, rows, inputs, weights, masks: (shape.layers > 1).then_some(masks), factors }
    }

    /// Last states, gradient of the inputs, gradient of the weights.
    fn fused(&self, instructions: Instructions, threads: usize) -> [Vec<f32>; 3] {
        let lanes = (threads > 1).then(|| Arc::new(Lanes::new(threads).unwrap()));
        let stack = LstmTraining::new(self.shape, instructions, lanes).unwrap();
        let shape = (self.steps, self.rows, self.shape.inputs);
        let inputs = Var::from_slice(&self.inputs, shape, &Device::Cpu).unwrap();
        let weights = Var::from_slice(&self.weights, self.weights.len(), &Device::Cpu).unwrap();
        let out = stack.last_states(&inputs, &weights, self.masks.clone()).unwrap();
        let gradients = self.loss(&out).backward().unwrap();
        let of = |var: &Var| numbers(gradients.get(var).unwrap());
        [numbers(&out), of(&inputs), of(&weights)]
    }

    fn loss(&self, out: &Tensor) -> Tensor {
        let factors = Tensor::from_slice(&self.factors, out.shape(), &Device::Cpu).unwrap();
        (out * factors).unwrap().sum_all().unwrap()
    }

    /// The same by the tensor library's own operations and derivatives, one step after the other.
    fn plain(&self) -> [Vec<f32>; 3] {
        let (rows, units) = (self.rows, self.shape.units);
        let wide = rows * self.shape.inputs;
        let steps = self.inputs.chunks(wide);
        let inputs: Vec<Var> =
            steps.map(|s| Var::from_slice(s, (rows, self.shape.inputs), &Device::Cpu).unwrap()).collect();
        let weights = Var::from_slice(&self.weights, self.weights.len(), &Device::Cpu).unwrap();
        let mut below: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
        let mut from = 0;
        for layer in 0..self.shape.layers {
            let mut matrix = |n: usize| {
                let part = weights.narrow(0, from, n * 4 * units).unwrap().reshape((n, 4 * units)).unwrap();
                from += n * 4 * units;
                part
            };
            let wide = if layer == 0 { self.shape.inputs } else { units };
            let (of_inputs, of_state, bias) = (matrix(wide), matrix(units), matrix(1));
            let zeros = || Tensor::zeros((rows, units), candle_core::DType::F32, &Device::Cpu).unwrap();
            let (mut hidden, mut cell) = (zeros(), zeros());
            for (step, given) in below.iter_mut().enumerate() {
                let gates = (given.matmul(&of_inputs).unwrap() + hidden.matmul(&of_state).unwrap()).unwrap();
                let gates = gates.broadcast_add(&bias).unwrap();
                let gate = |k: usize| gates.narrow(1, k * units, units).unwrap();
                let sigmoid = |x: Tensor| (x.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap();
                let fresh = (sigmoid(gate(0)) * gate(2).tanh().unwrap()).unwrap();
                cell = ((sigmoid(gate(1)) * cell).unwrap() + fresh).unwrap();
                hidden = (sigmoid(gate(3)) * cell.tanh().unwrap()).unwrap();
                *given = hidden.clone();
                if let Some(masks) = self.masks.as_ref().filter(|_| layer + 1 < self.shape.layers) {
                    let at = (layer * self.steps + step) * rows * units;
                    let mask = Tensor::from_slice(&masks[at..at + rows * units], (rows, units), &Device::Cpu).unwrap();
                    *given = (&hidden * mask).unwrap();
                }
            }
        }
        let out = below.last().unwrap();
        let gradients = self.loss(out).backward().unwrap();
        let by_inputs = inputs.iter().flat_map(|v| numbers(gradients.get(v).unwrap())).collect();
        [numbers(out), by_inputs, numbers(gradients.get(&weights).unwrap())]
    }

    fn inference(&self, instructions: Instructions) -> Vec<f32> {
        let stack = LstmInference::new(self.shape, &self.weights, instructions).unwrap();
        let mut out = vec![0.0; self.rows * self.shape.units];
        stack.last_states(&self.inputs, self.steps, &mut out, &mut stack.workspace()).unwrap();
        out
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest distance in units of the largest number.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = |x: f32, y: f32| if y.is_nan() { f32::INFINITY } else { x.max(y) };
    let size = b.iter().map(|b| b.abs()).fold(0.0, largest);
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, largest) / size
}

fn best() -> Instructions {
    Instructions::available().pop().unwrap()
}

fn agree(what: &str, [out, by_inputs, by_weights]: &[Vec<f32>; 3], want: &[Vec<f32>; 3]) {
    let far = [distance(out, &want[0]), distance(by_inputs, &want[1]), distance(by_weights, &want[2])];
    assert!(far.iter().all(|d| *d < 1e-5), "{what}: states, inputs, weights are off by {far:?}");
}

#[test]
fn gradients_equal_those_of_the_tensor_library() {
    let two = |shape| LstmShape { layers: 2, ..shape };
    for (shape, steps, rows) in
        [(LONG, 288, 7), (two(LONG), 288, 3), (SHIPPED, 14, 75), (two(SHIPPED), 14, 33), (ODD, 9, 34), (ODD, 1, 1)]
    {
        let case = Case::new(shape, steps, rows);
        agree(&format!("{shape:?} x {steps} x {rows}"), &case.fused(best(), 1), &case.plain());
    }
}

#[test]
fn every_instruction_set_agrees_with_plain_numbers() {
    for (shape, steps, rows) in [(LONG, 40, 11), (SHIPPED, 14, 39), (ODD, 9, 35)] {
        let case = Case::new(shape, steps, rows);
        let scalar = case.fused(Instructions::named("scalar").unwrap(), 1);
        for set in Instructions::available() {
            agree(set.name(), &case.fused(set, 1), &scalar);
        }
    }
}

#[test]
fn f2_threads_never_change_a_bit() {
    for shape in [SHIPPED, ODD] {
        let case = Case::new(shape, 12, 101);
        let one = case.fused(best(), 1);
        for threads in [2, 3, 8] {
            assert_eq!(case.fused(best(), threads), one, "{threads} threads");
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_and_in_a_batch() {
    for set in Instructions::available() {
        let case = Case::new(ODD, 10, 53);
        let case = Case { masks: None, ..case };
        let batch = case.inference(set);
        assert_eq!(batch, case.fused(set, 1)[0], "inference and training, {}", set.name());
        for row in [0, 17, 52] {
            let wide = ODD.inputs;
            let own = |step: usize| case.inputs[(step * 53 + row) * wide..][..wide].to_vec();
            let inputs = (0..10).flat_map(own).collect();
            let single = Case { rows: 1, inputs, masks: None, weights: case.weights.clone(), ..Case::new(ODD, 10, 1) };
            assert_eq!(single.inference(set), batch[row * ODD.units..][..ODD.units], "row {row}, {}", set.name());
        }
    }
}

#[test]
fn inference_on_threads_gives_the_same_bits() {
    let case = Case::new(LONG, 20, 211);
    let stack = LstmInference::new(LONG, &case.weights, best()).unwrap();
    let one = case.inference(best());
    for threads in [1, 2, 7] {
        let lanes = Lanes::new(threads).unwrap();
        let mut workspaces: Vec<_> = (0..threads).map(|_| stack.workspace()).collect();
        // Twice in the same workspaces: nothing of a call may show in the next.
        for _ in 0..2 {
            let mut out = vec![f32::NAN; one.len()];
            stack.last_states_on(&lanes, &case.inputs, 20, &mut out, &mut workspaces).unwrap();
            assert_eq!(out, one, "{threads} threads");
        }
    }
}

/// Last states and gradients in double precision, on the same code.
fn double(case: &Case, inputs: &[f64], weights: &[f64], chunk: Chunk) -> (f64, Vec<f64>, Vec<f64>) {
    let shape = &case.shape;
    let masks: Option<Vec<f64>> = case.masks.as_ref().map(|m| m.iter().map(|m| f64::from(*m)).collect());
    let sequences = Sequences { inputs, masks: masks.as_deref(), steps: case.steps, rows: case.rows };
    let mut tape = Tape::new(shape, case.steps, chunk.rows, masks.is_some());
    let layers = pack(shape, weights).unwrap();
    Forward { shape, layers: &layers, sequences, chunk, tape: &mut tape }.on::<Double>();
    let own = chunk.first * shape.units..(chunk.first + chunk.rows) * shape.units;
    let by_last: Vec<f64> = case.factors[own].iter().map(|f| f64::from(*f)).collect();
    let hidden = &tape.layers.last().unwrap().hidden;
    let last = hidden[hidden.len() - chunk.rows * shape.width()..].chunks(shape.width());
    let loss = last.flat_map(|row| &row[..shape.units]).zip(&by_last).map(|(h, f)| h * f).sum();
    let back = pack_back(shape, weights).unwrap();
    let (tape, by_last) = (&mut tape, by_last.as_slice());
    let done = Backward { shape, back: &back, sequences, chunk, tape, by_last, learn_inputs: true }.on::<Double>();
    (loss, done.inputs, flatten(shape, &done.weights))
}

#[test]
fn gradients_agree_with_differences_in_double_precision() {
    for (shape, steps) in
        [(LstmShape { inputs: 3, units: 5, layers: 1 }, 11), (LstmShape { inputs: 2, units: 18, layers: 2 }, 4)]
    {
        let case = Case::new(shape, steps, 4);
        // Two rows in the midst of the batch.
        let chunk = Chunk { first: 1, rows: 2 };
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let (inputs, weights) = (wide(&case.inputs), wide(&case.weights));
        let (_, by_inputs, by_weights) = double(&case, &inputs, &weights, chunk);
        let check = |got: f64, at: &dyn Fn(f64) -> f64| {
            let want = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((got - want).abs() < 1e-8 * want.abs().max(1.0), "{shape:?}: {got}, differences say {want}");
        };
        for i in (0..weights.len()).step_by(if shape.layers > 1 { 29 } else { 1 }) {
            check(by_weights[i], &|d| {
                let mut weights = weights.clone();
                weights[i] += d;
                double(&case, &inputs, &weights, chunk).0
            });
        }
        for (i, got) in by_inputs.iter().enumerate() {
            let (step, rest) = (i / (2 * shape.inputs), i % (2 * shape.inputs));
            check(*got, &|d| {
                let mut inputs = inputs.clone();
                inputs[(step * 4 + 1) * shape.inputs + rest] += d;
                double(&case, &inputs, &weights, chunk).0
            });
        }
    }
}

#[test]
fn two_ways_forward_and_a_second_way_back_keep_apart() {
    let case = Case::new(SHIPPED, 6, 40);
    let stack = LstmTraining::new(SHIPPED, best(), None).unwrap();
    let inputs = Tensor::from_slice(&case.inputs, (6, 40, 32), &Device::Cpu).unwrap();
    let weights = Var::from_slice(&case.weights, case.weights.len(), &Device::Cpu).unwrap();
    let pass = |inputs: &Tensor| case.loss(&stack.last_states(inputs, &weights, None).unwrap());
    let back = |loss: &Tensor| numbers(loss.backward().unwrap().get(&weights).unwrap());
    let (first, second) = (pass(&inputs), pass(&(&inputs * 0.5).unwrap()));
    let (by_second, by_first) = (back(&second), back(&first));
    assert_ne!(by_first, by_second);
    assert_eq!(back(&first), by_first, "a second way back");
    assert_eq!(back(&pass(&inputs)), by_first, "in memory that was used before");
}

#[test]
fn what_is_no_number_stays_so() {
    for set in Instructions::available() {
        let mut case = Case::new(SHIPPED, 3, 2);
        case.inputs[0] = f32::NAN;
        let out = case.inference(set);
        assert!(out[..32].iter().all(|v| v.is_nan()) && out[32..].iter().all(|v| v.is_finite()), "{}", set.name());
    }
}

#[test]
fn misfits_are_refused() {
    let case = Case::new(SHIPPED, 3, 2);
    let sizes = LstmShape { layers: 0, ..SHIPPED };
    assert!(matches!(LstmInference::new(sizes, &[], best()), Err(FusedError::Sizes { .. })));
    let error = LstmInference::new(SHIPPED, &case.weights[1..], best()).unwrap_err();
    assert_eq!(error.to_string(), "weights of an LSTM should hold 8320 numbers but holds 8319");
    let stack = LstmInference::new(SHIPPED, &case.weights, best()).unwrap();
    let mut out = vec![0.0; 64];
    let other = LstmInference::new(LONG, &Case::new(LONG, 1, 1).weights, best()).unwrap();
    assert!(stack.last_states(&case.inputs, 3, &mut out, &mut other.workspace()).is_err());
    assert!(stack.last_states(&case.inputs, 4, &mut out, &mut stack.workspace()).is_err());
    let lanes = Lanes::new(1).unwrap();
    let none = stack.last_states_on(&lanes, &case.inputs, 3, &mut out, &mut []);
    assert!(matches!(none, Err(FusedError::NoWorkspace)));
    let training = LstmTraining::new(SHIPPED, best(), None).unwrap();
    let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    let (inputs, weights) = (tensor(&case.inputs, &[3, 2, 32]), tensor(&case.weights, &[8320]));
    assert!(training.last_states(&inputs, &weights.narrow(0, 0, 99).unwrap(), None).is_err());
    assert!(training.last_states(&inputs.reshape((3, 4, 16)).unwrap(), &weights, None).is_err());
    assert!(training.last_states(&inputs, &weights, Some(vec![1.0; 5])).is_err());
    let error = Instructions::named("sse9").unwrap_err();
    assert!(error.to_string().contains("FORESHARD_SIMD may be one of scalar"), "{error}");
}
