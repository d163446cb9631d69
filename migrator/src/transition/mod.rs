//! The transition table of a migration: pure, so that every pair of state and event can be tested.
//!
//! ```text
//! planned -> preparing -> copying -> catching_up -> verifying -> trying_way_back -> nearing
//!                                        ^                                             |
//!                                        +--- fence lost (bounded number of tries) ----+
//!                                                                                      v
//!                                                        fencing -> proving -> sealing = point of no return
//!                                                                                      v
//!                done <- finishing <- reversible <- routing <- opening <- sealed <-----+
//! ```
//!
//! Copying and verifying go piece by piece: such a state returns to itself until the last piece is done, and each piece is
//! committed, so that a restart goes on behind it and a request takes effect before the next.
//!
//! A seal whose answer was lost may be found only when its fence has been given up: then `fencing`, `proving`, `undoing` and
//! `releasing` lead to `sealed` as well, with the proof that entitled to that seal.
//!
//! A rollback leaves `reversible` for `catching_up` on the leg back and goes through the same states a second time, with
//! source and target swapped, to `rolled_back`. Before the seal a move goes back to where it came from (`undoing`, on the
//! leg back `releasing`), after it only forward.

mod event;
mod state;
mod step;

pub use event::{Action, Event};
pub(crate) use state::Tenure;
pub use state::{Ending, Leg, MigrationState};
pub use step::{IllegalTransition, step};
