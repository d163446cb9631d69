//! The input as dense, integer-indexed tables: what the planner computes on.

mod distance;
mod grid;
mod load;

use foreshard_domain::{Node, NodeId, NodeState, PerResource, Resource, ScenarioSet, ShardId, Spread, Timestamp};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::{PlanningInput, ShardFacts};

use distance::Distances;
pub(crate) use grid::Grid;
pub(crate) use load::{Bounds, NodeLoad, Scan, Transfer};

/// Sample paths of one load for each resource; `None` where it is zero throughout.
pub(crate) type Lanes<'a> = PerResource<Option<Cow<'a, [f32]>>>;

/// A node.
pub(crate) struct NodeModel<'a> {
    pub node: &'a Node,
    pub zone: usize,
    pub residual: Lanes<'a>,
    pub residual_current: PerResource<f64>,
    /// When the last shard arrived, as far as the facts of its present shards tell.
    pub last_arrival: Option<Timestamp>,
}

/// A placed shard.
pub(crate) struct ShardModel<'a> {
    pub id: &'a ShardId,
    /// Where it is now.
    pub node: usize,
    pub lanes: Lanes<'a>,
    pub facts: Option<&'a ShardFacts>,
    /// Whether a move of it is running.
    pub in_flight: bool,
    pub pin: Option<usize>,
    pub excluded: Vec<usize>,
    /// Shards that it must be kept apart from.
    pub apart: Vec<(usize, Spread)>,
    /// Peers and MiB/s.
    pub peers: Vec<(usize, f64)>,
    /// Where the ring would have it.
    pub home: Option<usize>,
}

/// The input, indexed.
pub(crate) struct Model<'a> {
    pub input: &'a PlanningInput,
    pub grid: Grid,
    /// Resources that any node has a limit of.
    pub resources: Vec<Resource>,
    pub nodes: Vec<NodeModel<'a>>,
    pub shards: Vec<ShardModel<'a>>,
    /// Running moves.
    pub running: Vec<Transfer>,
    /// Mean share of the whole cluster by step, the same wherever the shards are.
    pub mean_share: PerResource<Vec<f64>>,
    /// Load of each node where the shards are now, without running copies.
    pub home: Vec<NodeLoad>,
    /// The shards on each node now, in order.
    pub on: Vec<Vec<usize>>,
    distances: Distances<'a>,
    /// Whether anything may forbid a shard to stay where it is.
    pub constrained: bool,
    /// How much a minute of overload counts, by step: less the later it comes.
    pub weight: Vec<f64>,
    /// How many scenarios may be over a bound so that the capacity quantile is not.
    pub may_exceed: u32,
    pub notes: Vec<String>,
}

impl<'a> Model<'a> {
    /// Indexes a validated input.
    pub fn new(input: &'a PlanningInput) -> Self {
        let grid = Grid::new(&input.scenarios, input.now);
        let source = LaneSource {
            set: &input.scenarios,
            index: index_of(&input.scenarios),
            grid: &grid,
            voteless: &input.voteless,
        };
        let mut notes = Vec::new();
        let nodes = nodes(input, &source);
        let node_index: BTreeMap<&NodeId, usize> = nodes.iter().enumerate().map(|(i, n)| (&n.node.id, i)).collect();
        let shards = shards(input, &source, &node_index, &mut notes);
        note_ignored(input, &node_index, &mut notes);
        let running = running(input, &shards, &node_index, &grid);
        let resources = Resource::ALL.into_iter().filter(|r| nodes.iter().any(|n| n.node.capacity[*r].is_some()));
        let resources = resources.collect();
        let n = grid.scenarios as f64;
        let rank = (input.settings.capacity_quantile * n).ceil().clamp(1.0, n);
        let may_exceed = (n - rank) as u32;
        let distances = Distances::new(&input.topology, nodes.iter().map(|n: &NodeModel<'_>| n.zone).collect());
        let mut on = vec![Vec::new(); nodes.len()];
        shards.iter().enumerate().for_each(|(i, shard)| on[shard.node].push(i));
        let (mean_share, home) = (PerResource::default(), Vec::new());
        let ahead = |step: usize| grid.time(step).since_ms(input.now);
        let weight = (0..grid.steps).map(|step| input.settings.counts(ahead(step))).collect();
        let topology = &input.topology;
        let constrained = !(topology.pins.is_empty() && topology.exclusions.is_empty() && topology.groups.is_empty())
            || topology.nodes.iter().any(|n| n.state == NodeState::Draining);
        let mut model = Self {
            input,
            grid,
            resources,
            nodes,
            shards,
            running,
            mean_share,
            home,
            on,
            distances,
            constrained,
            weight,
            may_exceed,
            notes,
        };
        model.home = (0..model.nodes.len()).map(|node| model.load_of(node, &model.on[node])).collect();
        model.mean_share = model.cluster_share();
        model
    }

    /// The steps in which a move binds capacity: from the beginning of its copy until its shard may have left its target
    /// again, and for as long as is configured. What comes later is charged, and left to later plans.
    pub fn firm(&self, transfer: &Transfer) -> Range<usize> {
        let again = transfer.leaves.since_ms(transfer.start);
        self.grid.step_of(transfer.start)..self.firm_until(transfer.leaves, again)
    }

    /// The steps in which a move that is over at once would bind capacity.
    pub fn firm_now(&self) -> Range<usize> {
        self.grid.first..self.firm_until(self.input.now, 0)
    }

    fn firm_until(&self, leaves: Timestamp, copy_ms: i64) -> usize {
        let settings = &self.input.settings;
        match settings.capacity_window_ms {
            0 => self.grid.steps,
            firm => {
                let again = settings.cool_down_shard_ms.saturating_add(copy_ms);
                self.grid.step_after(leaves.plus_ms(firm.max(again)))
            }
        }
    }

    /// Capacity of a node, if it has a limit.
    pub fn capacity(&self, node: usize, resource: Resource) -> Option<f64> {
        self.nodes[node].node.capacity[resource]
    }

    /// One-way latency between two nodes.
    pub fn latency(&self, a: usize, b: usize) -> f64 {
        self.distances.latency_ms(a, b)
    }

    /// Bandwidth between two nodes in bytes per second, if it is limited.
    pub fn bandwidth(&self, a: usize, b: usize) -> Option<f64> {
        self.distances.bandwidth(a, b)
    }

    /// What communication costs more if `shard` is on `to` instead of `from`, overload minutes; negative if less.
    pub fn communication_change(&self, shard: usize, from: usize, to: usize, at: &[usize]) -> f64 {
        let peers = self.shards[shard].peers.iter();
        let change: f64 = peers
            .map(|(peer, mib_per_s)| mib_per_s * (self.latency(to, at[*peer]) - self.latency(from, at[*peer])))
            .sum();
        change * self.input.settings.communication_weight
    }

    /// What being away from the ring costs more if `shard` is on `to` instead of `from`, overload minutes.
    pub fn home_change(&self, shard: usize, from: usize, to: usize) -> f64 {
        let away = |node: usize| f64::from(u8::from(self.shards[shard].home.is_some_and(|home| home != node)));
        (away(to) - away(from)) * self.input.settings.home_weight
    }

    /// What a place costs more than another beside its load: communication, and being away from the ring.
    pub fn place_change(&self, shard: usize, from: usize, to: usize, at: &[usize]) -> f64 {
        self.communication_change(shard, from, to, at) + self.home_change(shard, from, to)
    }

    /// Whether a shard may be on a node beside its group, the others being where `places` says.
    pub fn spread_conflict<'b>(
        &self,
        shard: usize,
        node: usize,
        mut places: impl FnMut(usize) -> &'b [usize],
    ) -> Option<usize> {
        let zone = self.nodes[node].zone;
        let mut apart = self.shards[shard].apart.iter();
        let conflict = apart.find(|(other, spread)| {
            places(*other).iter().any(|place| match spread {
                Spread::Node => *place == node,
                Spread::Zone => self.nodes[*place].zone == zone,
            })
        });
        conflict.map(|(other, _)| *other)
    }

    /// Mean load of everything over the capacity of all nodes that stay, by step.
    fn cluster_share(&self) -> PerResource<Vec<f64>> {
        PerResource::from_fn(|r| {
            let stays = |n: &&NodeModel<'_>| n.node.state != NodeState::Draining;
            let capacity: f64 = self.nodes.iter().filter(stays).filter_map(|n| n.node.capacity[r]).sum();
            let mut total = vec![0.0; self.grid.steps];
            for load in &self.home {
                for (sum, row) in total.iter_mut().zip(load.0[r].values().chunks_exact(self.grid.scenarios)) {
                    *sum += row.iter().map(|v| f64::from(*v)).sum::<f64>();
                }
            }
            let scale = if capacity > 0.0 { 1.0 / (capacity * self.grid.scenarios as f64) } else { 0.0 };
            total.iter().map(|sum| sum * scale).collect()
        })
    }
}

struct LaneSource<'a, 'b> {
    set: &'a ScenarioSet,
    index: HashMap<&'a ShardId, usize>,
    grid: &'b Grid,
    voteless: &'a BTreeSet<ShardId>,
}

impl<'a> LaneSource<'a, '_> {
    /// The lanes of a shard, constant where the scenarios have none; and whether any had to be constant.
    fn lanes(&self, shard: &ShardId, facts: Option<&ShardFacts>) -> (Lanes<'a>, bool) {
        let mut made_up = false;
        // Without a vote of its forecast a shard stays as last observed; what was never observed has nothing better.
        let votes = facts.is_none() || !self.voteless.contains(shard);
        let lanes = PerResource::from_fn(|r| {
            let lane = self.index.get(shard).zip(self.set.resource_index(r)).and_then(|(s, r)| self.set.lane(r, *s));
            if let Some(lane) = lane.filter(|_| votes) {
                return lane.iter().any(|v| *v != 0.0).then_some(Cow::Borrowed(lane));
            }
            let current = facts.map_or(0.0, |f| f.current[r]);
            made_up |= votes && (current > 0.0 || !self.index.contains_key(shard));
            (current > 0.0).then(|| Cow::Owned(vec![current as f32; self.grid.steps * self.grid.scenarios]))
        });
        (lanes, made_up)
    }
}

/// Only looked up in, so the order of a hash map is of no consequence.
fn index_of(set: &ScenarioSet) -> HashMap<&ShardId, usize> {
    set.shards().iter().enumerate().map(|(i, shard)| (shard, i)).collect()
}

fn nodes<'a>(input: &'a PlanningInput, source: &LaneSource<'a, '_>) -> Vec<NodeModel<'a>> {
    let mut zones = BTreeMap::new();
    let mut arrivals: BTreeMap<&NodeId, Timestamp> = BTreeMap::new();
    for (shard, node) in input.placement.iter() {
        if let Some(moved) = input.shards.get(shard).and_then(|f| f.last_moved) {
            let last = arrivals.entry(node).or_insert(moved);
            *last = moved.max(*last);
        }
    }
    let nodes = input.topology.nodes.iter().map(|node| {
        let next = zones.len();
        let zone = *zones.entry(&node.zone).or_insert(next);
        let pseudo = ShardId::residual(&node.id);
        let facts = input.shards.get(&pseudo);
        let (residual, _) = source.lanes(&pseudo, facts);
        let first = |r| residual[r].as_ref().map_or(0.0, |lane| mean(lane.get(..source.grid.scenarios).unwrap_or(&[])));
        let residual_current = facts.map_or_else(|| PerResource::from_fn(first), |f| f.current);
        NodeModel { node, zone, residual, residual_current, last_arrival: arrivals.get(&node.id).copied() }
    });
    nodes.collect()
}

fn mean(row: &[f32]) -> f64 {
    row.iter().map(|v| f64::from(*v)).sum::<f64>() / row.len().max(1) as f64
}

fn shards<'a>(
    input: &'a PlanningInput,
    source: &LaneSource<'a, '_>,
    node_index: &BTreeMap<&NodeId, usize>,
    notes: &mut Vec<String>,
) -> Vec<ShardModel<'a>> {
    let placed = input.placement.iter().filter_map(|(id, node)| Some((id, *node_index.get(node)?)));
    let mut shards: Vec<ShardModel<'a>> = Vec::with_capacity(input.placement.len());
    // Both are sorted by shard: one walk along both instead of a search for each.
    let mut known = input.shards.iter().peekable();
    for (id, node) in placed {
        while known.next_if(|(other, _)| *other < id).is_some() {}
        let facts = known.next_if(|(other, _)| *other == id).map(|(_, facts)| facts);
        let (lanes, made_up) = source.lanes(id, facts);
        if made_up {
            let load = if facts.is_some() { "its load as last observed" } else { "no load, as none is known" };
            notes.push(format!("shard {id} has no complete forecast; planned with {load}"));
        }
        let in_flight = input.in_flight.iter().any(|f| f.shard == *id);
        let (pin, excluded, apart, peers) = (None, Vec::new(), Vec::new(), Vec::new());
        let home = input.homes.get(id).and_then(|home| node_index.get(home)).copied();
        shards.push(ShardModel { id, node, lanes, facts, in_flight, pin, excluded, apart, peers, home });
    }
    bind(input, node_index, &mut shards);
    shards
}

/// Fills in what binds shards to nodes and to each other.
fn bind<'a>(input: &'a PlanningInput, node_index: &BTreeMap<&NodeId, usize>, shards: &mut [ShardModel<'a>]) {
    let topology = &input.topology;
    if topology.pins.is_empty()
        && topology.exclusions.is_empty()
        && topology.groups.is_empty()
        && input.communication.is_empty()
    {
        return;
    }
    let index: HashMap<&ShardId, usize> = shards.iter().enumerate().map(|(i, s)| (s.id, i)).collect();
    for rule in &input.topology.pins {
        if let (Some(s), node) = (index.get(&rule.shard), node_index.get(&rule.node)) {
            shards[*s].pin = node.copied();
        }
    }
    for rule in &input.topology.exclusions {
        if let (Some(s), Some(node)) = (index.get(&rule.shard), node_index.get(&rule.node)) {
            shards[*s].excluded.push(*node);
        }
    }
    for group in &input.topology.groups {
        let members: Vec<usize> = group.shards.iter().filter_map(|s| index.get(s).copied()).collect();
        for a in &members {
            shards[*a].apart.extend(members.iter().filter(|b| *b != a).map(|b| (*b, group.spread)));
        }
    }
    for edge in &input.communication {
        if let (Some(a), Some(b)) = (index.get(&edge.a), index.get(&edge.b)) {
            let mib_per_s = edge.bytes_per_s / 1_048_576.0;
            if a != b && mib_per_s > 0.0 {
                shards[*a].peers.push((*b, mib_per_s));
                shards[*b].peers.push((*a, mib_per_s));
            }
        }
    }
}

fn note_ignored(input: &PlanningInput, node_index: &BTreeMap<&NodeId, usize>, notes: &mut Vec<String>) {
    let known = |s: &&ShardId| input.placement.node_of(s).is_some() && input.shards.contains_key(*s);
    let voteless: Vec<&str> = input.voteless.iter().filter(known).map(ShardId::as_str).collect();
    if let Some(first) = voteless.first() {
        notes.push(format!(
            "the forecasts of {} shards were lately worse than seasonal naive and have no vote, such as {first}; planned \
             with their loads as last observed",
            voteless.len()
        ));
    }
    let ignored = input.scenarios.shards().iter().filter(|s| match s.residual_node() {
        Some(node) => !node_index.contains_key(&node),
        None => input.placement.node_of(s).is_none(),
    });
    let ignored: Vec<&str> = ignored.map(ShardId::as_str).collect();
    if let Some(first) = ignored.first() {
        notes.push(format!("{} series of the scenarios belong to no placed shard, such as {first}", ignored.len()));
    }
    let unplaced = |shard: &ShardId| input.placement.node_of(shard).is_none();
    let edges = input.communication.iter().filter(|e| unplaced(&e.a) || unplaced(&e.b)).count();
    if edges > 0 {
        notes.push(format!("{edges} communication edges name a shard that is not placed"));
    }
}

fn running(
    input: &PlanningInput,
    shards: &[ShardModel<'_>],
    node_index: &BTreeMap<&NodeId, usize>,
    grid: &Grid,
) -> Vec<Transfer> {
    let running = input.in_flight.iter().filter_map(|f| {
        let shard = shards.iter().position(|s| *s.id == f.shard)?;
        let (source, target) = (*node_index.get(&f.source)?, *node_index.get(&f.target)?);
        // One that is overdue is expected to take another step.
        let end = f.expected_end.max(input.now.plus_ms(grid.step_ms));
        let (arrives, leaves) = (end, end);
        Some(Transfer { shard, source, target, start: f.started, arrives, leaves, done: shards[shard].node == target })
    });
    running.collect()
}
