//! What to do: pure decisions about which shard to move where and when.

mod plan;

pub use plan::{Considered, FORMAT, Move, NodeRisk, Plan, Reason, Refused, RuleName, Score};
