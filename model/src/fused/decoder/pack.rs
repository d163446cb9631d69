//! Weights of the decoder in the order in which the kernel reads them.

use crate::features::{ANCHORS, SPREADS};
use crate::fused::FusedError;
use crate::fused::products::ROW_STEP;
use crate::fused::shape::{Aligned, BLOCK, expect_length};
use crate::fused::simd::Number;
use crate::network::TENSOR_LEVELS;

/// Levels of a row of quantiles.
pub(super) const LEVELS: usize = TENSOR_LEVELS.len();
/// Distances between neighbouring levels.
pub(super) const INCREMENTS: usize = LEVELS - 1;
/// Columns of the head: scores of anchors, scores of spreads, offset, increments, and zeros that fill the last block.
pub(super) const SPREADS_AT: usize = ANCHORS;
pub(super) const OFFSET_AT: usize = SPREADS_AT + SPREADS;
pub(super) const INCREMENTS_AT: usize = OFFSET_AT + 1;
const HEAD_USED: usize = INCREMENTS_AT + INCREMENTS;
pub(super) const HEAD: usize = HEAD_USED.next_multiple_of(BLOCK);

/// Sizes of the decoder.
///
/// Its weights are one flat list of matrices, row by row: steps (inputs x units); hidden (units x units) and its bias; of the
/// head the matrices of anchors, spreads, offset and increments, each (units x columns) and followed by its bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderShape {
    /// Inputs of a step.
    pub inputs: usize,
    /// Units of both layers.
    pub units: usize,
}

const MOST: usize = 4096;

impl DecoderShape {
    /// How many numbers all weights are.
    pub fn weights(&self) -> usize {
        self.inputs * self.units + (self.units + 1) * (self.units + HEAD_USED)
    }

    /// Inputs, rounded up.
    pub(super) fn pitch(&self) -> usize {
        self.inputs.next_multiple_of(ROW_STEP)
    }

    /// Units, rounded up.
    pub(super) fn width(&self) -> usize {
        self.units.next_multiple_of(BLOCK)
    }

    pub(super) fn check(&self) -> Result<(), FusedError> {
        let fits = [self.inputs, self.units].iter().all(|n| (1..=MOST).contains(n));
        if fits { Ok(()) } else { Err(FusedError::DecoderSizes { shape: *self, most: MOST }) }
    }
}

/// All matrices, each filled up with zeros to whole tiles: weights, or their gradients.
#[derive(Debug)]
pub(super) struct Matrices<T> {
    shape: DecoderShape,
    /// pitch x width.
    pub step: Aligned<T>,
    /// width x width.
    pub hidden: Aligned<T>,
    /// width.
    pub hidden_bias: Aligned<T>,
    /// width x [`HEAD`].
    pub head: Aligned<T>,
    /// [`HEAD`].
    pub head_bias: Aligned<T>,
}

impl<T: Number> Matrices<T> {
    pub(super) fn zeros(shape: DecoderShape) -> Self {
        let width = shape.width();
        Self {
            shape,
            step: Aligned::zeros(shape.pitch() * width),
            hidden: Aligned::zeros(width * width),
            hidden_bias: Aligned::zeros(width),
            head: Aligned::zeros(width * HEAD),
            head_bias: Aligned::zeros(HEAD),
        }
    }

    /// From a flat list.
    pub(super) fn pack(shape: DecoderShape, flat: &[T]) -> Result<Self, FusedError> {
        shape.check()?;
        expect_length("weights of a decoder", shape.weights(), flat.len())?;
        let mut packed = Self::zeros(shape);
        let mut rest = flat.iter();
        packed.each(|number| *number = rest.next().copied().unwrap_or_default());
        Ok(packed)
    }

    /// As a flat list.
    pub(super) fn flatten(&mut self) -> Vec<T> {
        let mut flat = Vec::with_capacity(self.shape.weights());
        self.each(|number| flat.push(*number));
        flat
    }

    /// Visits the numbers in the order of the flat list.
    fn each(&mut self, mut f: impl FnMut(&mut T)) {
        let (units, width) = (self.shape.units, self.shape.width());
        let mut part = |matrix: &mut [T], rows: usize, width: usize, columns: std::ops::Range<usize>| {
            for row in matrix.chunks_exact_mut(width).take(rows) {
                row[columns.clone()].iter_mut().for_each(&mut f);
            }
        };
        part(&mut self.step, self.shape.inputs, width, 0..units);
        part(&mut self.hidden, units, width, 0..units);
        part(&mut self.hidden_bias, 1, width, 0..units);
        for columns in
            [0..SPREADS_AT, SPREADS_AT..OFFSET_AT, OFFSET_AT..INCREMENTS_AT, INCREMENTS_AT..INCREMENTS_AT + INCREMENTS]
        {
            part(&mut self.head, units, HEAD, columns.clone());
            part(&mut self.head_bias, 1, HEAD, columns);
        }
    }
}

/// Matrices turned for the way back.
pub(super) struct Turned<T> {
    /// width x width.
    pub hidden: Aligned<T>,
    /// [`HEAD`] x width.
    pub head: Aligned<T>,
}

impl<T: Number> Turned<T> {
    pub(super) fn new(weights: &Matrices<T>) -> Self {
        let width = weights.shape.width();
        let mut turned = Self { hidden: Aligned::zeros(width * width), head: Aligned::zeros(HEAD * width) };
        turn(&weights.hidden, width, &mut turned.hidden, width);
        turn(&weights.head, HEAD, &mut turned.head, width);
        turned
    }
}

/// Rows of `from`, `width` wide each, become columns of `to`, whose rows are `to_width` wide.
#[inline(always)]
pub(super) fn turn<T: Copy>(from: &[T], width: usize, to: &mut [T], to_width: usize) {
    for (row, numbers) in from.chunks_exact(width).enumerate() {
        for (to, number) in to.chunks_exact_mut(to_width).zip(numbers) {
            to[row] = *number;
        }
    }
}
