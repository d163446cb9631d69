//! Loads of nodes: sums of joint paths over the shards that lie, or would lie, on them.

use foreshard_api::NodeLoad;
use foreshard_domain::{
    ForecastError, LoadPaths, NodeId, PerResource, QuantileForecast, QuantileLevels, Risk, RiskCalibration,
    ScenarioSet, SeriesForecast, ShardId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is asked about nodes.
#[derive(Debug, Clone)]
pub(crate) struct NodeQuestion {
    /// In rising order.
    pub(crate) nodes: BTreeSet<NodeId>,
    /// Where shards lie.
    pub(crate) placed: BTreeMap<ShardId, NodeId>,
    /// Where they would lie; `None` if no moves are asked about.
    pub(crate) moved: Option<BTreeMap<ShardId, NodeId>>,
    pub(crate) limits: BTreeMap<NodeId, PerResource<Option<f64>>>,
    pub(crate) window: usize,
    pub(crate) levels: QuantileLevels,
}

impl NodeQuestion {
    /// The shards that any of the nodes carries, or would.
    pub(crate) fn shards(&self) -> BTreeSet<ShardId> {
        let placements = [Some(&self.placed), self.moved.as_ref()];
        let lying = placements.into_iter().flatten().flatten();
        lying.filter(|(_, node)| self.nodes.contains(*node)).map(|(shard, _)| shard.clone()).collect()
    }
}

/// The loads of the nodes, ordered by node and resource, as placed before as moved.
pub(crate) fn node_loads(
    question: &NodeQuestion,
    set: &ScenarioSet,
    forecasts: &[SeriesForecast],
    calibration: &RiskCalibration,
) -> Result<Vec<NodeLoad>, ForecastError> {
    let mut loads = Vec::new();
    for node in &question.nodes {
        for (r, resource) in set.resources().iter().enumerate() {
            let placements = [(false, Some(&question.placed)), (true, question.moved.as_ref())];
            for (moved, placement) in placements {
                let Some(placement) = placement else { continue };
                let lies_here = |shard: &ShardId| placement.get(shard) == Some(node);
                let members: Vec<usize> =
                    (0..set.shards().len()).filter(|i| set.shards().get(*i).is_some_and(lies_here)).collect();
                let of_node = |f: &&SeriesForecast| f.metric.resource() == Some(*resource) && lies_here(&f.shard);
                let own: Vec<&SeriesForecast> = forecasts.iter().filter(of_node).collect();
                let paths = set.node_sum(r, members.iter().copied());
                let limit = question.limits.get(node).and_then(|limits| limits[*resource]);
                loads.push(NodeLoad {
                    node: node.clone(),
                    resource: *resource,
                    moved,
                    shards: members.len(),
                    by_fallback: own.iter().filter(|f| f.provenance.fallback.is_some()).count(),
                    issued_at: set.issued_at(),
                    step: set.step(),
                    forecast: quantiles(&paths, &question.levels)?,
                    risk: limit.map(|limit| risk(&paths, &own, limit, question.window, calibration)),
                });
            }
        }
    }
    Ok(loads)
}

/// Nearest ranks over the paths of each step.
fn quantiles(paths: &LoadPaths, levels: &QuantileLevels) -> Result<QuantileForecast, ForecastError> {
    let mut values = Vec::with_capacity(paths.steps() * levels.len());
    for step in 0..paths.steps() {
        let mut row = paths.step(step).to_vec();
        row.sort_by(f32::total_cmp);
        for level in levels.as_slice() {
            let rank = ((level * row.len() as f64).ceil() as usize).clamp(1, row.len().max(1));
            values.push(row.get(rank - 1).copied().unwrap_or(0.0));
        }
    }
    QuantileForecast::new(levels.clone(), values)
}

/// The risk of the sum. What the highest quantiles of all members together do not reach stays out of the question; everything
/// else is corrected by what was said of groups in the past and what came.
fn risk(paths: &LoadPaths, own: &[&SeriesForecast], limit: f64, window: usize, calibration: &RiskCalibration) -> Risk {
    let risk = paths.risk(limit as f32, 0..window);
    let highest =
        |step: usize| -> f64 { own.iter().filter_map(|f| f.forecast.row(step)?.last().copied()).map(f64::from).sum() };
    if risk.probability == 0.0 && (0..window).all(|step| highest(step) <= limit) {
        return Risk::NONE;
    }
    Risk { probability: calibration.apply(risk.probability), ..risk }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, Provenance, Resource, Step, Timestamp};

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    /// Two shards whose four paths of two steps are opposite to each other: together they are always 10.
    fn opposite() -> (ScenarioSet, Vec<SeriesForecast>) {
        let a = [1.0, 2.0, 8.0, 9.0, 1.0, 2.0, 8.0, 9.0];
        let values: Vec<f32> = a.iter().copied().chain(a.iter().map(|v| 10.0 - v)).collect();
        let names = vec![shard("a"), shard("b")];
        let ts = Timestamp::from_ms(0);
        let step = Step::FIVE_MINUTES;
        let set = ScenarioSet::new(ts, step, vec![Resource::Cpu], names.clone(), (2, 4), values).unwrap();
        let levels = QuantileLevels::new(vec![0.1, 0.9]).unwrap();
        let forecast = QuantileForecast::new(levels, vec![1.0, 9.0, 1.0, 9.0]).unwrap();
        let forecasts = names.into_iter().map(|shard| SeriesForecast {
            shard,
            metric: Metric::CpuUtil,
            issued_at: ts,
            step,
            forecast: forecast.clone(),
            provenance: Provenance::default(),
        });
        (set, forecasts.collect())
    }

    #[test]
    fn sums_are_joint_and_moves_are_only_asked_about() {
        let (set, forecasts) = opposite();
        let placed: BTreeMap<_, _> = [(shard("a"), node("n1")), (shard("b"), node("n2"))].into();
        let mut moved = placed.clone();
        moved.insert(shard("b"), node("n1"));
        let limits = PerResource { cpu: Some(10.5), memory: None, io: None };
        let question = NodeQuestion {
            nodes: [node("n1"), node("n2")].into(),
            placed,
            moved: Some(moved),
            limits: [(node("n1"), limits)].into(),
            window: 2,
            levels: QuantileLevels::new(vec![0.25, 1.0 - 1e-9]).unwrap(),
        };
        assert_eq!(question.shards(), [shard("a"), shard("b")].into());
        let loads = node_loads(&question, &set, &forecasts, &RiskCalibration::default()).unwrap();
        let told: Vec<_> =
            loads.iter().map(|l| (l.node.as_str(), l.moved, l.shards, l.forecast.values().to_vec())).collect();
        assert_eq!(
            told,
            [
                ("n1", false, 1, vec![1.0, 9.0, 1.0, 9.0]),
                ("n1", true, 2, vec![10.0; 4]),
                ("n2", false, 1, vec![1.0, 9.0, 1.0, 9.0]),
                ("n2", true, 0, vec![0.0; 4]),
            ]
        );
        // Alone neither can reach the limit; together they might by their quantiles, though no path of these does.
        assert_eq!(loads[0].risk, Some(Risk::NONE));
        let together = loads[1].risk.unwrap();
        assert!(together.probability > 0.0 && together.probability < 0.01, "{together:?}");
        assert_eq!(loads[2].risk, None, "no limit, no risk");
    }
}
