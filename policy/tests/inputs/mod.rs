//! Inputs for tests: small ones by hand, random ones by seed.
#![allow(dead_code)]

use foreshard_domain::{
    CostModel, Group, GroupId, Link, MaintenanceWindow, Node, NodeId, NodeState, PerResource, Placement, Resource,
    Rule, ScenarioSet, ShardId, Spread, Step, Timestamp, Topology, ZoneId,
};
use foreshard_policy::{Communication, InFlight, Plan, PlanningInput, PolicySettings, RuleSwitches, ShardFacts};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};

pub mod fleet;

pub const GIB: f64 = 1_073_741_824.0;
/// 2026-01-05T00:00Z
pub const NOW: Timestamp = Timestamp::from_ms(1_767_571_200_000);

pub fn shard(id: &str) -> ShardId {
    ShardId::new(id).unwrap()
}

pub fn node_id(id: &str) -> NodeId {
    NodeId::new(id).unwrap()
}

pub fn node(id: &str, zone: &str, cpu: f64) -> Node {
    let capacity = PerResource { cpu: Some(cpu), memory: None, io: None };
    Node { id: node_id(id), zone: ZoneId::new(zone).unwrap(), speed: 1.0, capacity, state: NodeState::Active }
}

pub fn facts(current: f64) -> ShardFacts {
    let current = PerResource { cpu: current, memory: 0.0, io: 0.0 };
    ShardFacts { data_bytes: GIB, current, ..ShardFacts::default() }
}

/// Scenarios of CPU alone from `(shard, paths)`, paths step-major.
pub fn cpu_scenarios(lanes: &[(&str, Vec<f32>)], steps: usize, scenarios: usize) -> ScenarioSet {
    let shards = lanes.iter().map(|(id, _)| shard(id)).collect();
    let values = lanes.iter().flat_map(|(_, lane)| lane.iter().copied()).collect();
    let issued = NOW.plus_steps(-1, Step::FIVE_MINUTES);
    ScenarioSet::new(issued, Step::FIVE_MINUTES, vec![Resource::Cpu], shards, (steps, scenarios), values).unwrap()
}

/// Settings under which only the named rules ask, without thresholds of gain.
pub fn only(rules: RuleSwitches) -> PolicySettings {
    PolicySettings { rules, min_gain: 0.1, ..PolicySettings::default() }
}

pub const NO_RULES: RuleSwitches =
    RuleSwitches { threshold: false, cost_benefit: false, proactive_balancing: false, reactive: false };

/// Shards `(id, node, constant load)` of one GiB each on the nodes given, two scenarios, 24 steps.
pub fn constant(nodes: Vec<Node>, shards: &[(&str, &str, f64)], settings: PolicySettings) -> PlanningInput {
    let lanes: Vec<(&str, Vec<f32>)> = shards.iter().map(|(id, _, load)| (*id, vec![*load as f32; 48])).collect();
    PlanningInput {
        now: NOW,
        seed: 1,
        parent: None,
        topology: Topology { nodes, ..Topology::default() },
        placement: shards.iter().map(|(id, node, _)| (shard(id), node_id(node))).collect(),
        scenarios: cpu_scenarios(&lanes, 24, 2),
        shards: shards.iter().map(|(id, _, load)| (shard(id), facts(*load))).collect(),
        voteless: BTreeSet::new(),
        homes: BTreeMap::new(),
        communication: Vec::new(),
        in_flight: Vec::new(),
        cost_model: CostModel::prior(60.0 * 1_048_576.0),
        settings,
    }
}

/// Replaces the paths of one shard.
pub fn with_lane(input: &mut PlanningInput, id: &str, lane: &[f32]) {
    let set = &input.scenarios;
    let index = set.shard_index(&shard(id)).unwrap();
    let mut values = set.values().to_vec();
    let length = set.steps() * set.scenarios();
    values[index * length..(index + 1) * length].copy_from_slice(lane);
    let shape = (set.steps(), set.scenarios());
    input.scenarios =
        ScenarioSet::new(set.issued_at(), set.step(), set.resources().to_vec(), set.shards().to_vec(), shape, values)
            .unwrap();
}

/// The input as it is when the plan has been carried out.
pub fn carried_out(input: &PlanningInput, plan: &Plan) -> PlanningInput {
    let mut after = input.clone();
    for m in &plan.moves {
        after.placement.assign(m.shard.clone(), m.target.clone());
        if let Some(facts) = after.shards.get_mut(&m.shard) {
            facts.last_moved = Some(input.now);
        }
    }
    after.parent = Some(plan.id.clone());
    after
}

/// A random input that is valid: heterogeneous nodes, correlated scenarios with bursts, every kind of constraint.
pub fn random(seed: u64) -> PlanningInput {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let (nodes, shards) = (rng.random_range(2..=6), rng.random_range(3..=18));
    let (steps, scenarios) = (rng.random_range(4..=24), *[1, 3, 8, 20].choose(rng).unwrap());
    let resources: Vec<Resource> = Resource::ALL.into_iter().filter(|r| *r == Resource::Cpu || rng.random()).collect();
    let node_ids: Vec<NodeId> = (0..nodes).map(|i| node_id(&format!("n{i}"))).collect();
    let shard_ids: Vec<ShardId> = (0..shards).map(|i| shard(&format!("s{i:02}"))).collect();
    let level = 100.0 * f64::from(nodes) / f64::from(shards) * rng.random_range(0.3..1.2);
    let issued = NOW.plus_ms(-rng.random_range(300_000..900_000));
    let mut series = shard_ids.clone();
    series.extend(node_ids.iter().filter(|_| rng.random_bool(0.5)).map(ShardId::residual));
    if rng.random_bool(0.2) {
        series.remove(0);
    }
    let values = scenario_values(rng, resources.len(), series.len(), (steps, scenarios), level);
    let step = Step::FIVE_MINUTES;
    let scenarios = ScenarioSet::new(issued, step, resources, series, (steps, scenarios), values).unwrap();
    let placement: Placement = shard_ids.iter().map(|s| (s.clone(), node_ids.choose(rng).unwrap().clone())).collect();
    let facts = shard_ids.iter().filter_map(|s| Some((s.clone(), random_facts(rng, level)?))).collect();
    PlanningInput {
        now: NOW,
        seed,
        parent: None,
        topology: topology(rng, &node_ids, &shard_ids),
        in_flight: in_flight(rng, &placement, &node_ids),
        placement,
        scenarios,
        shards: facts,
        voteless: BTreeSet::new(),
        homes: BTreeMap::new(),
        communication: communication(rng, &shard_ids),
        cost_model: CostModel::prior(rng.random_range(10.0..200.0) * 1_048_576.0),
        settings: settings(rng),
    }
}

fn scenario_values(
    rng: &mut ChaCha8Rng,
    resources: usize,
    series: usize,
    shape: (usize, usize),
    level: f64,
) -> Vec<f32> {
    let (steps, scenarios) = shape;
    let mut values = Vec::with_capacity(resources * series * steps * scenarios);
    for _ in 0..resources * series {
        let mean = level * rng.random_range(0.1..2.0);
        let (burst, height) = (rng.random_range(0..steps * 2), mean * rng.random_range(0.0..3.0));
        for step in 0..steps {
            for k in 0..scenarios {
                let noise = 1.0 + 0.3 * (k as f64 / scenarios as f64 - 0.5) + rng.random_range(-0.1..0.1);
                let high = if (burst..burst + 4).contains(&step) { height } else { 0.0 };
                values.push(((mean + high) * noise) as f32);
            }
        }
    }
    values
}

fn random_facts(rng: &mut ChaCha8Rng, level: f64) -> Option<ShardFacts> {
    rng.random_bool(0.95).then(|| ShardFacts {
        data_bytes: GIB * rng.random_range(0.1..30.0),
        write_bytes_per_s: 0.0,
        last_moved: rng.random_bool(0.2).then(|| NOW.plus_ms(-rng.random_range(0..7_200_000))),
        held_until: rng.random_bool(0.1).then(|| NOW.plus_ms(rng.random_range(-60_000..7_200_000))),
        current: PerResource::from_fn(|_| level * rng.random_range(0.1..2.0)),
        txn_rate: 0.0,
    })
}

fn topology(rng: &mut ChaCha8Rng, nodes: &[NodeId], shards: &[ShardId]) -> Topology {
    let all = nodes.iter().map(|id| Node {
        id: id.clone(),
        zone: ZoneId::new(format!("z{}", rng.random_range(0..3))).unwrap(),
        speed: 1.0,
        capacity: PerResource::from_fn(|r| (r == Resource::Cpu || rng.random()).then(|| rng.random_range(60.0..200.0))),
        state: *[
            NodeState::Active,
            NodeState::Active,
            NodeState::Active,
            NodeState::Active,
            NodeState::Draining,
            NodeState::Closed,
        ]
        .choose(rng)
        .unwrap(),
    });
    let all = all.collect();
    let mut topology = Topology { nodes: all, ..Topology::default() };
    for i in 0..rng.random_range(0..3) {
        let members: BTreeSet<ShardId> = shards.choose_multiple(rng, 3).cloned().collect();
        let spread = if rng.random() { Spread::Node } else { Spread::Zone };
        topology.groups.push(Group { id: GroupId::new(format!("g{i}")).unwrap(), shards: members, spread });
    }
    let pick = |rng: &mut ChaCha8Rng| Rule {
        shard: shards.choose(rng).unwrap().clone(),
        node: nodes.choose(rng).unwrap().clone(),
    };
    if rng.random_bool(0.3) {
        topology.pins.push(pick(rng));
    }
    if rng.random_bool(0.4) {
        topology.exclusions.extend(Some(pick(rng)).filter(|rule| !topology.pins.contains(rule)));
    }
    if rng.random_bool(0.3) {
        let start = NOW.plus_ms(rng.random_range(-3_600_000..3_600_000));
        let node = rng.random::<bool>().then(|| nodes.choose(rng).unwrap().clone());
        topology.windows.push(MaintenanceWindow { node, start, end: start.plus_ms(rng.random_range(1..3_600_000)) });
    }
    if rng.random_bool(0.3) {
        let rate = rng.random::<bool>().then_some(30.0 * 1_048_576.0);
        topology.links.push(Link { a: "z0".into(), b: "z1".into(), latency_ms: 5.0, bandwidth_bytes_per_s: rate });
        topology.links.retain(|_| ["z0", "z1"].iter().all(|z| topology.nodes.iter().any(|n| n.zone.as_str() == *z)));
    }
    topology
}

fn in_flight(rng: &mut ChaCha8Rng, placement: &Placement, nodes: &[NodeId]) -> Vec<InFlight> {
    let mut running = Vec::new();
    if rng.random_bool(0.3) {
        let (shard, at) = placement.iter().nth(rng.random_range(0..placement.len())).unwrap();
        if let Some(other) = nodes.iter().find(|n| *n != at) {
            let (source, target) = if rng.random_bool(0.8) { (at, other) } else { (other, at) };
            running.push(InFlight {
                shard: shard.clone(),
                source: source.clone(),
                target: target.clone(),
                started: NOW.plus_ms(-rng.random_range(0..600_000)),
                expected_end: NOW.plus_ms(rng.random_range(-60_000..900_000)),
            });
        }
    }
    running
}

fn communication(rng: &mut ChaCha8Rng, shards: &[ShardId]) -> Vec<Communication> {
    let edges = if rng.random_bool(0.5) { 0 } else { rng.random_range(1..6) };
    let pick = |rng: &mut ChaCha8Rng| shards.choose(rng).unwrap().clone();
    let edge =
        |rng: &mut ChaCha8Rng| Communication { a: pick(rng), b: pick(rng), bytes_per_s: rng.random_range(0.0..4e8) };
    (0..edges).map(|_| edge(rng)).collect()
}

fn settings(rng: &mut ChaCha8Rng) -> PolicySettings {
    PolicySettings {
        limit: rng.random_range(0.8..1.0),
        confidence: rng.random_range(0.0..0.9),
        capacity_quantile: rng.random_range(0.5..1.0),
        rules: RuleSwitches {
            threshold: rng.random(),
            cost_benefit: rng.random_bool(0.8),
            proactive_balancing: rng.random(),
            reactive: rng.random(),
        },
        balance_difference: 0.2,
        min_gain: rng.random_range(0.0..2.0),
        churn_weight: rng.random_range(0.01..0.5),
        moves_in_flight: rng.random_range(1..4),
        moves_per_node: rng.random_range(1..3),
        moves_per_plan: rng.random_range(1..9),
        cool_down_node_ms: if rng.random_bool(0.2) { 1_800_000 } else { 0 },
        relief_copies: rng.random_bool(0.7),
        ..PolicySettings::default()
    }
}

/// Facts by shard, for tests that change them.
pub fn facts_of<'a>(input: &'a mut PlanningInput, id: &str) -> &'a mut ShardFacts {
    let shards: &mut BTreeMap<ShardId, ShardFacts> = &mut input.shards;
    shards.get_mut(&shard(id)).unwrap()
}
