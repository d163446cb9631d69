//! From what was observed and forecast to the planner's input; pure.

use foreshard_domain::{
    CostModel, Observation, Placement, PlanId, Resource, ScenarioError, ScenarioSet, ShardId, Timestamp, Topology,
};
use foreshard_policy::{Communication, InFlight, PlanningInput, PolicySettings, ShardFacts};
use std::collections::{BTreeMap, BTreeSet};

use crate::recent::Recent;

/// What a shard is taken to hold while its size was never observed: too little to forbid a move, enough to give it a price.
const UNKNOWN_DATA_BYTES: f64 = 1_073_741_824.0;

/// Everything known at the moment of planning.
#[derive(Debug)]
pub struct Known<'a> {
    /// Model time of planning.
    pub now: Timestamp,
    /// Seed of this round.
    pub seed: u64,
    /// The plan in force.
    pub parent: Option<PlanId>,
    /// Nodes and rules.
    pub topology: &'a Topology,
    /// Who owns what, from the state store.
    pub placement: &'a Placement,
    /// Running migrations, from the state store.
    pub in_flight: Vec<InFlight>,
    /// When each shard last arrived where it is.
    pub last_moved: &'a BTreeMap<ShardId, Timestamp>,
    /// Shards that cannot move before then, because the way back of an earlier move is kept.
    pub retained: &'a BTreeMap<ShardId, Timestamp>,
    /// Last observations.
    pub recent: &'a Recent,
    /// The joint future, forecast or flat.
    pub scenarios: ScenarioSet,
    /// Traffic between shards.
    pub communication: &'a [Communication],
    /// What moves cost.
    pub cost_model: &'a CostModel,
    /// Rules, limits, weights.
    pub settings: &'a PolicySettings,
}

/// A planner's input, and what had to be filled in for want of a forecast.
#[derive(Debug)]
pub struct Assembled {
    /// The input.
    pub input: PlanningInput,
    /// Shards whose future is their last observed load (or nothing at all), because the scenarios did not have them.
    pub flat: Vec<ShardId>,
}

/// Puts a planner's input together. The scenarios are brought onto exactly the shards of the placement and the residuals of
/// the topology's nodes: lanes of others are left out, missing ones filled with the last observed load.
///
/// # Errors
/// [`ScenarioError`] if the filled scenarios do not hold together.
pub fn assemble(known: Known<'_>) -> Result<Assembled, ScenarioError> {
    let shards = known.placement.iter().map(|(shard, _)| (shard.clone(), facts(shard, &known))).collect();
    let Known { now, seed, parent, topology, placement, in_flight, recent, .. } = known;
    let (scenarios, flat) = align(&known.scenarios, placement, topology, recent)?;
    let input = PlanningInput {
        now,
        seed,
        parent,
        topology: topology.clone(),
        placement: placement.clone(),
        scenarios,
        shards,
        voteless: BTreeSet::new(),
        homes: BTreeMap::new(),
        communication: known.communication.to_vec(),
        in_flight,
        cost_model: known.cost_model.clone(),
        settings: known.settings.clone(),
    };
    Ok(Assembled { input, flat })
}

fn facts(shard: &ShardId, known: &Known<'_>) -> ShardFacts {
    let seen = known.recent.of(shard).copied().unwrap_or_default();
    ShardFacts {
        data_bytes: seen.data_bytes.unwrap_or(UNKNOWN_DATA_BYTES),
        write_bytes_per_s: seen.write_bytes_per_s.unwrap_or(0.0),
        last_moved: known.last_moved.get(shard).copied(),
        held_until: known.retained.get(shard).copied(),
        current: seen.load.map(|load| load.unwrap_or(0.0)),
        txn_rate: seen.txn_rate.unwrap_or(0.0),
    }
}

/// The lanes a planner wants: every placed shard, and residuals that were forecast or observed.
fn wanted(scenarios: &ScenarioSet, placement: &Placement, topology: &Topology, recent: &Recent) -> BTreeSet<ShardId> {
    let residuals = topology.nodes.iter().map(|node| ShardId::residual(&node.id));
    let known = residuals.filter(|id| recent.of(id).is_some() || scenarios.shard_index(id).is_some());
    placement.iter().map(|(shard, _)| shard.clone()).chain(known).collect()
}

fn align(
    scenarios: &ScenarioSet,
    placement: &Placement,
    topology: &Topology,
    recent: &Recent,
) -> Result<(ScenarioSet, Vec<ShardId>), ScenarioError> {
    let wanted: Vec<ShardId> = wanted(scenarios, placement, topology, recent).into_iter().collect();
    let index: Vec<Option<usize>> = wanted.iter().map(|shard| scenarios.shard_index(shard)).collect();
    let lane_len = scenarios.steps().saturating_mul(scenarios.scenarios());
    let mut values = Vec::with_capacity(wanted.len().saturating_mul(lane_len).saturating_mul(Resource::ALL.len()));
    for resource in Resource::ALL {
        let r = scenarios.resource_index(resource);
        for (shard, index) in wanted.iter().zip(&index) {
            match r.zip(*index).and_then(|(r, s)| scenarios.lane(r, s)) {
                Some(lane) => values.extend_from_slice(lane),
                None => {
                    let load = recent.of(shard).and_then(|seen| seen.load[resource]).unwrap_or(0.0);
                    values.extend(std::iter::repeat_n(load as f32, lane_len));
                }
            }
        }
    }
    let missing = wanted.iter().zip(&index).filter(|(_, index)| index.is_none());
    let flat = missing.map(|(shard, _)| shard.clone()).collect();
    let shape = (scenarios.steps(), scenarios.scenarios());
    let set = ScenarioSet::new(scenarios.issued_at(), scenarios.step(), Resource::ALL.to_vec(), wanted, shape, values)?;
    Ok((set, flat))
}

/// Rows that tell something: at least one measurement. Others would only make an empty series known.
pub fn telling(rows: Vec<Observation>) -> Vec<Observation> {
    let says = |row: &Observation| {
        let all = [row.cpu_util, row.mem_util, row.io_ops, row.latency_ms, row.txn_rate];
        all.iter().any(Option::is_some) || row.data_bytes.is_some() || row.write_bytes_per_s.is_some()
    };
    rows.into_iter().filter(says).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Node, NodeId, NodeState, PerResource, Step, ZoneId};

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    fn topology() -> Topology {
        let node = Node {
            id: NodeId::new("n1").unwrap(),
            zone: ZoneId::new("z1").unwrap(),
            speed: 1.0,
            capacity: PerResource { cpu: Some(100.0), memory: None, io: None },
            state: NodeState::Active,
        };
        Topology { nodes: vec![node], ..Topology::default() }
    }

    fn assembled(recent: &Recent, lanes: &[&str]) -> Assembled {
        let placement: Placement = ["a", "b"].map(|s| (shard(s), NodeId::new("n1").unwrap())).into_iter().collect();
        let values = lanes.iter().enumerate().flat_map(|(i, _)| [i as f32 + 10.0; 4]).collect();
        let lanes = lanes.iter().map(|s| shard(s)).collect();
        let scenarios =
            ScenarioSet::new(Timestamp::from_ms(0), Step::FIVE_MINUTES, vec![Resource::Cpu], lanes, (2, 2), values);
        let known = Known {
            now: Timestamp::from_ms(300_000),
            seed: 1,
            parent: None,
            topology: &topology(),
            placement: &placement,
            in_flight: Vec::new(),
            last_moved: &BTreeMap::from([(shard("b"), Timestamp::from_ms(7))]),
            retained: &BTreeMap::from([(shard("b"), Timestamp::from_ms(900_000))]),
            recent,
            scenarios: scenarios.unwrap(),
            communication: &[],
            cost_model: &CostModel::prior(1e6),
            settings: &PolicySettings::default(),
        };
        assemble(known).unwrap()
    }

    #[test]
    fn lanes_follow_the_placement() {
        let mut recent = Recent::default();
        let ts = Timestamp::from_ms(0);
        recent.observe(&[
            Observation { cpu_util: Some(4.0), io_ops: Some(5.0), ..Observation::empty(shard("b"), ts) },
            Observation { cpu_util: Some(6.0), ..Observation::empty(shard("@node/n1"), ts) },
        ]);
        let made = assembled(&recent, &["gone", "a"]);
        let set = &made.input.scenarios;
        assert_eq!(set.shards(), [shard("@node/n1"), shard("a"), shard("b")]);
        assert_eq!(made.flat, [shard("@node/n1"), shard("b")]);
        assert_eq!(set.lane(0, 0), Some([6.0f32; 4].as_slice()));
        assert_eq!(set.lane(0, 1), Some([11.0f32; 4].as_slice()));
        assert_eq!(set.lane(0, 2), Some([4.0f32; 4].as_slice()));
        // The scenarios had no I/O at all: the last observation stands in, nothing where nothing was seen.
        assert_eq!(set.lane(2, 2), Some([5.0f32; 4].as_slice()));
        assert_eq!(set.lane(2, 1), Some([0.0f32; 4].as_slice()));
    }

    #[test]
    fn facts_of_unseen_shards_are_careful() {
        let made = assembled(&Recent::default(), &["a", "b"]);
        assert!(made.flat.is_empty());
        let a = &made.input.shards[&shard("a")];
        assert_eq!((a.data_bytes, a.last_moved), (UNKNOWN_DATA_BYTES, None));
        let b = &made.input.shards[&shard("b")];
        let held_until = Some(Timestamp::from_ms(900_000));
        assert_eq!((b.last_moved, b.held_until), (Some(Timestamp::from_ms(7)), held_until));
    }

    #[test]
    fn empty_rows_are_not_worth_sending() {
        let ts = Timestamp::from_ms(0);
        let empty = Observation::empty(shard("a"), ts);
        let full = Observation { data_bytes: Some(1.0), ..empty.clone() };
        assert_eq!(telling(vec![empty, full.clone()]), [full]);
    }
}
