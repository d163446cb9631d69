//! The process that binds the parts: it observes the engines, hands what it saw to serving, asks for the future, plans, has
//! the plan checked by other means than it was made, carries it out, and records what came of it.
//!
//! Decisions are pure and stand apart from the loop: the planner's input (`assemble`), which moves start
//! ([`due`]), what the state store says ([`View`]). [`ControlLoop::tick`] is one turn at a given time, so a whole day can be
//! stepped by a test; [`ControlLoop::run`] only adds the waiting.
//!
//! What it does when something is missing: without serving it goes on observing (a bounded buffer keeps the rows) and plans
//! on the loads last observed, and says so; a plan that the checker refuses never runs; a controller that is no longer in
//! charge stops.

mod assemble;
mod buffer;
mod control_loop;
mod error;
mod holder;
mod moving;
mod observing;
mod planning;
mod recent;
mod report;
mod schedule;
mod settings;
mod source;
mod view;

pub use assemble::{Assembled, Known, assemble};
pub use buffer::IngestBuffer;
pub use control_loop::{ControlLoop, LoopParts};
pub use error::ControlError;
pub use holder::{
    ControlServer, HolderError, HolderParts, HolderSettings, SocketError, StartError, details, dry_run, migrations,
    shard_map,
};
pub use recent::{LastSeen, Recent};
pub use report::{Foresight, PlanFate, PlanRound, TickReport};
pub use schedule::{Held, Situation, StartLimits, Verdict, due};
pub use settings::{BadSetting, LoopSettings, Mode};
pub use source::ForecastSource;
pub use view::View;
