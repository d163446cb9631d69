//! Large fleets by seed: loads that rise together and apart, one node in twenty that runs hot.
#![allow(dead_code)]

use foreshard_domain::{
    CostModel, Node, NodeId, NodeState, PerResource, Placement, Resource, ScenarioSet, ShardId, Step, Timestamp,
    Topology, ZoneId,
};
use foreshard_policy::{PlanningInput, PolicySettings, ShardFacts};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const GIB: f64 = 1_073_741_824.0;
const STEPS: usize = 24;
const SCENARIOS: usize = 32;
/// 2026-01-05T00:00Z
const NOW: Timestamp = Timestamp::from_ms(1_767_571_200_000);

/// A fleet whose nodes are used to 55 % in the mean, and to 110 % on one in twenty.
pub fn fleet(shards: usize, nodes: usize, seed: u64) -> PlanningInput {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let node_ids: Vec<NodeId> = (0..nodes).map(|i| NodeId::new(format!("n{i:04}")).unwrap()).collect();
    let shard_ids: Vec<ShardId> = (0..shards).map(|i| ShardId::new(format!("s{i:06}")).unwrap()).collect();
    let weights: Vec<f64> = (0..shards).map(|_| (1.0f64 - rng.random::<f64>()).powf(-0.4).min(6.0)).collect();
    let (mut homes, mut sums) = (Vec::with_capacity(shards), vec![0.0; nodes]);
    for weight in &weights {
        // Of two nodes the one that is used less: as even as a cluster that somebody looks after.
        let (a, b) = (rng.random_range(0..nodes), rng.random_range(0..nodes));
        let node = if sums[a] <= sums[b] { a } else { b };
        sums[node] += weight;
        homes.push(node);
    }
    let mean = sums.iter().sum::<f64>() / nodes as f64;
    let scale = 55.0 / mean;
    let hot = |node: usize| if node.is_multiple_of(20) { 2.0 } else { 1.0 };
    let mut values = Vec::with_capacity(3 * shards * STEPS * SCENARIOS);
    for (resource, level) in [1.0, 0.8, 0.6].into_iter().enumerate() {
        for (shard, weight) in weights.iter().enumerate() {
            let load = (weight * scale * level * hot(homes[shard])) as f32;
            let phase = (shard % 7) as f32 + resource as f32;
            // Cheap noise that differs by scenario and shard: the generator is not what is measured.
            let mut noise = (shard as u32).wrapping_mul(2_654_435_761).wrapping_add(resource as u32);
            for step in 0..STEPS {
                let shape = 1.0 + 0.15 * ((step as f32 + phase) * 0.26).sin();
                for k in 0..SCENARIOS {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let own = (noise >> 8) as f32 / 16_777_216.0 - 0.5;
                    let common = (k as f32 / SCENARIOS as f32 - 0.5) * 0.2;
                    values.push(load * shape * (1.0 + common + 0.2 * own));
                }
            }
        }
    }
    let issued = NOW.plus_steps(-1, Step::FIVE_MINUTES);
    let set = ScenarioSet::new(
        issued,
        Step::FIVE_MINUTES,
        Resource::ALL.to_vec(),
        shard_ids.clone(),
        (STEPS, SCENARIOS),
        values,
    );
    let facts = |i: usize| {
        let current = PerResource::from_fn(|_| weights[i] * scale * hot(homes[i]));
        ShardFacts { data_bytes: GIB * rng.random_range(1.0..20.0), current, ..ShardFacts::default() }
    };
    let facts = (0..shards).map(facts).collect::<Vec<_>>();
    let placement: Placement = shard_ids.iter().zip(&homes).map(|(s, n)| (s.clone(), node_ids[*n].clone())).collect();
    let node = |(i, id): (usize, &NodeId)| Node {
        id: id.clone(),
        zone: ZoneId::new(format!("z{}", i % 3)).unwrap(),
        speed: 1.0,
        capacity: PerResource { cpu: Some(100.0), memory: Some(100.0), io: Some(100.0) },
        state: NodeState::Active,
    };
    PlanningInput {
        now: NOW,
        seed,
        parent: None,
        topology: Topology { nodes: node_ids.iter().enumerate().map(node).collect(), ..Topology::default() },
        placement,
        scenarios: set.unwrap(),
        shards: shard_ids.into_iter().zip(facts).collect(),
        voteless: std::collections::BTreeSet::new(),
        homes: std::collections::BTreeMap::new(),
        communication: Vec::new(),
        in_flight: Vec::new(),
        cost_model: CostModel::prior(60.0 * 1_048_576.0),
        settings: PolicySettings::default(),
    }
}
