//! The whole stack as one operation of the tensor library.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::backward::{Backward, Gradients};
use super::forward::{Chunk, Forward, Sequences, Tape};
use super::pack::{Gates, flatten, pack, pack_back};
use super::shape::{LstmShape, expect_length};
use super::{FusedError, Instructions};
use crate::Lanes;
use crate::network::{slice, values};

/// Most rows of a chunk.
const ROWS: usize = 32;
/// Most tapes that are kept for the next pass.
const MOST_TAPES: usize = 64;

/// A stack of LSTM layers whose weights learn.
#[derive(Clone)]
pub struct LstmTraining {
    shape: LstmShape,
    instructions: Instructions,
    lanes: Option<Arc<Lanes>>,
    tapes: Arc<Tapes>,
}

impl std::fmt::Debug for LstmTraining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LstmTraining").field("shape", &self.shape).field("instructions", &self.instructions).finish()
    }
}

/// Tapes that no pass needs now. Fresh memory costs as much time as the arithmetic that fills it.
#[derive(Default)]
struct Tapes(Mutex<Vec<Tape<f32>>>);

impl Tapes {
    fn take(&self, shape: &LstmShape, steps: usize, rows: usize, masked: bool) -> Tape<f32> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().rposition(|tape| tape.fits(shape, steps, rows, masked));
        found.map(|at| kept.swap_remove(at)).unwrap_or_else(|| Tape::new(shape, steps, rows, masked))
    }

    fn put(&self, tapes: Vec<Tape<f32>>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(tapes);
        let over = kept.len().saturating_sub(MOST_TAPES);
        kept.drain(..over);
    }
}

impl LstmTraining {
    /// A stack that computes on these instructions, on the calling thread alone unless there are lanes. The number of
    /// threads never changes a bit of the result.
    ///
    /// # Errors
    /// [`FusedError::Sizes`] if the sizes are none of a network.
    pub fn new(
        shape: LstmShape,
        instructions: Instructions,
        lanes: Option<Arc<Lanes>>,
    ) -> std::result::Result<Self, FusedError> {
        shape.check()?;
        Ok(Self { shape, instructions, lanes, tapes: Arc::default() })
    }

    /// Last hidden states of the last layer, (rows, units), from inputs of (steps, rows, inputs) and a flat list of weights
    /// as [`LstmShape`] says. Between layers what one gives is multiplied by `masks`, (layers - 1, steps, rows, units).
    ///
    /// # Errors
    /// If the tensors are not f32 on the CPU or do not fit the sizes.
    pub fn last_states(&self, inputs: &Tensor, weights: &Tensor, masks: Option<Vec<f32>>) -> Result<Tensor> {
        let (steps, rows, _) = inputs.dims3()?;
        if let Some(masks) = &masks {
            let want = (self.shape.layers - 1) * steps * rows * self.shape.units;
            expect_length("masks of an LSTM", want, masks.len()).map_err(candle_core::Error::wrap)?;
        }
        let op = Stack {
            own: self.clone(),
            masks,
            learns: [inputs.track_op(), weights.track_op()],
            written: Mutex::new(Vec::new()),
        };
        inputs.contiguous()?.apply_op2(&weights.contiguous()?, op)
    }

    /// Runs through the chunks, on lanes if there are any; results in their order.
    fn each<T: Sync, R: Send>(&self, items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
        match &self.lanes {
            Some(lanes) => lanes.map(items, |_, item| f(item)),
            None => items.iter().map(f).collect(),
        }
    }
}

/// Equal chunks, one row more or less; they depend on nothing but the number of rows.
fn chunks(rows: usize) -> Vec<Chunk> {
    let count = rows.div_ceil(ROWS);
    (0..count)
        .map(|i| {
            let (first, end) = (i * rows / count, (i + 1) * rows / count);
            Chunk { first, rows: end - first }
        })
        .collect()
}

/// One pass. It is made for one way forward, so two of them before a way back cannot get in each other's way.
struct Stack {
    own: LstmTraining,
    masks: Option<Vec<f32>>,
    /// Whether gradients of inputs and weights can be asked for.
    learns: [bool; 2],
    /// Tapes of the way forward, one a chunk, until the way back takes them.
    written: Mutex<Vec<Tape<f32>>>,
}

impl Drop for Stack {
    fn drop(&mut self) {
        let written = self.written.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.own.tapes.put(std::mem::take(written));
    }
}

impl Stack {
    fn sequences<'a>(&'a self, inputs: &'a [f32], (steps, rows): (usize, usize)) -> Result<Sequences<'a, f32>> {
        let want = steps * rows * self.own.shape.inputs;
        expect_length("inputs of an LSTM", want, inputs.len()).map_err(candle_core::Error::wrap)?;
        Ok(Sequences { inputs, masks: self.masks.as_deref(), steps, rows })
    }

    /// The way forward of all chunks, in their order.
    fn write(&self, sequences: Sequences<'_, f32>, weights: &[f32]) -> Result<Vec<Tape<f32>>> {
        let shape = &self.own.shape;
        let layers = pack(shape, weights).map_err(candle_core::Error::wrap)?;
        Ok(self.own.each(&chunks(sequences.rows), |chunk| {
            let mut tape = self.own.tapes.take(shape, sequences.steps, chunk.rows, self.masks.is_some());
            let forward = Forward { shape, layers: &layers, sequences, chunk: *chunk, tape: &mut tape };
            self.own.instructions.run(forward);
            tape
        }))
    }

    /// Gradients of inputs (if wanted) and weights, from those of the last states.
    fn read_back(
        &self,
        sequences: Sequences<'_, f32>,
        weights: &[f32],
        by_last: &[f32],
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let (shape, learn_inputs) = (&self.own.shape, self.learns[0]);
        let written = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        // A second way back through the same pass finds its tapes used up.
        let written = if written.is_empty() { self.write(sequences, weights)? } else { written };
        let back = pack_back(shape, weights).map_err(candle_core::Error::wrap)?;
        let parts: Vec<_> =
            chunks(sequences.rows).into_iter().zip(written).map(|(c, tape)| (c, Mutex::new(tape))).collect();
        let done = self.own.each(&parts, |(chunk, tape)| {
            let mut tape = tape.lock().unwrap_or_else(PoisonError::into_inner);
            let from = chunk.first * shape.units;
            let by_last = &by_last[from..from + chunk.rows * shape.units];
            let (tape, chunk) = (&mut *tape, *chunk);
            self.own.instructions.run(Backward { shape, back: &back, sequences, chunk, tape, by_last, learn_inputs })
        });
        let mut by_inputs = vec![0.0f32; if learn_inputs { sequences.inputs.len() } else { 0 }];
        let mut sums: Vec<Gates<f32>> = (0..shape.layers).map(|layer| Gates::zeros(shape, layer)).collect();
        for ((chunk, _), Gradients { weights, inputs }) in parts.iter().zip(done) {
            sums.iter_mut().zip(&weights).for_each(|(sum, own)| sum.add(own));
            if learn_inputs {
                let wide = shape.inputs;
                let steps = by_inputs.chunks_exact_mut(sequences.rows * wide);
                for (to, from) in steps.zip(inputs.chunks_exact(chunk.rows * wide)) {
                    to[chunk.first * wide..(chunk.first + chunk.rows) * wide].copy_from_slice(from);
                }
            }
        }
        let used = parts.into_iter().map(|(_, tape)| tape.into_inner().unwrap_or_else(PoisonError::into_inner));
        self.own.tapes.put(used.collect());
        Ok((by_inputs, flatten(shape, &sums)))
    }
}

impl CustomOp2 for Stack {
    fn name(&self) -> &'static str {
        "lstm-stack"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (steps, rows, _) = inputs_layout.shape().dims3()?;
        let sequences = self.sequences(slice(inputs, inputs_layout)?, (steps, rows))?;
        let written = self.write(sequences, slice(weights, weights_layout)?)?;
        let (units, width) = (self.own.shape.units, self.own.shape.width());
        let mut out = Vec::with_capacity(rows * units);
        for tape in &written {
            let all = tape.layers.last().map_or(&[][..], |layer| &layer.hidden);
            let last = &all[all.len() - tape.rows * width..];
            out.extend(last.chunks_exact(width).flat_map(|state| &state[..units]));
        }
        if self.learns == [false, false] {
            self.own.tapes.put(written);
        } else {
            *self.written.lock().unwrap_or_else(PoisonError::into_inner) = written;
        }
        Ok((CpuStorage::F32(out), (rows, units).into()))
    }

    fn bwd(
        &self,
        inputs: &Tensor,
        weights: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (steps, rows, wide) = inputs.dims3()?;
        let (numbers, flat, gradient) = (values(inputs)?, values(weights)?, values(gradient)?);
        let (by_inputs, by_weights) = self.read_back(self.sequences(&numbers, (steps, rows))?, &flat, &gradient)?;
        let by_inputs =
            if self.learns[0] { Some(Tensor::from_vec(by_inputs, (steps, rows, wide), &Device::Cpu)?) } else { None };
        Ok((by_inputs, Some(Tensor::from_vec(by_weights, weights.shape(), &Device::Cpu)?)))
    }
}
