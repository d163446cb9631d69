//! Doing it: durable migrations on engines behind one trait.

mod backend;

pub use backend::{
    Backend, BackendError, Capabilities, CopyProgress, Lag, MoveSpec, Position, Proof, SourceState, Verification, Way,
};
