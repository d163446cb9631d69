//! The kernel against differences, and against itself; `network::decoder` compares it with the tensor library.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::block::ROWS;
use super::inference::*;
use super::pack::{LEVELS, Matrices, Turned};
use super::training::Learning;
use super::*;
use crate::features::{ANCHORS, SPREADS};
use crate::fused::activation::{gelu, gelu_slope};
use crate::fused::simd::{Double, Vector, Work};
use crate::fused::{FusedError, Instructions};

/// Neither inputs nor units fill their tiles.
const ODD: DecoderShape = DecoderShape { inputs: 5, units: 7 };
const SHIPPED: DecoderShape = DecoderShape { inputs: 28, units: 64 };

struct Case {
    shape: DecoderShape,
    origins: usize,
    steps: usize,
    /// weights, whole, inputs, anchors, spreads, masks, targets, weights of the targets.
    lists: [Vec<f64>; 8],
}

impl Case {
    fn new(shape: DecoderShape, origins: usize, steps: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut fill = |n: usize, size: f64| (0..n).map(|_| (rng.random::<f64>() - 0.5) * size).collect::<Vec<_>>();
        let rows = origins * steps;
        let mut lists = [
            fill(shape.weights(), 3.0 / (shape.units as f64).sqrt()),
            fill(origins * shape.units, 2.0),
            fill(rows * shape.inputs, 2.0),
            fill(rows * ANCHORS, 2.0),
            fill(rows * SPREADS, 1.0),
            fill(rows * shape.units, 1.0),
            fill(rows, 3.0),
            fill(rows, 2.0),
        ];
        lists[4].iter_mut().for_each(|v| *v = v.abs());
        lists[5].iter_mut().for_each(|m| *m = if *m < -0.2 { 0.0 } else { 1.0 / 0.7 });
        lists[7].iter_mut().for_each(|w| *w = w.max(0.0));
        Self { shape, origins, steps, lists }
    }

    fn single(&self) -> [Vec<f32>; 8] {
        self.lists.clone().map(|list| list.into_iter().map(|v| v as f32).collect())
    }

    fn quantiles(&self, instructions: Instructions) -> Vec<f32> {
        let lists = self.single();
        let decoder = DecoderInference::new(self.shape, &lists[0], instructions).unwrap();
        let rows = DecoderRows { masks: None, ..rows(&lists, self.steps) };
        decoder.quantiles(&lists[1], rows, &mut decoder.workspace()).unwrap()
    }
}

fn rows<T>(lists: &[Vec<T>; 8], steps: usize) -> DecoderRows<'_, T> {
    DecoderRows { steps, inputs: &lists[2], anchors: &lists[3], spreads: &lists[4], masks: Some(&lists[5]) }
}

fn levels() -> [(f32, f32); LEVELS] {
    std::array::from_fn(|i| ((i as f32 + 0.5) / LEVELS as f32, if i == 0 { 0.5 } else { 1.0 }))
}

/// Loss, gradient of `whole`, gradient of the weights in double precision, on the same code.
fn double(case: &Case, lists: &[Vec<f64>; 8]) -> (f64, Vec<f64>, Vec<f64>) {
    let weights = Matrices::pack(case.shape, &lists[0]).unwrap();
    let levels = levels();
    let goals = DecoderGoals { targets: &lists[6], weights: &lists[7], levels: &levels };
    let (turned, rows) = (Turned::new(&weights), rows(lists, case.steps));
    let learning = Learning { shape: case.shape, weights: &weights, turned: &turned, whole: &lists[1], rows, goals };
    let mut done = learning.on::<Double>();
    (done.loss, done.by_whole, done.by_weights.flatten())
}

#[test]
fn gradients_agree_with_differences_in_double_precision() {
    // Two blocks, the second not full.
    let case = Case::new(ODD, 11, 5);
    assert!(case.origins * case.steps > ROWS);
    let (_, by_whole, by_weights) = double(&case, &case.lists);
    for (list, gradient) in [(1, by_whole), (0, by_weights)] {
        assert_eq!(gradient.len(), case.lists[list].len());
        for (i, got) in gradient.iter().enumerate().step_by(3) {
            let at = |d: f64| {
                let mut lists = case.lists.clone();
                lists[list][i] += d;
                double(&case, &lists).0
            };
            let want = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((got - want).abs() < 1e-6 * want.abs().max(1.0), "{list} {i}: {got}, differences say {want}");
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_and_in_a_batch() {
    for set in Instructions::available() {
        let case = Case::new(SHIPPED, 9, 13);
        let batch = case.quantiles(set);
        for origin in [0, 3, 8] {
            let mut alone = Case::new(SHIPPED, 9, 13);
            alone.origins = 1;
            for (list, each) in [(1, 64), (2, 13 * 28), (3, 13 * ANCHORS), (4, 13 * SPREADS)] {
                alone.lists[list] = case.lists[list][origin * each..(origin + 1) * each].to_vec();
            }
            let each = 13 * LEVELS;
            assert_eq!(alone.quantiles(set), batch[origin * each..(origin + 1) * each], "{origin}, {}", set.name());
        }
    }
}

#[test]
fn memory_that_was_used_before_never_shows() {
    let (large, small) = (Case::new(SHIPPED, 4, 40).single(), Case::new(SHIPPED, 1, 3).single());
    let decoder = DecoderInference::new(SHIPPED, &large[0], Instructions::chosen().unwrap()).unwrap();
    let mut workspace = decoder.workspace();
    let mut run = |lists: &[Vec<f32>; 8], steps| {
        decoder.quantiles(&lists[1], DecoderRows { masks: None, ..rows(lists, steps) }, &mut workspace).unwrap()
    };
    let fresh = run(&small, 3);
    run(&large, 40);
    assert_eq!(run(&small, 3), fresh);
}

#[test]
fn what_is_no_number_stays_so() {
    for set in Instructions::available() {
        let mut case = Case::new(SHIPPED, 2, 3);
        case.lists[2][0] = f64::NAN;
        let out = case.quantiles(set);
        assert!(
            out[..LEVELS].iter().all(|v| v.is_nan()) && out[LEVELS..].iter().all(|v| v.is_finite()),
            "{}",
            set.name()
        );
    }
}

#[test]
fn misfits_are_refused() {
    let lists = Case::new(SHIPPED, 2, 3).single();
    let set = Instructions::chosen().unwrap();
    let none = DecoderShape { units: 0, ..SHIPPED };
    assert!(matches!(DecoderInference::new(none, &[], set), Err(FusedError::DecoderSizes { .. })));
    let error = DecoderInference::new(SHIPPED, &lists[0][1..], set).unwrap_err();
    assert_eq!(error.to_string(), "weights of a decoder should hold 8357 numbers but holds 8356");
    let decoder = DecoderInference::new(SHIPPED, &lists[0], set).unwrap();
    let refused = |rows, what: &str| {
        let error = decoder.quantiles(&lists[1], rows, &mut decoder.workspace()).unwrap_err();
        assert!(error.to_string().starts_with(what), "{error}");
    };
    refused(rows(&lists, 4), "inputs of steps");
    refused(DecoderRows { anchors: &[], ..rows(&lists, 3) }, "anchors");
    refused(DecoderRows { spreads: &[], ..rows(&lists, 3) }, "spreads");
}

#[test]
fn functions_agree_with_the_library() {
    struct Functions(f32);
    impl Work<f32> for Functions {
        type Done = [f32; 3];
        #[inline(always)]
        fn on<V: Vector<Number = f32>>(self) -> [f32; 3] {
            let mut out = [0.0; 16];
            let x = V::constant(self.0);
            x.exp().write(&mut out, 0);
            let exp = out[0];
            x.exp().ln_1p().write(&mut out, 0);
            let tail = out[0];
            gelu_slope(x, gelu(x).0).write(&mut out, 0);
            [exp, tail, out[0]]
        }
    }
    for set in Instructions::available() {
        for i in 0..=870 {
            let x = -0.1 * i as f32;
            let [exp, tail, _] = set.run(Functions(x));
            let want = [f64::from(x).exp(), f64::from(x).exp().ln_1p()];
            for (got, want) in [exp, tail].into_iter().zip(want) {
                assert!((f64::from(got) - want).abs() <= 3e-7 * want + 1e-38, "{} {x}: {got} {want}", set.name());
            }
        }
        // Far out the slope is that of a straight line.
        for (x, want) in [(-1000.0, 0.0), (-50.0, 0.0), (-8.0, 0.0), (0.0, 0.5), (8.0, 1.0), (50.0, 1.0), (1000.0, 1.0)]
        {
            let [.., slope] = set.run(Functions(x));
            assert!((slope - want).abs() < 2e-5, "{} {x}: {slope}", set.name());
        }
        assert!(set.run(Functions(f32::NAN)).iter().all(|v| v.is_nan()), "{}", set.name());
    }
}
