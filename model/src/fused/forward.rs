//! One step of one layer for some rows, and whole sequences while every step is written down.

use super::pack::Gates;
use super::shape::{Aligned, BLOCK, LstmShape, PANEL};
use super::simd::{Left, Number, Right, Vector, Work, multiply_add};

/// Hidden states and cells of some rows, [`LstmShape::width`] numbers each.
#[derive(Clone, Copy)]
pub(super) struct State<'a, T> {
    pub hidden: &'a [T],
    pub cells: &'a [T],
}

/// Where a step puts its results.
pub(super) struct After<'a, T> {
    pub hidden: &'a mut [T],
    pub cells: &'a mut [T],
    /// With `KEEP` all gates of all rows; else room for one panel of a tile's rows.
    pub gates: &'a mut [T],
}

/// One step of a layer: gates from inputs and the state before (none: zeros), then the new state. With `KEEP` the gates
/// stay behind in packed order.
#[inline(always)]
pub(super) fn step<V: Vector, const KEEP: bool>(
    layer: &Gates<V::Number>,
    rows: usize,
    inputs: Left<'_, V::Number>,
    before: Option<State<'_, V::Number>>,
    after: &mut After<'_, V::Number>,
) {
    let blocks = layer.units.div_ceil(BLOCK);
    for block in 0..blocks {
        let tile = Tile { layer, block, blocks, inputs, before };
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(V::ROWS);
            match count {
                6 => tile.raw::<V, KEEP, 6>(row, after.gates),
                5 => tile.raw::<V, KEEP, 5>(row, after.gates),
                4 => tile.raw::<V, KEEP, 4>(row, after.gates),
                3 => tile.raw::<V, KEEP, 3>(row, after.gates),
                2 => tile.raw::<V, KEEP, 2>(row, after.gates),
                _ => tile.raw::<V, KEEP, 1>(row, after.gates),
            }
            for r in row..row + count {
                tile.activate::<V, KEEP>(r, row, after);
            }
            row += count;
        }
    }
}

struct Tile<'a, T> {
    layer: &'a Gates<T>,
    block: usize,
    blocks: usize,
    inputs: Left<'a, T>,
    before: Option<State<'a, T>>,
}

impl<T: Number> Tile<'_, T> {
    /// Where the gates of a row lie; `first` is the first row of the tile.
    #[inline(always)]
    fn gates_at<const KEEP: bool>(&self, row: usize, first: usize) -> usize {
        if KEEP { (row * self.blocks + self.block) * PANEL } else { (row - first) * PANEL }
    }

    /// Gates of R rows before their activation.
    #[inline(always)]
    fn raw<V: Vector<Number = T>, const KEEP: bool, const R: usize>(&self, row: usize, gates: &mut [T]) {
        let mut column = 0;
        while column < PANEL {
            // Four sums of a single row would wait for each other; where vectors are narrow there are registers for more.
            if R == 1 && V::WIDTH < BLOCK {
                self.tile::<V, KEEP, R, 8>(row, column, gates);
                column += 8 * V::WIDTH;
            } else {
                self.tile::<V, KEEP, R, 4>(row, column, gates);
                column += 4 * V::WIDTH;
            }
        }
    }

    /// C vectors of the panel: bias + inputs W + state U, in registers from the first to the last term.
    #[inline(always)]
    fn tile<V: Vector<Number = T>, const KEEP: bool, const R: usize, const C: usize>(
        &self,
        row: usize,
        column: usize,
        gates: &mut [T],
    ) {
        let (n, units, width) = (self.layer.inputs, self.layer.units, self.blocks * BLOCK);
        let (of_inputs, rest) = self.layer.panel(self.block).split_at(n * PANEL);
        let (of_state, bias) = rest.split_at(units * PANEL);
        let right = |from| Right { from, depth: PANEL };
        let mut sums = [[V::splat(T::default()); C]; R];
        for sums in &mut sums {
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum = V::read(bias, column + c * V::WIDTH);
            }
        }
        let left = Left { from: &self.inputs.from[row * self.inputs.row..], ..self.inputs };
        sums = multiply_add(sums, n, left, right(&of_inputs[column..]));
        if let Some(before) = self.before {
            let left = Left { from: &before.hidden[row * width..], row: width, depth: 1 };
            sums = multiply_add(sums, units, left, right(&of_state[column..]));
        }
        for (r, sums) in sums.iter().enumerate() {
            let at = self.gates_at::<KEEP>(row + r, row) + column;
            for (c, sum) in sums.iter().enumerate() {
                sum.write(gates, at + c * V::WIDTH);
            }
        }
    }

    /// Activations and the new state of one row.
    #[inline(always)]
    fn activate<V: Vector<Number = T>, const KEEP: bool>(&self, row: usize, first: usize, after: &mut After<'_, T>) {
        let at = self.gates_at::<KEEP>(row, first);
        let gates = &mut after.gates[at..at + PANEL];
        let from = (row * self.blocks + self.block) * BLOCK;
        let mut lane = 0;
        while lane < BLOCK {
            let input = V::read(gates, lane).sigmoid();
            let forget = V::read(gates, BLOCK + lane).sigmoid();
            let candidate = V::read(gates, 2 * BLOCK + lane).tanh();
            let output = V::read(gates, 3 * BLOCK + lane).sigmoid();
            let fresh = input.mul(candidate);
            let cell = match self.before {
                Some(before) => forget.mul_add(V::read(before.cells, from + lane), fresh),
                None => fresh,
            };
            cell.write(after.cells, from + lane);
            output.mul(cell.tanh()).write(after.hidden, from + lane);
            if KEEP {
                input.write(gates, lane);
                forget.write(gates, BLOCK + lane);
                candidate.write(gates, 2 * BLOCK + lane);
                output.write(gates, 3 * BLOCK + lane);
            }
            lane += V::WIDTH;
        }
    }
}

/// A whole batch: inputs of (steps, rows, inputs) and, between layers, masks of (layers - 1, steps, rows, units).
#[derive(Clone, Copy)]
pub(super) struct Sequences<'a, T> {
    pub inputs: &'a [T],
    pub masks: Option<&'a [T]>,
    pub steps: usize,
    /// Rows of the batch.
    pub rows: usize,
}

/// Some rows of a batch that are worked on together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub first: usize,
    pub rows: usize,
}

impl<T: Number> Sequences<'_, T> {
    /// Inputs of a chunk at a step.
    #[inline(always)]
    pub(super) fn at(&self, shape: &LstmShape, chunk: Chunk, step: usize) -> &[T] {
        let from = (step * self.rows + chunk.first) * shape.inputs;
        &self.inputs[from..from + chunk.rows * shape.inputs]
    }

    /// Masks of what a layer gives to the next, for a chunk at a step.
    #[inline(always)]
    pub(super) fn mask(&self, shape: &LstmShape, layer: usize, chunk: Chunk, step: usize) -> Option<&[T]> {
        let from = ((layer * self.steps + step) * self.rows + chunk.first) * shape.units;
        self.masks.map(|masks| &masks[from..from + chunk.rows * shape.units])
    }
}

/// Everything that the way back needs to know of a chunk's way forward.
pub(super) struct Tape<T> {
    pub(super) rows: usize,
    pub(super) steps: usize,
    pub(super) layers: Vec<LayerTape<T>>,
}

/// One layer's part: (steps, rows, ...) each.
pub(super) struct LayerTape<T> {
    /// Activated gates; on the way back their gradients take their place.
    pub gates: Aligned<T>,
    pub hidden: Aligned<T>,
    pub cells: Aligned<T>,
    /// What the next layer is given where that is not `hidden` itself.
    pub masked: Aligned<T>,
}

impl<T: Number> LayerTape<T> {
    /// What the next layer reads.
    #[inline(always)]
    pub(super) fn given(&self) -> &[T] {
        if self.masked.is_empty() { &self.hidden } else { &self.masked }
    }
}

impl<T: Number> Tape<T> {
    pub(super) fn new(shape: &LstmShape, steps: usize, rows: usize, masked: bool) -> Self {
        let size = steps * rows * shape.width();
        let layer = |layer| LayerTape {
            gates: Aligned::zeros(4 * size),
            hidden: Aligned::zeros(size),
            cells: Aligned::zeros(size),
            masked: Aligned::zeros(if masked && layer + 1 < shape.layers { size } else { 0 }),
        };
        Self { rows, steps, layers: (0..shape.layers).map(layer).collect() }
    }

    /// Whether it can be written again by such a pass.
    pub(super) fn fits(&self, shape: &LstmShape, steps: usize, rows: usize, masked: bool) -> bool {
        let first_masked = self.layers.first().is_some_and(|l| !l.masked.is_empty());
        let same = (self.steps, self.rows, self.layers.len()) == (steps, rows, shape.layers);
        same && first_masked == (masked && shape.layers > 1)
    }
}

/// The way forward of one chunk, written to its tape.
pub(super) struct Forward<'a, T> {
    pub shape: &'a LstmShape,
    pub layers: &'a [Gates<T>],
    pub sequences: Sequences<'a, T>,
    pub chunk: Chunk,
    pub tape: &'a mut Tape<T>,
}

impl<T: Number> Work<T> for Forward<'_, T> {
    type Done = ();

    #[inline(always)]
    fn on<V: Vector<Number = T>>(self) {
        let Self { shape, layers, sequences, chunk, tape } = self;
        let (rows, width) = (chunk.rows, shape.width());
        let size = rows * width;
        for step_number in 0..sequences.steps {
            for (number, layer) in layers.iter().enumerate() {
                let (below, own) = tape.layers.split_at_mut(number);
                let Some(own) = own.first_mut() else { continue };
                let from = step_number * size;
                let inputs = match below.last() {
                    Some(below) => Left { from: &below.given()[from..from + size], row: width, depth: 1 },
                    None => Left { from: sequences.at(shape, chunk, step_number), row: shape.inputs, depth: 1 },
                };
                let (hidden_before, hidden) = own.hidden.split_at_mut(from);
                let (cells_before, cells) = own.cells.split_at_mut(from);
                let before = (step_number > 0)
                    .then(|| State { hidden: &hidden_before[from - size..], cells: &cells_before[from - size..] });
                let gates = &mut own.gates[4 * from..4 * (from + size)];
                step::<V, true>(layer, rows, inputs, before, &mut After { hidden, cells, gates });
                if !own.masked.is_empty()
                    && let Some(mask) = sequences.mask(shape, number, chunk, step_number)
                {
                    let rows = own.masked[from..from + size].chunks_exact_mut(width);
                    for ((masked, hidden), mask) in
                        rows.zip(hidden.chunks_exact(width)).zip(mask.chunks_exact(shape.units))
                    {
                        masked.iter_mut().zip(hidden).zip(mask).for_each(|((m, h), factor)| *m = *h * *factor);
                    }
                }
            }
        }
    }
}
