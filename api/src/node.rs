//! Loads of nodes: what can be asked about them, and what is answered.

use foreshard_domain::{
    NodeId, PerResource, Product, QuantileForecast, QuantileLevels, Resource, Risk, ShardId, Step, Timestamp,
};
use std::collections::BTreeMap;

use crate::convert::{
    duration_to_wire, limits_from_wire, product_from_wire, resource_from_wire, shard_from_wire, step_from_wire,
    timestamp_from_wire, timestamp_to_wire,
};
use crate::{WireError, v1};

/// Asks for the loads of nodes, as they are and as they would be.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeQuery {
    /// Which nodes; empty for all that carry anything.
    pub nodes: Vec<NodeId>,
    /// How far, in which steps.
    pub product: Product,
    /// Shards that would lie elsewhere, and where.
    pub moves: Vec<(ShardId, NodeId)>,
    /// Limits of nodes, in units of load.
    pub limits: BTreeMap<NodeId, PerResource<Option<f64>>>,
    /// How many steps from the first the risks look at; `None` for the whole horizon.
    pub window_steps: Option<usize>,
    /// Rising levels; empty for 0.1, 0.5 and 0.9.
    pub levels: Vec<f64>,
}

/// The load of one node on one resource.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeLoad {
    /// Which node.
    pub node: NodeId,
    /// Which resource.
    pub resource: Resource,
    /// As it would be after the moves, not as it is.
    pub moved: bool,
    /// How many shards make it, the residual among them.
    pub shards: usize,
    /// How many of them were answered by a fallback.
    pub by_fallback: usize,
    /// Grid time of the last complete step before the window.
    pub issued_at: Timestamp,
    /// Length of a step.
    pub step: Step,
    /// Quantiles of the sum.
    pub forecast: QuantileForecast,
    /// The risk of exceeding the limit, if there is one.
    pub risk: Option<Risk>,
}

fn node(name: String) -> Result<NodeId, WireError> {
    NodeId::new(name).map_err(|source| WireError::Id { field: "node_id", source })
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl From<&NodeQuery> for v1::NodeForecastRequest {
    fn from(query: &NodeQuery) -> Self {
        let moves = query
            .moves
            .iter()
            .map(|(shard, node)| v1::HypotheticalMove { shard_id: shard.to_string(), node_id: node.to_string() });
        let limits = query.limits.iter().map(|(node, limits)| {
            let PerResource { cpu, memory, io } = *limits;
            v1::NodeLimits { node_id: node.to_string(), limits: Some(v1::Limits { cpu, memory, io }) }
        });
        Self {
            node_ids: query.nodes.iter().map(ToString::to_string).collect(),
            product: v1::Product::from(query.product).into(),
            moves: moves.collect(),
            limits: limits.collect(),
            window_steps: query.window_steps.map(count),
            levels: query.levels.clone(),
        }
    }
}

impl TryFrom<v1::NodeForecastRequest> for NodeQuery {
    type Error = WireError;
    fn try_from(request: v1::NodeForecastRequest) -> Result<Self, WireError> {
        let product = product_from_wire(request.product)?;
        let window_steps = request.window_steps.map(size);
        if window_steps.is_some_and(|window| window == 0 || window > product.horizon()) {
            let value = window_steps.unwrap_or(0).to_string();
            return Err(WireError::Range { field: "window_steps", value, expected: "from 1 to the horizon" });
        }
        let moves = request.moves.into_iter();
        let moves = moves.map(|m| Ok((shard_from_wire("shard_id", m.shard_id)?, node(m.node_id)?)));
        let limits = request.limits.into_iter().map(|l| Ok((node(l.node_id)?, limits_from_wire(l.limits)?)));
        Ok(Self {
            nodes: request.node_ids.into_iter().map(node).collect::<Result<_, _>>()?,
            product,
            moves: moves.collect::<Result<_, WireError>>()?,
            limits: limits.collect::<Result<_, WireError>>()?,
            window_steps,
            levels: request.levels,
        })
    }
}

impl From<&NodeLoad> for v1::NodeLoad {
    fn from(load: &NodeLoad) -> Self {
        Self {
            node_id: load.node.to_string(),
            resource: v1::Resource::from(load.resource).into(),
            moved: load.moved,
            shards: count(load.shards),
            by_fallback: count(load.by_fallback),
            issued_at: Some(timestamp_to_wire(load.issued_at)),
            step: Some(duration_to_wire(load.step)),
            levels: load.forecast.levels().as_slice().to_vec(),
            values: load.forecast.values().to_vec(),
            probability: load.risk.map(|risk| risk.probability),
            first_crossing: load.risk.and_then(|risk| risk.first_crossing).map(count),
            expected_excess: load.risk.map(|risk| risk.expected_excess),
        }
    }
}

impl TryFrom<v1::NodeLoad> for NodeLoad {
    type Error = WireError;
    fn try_from(load: v1::NodeLoad) -> Result<Self, WireError> {
        let node = node(load.node_id)?;
        let levels = QuantileLevels::new(load.levels).map_err(WireError::Levels)?;
        let forecast = QuantileForecast::new(levels, load.values);
        let forecast =
            forecast.map_err(|source| WireError::Forecast { shard: node.to_string(), metric: "node load", source })?;
        let first_crossing = load.first_crossing.map(size);
        let risk = load.probability.zip(load.expected_excess);
        let risk = risk.map(|(probability, expected_excess)| Risk { probability, first_crossing, expected_excess });
        if let Some(risk) = risk.filter(|risk| !(0.0..=1.0).contains(&risk.probability)) {
            let value = risk.probability.to_string();
            return Err(WireError::Range { field: "probability", value, expected: "from 0 to 1" });
        }
        Ok(Self {
            node,
            resource: resource_from_wire("resource", load.resource)?,
            moved: load.moved,
            shards: size(load.shards),
            by_fallback: size(load.by_fallback),
            issued_at: timestamp_from_wire("issued_at", load.issued_at)?,
            step: step_from_wire("step", load.step)?,
            forecast,
            risk,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn queries_and_loads_go_both_ways() {
        let query = NodeQuery {
            nodes: vec![id("n1")],
            product: Product::NextHours,
            moves: vec![(ShardId::new("a").unwrap(), id("n2"))],
            limits: [(id("n1"), PerResource { cpu: Some(100.0), memory: None, io: None })].into(),
            window_steps: Some(12),
            levels: vec![0.5, 0.9],
        };
        assert_eq!(NodeQuery::try_from(v1::NodeForecastRequest::from(&query)), Ok(query.clone()));
        for window in [0, 49] {
            let wrong = v1::NodeForecastRequest { window_steps: Some(window), ..(&query).into() };
            assert_eq!(NodeQuery::try_from(wrong).unwrap_err().field(), "window_steps");
        }
        let levels = QuantileLevels::new(vec![0.1, 0.9]).unwrap();
        let load = NodeLoad {
            node: id("n1"),
            resource: Resource::Io,
            moved: true,
            shards: 3,
            by_fallback: 1,
            issued_at: Timestamp::from_ms(900_000),
            step: Step::FIVE_MINUTES,
            forecast: QuantileForecast::new(levels, vec![1.0, 2.0, 1.5, 3.0]).unwrap(),
            risk: Some(Risk { probability: 0.25, first_crossing: None, expected_excess: 2.0 }),
        };
        assert_eq!(NodeLoad::try_from(v1::NodeLoad::from(&load)), Ok(load.clone()));
        let wrong = v1::NodeLoad { probability: Some(1.5), ..(&load).into() };
        assert_eq!(NodeLoad::try_from(wrong).unwrap_err().field(), "probability");
    }
}
