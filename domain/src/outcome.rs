//! What is recorded of moves and of decisions, so that both can be learned from and scored.

use serde::{Deserialize, Serialize};

use crate::{
    BackendKind, Consistency, MigrationId, ModelVersion, MovePrediction, NodeId, PerResource, PlanId, ShardId,
    Timestamp,
};

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeResult {
    /// The target owns the shard.
    Done,
    /// Ended before the seal; the source still owns it, nothing is left behind.
    Cancelled,
    /// Went through and was taken back.
    RolledBack,
    /// Ended before the seal because something broke.
    Failed,
}

impl OutcomeResult {
    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            OutcomeResult::Done => "done",
            OutcomeResult::Cancelled => "cancelled",
            OutcomeResult::RolledBack => "rolled_back",
            OutcomeResult::Failed => "failed",
        }
    }
}

/// What a migration cost and brought, beside what was predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which migration.
    pub migration: MigrationId,
    /// Of which plan.
    pub plan: PlanId,
    /// What moved.
    pub shard: ShardId,
    /// From where.
    pub source: NodeId,
    /// To where.
    pub target: NodeId,
    /// On which engine.
    pub backend: BackendKind,
    /// With which guarantee.
    pub consistency: Consistency,
    /// When the plan was made.
    pub planned_at: Timestamp,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Hour of the day of the start, UTC.
    pub hour: u8,
    /// Bytes of the shard when planned.
    pub data_bytes: f64,
    /// Rows copied.
    pub rows: u64,
    /// Bytes that clients wrote per second when planned.
    pub write_bytes_per_s: f64,
    /// CPU share of the source when planned.
    pub source_cpu: f64,
    /// CPU share of the target when planned.
    pub target_cpu: f64,
    /// What was predicted.
    pub predicted: MovePrediction,
    /// How long it took, model milliseconds.
    pub actual_duration_ms: i64,
    /// How long writes were refused, real milliseconds.
    pub actual_fence_ms: f64,
    /// Extra load seen while copying, as share of capacity, where it was measured.
    pub actual_extra_share: PerResource<Option<f64>>,
    /// How it ended.
    pub result: OutcomeResult,
    /// Why, if not done.
    pub why: Option<String>,
}

/// What was considered for one shard in one round of planning, and why it was done or left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Which plan.
    pub plan: PlanId,
    /// When it was made.
    pub decided_at: Timestamp,
    /// The shard.
    pub shard: ShardId,
    /// Where it is.
    pub source: NodeId,
    /// Where it goes, if it moves.
    pub target: Option<NodeId>,
    /// `move` or the code of the refusal.
    pub decision: String,
    /// Name of the rule that asked for it, if one did.
    pub rule: Option<String>,
    /// Probability that the source is over capacity if nothing moves (the counterfactual).
    pub risk_unmoved: f64,
    /// The same on the placement that was chosen.
    pub risk_chosen: f64,
    /// Expected gain in overload minutes.
    pub expected_gain: f64,
    /// Expected cost in overload minutes.
    pub expected_cost: f64,
    /// The forecast that it rests on.
    pub version: Option<ModelVersion>,
}
