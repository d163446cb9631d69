//! What a simulation tells.

use foreshard_domain::{NodeId, ShardId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::DecisionScores;

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

/// How evenly the nodes were loaded: the fullest node's share over the mean of all, of the resource that is used most.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Balance {
    /// Median over the steps.
    pub p50: f64,
    /// 99 % of the steps are at most this.
    pub p99: f64,
    /// What no placement could do better than at the median step: 1, or the largest shard over the mean of the nodes.
    pub bound_p50: f64,
    /// The same at the 99 % quantile.
    pub bound_p99: f64,
}

/// How long before they were needed moves started: from the start to the moment at which the source would have gone over
/// capacity without the move, within a day, minutes. `None` where no move was needed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LeadTime {
    /// Median.
    pub p50: Option<f64>,
    /// The worst tenth starts at most this early.
    pub p10: Option<f64>,
    /// Moves after which the source would not have gone over capacity within a day anyway.
    pub needless: usize,
}

/// What happened in the replayed steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// How evenly the nodes were loaded.
    pub balance: Balance,
    /// How early moves started.
    pub lead_time_minutes: LeadTime,
    /// 1 less the mean absolute error of the nodes' loads in the next four hours over that of yesterday's loads: above 0 is
    /// better than "as yesterday". `None` for policies without a forecast.
    pub forecast_skill: Option<f64>,
    /// How the decisions turned out: one plan an hour, and every plan that started a move.
    pub decisions: DecisionScores,
    /// The moves, by start.
    pub moved: Vec<SimMove>,
}
