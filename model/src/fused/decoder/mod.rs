//! The parallel decoder, from the inputs of a step to its quantiles and back, as one operation.
//!
//! By a tensor library the decoder is some forty operations, each of which writes a matrix of (origins x steps) rows to
//! memory and reads it again. Here [`ROWS`](block::ROWS) rows at a time go all the way through and, in training, all the
//! way back while they lie in the cache of a core: the pinball loss is a sum over rows, so its gradient is known as soon as
//! a row's quantiles are, and nothing has to be kept for later.
//!
//! ```text
//!  step inputs . W1 + whole -> gelu, dropout = h                    whole: what the origin and the encoder say, one row an origin
//!  h . W2 + b2 -> gelu, + h = g                                     block.rs
//!  g . W3 + b3 = 16 anchor scores, 8 spread scores, offset, 12 increments
//!  turned, so that lanes are rows: mixtures, increments outward -> 13 quantiles (-> loss, gradients of the scores)    head.rs
//! ```
//!
//! A row gives the same bits alone and in a batch; sums over rows are built in their order.

mod block;
mod head;
mod inference;
mod pack;
#[cfg(test)]
mod tests;
mod training;

pub(crate) use inference::{DecoderInference, DecoderWorkspace};
pub use pack::DecoderShape;
pub(crate) use training::DecoderTraining;

use pack::LEVELS;

/// What every row of a batch brings along; plain numbers, row by row in the order (origin, step).
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderRows<'a, T = f32> {
    /// Steps of each origin.
    pub steps: usize,
    /// origins x steps x inputs.
    pub inputs: &'a [T],
    /// origins x steps x [`crate::features::ANCHORS`].
    pub anchors: &'a [T],
    /// origins x steps x [`crate::features::SPREADS`].
    pub spreads: &'a [T],
    /// Factors of the first layer's units, origins x steps x units.
    pub masks: Option<&'a [T]>,
}

/// What rows should come to, and how much that counts: one number a row, and a factor for each level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderGoals<'a, T = f32> {
    /// The truth.
    pub targets: &'a [T],
    /// How much each row counts; 0 for rows whose truth is unknown.
    pub weights: &'a [T],
    /// Levels, and how much each counts.
    pub levels: &'a [(f32, f32); LEVELS],
}
