//! The network's parts, each computed as a whole, forward and backward, on the CPU's vector instructions: a stack of LSTM
//! layers (here), the decoder with its loss ([`decoder`]) and the patch layer ([`dense`](mod@dense)).
//!
//! A tensor library computes an LSTM step by step, and on networks of this size the steps' overhead costs more than their
//! arithmetic. Here the whole stack is one operation: [`LstmTraining`] is one node of the tensor library's graph with a
//! way back written by hand, [`LstmInference`] computes last states without any graph.
//!
//! # One way
//!
//! ```text
//!  flat weights --pack--> Gates (forward), Turned (backward)        pack.rs
//!                            |
//!  inputs --chunks of rows--> step by step, layers in lock step     forward.rs   --> Tape (training), two turns (inference)
//!                            |
//!  gradient of last states --> steps backward, layers downward      backward.rs  --> Gates per chunk, summed in order
//!                            |
//!  all of it generic over Vector, all products in multiply_add      simd/, the only unsafe code; products.rs: whole matrices
//!                            |
//!  training.rs (tensors, threads, tapes kept for reuse), inference.rs (workspaces): what the outside sees
//! ```
//!
//! # Layout
//!
//! * A layer is one matrix of (inputs + units + 1) rows by four gates. Packed, it is a *panel* for every block of 16 units:
//!   for each row 64 numbers, the 16 units of the input, forget, candidate and output gates. Units that fill up the last
//!   block have weights of zero; their states and gradients stay at zero.
//! * A tile is a few rows of a batch by four vectors of a panel: 6 x 4 registers (3 x 4 on AVX2) hold its sums from the
//!   bias through all inputs to all of the last state, so that the product with the inputs costs no pass of its own.
//! * The tape holds gates (steps, rows, blocks x 64), hidden states and cells (steps, rows, units). On the way back the
//!   gates are overwritten by their gradients, which are gathered for 8 steps and then go into the weights' gradient
//!   at once.
//!
//! # Same bits
//!
//! Every sum is built in one order: bias, inputs, state; steps backward in groups of 8, each group forward, rows upward;
//! chunks upward. Neither tiles nor threads change it (F2), and a row gives the same bits alone as in a batch. Another
//! instruction set rounds otherwise, within 1e-5; [`Instructions::name`] belongs beside anything that has to repeat.

mod activation;
mod backward;
mod decoder;
mod dense;
mod forward;
mod inference;
mod pack;
mod products;
mod shape;
mod simd;
#[cfg(test)]
mod tests;
mod training;

pub use decoder::DecoderShape;
pub(crate) use decoder::{DecoderGoals, DecoderInference, DecoderRows, DecoderTraining, DecoderWorkspace};
pub(crate) use dense::dense;
pub use inference::{LstmInference, LstmWorkspace};
pub use shape::{FusedError, LstmShape};
pub use simd::{Instructions, SIMD_VARIABLE};
pub use training::LstmTraining;
