//! One scenario of a simulation: loads, nodes, capacities and sizes that follow from a seed.

use foreshard_domain::{CostModel, Node, NodeId, NodeState, PerResource, Resource, ShardId, Topology, ZoneId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{SimError, SimLoads};

const MIB: f64 = 1_048_576.0;

/// What a cell is made by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimSpec {
    /// Number of nodes.
    pub nodes: usize,
    /// Seed of phases, sizes and the ring.
    pub seed: u64,
    /// Capacity of all nodes over the peak of the total load in the replayed half.
    pub capacity_multiplier: f64,
    /// Whether each shard's clock is shifted by a seeded 0, 8 or 16 h plus or minus 1 h and its load scaled.
    pub phases: bool,
    /// Mean size of a shard in GiB where the history has none.
    pub data_gib: f64,
    /// Rate of a copy in MiB/s.
    pub copy_mib_per_s: f64,
    /// Load of a copy on source and target, as share of a node's capacity.
    pub copy_share: PerResource<f64>,
    /// Copies at once in the cluster.
    pub moves_at_once: usize,
    /// Cool-down of a shard in minutes, to which the longest copy is added.
    pub cool_down_minutes: u32,
    /// Steps that `reactive` looks ahead: with loads that stay, how long an overload is taken to last.
    pub horizon: usize,
    /// Steps that policies look ahead that know of a day: `seasonal` and `oracle`.
    pub outlook: usize,
    /// Days before the replayed half in which `reactive` makes the starting placement.
    pub start_days: u32,
}

impl Default for SimSpec {
    fn default() -> Self {
        Self {
            nodes: 6,
            seed: 0,
            capacity_multiplier: 1.15,
            phases: false,
            data_gib: 20.0,
            copy_mib_per_s: 60.0,
            copy_share: PerResource { cpu: 0.08, memory: 0.0, io: 0.15 },
            moves_at_once: 2,
            cool_down_minutes: 60,
            horizon: 48,
            outlook: 288,
            start_days: 3,
        }
    }
}

/// Least steps of a cell: two to see and two to replay.
const LEAST_STEPS: usize = 4;

/// Least capacity of a node over the peak of the largest shard.
const LARGEST_SHARD: f64 = 1.25;

/// One scenario, ready to be replayed under any policy.
#[derive(Debug, Clone)]
pub struct Cell {
    spec: SimSpec,
    loads: SimLoads,
    capacity: PerResource<Option<f64>>,
    data_bytes: Vec<f64>,
    topology: Topology,
    ring: Vec<usize>,
}

impl Cell {
    /// Makes a cell. `data_bytes` are the sizes of the shards, if the history has them.
    ///
    /// # Errors
    /// [`SimError`] if a figure is out of range or the history too short.
    pub fn new(loads: &SimLoads, data_bytes: Option<&[f64]>, spec: &SimSpec) -> Result<Self, SimError> {
        check(spec)?;
        let loads = if spec.phases { shifted(loads, spec.seed)? } else { loads.clone() };
        if loads.steps() < LEAST_STEPS {
            return Err(SimError::Short { steps: loads.steps(), least: LEAST_STEPS });
        }
        let data_bytes = match data_bytes {
            Some(bytes) if bytes.len() == loads.shards().len() => bytes.to_vec(),
            Some(bytes) => {
                let what = "one size for each shard".to_owned();
                return Err(SimError::Shape { got: bytes.len(), want: loads.shards().len(), what });
            }
            None => sizes(&loads, spec),
        };
        let capacity = capacity(&loads, spec);
        let topology = topology(spec, capacity)?;
        let ring = loads.shards().iter().map(|shard| place(shard, &topology.nodes, spec.seed)).collect();
        Ok(Self { spec: spec.clone(), loads, capacity, data_bytes, topology, ring })
    }

    /// What it was made by.
    pub fn spec(&self) -> &SimSpec {
        &self.spec
    }

    /// The loads, shifted and scaled if phases were asked for.
    pub fn loads(&self) -> &SimLoads {
        &self.loads
    }

    /// Capacity of each node.
    pub fn capacity(&self) -> PerResource<Option<f64>> {
        self.capacity
    }

    /// Nodes of the cell.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Size of each shard.
    pub fn data_bytes(&self) -> &[f64] {
        &self.data_bytes
    }

    /// The node of each shard on the seeded ring.
    pub fn ring(&self) -> &[usize] {
        &self.ring
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.loads.steps()
    }

    /// First step of the replayed half.
    pub fn half(&self) -> usize {
        self.loads.steps() / 2
    }

    /// The steps on which settings are tuned: the last third of the first half.
    pub fn tuning(&self) -> std::ops::Range<usize> {
        self.half() - self.half() / 3..self.half()
    }

    /// Steps in which `reactive` makes the starting placement.
    pub(crate) fn start_steps(&self) -> usize {
        let days = i64::from(self.spec.start_days) * 86_400_000;
        usize::try_from(self.loads.step().count_in(days)).unwrap_or(0)
    }

    /// How long the copy of a shard takes, milliseconds.
    pub(crate) fn copy_ms(&self, shard: usize) -> i64 {
        let seconds = self.data_bytes.get(shard).copied().unwrap_or(0.0) / (self.spec.copy_mib_per_s * MIB);
        // A century is long enough for any copy, and far from the end of what can be expressed.
        ((seconds * 1000.0).min(3.15e12) as i64).max(1)
    }

    /// Cool-down of a shard: the configured time and the longest copy.
    pub(crate) fn cool_down_ms(&self) -> i64 {
        let longest = (0..self.data_bytes.len()).map(|s| self.copy_ms(s)).max().unwrap_or(0);
        i64::from(self.spec.cool_down_minutes) * 60_000 + longest
    }

    /// What the planner is told that moves cost: the truth, without spread.
    pub(crate) fn cost_model(&self) -> CostModel {
        let mut model = CostModel::prior(self.spec.copy_mib_per_s * MIB);
        model.duration_s.sigma = 0.0;
        model.extra_share = self.spec.copy_share;
        model
    }
}

fn check(spec: &SimSpec) -> Result<(), SimError> {
    let wrong = |name, value, wanted| Err(SimError::Spec { name, value, wanted });
    for (name, value) in [
        ("capacity_multiplier", spec.capacity_multiplier),
        ("data_gib", spec.data_gib),
        ("copy_mib_per_s", spec.copy_mib_per_s),
    ] {
        if !(value.is_finite() && value > 0.0) {
            return wrong(name, value, "a positive number");
        }
    }
    for (name, count) in [
        ("nodes", spec.nodes),
        ("moves_at_once", spec.moves_at_once),
        ("horizon", spec.horizon),
        ("outlook", spec.outlook),
    ] {
        if count == 0 {
            return wrong(name, 0.0, "at least 1");
        }
    }
    for resource in Resource::ALL {
        let share = spec.copy_share[resource];
        if !(share.is_finite() && share >= 0.0) {
            return wrong("copy_share", share, "a number that is not negative");
        }
    }
    Ok(())
}

/// A generator of its own for each use, so that one use cannot shift another's numbers.
fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// Shifts each shard's clock by 0, 8 or 16 h plus or minus 1 h and scales its load by a lognormal(0.4) of at most 2.
/// Nothing wraps around: the history gets shorter by the largest shift.
fn shifted(loads: &SimLoads, seed: u64) -> Result<SimLoads, SimError> {
    let rng = &mut rng(seed, 1);
    let step_ms = loads.step().as_ms() as f64;
    let drawn: Vec<(usize, f32)> = loads.shards().iter().map(|_| draw_phase(rng, step_ms)).collect();
    let longest = drawn.iter().map(|(shift, _)| *shift).max().unwrap_or(0);
    let steps = loads.steps().saturating_sub(longest);
    if steps < LEAST_STEPS {
        return Err(SimError::Short { steps, least: LEAST_STEPS });
    }
    let mut values = Vec::with_capacity(loads.resources().len() * drawn.len() * steps);
    for resource in 0..loads.resources().len() {
        for (shard, (shift, scale)) in drawn.iter().enumerate() {
            let lane = loads.lane(resource, shard).iter().skip(*shift).take(steps);
            values.extend(lane.map(|v| v * scale));
        }
    }
    let (resources, shards) = (loads.resources().to_vec(), loads.shards().to_vec());
    SimLoads::new(loads.start(), loads.step(), resources, shards, steps, values)
}

/// Steps of shift (an hour more than drawn, so that none is negative) and the factor of the load.
fn draw_phase(rng: &mut ChaCha8Rng, step_ms: f64) -> (usize, f32) {
    let hours = f64::from(rng.random_range(0..3u8)) * 8.0 + rng.random_range(-1.0..=1.0) + 1.0;
    // Box-Muller; 1 - u is never zero.
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    let scale = (0.4 * normal).exp().min(2.0);
    ((hours * 3_600_000.0 / step_ms).round() as usize, scale as f32)
}

fn sizes(loads: &SimLoads, spec: &SimSpec) -> Vec<f64> {
    let rng = &mut rng(spec.seed, 2);
    let gib = spec.data_gib * 1024.0 * MIB;
    loads.shards().iter().map(|_| gib * rng.random_range(0.5..1.5)).collect()
}

/// Capacity of each node by the peaks of the replayed half; a resource without load has no limit.
fn capacity(loads: &SimLoads, spec: &SimSpec) -> PerResource<Option<f64>> {
    let replayed = loads.steps() / 2..loads.steps();
    PerResource::from_fn(|resource| {
        let r = loads.resources().iter().position(|known| *known == resource)?;
        let shards = 0..loads.shards().len();
        let total = |step: usize| shards.clone().map(|s| f64::from(loads.at(r, s, step))).sum::<f64>();
        let peak = replayed.clone().map(total).fold(0.0, f64::max);
        let largest = shards.clone().flat_map(|s| loads.lane(r, s).iter().skip(replayed.start));
        let largest = largest.fold(0.0f64, |max, v| max.max(f64::from(*v)));
        let share = spec.capacity_multiplier * peak / spec.nodes as f64;
        Some(share.max(LARGEST_SHARD * largest)).filter(|capacity| *capacity > 0.0)
    })
}

fn topology(spec: &SimSpec, capacity: PerResource<Option<f64>>) -> Result<Topology, SimError> {
    let zone = ZoneId::new("zone").map_err(SimError::Id)?;
    let node = |i: usize| -> Result<Node, SimError> {
        let id = NodeId::new(format!("node-{i:03}")).map_err(SimError::Id)?;
        Ok(Node { id, zone: zone.clone(), speed: 1.0, capacity, state: NodeState::Active })
    };
    let nodes: Result<Vec<Node>, SimError> = (0..spec.nodes).map(node).collect();
    Ok(Topology { nodes: nodes?, ..Topology::default() })
}

/// Rendezvous hashing: the node whose hash with the shard is highest.
fn place(shard: &ShardId, nodes: &[Node], seed: u64) -> usize {
    let weight = |node: &Node| xxh3_64_with_seed(format!("{shard}\n{}", node.id).as_bytes(), seed);
    let nodes = nodes.iter().enumerate();
    nodes.max_by_key(|(_, node)| weight(node)).map_or(0, |(i, _)| i)
}
