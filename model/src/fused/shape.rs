//! Sizes of a stack of LSTM layers, what can be wrong with them, and memory that begins where vectors like it.

use std::ops::{Deref, DerefMut};

use super::DecoderShape;

/// Units of a block: a vector of AVX-512, whole vectors of everything narrower.
pub(super) const BLOCK: usize = 16;
/// Numbers of one row of a block's panel: its units for each of the four gates.
pub(super) const PANEL: usize = 4 * BLOCK;
/// Columns of the backward products come in groups of this many, or of [`PANEL`].
pub(super) const GROUP: usize = 2 * BLOCK;

/// Sizes of a stack of LSTM layers.
///
/// Its weights are one flat list. Layer after layer, each a matrix of (inputs + units + 1) rows and 4 x units columns, row
/// by row: first the rows that its inputs meet, then those for its own last state, then the bias. The columns hold the
/// gates input, forget, candidate, output side by side. The inputs of every layer but the first are the units below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LstmShape {
    /// Numbers that go into the first layer at each step.
    pub inputs: usize,
    /// Units of every layer.
    pub units: usize,
    /// Number of layers.
    pub layers: usize,
}

/// Why a stack could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum FusedError {
    /// The sizes are none of a network.
    #[error(
        "a stack of LSTM layers needs at least one input, unit and layer, and at most {most} of each, not {shape:?}"
    )]
    Sizes {
        /// The sizes.
        shape: LstmShape,
        /// Most of each.
        most: usize,
    },
    /// The sizes are none of a decoder.
    #[error("a decoder needs at least one input and one unit, and at most {most} of each, not {shape:?}")]
    DecoderSizes {
        /// The sizes.
        shape: DecoderShape,
        /// Most of each.
        most: usize,
    },
    /// A list of numbers has the wrong length.
    #[error("{what} should hold {want} numbers but holds {got}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Numbers wanted.
        want: usize,
        /// Numbers given.
        got: usize,
    },
    /// The instruction set that was asked for is not there.
    #[error("instruction set {name:?} is not on this machine; FORESHARD_SIMD may be one of {available}")]
    Instructions {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// No workspace was given.
    #[error("inference needs at least one workspace, but was given none")]
    NoWorkspace,
}

const MOST: usize = 4096;

impl LstmShape {
    /// Inputs of a layer, counted from 0.
    pub(super) fn inputs_of(&self, layer: usize) -> usize {
        if layer == 0 { self.inputs } else { self.units }
    }

    /// Rows of a layer's matrix: inputs, last state, bias.
    pub(super) fn rows_of(&self, layer: usize) -> usize {
        self.inputs_of(layer) + self.units + 1
    }

    /// How many numbers all weights are.
    pub fn weights(&self) -> usize {
        (0..self.layers).map(|layer| self.rows_of(layer) * 4 * self.units).sum()
    }

    /// Blocks of units, the last one filled up with units that stay at zero.
    pub(super) fn blocks(&self) -> usize {
        self.units.div_ceil(BLOCK)
    }

    /// Units with those that fill the last block.
    pub(super) fn width(&self) -> usize {
        self.blocks() * BLOCK
    }

    pub(super) fn check(&self) -> Result<(), FusedError> {
        let fits = [self.inputs, self.units, self.layers].iter().all(|n| (1..=MOST).contains(n));
        if fits { Ok(()) } else { Err(FusedError::Sizes { shape: *self, most: MOST }) }
    }
}

/// An error unless a list has the length it should have.
pub(super) fn expect_length(what: &'static str, want: usize, got: usize) -> Result<(), FusedError> {
    if want == got { Ok(()) } else { Err(FusedError::Length { what, want, got }) }
}

/// Numbers that begin on the border of a cache line: a vector that lies in two lines is read twice.
#[derive(Debug)]
pub(super) struct Aligned<T> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

const LINE: usize = 64;

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let spare = LINE / size_of::<T>().max(1);
        let memory = vec![T::default(); len + spare];
        // Where the offset cannot be told, memory is only slower.
        let start = memory.as_ptr().align_offset(LINE);
        let start = if start <= spare { start } else { 0 };
        Self { memory, start, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
