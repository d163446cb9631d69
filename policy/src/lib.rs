//! What to do: pure decisions about which shard to move where and when.
//!
//! [`plan`] turns a [`PlanningInput`] into a [`Plan`]; [`check`] replays a plan with its own arithmetic and accepts or
//! refuses it; [`explain`] tells it to a person; [`decisions`] makes the records by which it is scored later;
//! [`simulate`] replays a history under a policy. No clock, no I/O, no randomness but seeds.

mod check;
mod decisions;
mod dense;
mod explain;
mod input;
mod input_errors;
mod plan;
mod planner;
mod score;
mod settings;
pub mod simulate;

pub use check::{CheckReport, Violation, check};
pub use decisions::decisions;
pub use explain::explain;
pub use input::{Communication, InFlight, PlanningInput, ShardFacts};
pub use input_errors::{InputError, InputErrors};
pub use plan::{Considered, FORMAT, IfLost, Move, NodeRisk, Plan, Reason, Refused, RuleName, Score};
pub use planner::{Deferred, PlanError, PlanReport, Planned, plan};
pub use score::{DecisionScores, Demand, Judged, Reliability, judge};
pub use settings::{PolicySettings, RuleSwitches, SearchLimits, SettingsError};
