//! What a plan is made from when no engine is attached: observations from a history, the future from a server or the
//! registry, nodes and rules from a topology file.

use foreshard_api::{ForecastClient, ScenarioQuery};
use foreshard_control::{Assembled, Known, Recent, View, assemble};
use foreshard_datasets::{CommunicationEdge, History, read_communication, read_topology};
use foreshard_domain::{CostModel, ModelVersion, Node, Placement, Product, ScenarioSet, ShardId, Topology};
use foreshard_migrator::{Ring, State};
use foreshard_policy::{Communication, Planned, PlanningInput, plan};
use foreshard_training::CostRegistry;
use std::path::Path;

use crate::commands::local::Local;
use crate::output::Failure;
use crate::settings::Settings;

/// Bytes per second that the first moves are expected to copy, before any outcome is known.
const PRIOR_RATE: f64 = 60.0 * 1_048_576.0;

/// A plan with what it was made from.
pub struct Advice {
    /// What the planner was given.
    pub input: PlanningInput,
    /// What it made of it.
    pub planned: Planned,
    /// The version whose scenarios it rests on.
    pub version: Option<ModelVersion>,
    /// What a person should know about the input.
    pub notes: Vec<String>,
}

/// Where scenarios come from.
pub enum Source<'a> {
    /// The history and the registry.
    Local(&'a Local),
    /// A serving process.
    Server(&'a ForecastClient),
}

/// Plans once. `held` is what the state store knows, if this process holds one: who owns which shard counts for more than what
/// the history says, and shards that move, or are kept for their way back, are left alone.
pub async fn advise(
    settings: &Settings,
    topology: &Path,
    history: &History,
    source: Source<'_>,
    held: Option<&View>,
) -> Result<Advice, Failure> {
    let topology = read_topology(topology)?;
    let (now_step, product) = (Product::NextHours.step(), Product::NextHours);
    let (_, newest) = history.span().ok_or("the history is empty")?;
    let now = now_step.floor(newest).plus_steps(1, now_step);
    let mut notes = Vec::new();
    let mut placement = placement(history, &topology, &mut notes)?;
    let nobody = View::of(&State::default(), now);
    let held = held.unwrap_or(&nobody);
    owned(&mut placement, held, &topology)?;
    let (scenarios, version) = scenarios(settings, source, product).await?;
    let recent = last_seen(history);
    let cost_model = cost_model(&settings.registry.path)?;
    if cost_model.number == 0 {
        notes.push("no outcome of a move is known yet: costs are the prior's".to_owned());
    }
    let communication = communication(&settings.data.communication)?;
    let known = Known {
        now,
        seed: settings.train.seed,
        parent: None,
        topology: &topology,
        placement: &placement,
        in_flight: held.in_flight.clone(),
        last_moved: &held.last_moved,
        retained: &held.retained,
        recent: &recent,
        scenarios,
        communication: &communication,
        cost_model: &cost_model,
        settings: &settings.policy,
    };
    let Assembled { input, flat } = assemble(known)?;
    if !flat.is_empty() {
        notes.push(format!("{} shards have no forecast: their load is taken to stay as last observed", flat.len()));
    }
    let planned = plan(&input)?;
    Ok(Advice { input, planned, version, notes })
}

async fn scenarios(
    settings: &Settings,
    source: Source<'_>,
    product: Product,
) -> Result<(ScenarioSet, Option<ModelVersion>), Failure> {
    let (count, seed) = (settings.control.scenarios, settings.train.seed);
    match source {
        Source::Local(local) => {
            Ok((local.scenarios(product, count, seed)?, local.version().map(foreshard_model::Version::id)))
        }
        Source::Server(client) => {
            let query = ScenarioQuery { shards: Vec::new(), product, scenarios: count, seed };
            let (set, provenance) = client.scenarios(&query).await?;
            Ok((set, provenance.into_iter().find_map(|p| p.provenance.version)))
        }
    }
}

/// Where the history says the shards are; by the ring where it does not say.
fn placement(history: &History, topology: &Topology, notes: &mut Vec<String>) -> Result<Placement, Failure> {
    let shards: Vec<ShardId> = history.shards().filter(|s| s.residual_node().is_none()).cloned().collect();
    let (mut placement, mut unsaid) = (Placement::new(), Vec::new());
    for shard in &shards {
        match history.last_node(shard) {
            Some(node) if topology.node(&node).is_some() => drop(placement.assign(shard.clone(), node)),
            Some(node) => {
                return Err(format!(
                    "the history has shard {shard} on node {node}, which the topology lacks; add it there"
                )
                .into());
            }
            None => unsaid.push(shard.clone()),
        }
    }
    if !unsaid.is_empty() {
        notes.push(format!("the history does not say where {} shards are: placed by the ring", unsaid.len()));
        // Larger nodes get more of the ring; a node without a CPU limit counts as one reference node.
        let weight = |node: &Node| (node.id.clone(), node.capacity.cpu.unwrap_or(100.0 * node.speed));
        let ring = Ring::new(0, shards, topology.nodes.iter().map(weight).collect())?;
        for shard in unsaid {
            let home = ring.home(&shard).clone();
            placement.assign(shard, home);
        }
    }
    Ok(placement)
}

/// Shards that the history tells of are where their owner is.
fn owned(placement: &mut Placement, held: &View, topology: &Topology) -> Result<(), Failure> {
    for (shard, owner) in held.placement.iter() {
        if placement.node_of(shard).is_none_or(|node| node == owner) {
            continue;
        }
        if topology.node(owner).is_none() {
            return Err(
                format!("shard {shard} is owned by node {owner}, which the topology lacks; add it there").into()
            );
        }
        placement.assign(shard.clone(), owner.clone());
    }
    Ok(())
}

fn last_seen(history: &History) -> Recent {
    let mut recent = Recent::default();
    let rows: Vec<_> = history.observations().collect();
    recent.observe(&rows);
    recent
}

fn cost_model(registry: &Path) -> Result<CostModel, Failure> {
    Ok(CostRegistry::open(registry).latest()?.unwrap_or_else(|| CostModel::prior(PRIOR_RATE)))
}

fn communication(file: &Path) -> Result<Vec<Communication>, Failure> {
    if file.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let edges = read_communication(file)?;
    let plain =
        |CommunicationEdge { shard_a, shard_b, bytes_per_s }| Communication { a: shard_a, b: shard_b, bytes_per_s };
    Ok(edges.into_iter().map(plain).collect())
}
