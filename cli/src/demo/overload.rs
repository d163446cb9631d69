//! Overload minutes of a day, accounted slot by slot in model time (a slot is a minute) from what clients asked for; pure.
//!
//! Both sides of the comparison use the same offered demand: once on the placement that the day really saw, with the load
//! of the copies, and once on the placement of its first minute.

use foreshard_domain::{Node, NodeId, PerResource, Placement, Resource, ShardId, Step, Timestamp};
use std::collections::BTreeMap;

/// Loads equal to the capacity up to rounding are no overload.
const SLACK: f64 = 1e-9;

/// What clients asked for, by shard, one value a slot from `start`.
#[derive(Debug, Clone)]
pub struct OfferedDemand {
    /// First moment.
    pub start: Timestamp,
    /// Length of a slot: a minute for a day that is lived through, a step of the history for one that is past.
    pub slot: Step,
    /// Load by shard and slot; all of one length.
    pub by_shard: BTreeMap<ShardId, Vec<PerResource<f64>>>,
}

impl OfferedDemand {
    /// How many slots.
    pub fn slots(&self) -> usize {
        self.by_shard.values().map(Vec::len).max().unwrap_or(0)
    }
}

/// A shard's new owner from a moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerChange {
    /// The shard.
    pub shard: ShardId,
    /// Who takes over.
    pub to: NodeId,
    /// When.
    pub at: Timestamp,
}

/// The load that a copy adds on one node while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyLoad {
    /// The node.
    pub node: NodeId,
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
    /// Share of the node's capacity.
    pub share: PerResource<f64>,
}

/// What a day cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overload {
    /// Node-minutes in which any resource was over capacity.
    pub minutes: f64,
    /// The excess as share of capacity, integrated over minutes and summed over nodes and resources.
    pub area: f64,
}

/// Accounts a day: `initial` placement, changes of owner in any order, copies.
pub fn account(
    demand: &OfferedDemand,
    nodes: &[Node],
    initial: &Placement,
    changes: &[OwnerChange],
    copies: &[CopyLoad],
) -> Overload {
    let mut total = Overload::default();
    for slot in 0..demand.slots() {
        let from = demand.start.plus_steps(slot as i64, demand.slot);
        let span = (from, from.plus_ms(demand.slot.as_ms()));
        let loads = node_loads(demand, slot, |shard| owner_in(shard, span, initial, changes));
        for node in nodes {
            let own = loads.get(&node.id).copied().unwrap_or_default();
            let excess = excess(node, own, span, copies);
            let over = Resource::ALL.iter().any(|r| excess[*r] > SLACK);
            total.minutes += if over { demand.slot.as_minutes() } else { 0.0 };
            total.area += Resource::ALL.iter().map(|r| excess[*r]).sum::<f64>() * demand.slot.as_minutes();
        }
    }
    total
}

/// The owner that a shard has for most of a slot.
fn owner_in<'a>(
    shard: &ShardId,
    (from, to): (Timestamp, Timestamp),
    initial: &'a Placement,
    changes: &'a [OwnerChange],
) -> Option<&'a NodeId> {
    let middle = from.plus_ms(to.since_ms(from) / 2);
    let last = changes.iter().filter(|c| c.shard == *shard && c.at <= middle).max_by_key(|c| c.at);
    last.map(|c| &c.to).or_else(|| initial.node_of(shard))
}

/// Load by node in one slot.
fn node_loads<'a>(
    demand: &OfferedDemand,
    slot: usize,
    owner: impl Fn(&ShardId) -> Option<&'a NodeId>,
) -> BTreeMap<NodeId, PerResource<f64>> {
    let mut loads: BTreeMap<NodeId, PerResource<f64>> = BTreeMap::new();
    for (shard, series) in &demand.by_shard {
        if let (Some(load), Some(node)) = (series.get(slot), owner(shard)) {
            let sum = loads.entry(node.clone()).or_default();
            Resource::ALL.into_iter().for_each(|r| sum[r] += load[r]);
        }
    }
    loads
}

/// Excess over capacity in one slot, as share of the capacity; 0 where a resource has no limit.
fn excess(node: &Node, own: PerResource<f64>, span: (Timestamp, Timestamp), copies: &[CopyLoad]) -> PerResource<f64> {
    let mine = || copies.iter().filter(|copy| copy.node == node.id);
    PerResource::from_fn(|resource| {
        let Some(capacity) = node.capacity[resource] else { return 0.0 };
        let copying: f64 = mine().map(|copy| copy.share[resource] * overlap(copy, span)).sum();
        (own[resource] / capacity + copying - 1.0).max(0.0)
    })
}

/// Share of a slot in which a copy runs.
fn overlap(copy: &CopyLoad, (from, to): (Timestamp, Timestamp)) -> f64 {
    let ms = copy.to.min(to).since_ms(copy.from.max(from)).max(0);
    ms as f64 / to.since_ms(from).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{NodeState, ZoneId};

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    fn node(name: &str) -> Node {
        Node {
            id: NodeId::new(name).unwrap(),
            zone: ZoneId::new("z").unwrap(),
            speed: 1.0,
            capacity: PerResource { cpu: Some(100.0), memory: None, io: Some(1000.0) },
            state: NodeState::Active,
        }
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_ms(minute * 60_000)
    }

    /// Two shards of 60 each for four minutes; the second one's last minute is idle.
    fn demand() -> OfferedDemand {
        let load = |cpu| PerResource { cpu, memory: 1e9, io: 0.0 };
        let a = vec![load(60.0); 4];
        let b = vec![load(60.0), load(60.0), load(60.0), load(0.0)];
        OfferedDemand { start: at(0), slot: Step::MINUTE, by_shard: BTreeMap::from([(shard("a"), a), (shard("b"), b)]) }
    }

    fn both_on_n1() -> Placement {
        ["a", "b"].into_iter().map(|s| (shard(s), NodeId::new("n1").unwrap())).collect()
    }

    #[test]
    fn counts_node_minutes_and_their_area() {
        let unmoved = account(&demand(), &[node("n1"), node("n2")], &both_on_n1(), &[], &[]);
        assert_eq!(unmoved.minutes, 3.0);
        assert!((unmoved.area - 0.6).abs() < 1e-9, "{unmoved:?}");
    }

    #[test]
    fn a_move_ends_the_overload_and_its_copy_counts() {
        let moved = OwnerChange { shard: shard("b"), to: NodeId::new("n2").unwrap(), at: at(1) };
        let nodes = [node("n1"), node("n2")];
        let with = account(&demand(), &nodes, &both_on_n1(), std::slice::from_ref(&moved), &[]);
        assert_eq!(with.minutes, 1.0);
        let share = PerResource { cpu: 0.5, memory: 0.0, io: 0.0 };
        let copy = CopyLoad { node: node("n2").id, from: at(2), to: at(3).plus_ms(30_000), share };
        let with = account(&demand(), &nodes, &both_on_n1(), &[moved], &[copy]);
        // Minute 2: 60 + 50 on n2 is over; minute 3: n2 is idle but for half a minute of copy.
        assert_eq!(with.minutes, 2.0);
    }

    #[test]
    fn the_owner_of_most_of_a_minute_has_it() {
        let late = OwnerChange { shard: shard("b"), to: NodeId::new("n2").unwrap(), at: at(1).plus_ms(40_000) };
        let with = account(&demand(), &[node("n1"), node("n2")], &both_on_n1(), &[late], &[]);
        assert_eq!(with.minutes, 2.0);
    }
}
