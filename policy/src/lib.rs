//! What to do: pure decisions about which shard to move where and when.

mod input;
mod input_errors;
mod plan;
mod settings;

pub use input::{Communication, InFlight, PlanningInput, ShardFacts};
pub use input_errors::{InputError, InputErrors};
pub use plan::{Considered, FORMAT, Move, NodeRisk, Plan, Reason, Refused, RuleName, Score};
pub use settings::{PolicySettings, RuleSwitches, SearchLimits, SettingsError};
