//! Last states without gradients: weights packed once, no memory asked for while computing.

use std::sync::Mutex;

use super::forward::{After, State, step};
use super::pack::{Gates, pack};
use super::shape::{Aligned, LstmShape, PANEL, expect_length};
use super::simd::{Left, MOST_ROWS, Vector, Work};
use super::{FusedError, Instructions};
use crate::Lanes;

/// Rows that go through all steps together: their states stay in the nearest cache.
const ROWS: usize = 48;

/// A stack of LSTM layers that only computes.
pub struct LstmInference {
    shape: LstmShape,
    layers: Vec<Gates<f32>>,
    instructions: Instructions,
}

impl std::fmt::Debug for LstmInference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LstmInference").field("shape", &self.shape).field("instructions", &self.instructions).finish()
    }
}

/// Memory that one thread computes in; made once, used for any number of calls with the stack that made it.
#[derive(Debug)]
pub struct LstmWorkspace {
    /// For each layer two turns of hidden states, then two of cells.
    layers: Vec<[Aligned<f32>; 4]>,
    gates: Aligned<f32>,
}

impl LstmInference {
    /// Packs weights, which lie as [`LstmShape`] says.
    ///
    /// # Errors
    /// [`FusedError`] if the sizes are none of a network or the weights do not fit them.
    pub fn new(shape: LstmShape, weights: &[f32], instructions: Instructions) -> Result<Self, FusedError> {
        Ok(Self { shape, layers: pack(&shape, weights)?, instructions })
    }

    /// The sizes.
    pub fn shape(&self) -> LstmShape {
        self.shape
    }

    /// Memory for one thread.
    pub fn workspace(&self) -> LstmWorkspace {
        let state = || Aligned::zeros(ROWS * self.shape.width());
        let layers = (0..self.shape.layers).map(|_| [state(), state(), state(), state()]).collect();
        LstmWorkspace { layers, gates: Aligned::zeros(MOST_ROWS * PANEL) }
    }

    /// Last hidden states of the last layer, (rows, units), from inputs of (steps, rows, inputs), on the calling thread.
    ///
    /// A row's result has the same bits in whatever batch it comes.
    ///
    /// # Errors
    /// [`FusedError::Length`] if a list or the workspace does not fit.
    pub fn last_states(
        &self,
        inputs: &[f32],
        steps: usize,
        out: &mut [f32],
        workspace: &mut LstmWorkspace,
    ) -> Result<(), FusedError> {
        let rows = self.check(inputs, steps, out)?;
        self.check_workspace(workspace)?;
        self.range(inputs, steps, (0, rows), out, workspace);
        Ok(())
    }

    /// The same on several threads, at most one for each workspace.
    ///
    /// # Errors
    /// [`FusedError::Length`] if a list or a workspace does not fit, [`FusedError::NoWorkspace`] if there is none.
    pub fn last_states_on(
        &self,
        lanes: &Lanes,
        inputs: &[f32],
        steps: usize,
        out: &mut [f32],
        workspaces: &mut [LstmWorkspace],
    ) -> Result<(), FusedError> {
        let rows = self.check(inputs, steps, out)?;
        workspaces.iter().try_for_each(|workspace| self.check_workspace(workspace))?;
        let threads = workspaces.len().min(lanes.threads());
        if threads == 0 {
            return Err(FusedError::NoWorkspace);
        }
        // Equal shares of whole tiles, so that no thread waits for another.
        let share = rows.div_ceil(threads).next_multiple_of(MOST_ROWS).max(MOST_ROWS);
        let parts = out.chunks_mut(share * self.shape.units).zip(workspaces).enumerate();
        let parts: Vec<_> = parts.map(|(part, own)| (part * share, Mutex::new(own))).collect();
        lanes.map(&parts, |_, (first, own)| {
            // Nobody else has this part; a lock that was poisoned has no meaning here.
            let mut own = own.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (out, workspace) = &mut *own;
            let until = first + out.len() / self.shape.units;
            self.range(inputs, steps, (*first, until), out, workspace);
        });
        Ok(())
    }

    /// The number of rows, if inputs and results fit each other.
    fn check(&self, inputs: &[f32], steps: usize, out: &[f32]) -> Result<usize, FusedError> {
        let rows = out.len() / self.shape.units;
        expect_length("last states of an LSTM", rows * self.shape.units, out.len())?;
        expect_length("inputs of an LSTM", steps * rows * self.shape.inputs, inputs.len())?;
        Ok(rows)
    }

    fn check_workspace(&self, workspace: &LstmWorkspace) -> Result<(), FusedError> {
        expect_length("layers of a workspace", self.shape.layers, workspace.layers.len())?;
        let size = workspace.layers.first().map_or(0, |[hidden, ..]| hidden.len());
        expect_length("states of a workspace", ROWS * self.shape.width(), size)
    }

    /// Rows `first..until` of a batch; `out` holds these rows only.
    fn range(
        &self,
        inputs: &[f32],
        steps: usize,
        (first, until): (usize, usize),
        out: &mut [f32],
        workspace: &mut LstmWorkspace,
    ) {
        let batch = if steps == 0 { 0 } else { inputs.len() / (steps * self.shape.inputs) };
        for (chunk, out) in out.chunks_mut(ROWS * self.shape.units).enumerate() {
            let from = first + chunk * ROWS;
            let rows = (until - from).min(ROWS);
            self.instructions.run(Chunk { stack: self, inputs, steps, batch, from, rows, out, workspace });
        }
    }
}

/// Some rows through all steps, layers in lock step.
struct Chunk<'a> {
    stack: &'a LstmInference,
    inputs: &'a [f32],
    steps: usize,
    batch: usize,
    from: usize,
    rows: usize,
    out: &'a mut [f32],
    workspace: &'a mut LstmWorkspace,
}

impl Work<f32> for Chunk<'_> {
    type Done = ();

    #[inline(always)]
    fn on<V: Vector<Number = f32>>(self) {
        let Self { stack, inputs, steps, batch, from, rows, out, workspace } = self;
        let (wide, width) = (stack.shape.inputs, stack.shape.width());
        let LstmWorkspace { layers, gates } = workspace;
        for step_number in 0..steps {
            let at = (step_number * batch + from) * wide;
            for (number, layer) in stack.layers.iter().enumerate() {
                let (below, own) = layers.split_at_mut(number);
                let Some(own) = own.first_mut() else { continue };
                let [a, b, c, d] = own;
                let even = step_number % 2 == 0;
                let (hidden, cells, hidden_before, cells_before) = if even { (a, c, b, d) } else { (b, d, a, c) };
                let inputs = match below.last() {
                    Some([a, b, ..]) => Left { from: if even { a } else { b }, row: width, depth: 1 },
                    None => Left { from: &inputs[at..at + rows * wide], row: wide, depth: 1 },
                };
                let before = (step_number > 0).then_some(State { hidden: hidden_before, cells: cells_before });
                step::<V, false>(layer, rows, inputs, before, &mut After { hidden, cells, gates });
            }
        }
        let last = layers.last().map(|[a, b, ..]| if steps % 2 == 1 { a } else { b });
        match last {
            Some(last) if steps > 0 => {
                for (out, state) in out.chunks_exact_mut(stack.shape.units).zip(last.chunks_exact(width)) {
                    out.copy_from_slice(&state[..stack.shape.units]);
                }
            }
            _ => out.fill(0.0),
        }
    }
}
