//! Which rule asks for moves off which node.

use foreshard_domain::{NodeState, Resource};

use super::evaluate::Start;
use crate::RuleName;
use crate::dense::{Model, NodeLoad, Scan};

/// What the rules ask of one node; the resource is the one that made them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ask {
    pub threshold: Option<Resource>,
    pub reactive: Option<Resource>,
    pub cost_benefit: Option<Resource>,
    pub balancing: Option<Resource>,
}

impl Ask {
    pub fn any(&self) -> bool {
        *self != Ask::default()
    }

    /// The rule that a move off this node rests on; `None` if no rule bears it.
    pub fn rule(&self, start: &Start, needed: f64) -> Option<(RuleName, Option<Resource>)> {
        let named = |rule, resource: Option<Resource>| resource.map(|r| (rule, Some(r)));
        named(RuleName::Threshold, self.threshold)
            .or_else(|| named(RuleName::Reactive, self.reactive))
            .or_else(|| named(RuleName::CostBenefit, self.cost_benefit).filter(|_| start.gain >= needed))
            .or_else(|| named(RuleName::ProactiveBalancing, self.balancing))
    }
}

/// Mean share of one resource over the window and the scenarios.
pub(crate) fn mean_share(model: &Model<'_>, node: usize, load: &NodeLoad, resource: Resource) -> Option<f64> {
    let capacity = model.capacity(node, resource)?;
    let from = model.grid.first * model.grid.scenarios;
    let values = load.0[resource].values().get(from..).unwrap_or(&[]);
    let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
    Some(sum / (values.len().max(1) as f64 * capacity))
}

/// What is least used by the nodes that may take shards, by resource.
pub(crate) struct LeastUsed(Vec<(Resource, f64)>);

impl LeastUsed {
    pub fn new(model: &Model<'_>, loads: &[&NodeLoad]) -> Self {
        if !model.input.settings.rules.proactive_balancing {
            return Self(Vec::new());
        }
        let active = |node: &usize| model.nodes[*node].node.state == NodeState::Active;
        let least = |r: Resource| {
            let shares = (0..model.nodes.len()).filter(active).filter_map(|n| mean_share(model, n, loads[n], r));
            shares.fold(f64::INFINITY, f64::min)
        };
        Self(model.resources.iter().map(|r| (*r, least(*r))).collect())
    }
}

/// What the rules ask of a node, the shards being where `at` says.
pub(crate) fn ask(
    model: &Model<'_>,
    node: usize,
    (load, scan): (&NodeLoad, &Scan),
    least: &LeastUsed,
    at: &[usize],
) -> Ask {
    let settings = &model.input.settings;
    let rules = settings.rules;
    let mut ask = Ask::default();
    let overloaded = model.grid.window().any(|step| scan.overload[step] > 0.0);
    if overloaded && (rules.threshold || rules.cost_benefit) {
        let risk = model.risk(node, load, settings.limit);
        let worst = model.resources.iter().copied().max_by(|a, b| {
            let (a, b) = (risk[*a], risk[*b]);
            a.probability.total_cmp(&b.probability).then(a.expected_excess.total_cmp(&b.expected_excess))
        });
        ask.threshold = worst.filter(|r| rules.threshold && risk[*r].probability > settings.confidence);
        ask.cost_benefit = worst.filter(|_| rules.cost_benefit);
    }
    if rules.reactive {
        ask.reactive = model.resources.iter().copied().find(|r| {
            current_share(model, node, *r, at) > settings.high_utilisation_threshold
                && peak_of_mean(model, node, load, *r) > settings.overload_threshold
        });
    }
    if rules.proactive_balancing {
        let mut differs = least.0.iter().filter(|(r, least)| {
            mean_share(model, node, load, *r).is_some_and(|share| share - least > settings.balance_difference)
        });
        ask.balancing = differs.next().map(|(r, _)| *r);
    }
    ask
}

/// Share of the load last observed, by the present places of the shards.
pub(crate) fn current_share(model: &Model<'_>, node: usize, resource: Resource, at: &[usize]) -> f64 {
    let Some(capacity) = model.capacity(node, resource) else { return 0.0 };
    let here = model.shards.iter().zip(at).filter(|(_, at)| **at == node);
    let shards: f64 = here.filter_map(|(s, _)| s.facts).map(|f| f.current[resource]).sum();
    (shards + model.nodes[node].residual_current[resource]) / capacity
}

/// Highest mean share over the scenarios at any step of the window.
pub(crate) fn peak_of_mean(model: &Model<'_>, node: usize, load: &NodeLoad, resource: Resource) -> f64 {
    let Some(capacity) = model.capacity(node, resource) else { return 0.0 };
    let rows = load.0[resource].values().chunks_exact(model.grid.scenarios).skip(model.grid.first);
    let means = rows.map(|row| row.iter().map(|v| f64::from(*v)).sum::<f64>());
    means.fold(0.0, f64::max) / (capacity * model.grid.scenarios as f64)
}

/// How large a shard is: its mean share of the largest node, of the resource that it needs most of.
pub(crate) fn weight(model: &Model<'_>, shard: usize) -> f64 {
    let share = |r: &Resource| {
        let lane = model.shards[shard].lanes[*r].as_deref()?;
        let mean = lane.iter().map(|v| f64::from(*v)).sum::<f64>() / lane.len().max(1) as f64;
        let largest = (0..model.nodes.len()).filter_map(|n| model.capacity(n, *r)).fold(0.0, f64::max);
        (largest > 0.0).then(|| mean / largest)
    };
    model.resources.iter().filter_map(share).fold(0.0, f64::max)
}

/// Why a shard must not stay where it is, if it must not.
pub(crate) fn misplaced(model: &Model<'_>, shard: usize, at: &[usize]) -> Option<String> {
    let (s, here) = (&model.shards[shard], at[shard]);
    let id = &model.nodes[here].node.id;
    if let Some(pin) = s.pin {
        return (pin != here).then(|| format!("it is pinned to {}", model.nodes[pin].node.id));
    }
    if s.excluded.contains(&here) {
        return Some(format!("it must not be on {id}"));
    }
    if model.nodes[here].node.state == NodeState::Draining {
        return Some(format!("{id} is being emptied"));
    }
    // Of two that must not be together the later one moves, unless the other is free to and this one is pinned.
    let other = model.spread_conflict(shard, here, |other| {
        let stays = other < shard || model.shards[other].pin.is_some();
        if stays { &at[other..=other] } else { &[] }
    });
    other.map(|other| format!("it must be kept apart from {}", model.shards[other].id))
}
