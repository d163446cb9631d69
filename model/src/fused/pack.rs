//! Weights in the order in which the kernel reads them.

use super::FusedError;
use super::shape::{Aligned, BLOCK, GROUP, LstmShape, PANEL, expect_length};
use super::simd::Number;

/// A layer's matrix for the forward products: for each block of units a panel of rows (inputs, last state, bias), each
/// [`PANEL`] numbers, the block's units gate by gate.
pub(super) struct Gates<T> {
    pub inputs: usize,
    pub units: usize,
    numbers: Aligned<T>,
}

impl<T: Number> Gates<T> {
    pub(super) fn zeros(shape: &LstmShape, layer: usize) -> Self {
        let numbers = Aligned::zeros(shape.blocks() * shape.rows_of(layer) * PANEL);
        Self { inputs: shape.inputs_of(layer), units: shape.units, numbers }
    }

    fn size(&self) -> usize {
        (self.inputs + self.units + 1) * PANEL
    }

    /// The panel of a block.
    #[inline(always)]
    pub(super) fn panel(&self, block: usize) -> &[T] {
        let size = self.size();
        &self.numbers[block * size..(block + 1) * size]
    }

    /// The panel of a block, to add to.
    #[inline(always)]
    pub(super) fn panel_mut(&mut self, block: usize) -> &mut [T] {
        let size = self.size();
        &mut self.numbers[block * size..(block + 1) * size]
    }

    /// Adds another matrix of the same sizes.
    pub(super) fn add(&mut self, other: &Self) {
        self.numbers.iter_mut().zip(other.numbers.iter()).for_each(|(sum, number)| *sum += *number);
    }

    /// Calls `f` with each number's place in the packed and in the flat matrix.
    fn places(&self, mut f: impl FnMut(usize, usize)) {
        let (rows, units) = (self.inputs + self.units + 1, self.units);
        for row in 0..rows {
            for unit in 0..units {
                let at = ((unit / BLOCK) * rows + row) * PANEL + unit % BLOCK;
                (0..4).for_each(|gate| f(at + gate * BLOCK, row * 4 * units + gate * units + unit));
            }
        }
    }

    fn fill(&mut self, flat: &[T]) {
        let mut numbers = std::mem::replace(&mut self.numbers, Aligned::zeros(0));
        self.places(|packed, place| numbers[packed] = flat[place]);
        self.numbers = numbers;
    }

    /// Writes the matrix in its flat order.
    pub(super) fn write_flat(&self, flat: &mut [T]) {
        self.places(|packed, place| flat[place] = self.numbers[packed]);
    }
}

/// Some rows of a layer's matrix turned for the backward products: groups of columns, [`PANEL`] wide and at most one of
/// [`GROUP`] at the end; in each, a row for every gate of every unit in the packed order.
pub(super) struct Turned<T> {
    /// Columns, with those of zeros that fill the last group.
    pub width: usize,
    /// Rows.
    pub depth: usize,
    numbers: Aligned<T>,
}

impl<T: Number> Turned<T> {
    /// Turns the rows `from..from + columns` of a flat matrix.
    fn new(shape: &LstmShape, flat: &[T], from: usize, columns: usize) -> Self {
        let (width, depth) = (columns.div_ceil(GROUP) * GROUP, 4 * shape.width());
        let mut numbers = Aligned::zeros(width * depth);
        for column in 0..columns {
            let (group, wide) = group_of(width, column);
            for gate in 0..4 {
                for unit in 0..shape.units {
                    let row = (unit / BLOCK) * PANEL + gate * BLOCK + unit % BLOCK;
                    let number = flat[(from + column) * 4 * shape.units + gate * shape.units + unit];
                    numbers[group * depth + row * wide + column - group] = number;
                }
            }
        }
        Self { width, depth, numbers }
    }

    /// First column, width and numbers of each group.
    #[inline(always)]
    pub(super) fn group(&self, column: usize) -> (usize, &[T]) {
        let (group, wide) = group_of(self.width, column);
        (wide, &self.numbers[group * self.depth..(group + wide) * self.depth])
    }
}

/// First column and width of the group that a column lies in.
#[inline(always)]
fn group_of(width: usize, column: usize) -> (usize, usize) {
    let group = column / PANEL * PANEL;
    (group, (width - group).min(PANEL))
}

/// What a layer needs for its gradients.
pub(super) struct Back<T> {
    /// From gates to the state before.
    pub state: Turned<T>,
    /// From gates to the inputs.
    pub inputs: Turned<T>,
}

/// The forward matrices of a flat list of weights.
pub(super) fn pack<T: Number>(shape: &LstmShape, flat: &[T]) -> Result<Vec<Gates<T>>, FusedError> {
    let fill = |layer, flat: &[T]| {
        let mut gates = Gates::zeros(shape, layer);
        gates.fill(flat);
        gates
    };
    each_layer(shape, flat, fill)
}

/// The backward matrices of a flat list of weights.
pub(super) fn pack_back<T: Number>(shape: &LstmShape, flat: &[T]) -> Result<Vec<Back<T>>, FusedError> {
    each_layer(shape, flat, |layer, flat| {
        let inputs = shape.inputs_of(layer);
        Back { state: Turned::new(shape, flat, inputs, shape.units), inputs: Turned::new(shape, flat, 0, inputs) }
    })
}

fn each_layer<T, R>(shape: &LstmShape, flat: &[T], mut f: impl FnMut(usize, &[T]) -> R) -> Result<Vec<R>, FusedError> {
    shape.check()?;
    expect_length("weights of an LSTM", shape.weights(), flat.len())?;
    let mut rest = flat;
    let mut done = Vec::with_capacity(shape.layers);
    for layer in 0..shape.layers {
        let (own, after) = rest.split_at((shape.rows_of(layer) * 4 * shape.units).min(rest.len()));
        rest = after;
        done.push(f(layer, own));
    }
    Ok(done)
}

/// Matrices of all layers as one flat list.
pub(super) fn flatten<T: Number>(shape: &LstmShape, layers: &[Gates<T>]) -> Vec<T> {
    let mut flat = vec![T::default(); shape.weights()];
    let mut rest = flat.as_mut_slice();
    for (layer, gates) in layers.iter().enumerate() {
        let (own, after) = rest.split_at_mut((shape.rows_of(layer) * 4 * shape.units).min(rest.len()));
        gates.write_flat(own);
        rest = after;
    }
    flat
}
