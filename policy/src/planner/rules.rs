//! Which rule asks for moves off which node.

use foreshard_domain::{NodeState, PerResource, Resource};

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
    /// Back to this node, where the ring would have the shard.
    pub home: Option<usize>,
}

impl Ask {
    pub fn any(&self) -> bool {
        *self != Ask::default()
    }

    /// Whether nothing asks but the ring.
    pub fn for_home_alone(&self) -> bool {
        self.home.is_some() && Ask { home: None, ..self.clone() } == Ask::default()
    }

    /// The rule that a move off this node rests on; `None` if no rule bears it.
    pub fn rule(&self, start: &Start, needed: f64) -> Option<(RuleName, Option<Resource>)> {
        let named = |rule, resource: Option<Resource>| resource.map(|r| (rule, Some(r)));
        named(RuleName::Threshold, self.threshold)
            .or_else(|| named(RuleName::Reactive, self.reactive))
            .or_else(|| named(RuleName::CostBenefit, self.cost_benefit).filter(|_| start.gain >= needed))
            .or_else(|| named(RuleName::ProactiveBalancing, self.balancing))
            .or_else(|| self.home.filter(|home| *home == start.transfer.target).map(|_| (RuleName::RingReturn, None)))
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

/// What is least used by the nodes that may take shards, by resource; `means` are mean shares of all nodes.
pub(crate) fn least_used<'s>(
    model: &Model<'_>,
    means: impl Iterator<Item = &'s PerResource<Option<f64>>>,
) -> PerResource<f64> {
    let mut least = PerResource::from_fn(|_| f64::INFINITY);
    if model.input.settings.rules.proactive_balancing {
        let active = means.zip(&model.nodes).filter(|(_, n)| n.node.state == NodeState::Active);
        for (mean, _) in active {
            for r in &model.resources {
                least[*r] = least[*r].min(mean[*r].unwrap_or(f64::INFINITY));
            }
        }
    }
    least
}

/// The resource whose mean share differs markedly from the least that is used of it anywhere.
pub(crate) fn asks_balance(
    model: &Model<'_>,
    mean: &PerResource<Option<f64>>,
    least: &PerResource<f64>,
) -> Option<Resource> {
    let settings = &model.input.settings;
    let differs = |r: &Resource| mean[*r].is_some_and(|share| share - least[*r] > settings.balance_difference);
    model.resources.iter().copied().find(differs).filter(|_| settings.rules.proactive_balancing)
}

/// What the rules but for balancing ask of a node that holds `shards`.
pub(crate) fn asks_without_balance(
    model: &Model<'_>,
    node: usize,
    (load, scan): (&NodeLoad, &Scan),
    shards: &[usize],
) -> Ask {
    let settings = &model.input.settings;
    let rules = settings.rules;
    let mut ask = Ask::default();
    let overloaded = model.grid.window().any(|step| scan.overload[step] > 0.0);
    if overloaded && (rules.threshold || rules.cost_benefit) {
        let risk = model.risk(node, load, settings.limit);
        let worst = model.resources.iter().copied().max_by(|a, b| {
            let (a, b) = (*a, *b);
            // Nodes are felt to be full a little before they are over: then the fullest resource is it.
            let peak = |r: Resource| peak_of_mean(model, node, load, r);
            let excess = risk[a].expected_excess.total_cmp(&risk[b].expected_excess);
            risk[a].probability.total_cmp(&risk[b].probability).then(excess).then(peak(a).total_cmp(&peak(b)))
        });
        ask.threshold = worst.filter(|r| rules.threshold && risk[*r].probability > settings.confidence);
        ask.cost_benefit = worst.filter(|_| rules.cost_benefit);
    }
    if rules.reactive {
        ask.reactive = model.resources.iter().copied().find(|r| {
            current_share(model, node, *r, shards) > settings.high_utilisation_threshold
                && peak_of_mean(model, node, load, *r) > settings.overload_threshold
        });
    }
    ask
}

/// Share of the load last observed, with the given shards on the node.
pub(crate) fn current_share(model: &Model<'_>, node: usize, resource: Resource, shards: &[usize]) -> f64 {
    let Some(capacity) = model.capacity(node, resource) else { return 0.0 };
    let known = shards.iter().filter_map(|shard| model.shards[*shard].facts);
    let sum: f64 = known.map(|f| f.current[resource]).sum();
    (sum + model.nodes[node].residual_current[resource]) / capacity
}

/// Highest mean share over the scenarios at any step of the window.
pub(crate) fn peak_of_mean(model: &Model<'_>, node: usize, load: &NodeLoad, resource: Resource) -> f64 {
    let Some(capacity) = model.capacity(node, resource) else { return 0.0 };
    let rows = load.0[resource].values().chunks_exact(model.grid.scenarios).skip(model.grid.first);
    let means = rows.map(|row| row.iter().map(|v| f64::from(*v)).sum::<f64>());
    means.fold(0.0, f64::max) / (capacity * model.grid.scenarios as f64)
}

/// How large each shard is: its mean share of the largest node, of the resource that it needs most of.
pub(crate) fn weights(model: &Model<'_>) -> Vec<f64> {
    let largest = |r: Resource| (0..model.nodes.len()).filter_map(|n| model.capacity(n, r)).fold(0.0, f64::max);
    let largest = PerResource::from_fn(largest);
    let share = |shard: usize, r: &Resource| {
        let lane = model.shards[shard].lanes[*r].as_deref()?;
        // One scenario says enough of how large a shard is.
        let path = lane.iter().step_by(model.grid.scenarios);
        let mean = path.map(|v| f64::from(*v)).sum::<f64>() / model.grid.steps.max(1) as f64;
        (largest[*r] > 0.0).then(|| mean / largest[*r])
    };
    let weight = |shard| model.resources.iter().filter_map(|r| share(shard, r)).fold(0.0, f64::max);
    (0..model.shards.len()).map(weight).collect()
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
