//! Plans: immutable lists of moves with a parent, and why every shard at risk moves or stays.

use foreshard_domain::{MovePrediction, NodeId, PerResource, PlanId, Resource, ShardId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the plan format; a reader refuses a newer one.
pub const FORMAT: u32 = 1;

/// The rule that asked for a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleName {
    /// The load is over the limit with a probability above the confidence that was asked for.
    Threshold,
    /// The expected gain is worth more than the move costs.
    CostBenefit,
    /// The predicted loads of two nodes differ markedly.
    ProactiveBalancing,
    /// Predicted over the overload threshold and already over the high-utilisation threshold.
    Reactive,
    /// The shard goes back to where the ring would have it, since the gain of being elsewhere is gone.
    RingReturn,
    /// The node is being emptied, or the shard must not be where it is.
    Constraint,
}

impl RuleName {
    /// Its name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            RuleName::Threshold => "threshold",
            RuleName::CostBenefit => "cost_benefit",
            RuleName::ProactiveBalancing => "proactive_balancing",
            RuleName::Reactive => "reactive",
            RuleName::RingReturn => "ring_return",
            RuleName::Constraint => "constraint",
        }
    }
}

/// Why a move is done: the rule and its figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule.
    pub rule: RuleName,
    /// The resource that it is about, where it is about one.
    pub resource: Option<Resource>,
    /// Probability that the source is over its limit at any step, before the move.
    pub source_risk_before: f64,
    /// The same after it.
    pub source_risk_after: f64,
    /// Probability that the target is over its limit, before the move.
    pub target_risk_before: f64,
    /// The same after it.
    pub target_risk_after: f64,
    /// First crossing on the source if nothing moves.
    pub first_crossing: Option<Timestamp>,
    /// One sentence for a person.
    pub text: String,
}

/// One move of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// What moves.
    pub shard: ShardId,
    /// From where.
    pub source: NodeId,
    /// To where.
    pub target: NodeId,
    /// When to start, model time.
    pub start: Timestamp,
    /// Why.
    pub reason: Reason,
    /// Expected gain, in overload minutes (resource load over capacity, integrated).
    pub expected_gain: f64,
    /// Expected cost in the same unit: the copy's own load, the fence, communication, churn.
    pub expected_cost: f64,
    /// The shard whose move makes this one worth it: two that are worth it together, and neither alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<ShardId>,
    /// What carrying it out is expected to take.
    pub predicted: MovePrediction,
    /// Bytes to copy.
    pub data_bytes: f64,
    /// Bytes written per second when planned.
    pub write_bytes_per_s: f64,
    /// CPU share of source and target at the planned start.
    pub cpu_share: (f64, f64),
}

/// Kind of a refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Refused {
    /// Never allowed as things are.
    Hard {
        /// Stable code, such as `pinned`, `excluded`, `group_spread`, `node_not_active`, `no_capacity`,
        /// `held_by_retention`.
        code: String,
        /// Figures and names.
        detail: String,
    },
    /// Allowed later or with a higher limit.
    Limit {
        /// Stable code, such as `moves_per_node`, `moves_in_flight`, `cool_down`, `maintenance_window`.
        code: String,
        /// How much is used.
        used: f64,
        /// How much is allowed.
        allowed: f64,
    },
    /// Allowed, but gains too little.
    NotWorthIt {
        /// Expected gain, overload minutes.
        gain: f64,
        /// What it would have to be.
        needed: f64,
    },
}

impl Refused {
    /// Its stable code.
    pub fn code(&self) -> &str {
        match self {
            Refused::Hard { code, .. } | Refused::Limit { code, .. } => code,
            Refused::NotWorthIt { .. } => "not_worth_it",
        }
    }
}

/// How good a considered target is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Expected gain, overload minutes.
    pub gain: f64,
    /// Expected cost, overload minutes.
    pub cost: f64,
}

/// One target considered for one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    /// The shard.
    pub shard: ShardId,
    /// The target.
    pub target: NodeId,
    /// Its score, or why it was refused.
    pub outcome: Result<Score, Refused>,
}

/// What the loss of a node would mean: its shards packed onto the others at mean loads, the largest first.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct IfLost {
    /// Shards that find no room.
    pub homeless: usize,
    /// Peak share of the fullest node that took any; 0 if none did.
    pub fullest: f64,
}

/// Risk of one node over the planning window, before and after the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRisk {
    /// The node.
    pub node: NodeId,
    /// P(any step over capacity) if nothing moves.
    pub before: PerResource<f64>,
    /// The same when the plan is carried out.
    pub after: PerResource<f64>,
    /// Expected excess in overload minutes before and after, all resources.
    pub excess_minutes: (f64, f64),
    /// What losing this node would mean before and after the plan.
    #[serde(default)]
    pub if_lost: (IfLost, IfLost),
}

impl Plan {
    /// The id that follows from what the plan was made from and what it does: `plan-` and 16 hexadecimal digits. A move that
    /// is changed, added or left out makes it another plan.
    pub fn content_id(fingerprint: &str, moves: &[Move]) -> String {
        // Serialising to memory cannot fail; a failure would only make the id differ.
        let text = serde_json::to_vec(&(fingerprint, moves)).unwrap_or_default();
        format!("plan-{:016x}", xxhash_rust::xxh3::xxh3_64(&text))
    }
}

/// An immutable list of moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`FORMAT`].
    pub format: u32,
    /// Derived from the input's fingerprint and the moves ([`Plan::content_id`]), so equal inputs give equal plans.
    pub id: PlanId,
    /// The plan that was in force when this one was made; it is accepted only while that still is.
    pub parent: Option<PlanId>,
    /// Hash of everything the planner was given.
    pub input_fingerprint: String,
    /// When it was made, model time.
    pub created_at: Timestamp,
    /// What to do, by start time, then shard.
    pub moves: Vec<Move>,
    /// For each shard at risk or moved: the best targets, with score or refusal.
    pub considered: Vec<Considered>,
    /// All other refusals, counted by code.
    pub refused: BTreeMap<String, u64>,
    /// The nodes, before and after.
    pub nodes: Vec<NodeRisk>,
    /// What a reader must know besides: shards planned without a forecast, constraints that could not be met.
    #[serde(default)]
    pub notes: Vec<String>,
}
