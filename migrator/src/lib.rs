//! Doing it: durable migrations on engines behind one trait.

mod backend;
mod cause;
mod driver;
mod dry_run;
pub mod embedded;
mod outcomes;
pub mod postgres;
mod ring;
mod store;
mod transition;

pub use backend::{
    Backend, BackendError, Capabilities, CopyProgress, Found, Lag, Left, MoveSpec, Position, Proof, Room, SourceState,
    Swept, Verification, Way,
};
pub use driver::{
    CutOver, CutOverLimits, CutOverObservation, Driver, DriverConfig, DriverError, Request, decide_cut_over,
};
pub use dry_run::{DryRun, Rehearsal, rehearse};
pub use outcomes::outcome;
pub use ring::{Candidate, Explanation, Located, Placed, Ring, RingError};
pub use store::{
    Change, ExternalObject, FaultyStore, InvalidChange, JournalRow, MemoryStore, MigrationRecord, Progress, RedbStore,
    Shared, State, StateStore, StoreError, StoreFault, apply,
};
pub use transition::{Action, Ending, Event, IllegalTransition, Leg, MigrationState, step};
