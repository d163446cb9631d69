//! Doing it: durable migrations on engines behind one trait.

mod backend;
pub mod embedded;
mod store;
mod transition;

pub use backend::{
    Backend, BackendError, Capabilities, CopyProgress, Lag, MoveSpec, Position, Proof, SourceState, Verification, Way,
};
pub use store::{
    Change, ExternalObject, FaultyStore, InvalidChange, JournalRow, MemoryStore, MigrationRecord, Progress, RedbStore,
    State, StateStore, StoreError, StoreFault, apply,
};
pub use transition::{Action, Ending, Event, IllegalTransition, Leg, MigrationState, step};
