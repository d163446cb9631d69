//! What would become of nodes: placements looked up, moves laid over them, and the question put to the engine.

use foreshard_api::{NodeLoad, NodeQuery};
use foreshard_domain::{
    ForecastError, NodeId, Product, QuantileLevels, RealTime, Resource, ScenarioError, SeriesForecast, ShardId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use tonic::Status;

use super::scenarios::SetSize;
use super::{ForecastApi, status};
use crate::context::Wanted;
use crate::engine::{Bench, NodeQuestion, node_loads, scenarios};

/// Paths from which loads are read: the standard error of a probability is at most 2.3 %.
const PATHS: usize = 500;

/// Fixed, so that the same question about the same data has the same answer.
const SEED: u64 = 0x6e6f_6465_7368_6172;

/// Levels unless others are asked for.
const LEVELS: [f64; 3] = [0.1, 0.5, 0.9];

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("no paths can be drawn")]
    Paths(#[from] ScenarioError),
    #[error("the paths have no quantiles")]
    Quantiles(#[from] ForecastError),
}

impl ForecastApi {
    /// The loads that a query asks for.
    pub(super) async fn node_loads(
        &self,
        query: NodeQuery,
        expires: Option<RealTime>,
    ) -> Result<Vec<NodeLoad>, Status> {
        let product = query.product;
        let question = self.question(query)?;
        let shards: Vec<ShardId> = question.shards().into_iter().collect();
        if shards.is_empty() {
            // Named nodes that moves alone made known, and nothing moves there: they are empty.
            return Ok(Vec::new());
        }
        let keys = self.select(&shards, &Wanted::loads(Resource::ALL))?;
        let share = self.scenario_budget.take(SetSize::new(&keys, product.horizon(), PATHS))?;
        let make = move |bench: &Bench, product: Product, forecasts: Vec<SeriesForecast>| {
            let (set, _) = scenarios(bench, product, &forecasts, PATHS, SEED)?;
            let groups = bench.slot.current().map(|version| version.group_risk(product)).unwrap_or_default();
            let loads = node_loads(&question, &set, &forecasts, &groups)?;
            drop(share);
            Ok::<_, LoadError>(loads)
        };
        self.compute(product, keys, expires, make).await?.map_err(|error| status::internal(&error))
    }

    fn question(&self, query: NodeQuery) -> Result<NodeQuestion, Status> {
        let NodeQuery { nodes, product, moves, limits, window_steps, levels } = query;
        let levels = if levels.is_empty() { LEVELS.to_vec() } else { levels };
        let levels = QuantileLevels::new(levels).map_err(|error| status::invalid("levels", error.to_string()))?;
        let store = self.contexts.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((residual, _)) = moves.iter().find(|(shard, _)| shard.residual_node().is_some()) {
            return Err(status::invalid("moves", format!("{residual} is the residual of a node, which cannot move")));
        }
        let unknown: Vec<ShardId> = moves.iter().map(|(shard, _)| shard).filter(|s| !store.knows(s)).cloned().collect();
        if !unknown.is_empty() {
            return Err(status::unknown_shards(&unknown));
        }
        let placed = store.placement();
        drop(store);
        let moved = (!moves.is_empty()).then(|| {
            let mut moved = placed.clone();
            moved.extend(moves);
            moved
        });
        let nodes = wanted(nodes, &placed, moved.as_ref())?;
        Ok(NodeQuestion { nodes, placed, moved, limits, window: window_steps.unwrap_or(product.horizon()), levels })
    }
}

/// The named nodes, or all that carry anything; each must be known by a row or as the target of a move.
fn wanted(
    named: Vec<NodeId>,
    placed: &BTreeMap<ShardId, NodeId>,
    moved: Option<&BTreeMap<ShardId, NodeId>>,
) -> Result<BTreeSet<NodeId>, Status> {
    let known: BTreeSet<&NodeId> = placed.values().chain(moved.into_iter().flat_map(BTreeMap::values)).collect();
    if known.is_empty() {
        return Err(status::nowhere());
    }
    if named.is_empty() {
        return Ok(known.into_iter().cloned().collect());
    }
    match named.iter().find(|node| !known.contains(node)) {
        Some(unknown) => Err(Status::not_found(format!("no row ever named the node {unknown}"))),
        None => Ok(named.into_iter().collect()),
    }
}
