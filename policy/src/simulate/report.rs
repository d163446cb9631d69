//! What a simulation tells.

use foreshard_domain::{NodeId, ShardId, Timestamp};
use serde::{Deserialize, Serialize};

/// A move that was simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimMove {
    /// What moved.
    pub shard: ShardId,
    /// From where.
    pub source: NodeId,
    /// To where.
    pub target: NodeId,
    /// When the copy started.
    pub start: Timestamp,
    /// When the owner changed.
    pub end: Timestamp,
    /// The rule that asked for it.
    pub rule: String,
}

/// What happened in the replayed steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimReport {
    /// Name of the policy.
    pub policy: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Seed of the cell.
    pub seed: u64,
    /// Capacity multiplier of the cell.
    pub capacity_multiplier: f64,
    /// Minutes that were replayed.
    pub minutes: f64,
    /// Node-minutes in which any resource was over capacity.
    pub overload_minutes: f64,
    /// Excess over capacity as share of it, summed over resources and nodes, integrated over minutes.
    pub overload_area: f64,
    /// Minutes that no placement could have avoided: the cluster or one shard alone over capacity. A lower bound.
    pub unavoidable_minutes: f64,
    /// Moves that were started.
    pub moves: usize,
    /// Bytes of their shards.
    pub bytes_moved: f64,
    /// Hours of all nodes together.
    pub node_hours: f64,
    /// Highest share of any resource on any node.
    pub peak_node_load: f64,
    /// Times that the planner was called; it is not where nothing can ask for a move.
    pub plans: usize,
    /// The moves, by start.
    pub moved: Vec<SimMove>,
}
