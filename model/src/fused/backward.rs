//! The way back of one chunk: from the gradient of the last states to those of weights and inputs.

use super::forward::{Chunk, LayerTape, Sequences, Tape};
use super::pack::{Back, Gates, Turned};
use super::shape::{Aligned, BLOCK, LstmShape, PANEL};
use super::simd::{Left, Number, Right, Vector, Work, multiply_add};

/// Steps whose gate gradients are gathered before they go into the gradient of the weights: as many as stay in the cache
/// of a core, so that the sums are read and written seldom.
const PASS: usize = 8;

/// The way back of one chunk. It writes gradients over the gates of its tape, which is of no use afterwards.
pub(super) struct Backward<'a, T> {
    pub shape: &'a LstmShape,
    pub back: &'a [Back<T>],
    pub sequences: Sequences<'a, T>,
    pub chunk: Chunk,
    pub tape: &'a mut Tape<T>,
    /// Gradient of the last hidden states of the last layer: (rows, units).
    pub by_last: &'a [T],
    /// Whether gradients of the inputs are wanted.
    pub learn_inputs: bool,
}

/// Gradients of one chunk.
pub(super) struct Gradients<T> {
    /// Of each layer's weights.
    pub weights: Vec<Gates<T>>,
    /// Of the chunk's inputs, (steps, rows, inputs); empty if they were not wanted.
    pub inputs: Vec<T>,
}

/// What travels from step to step of one layer.
struct Carried<T> {
    /// Gradient of the hidden states; the width of the turned state matrix.
    hidden: Aligned<T>,
    cells: Aligned<T>,
    /// Gradient of the inputs of the present step; the width of the turned input matrix.
    inputs: Aligned<T>,
}

impl<T: Number> Work<T> for Backward<'_, T> {
    type Done = Gradients<T>;

    #[inline(always)]
    fn on<V: Vector<Number = T>>(self) -> Gradients<T> {
        let Self { shape, back, sequences, chunk, tape, by_last, learn_inputs } = self;
        let (rows, size) = (chunk.rows, chunk.rows * shape.width());
        let mut carried: Vec<Carried<T>> = Vec::with_capacity(back.len());
        for layer in back {
            let of = |width: usize| Aligned::zeros(rows * width);
            let (hidden, inputs) = (of(layer.state.width), of(layer.inputs.width));
            carried.push(Carried { hidden, cells: Aligned::zeros(size), inputs });
        }
        if let (Some(top), Some(turned)) = (carried.last_mut(), back.last()) {
            copy_rows(by_last, shape.units, &mut top.hidden, turned.state.width);
        }
        let mut weights: Vec<Gates<T>> = (0..shape.layers).map(|layer| Gates::zeros(shape, layer)).collect();
        let mut inputs = vec![T::default(); if learn_inputs { sequences.steps * rows * shape.inputs } else { 0 }];
        let mut gathered = sequences.steps;
        for step in (0..sequences.steps).rev() {
            for (number, turned) in back.iter().enumerate().rev() {
                let (below, own) = carried.split_at_mut(number);
                let (Some(own), Some(layer)) = (own.first_mut(), tape.layers.get_mut(number)) else { continue };
                gate_gradients::<V>(layer, step, size, (&own.hidden, turned.state.width), &mut own.cells);
                let gates = &layer.gates[4 * step * size..4 * (step + 1) * size];
                if step > 0 {
                    product::<V>(rows, gates, &turned.state, &mut own.hidden);
                }
                if let Some(below) = below.last_mut() {
                    product::<V>(rows, gates, &turned.inputs, &mut own.inputs);
                    let mask = sequences.mask(shape, number - 1, chunk, step);
                    hand_down(shape.units, (&own.inputs, turned.inputs.width), mask, &mut below.hidden);
                } else if learn_inputs {
                    product::<V>(rows, gates, &turned.inputs, &mut own.inputs);
                    let to = &mut inputs[step * rows * shape.inputs..(step + 1) * rows * shape.inputs];
                    copy_rows(&own.inputs, turned.inputs.width, to, shape.inputs);
                }
            }
            if step % PASS == 0 {
                for (number, gradient) in weights.iter_mut().enumerate() {
                    let pass = Pass { shape, sequences, chunk, tape, number, steps: (step, gathered) };
                    pass.add::<V>(gradient);
                }
                gathered = step;
            }
        }
        Gradients { weights, inputs }
    }
}

/// Copies the columns that both have.
fn copy_rows<T: Copy>(from: &[T], from_width: usize, to: &mut [T], to_width: usize) {
    let both = from_width.min(to_width);
    for (to, from) in to.chunks_exact_mut(to_width).zip(from.chunks_exact(from_width)) {
        to[..both].copy_from_slice(&from[..both]);
    }
}

/// Adds the gradient of a layer's inputs to that of the states below, as far as their mask let them through. Both
/// matrices are equally wide: they are as wide as the units need.
fn hand_down<T: Number>(units: usize, (from, width): (&[T], usize), mask: Option<&[T]>, to: &mut [T]) {
    for (row, (to, from)) in to.chunks_exact_mut(width).zip(from.chunks_exact(width)).enumerate() {
        let sums = to.iter_mut().zip(from).take(units);
        match mask {
            Some(mask) => {
                let mask = &mask[row * units..(row + 1) * units];
                sums.zip(mask).for_each(|((to, from), factor)| *to += *from * *factor);
            }
            None => sums.for_each(|(to, from)| *to += *from),
        }
    }
}

/// Gradients of a step's gates, in place of the gates, and of the cells before.
#[inline(always)]
fn gate_gradients<V: Vector>(
    layer: &mut LayerTape<V::Number>,
    step: usize,
    size: usize,
    (by_hidden, pitch): (&[V::Number], usize),
    by_cells: &mut [V::Number],
) {
    let (before, now) = layer.cells[..(step + 1) * size].split_at(step * size);
    let before = before.get(before.len().saturating_sub(size)..).filter(|cells| !cells.is_empty());
    let gates = &mut layer.gates[4 * step * size..4 * (step + 1) * size];
    let rows = by_hidden.len() / pitch;
    let blocks = size / rows / BLOCK;
    let one = V::constant(1.0);
    for row in 0..rows {
        for block in 0..blocks {
            let (at, from) = ((row * blocks + block) * PANEL, (row * blocks + block) * BLOCK);
            let gates = &mut gates[at..at + PANEL];
            let mut lane = 0;
            while lane < BLOCK {
                let input = V::read(gates, lane);
                let forget = V::read(gates, BLOCK + lane);
                let candidate = V::read(gates, 2 * BLOCK + lane);
                let output = V::read(gates, 3 * BLOCK + lane);
                let squashed = V::read(now, from + lane).tanh();
                let by_hidden = V::read(by_hidden, row * pitch + block * BLOCK + lane);
                let slope = one.sub(squashed.mul(squashed));
                let by_cell = by_hidden.mul(output).mul_add(slope, V::read(by_cells, from + lane));
                by_cell.mul(forget).write(by_cells, from + lane);
                let old = match before {
                    Some(cells) => V::read(cells, from + lane),
                    None => V::constant(0.0),
                };
                by_cell.mul(candidate).mul(sigmoid_slope(input)).write(gates, lane);
                by_cell.mul(old).mul(sigmoid_slope(forget)).write(gates, BLOCK + lane);
                let candidate_slope = one.sub(candidate.mul(candidate));
                by_cell.mul(input).mul(candidate_slope).write(gates, 2 * BLOCK + lane);
                by_hidden.mul(squashed).mul(sigmoid_slope(output)).write(gates, 3 * BLOCK + lane);
                lane += V::WIDTH;
            }
        }
    }
}

/// The slope of a sigmoid by its value.
#[inline(always)]
fn sigmoid_slope<V: Vector>(value: V) -> V {
    value.mul(V::constant(1.0).sub(value))
}

/// Gate gradients of all rows times a turned matrix.
#[inline(always)]
fn product<V: Vector>(rows: usize, gates: &[V::Number], turned: &Turned<V::Number>, out: &mut [V::Number]) {
    let mut column = 0;
    while column < turned.width {
        let (wide, numbers) = turned.group(column);
        let group = Group { turned, column, wide, numbers };
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(V::ROWS);
            match count {
                6 => group.rows::<V, 6>(row, gates, out),
                5 => group.rows::<V, 5>(row, gates, out),
                4 => group.rows::<V, 4>(row, gates, out),
                3 => group.rows::<V, 3>(row, gates, out),
                2 => group.rows::<V, 2>(row, gates, out),
                _ => group.rows::<V, 1>(row, gates, out),
            }
            row += count;
        }
        column += wide;
    }
}

/// A group of columns of a turned matrix.
struct Group<'a, T> {
    turned: &'a Turned<T>,
    column: usize,
    wide: usize,
    numbers: &'a [T],
}

impl<T: Number> Group<'_, T> {
    #[inline(always)]
    fn rows<V: Vector<Number = T>, const R: usize>(&self, row: usize, gates: &[T], out: &mut [T]) {
        let mut column = 0;
        while column < self.wide {
            if self.wide - column >= 4 * V::WIDTH {
                self.tile::<V, R, 4>(row, column, gates, out);
                column += 4 * V::WIDTH;
            } else {
                self.tile::<V, R, 2>(row, column, gates, out);
                column += 2 * V::WIDTH;
            }
        }
    }

    #[inline(always)]
    fn tile<V: Vector<Number = T>, const R: usize, const C: usize>(
        &self,
        row: usize,
        column: usize,
        gates: &[T],
        out: &mut [T],
    ) {
        let depth = self.turned.depth;
        let left = Left { from: &gates[row * depth..], row: depth, depth: 1 };
        let right = Right { from: &self.numbers[column..], depth: self.wide };
        let sums = multiply_add([[V::splat(T::default()); C]; R], depth, left, right);
        for (r, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                sum.write(out, (row + r) * self.turned.width + self.column + column + c * V::WIDTH);
            }
        }
    }
}

/// Adding the steps `steps.0..steps.1` of a layer to the gradient of its weights.
struct Pass<'a, T> {
    shape: &'a LstmShape,
    sequences: Sequences<'a, T>,
    chunk: Chunk,
    tape: &'a Tape<T>,
    number: usize,
    steps: (usize, usize),
}

/// Numbers that met a part of a layer's rows: those of step t begin at (t - lag) x step.
struct Met<'a, T> {
    numbers: &'a [T],
    step: usize,
    pitch: usize,
    lag: usize,
}

impl<T: Number> Pass<'_, T> {
    #[inline(always)]
    fn add<V: Vector<Number = T>>(&self, gradient: &mut Gates<T>) {
        let Some(layer) = self.tape.layers.get(self.number) else { return };
        let (inputs, units, width) = (gradient.inputs, gradient.units, self.shape.width());
        let size = self.chunk.rows * width;
        let below = self.number.checked_sub(1).and_then(|below| self.tape.layers.get(below));
        let of_inputs = match below {
            Some(below) => Met { numbers: below.given(), step: size, pitch: width, lag: 0 },
            None => Met {
                numbers: &self.sequences.inputs[self.chunk.first * inputs..],
                step: self.sequences.rows * inputs,
                pitch: inputs,
                lag: 0,
            },
        };
        let of_state = Met { numbers: &layer.hidden, step: size, pitch: width, lag: 1 };
        let of_bias = Met { numbers: &[T::ONE], step: 0, pitch: 0, lag: 0 };
        for block in 0..self.shape.blocks() {
            let gates = Right { from: &layer.gates[block * PANEL..], depth: 4 * width };
            let (panel_inputs, rest) = gradient.panel_mut(block).split_at_mut(inputs * PANEL);
            let (panel_state, panel_bias) = rest.split_at_mut(units * PANEL);
            self.part::<V>(&of_inputs, gates, panel_inputs, inputs);
            self.part::<V>(&of_state, gates, panel_state, units);
            self.part::<V>(&of_bias, gates, panel_bias, 1);
        }
    }

    /// Rows of a panel that met one kind of numbers.
    #[inline(always)]
    fn part<V: Vector<Number = T>>(&self, met: &Met<'_, T>, gates: Right<'_, T>, panel: &mut [T], rows: usize) {
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(V::ROWS);
            match count {
                6 => self.tile::<V, 6>(met, gates, panel, row),
                5 => self.tile::<V, 5>(met, gates, panel, row),
                4 => self.tile::<V, 4>(met, gates, panel, row),
                3 => self.tile::<V, 3>(met, gates, panel, row),
                2 => self.tile::<V, 2>(met, gates, panel, row),
                _ => self.tile::<V, 1>(met, gates, panel, row),
            }
            row += count;
        }
    }

    #[inline(always)]
    fn tile<V: Vector<Number = T>, const R: usize>(
        &self,
        met: &Met<'_, T>,
        gates: Right<'_, T>,
        panel: &mut [T],
        row: usize,
    ) {
        let (step_size, (first, end)) = (self.chunk.rows * gates.depth, self.steps);
        let mut column = 0;
        while column < PANEL {
            let mut sums = [[V::splat(T::default()); 4]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = V::read(panel, (row + r) * PANEL + column + c * V::WIDTH);
                }
            }
            let mut step = first.max(met.lag);
            while step < end {
                let left = Left { from: &met.numbers[(step - met.lag) * met.step + row..], row: 1, depth: met.pitch };
                let right = Right { from: &gates.from[step * step_size + column..], ..gates };
                sums = multiply_add(sums, self.chunk.rows, left, right);
                step += 1;
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    sum.write(panel, (row + r) * PANEL + column + c * V::WIDTH);
                }
            }
            column += 4 * V::WIDTH;
        }
    }
}
